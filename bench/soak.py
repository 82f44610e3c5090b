"""Does every map lie in the store and in the manifest, although runs are killed and stores are restarted?

Each round changes a tree of maps at random: files are added, changed, broken, repaired and deleted, and become stacks
and maps again. Then ``async-maps run --prune objects`` runs, and one thing happens to it: it is killed, or stopped with
SIGTERM, or its store is restarted. ``verify`` and ``status`` run beside it. The same command runs again until it ends
by itself. Then the tree, the manifest and the bucket are compared without async_maps' own reading: files with NumPy,
the manifest with SQL, objects with botocore and Pillow. The command ends with 1 at the first difference.

It takes minutes or days (``--minutes``), and measures nothing.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import botocore.session
import numpy as np
from PIL import Image

import async_maps as am
from async_maps.demo import seaweed
from bench.measure import BUCKET, parser
from bench.servers import SeaweedFS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

_PREFIX = "soak"
_LONGEST_S = 300
"""The seconds after which a command counts as hanging."""
_ATTEMPTS = 5
"""The runs after which a round must be complete."""
_BROKEN = b"\x93NUMPY\x01\x00 not the header of an array"


class Tree:
    """The folder of maps, which changes at random.

    Args:
        folder: an existing empty folder.
        chance: the source of randomness.
    """

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder = folder
        self._chance = chance
        self._numbers = itertools.count()

    def edit(self, count: int) -> None:
        """Make a number of edits, each to one file."""
        for _ in range(count):
            files = self._files()
            edit = self._chance.choice([self._add, self._add, self._change, self._break, self._delete, self._rename])
            edit(self._chance.choice(files) if files else self.folder / "first.npy")

    def expected(self) -> dict[str, NDArray[Any] | None]:
        """Return the array of each map by its name; None for a file that cannot be read."""
        maps: dict[str, NDArray[Any] | None] = {}
        for file in self._files():
            name = file.relative_to(self.folder).with_suffix("").as_posix()
            content = file.read_bytes()
            if content == _BROKEN:
                maps[name] = None
                continue
            loaded = np.load(io.BytesIO(content))
            members = {"": loaded} if file.suffix == ".npy" else {f"/{key}": loaded[key] for key in loaded.files}
            if len(members) == 1:
                members = {"": next(iter(members.values()))}
            for member, array in members.items():
                if array.ndim == 2 or len(array) == 1:
                    maps[name + member] = array.reshape(array.shape[-2:])
                else:
                    maps.update((f"{name}{member}/{index:06}", plane) for index, plane in enumerate(array))
        return maps

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def _content(self, suffix: str) -> bytes:
        rng = np.random.default_rng(next(self._numbers))
        shapes = [(9, 7), (1, 9, 7), (3, 9, 7), (14, 14), (40, 30)]
        buffer = io.BytesIO()
        if suffix == ".npy":
            np.save(buffer, rng.random(self._chance.choice(shapes), np.float32))
        else:
            keys = self._chance.sample("abcd", self._chance.randint(1, 3))
            arrays: dict[str, Any] = {key: rng.random(self._chance.choice(shapes)) for key in keys}
            np.savez(buffer, **arrays)
        return buffer.getvalue()

    def _write(self, file: Path, content: bytes) -> None:
        """Replace a file as scripts should, so that a run that reads it sees either."""
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}")
        temporary.write_bytes(content)
        temporary.replace(file)

    def _add(self, _: Path) -> None:
        number = next(self._numbers)
        suffix = self._chance.choice([".npy", ".npy", ".npz"])
        self._write(self.folder / f"{number % 7}" / f"map {number}{suffix}", self._content(suffix))

    def _change(self, file: Path) -> None:
        self._write(file, self._content(file.suffix))

    def _break(self, file: Path) -> None:
        self._write(file, _BROKEN)

    def _delete(self, file: Path) -> None:
        file.unlink(missing_ok=True)

    def _rename(self, file: Path) -> None:
        if file.exists():
            file.rename(file.with_stem(f"{file.stem[:20]}~{next(self._numbers)}"))


class Store(SeaweedFS):
    """The S3 server, which can be restarted at the same address."""

    def objects(self) -> dict[str, bytes]:
        """Return the content of each object by its key."""
        server = self.server
        client: Any = botocore.session.Session().create_client(
            "s3", "us-east-1", endpoint_url=server.endpoint_url, aws_access_key_id=server.access_key,
            aws_secret_access_key=server.secret_key,
        )  # fmt: skip
        with closing(client):
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
            keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
            return {key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}


class Soak:
    """The command under test, and the comparison.

    Args:
        place: an existing empty folder.
        chance: the source of randomness.
    """

    def __init__(self, place: Path, chance: random.Random) -> None:
        (place / "maps").mkdir()
        self.tree = Tree(place / "maps", chance)
        self.store = Store(place / "store")
        self.manifest = place / "manifest.sqlite"
        self._chance = chance
        self._run = (
            "run", str(self.tree.folder), f"s3://{BUCKET}/{_PREFIX}", "--manifest", str(self.manifest),
            "--prune", "objects", "--prune-all", "--progress", "none", "--workers", "2",
        )  # fmt: skip

    def round(self) -> tuple[str, list[str]]:
        """Change the tree, and run the command with a disturbance until it ends by itself.

        Returns:
            The disturbance, and the differences that were found.
        """
        self.tree.edit(self._chance.choice([1, 5, 40, 200]) if self.manifest.exists() else 300)
        disturbance = self._chance.choice([self._nothing, self._kill, self._stop, self._restart])
        wrong = self._disturbed(disturbance)
        for _ in range(_ATTEMPTS):
            code, output = self._command(*self._run)
            if code in {0, 1}:
                break
        maps = self.tree.expected()
        if code != any(array is None for array in maps.values()):
            wrong.append(f"run ended with {code}: {output}")
        return disturbance.__name__.strip("_"), [*wrong, *self._compared(maps), *self._verified()]

    def _disturbed(self, disturb: Callable[[subprocess.Popen[str]], None]) -> list[str]:
        """Run the command, with ``verify`` and ``status`` beside it, and disturb it."""
        with self._started(*self._run) as process:
            time.sleep(self._chance.uniform(0.2, 3))
            wrong = [*self._watched()]
            disturb(process)
            wrong += self._watched()
            try:
                process.communicate(timeout=_LONGEST_S)
            except subprocess.TimeoutExpired:
                wrong.append(f"run did not end within {_LONGEST_S} s")
                self._kill(process)
                process.communicate()
        return wrong

    def _watched(self) -> Iterator[str]:
        """Yield what ``verify`` and ``status`` say wrongly beside a run."""
        if not self.manifest.exists():
            return
        code, output = self._command("status", str(self.manifest), "--json")
        try:
            json.loads(output.splitlines()[0])
        except (ValueError, IndexError):
            yield f"status beside a run ended with {code}: {output}"
        code, output = self._command("verify", str(self.manifest))
        maps = self.tree.expected()
        for name in re.findall(rf"foreign: s3://{BUCKET}/{_PREFIX}/(.*)\.png", output):
            if maps.get(name) is not None:
                yield f"verify beside a run calls the overlay of a map foreign: {output}"
        # A manifest without a done map is wrong use.
        if code not in {0, 1, 2} or "Traceback" in output:
            yield f"verify beside a run ended with {code}: {output}"

    def _nothing(self, process: subprocess.Popen[str]) -> None:
        pass

    def _kill(self, process: subprocess.Popen[str]) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def _stop(self, process: subprocess.Popen[str]) -> None:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)

    def _restart(self, _: subprocess.Popen[str]) -> None:
        self.store.restart()

    def _compared(self, maps: dict[str, NDArray[Any] | None]) -> Iterator[str]:
        """Yield the differences of the tree, the manifest and the bucket."""
        objects = self.store.objects()
        with closing(sqlite3.connect(self.manifest)) as database:
            rows = {
                name: (status, locator, size, crc32)
                for name, *(status, locator, size, crc32) in database.execute(
                    "SELECT name, status, locator, bytes, crc32 FROM maps"
                )
            }
        for name in sorted(maps.keys() | rows.keys()):
            status, locator, size, _ = rows.get(name, ("missing", None, None, None))
            array, key = maps.get(name), f"{_PREFIX}/{name}.png"
            should = "done" if array is not None else "failed" if name in maps else "missing"
            if status != should:
                yield f"{name}: the manifest says {status}, but it should be {should}"
            elif array is not None:
                data = objects.pop(key, None)
                if data is None or locator != f"s3://{BUCKET}/{key}" or size != len(data):
                    yield f"{name}: {locator} with {size} bytes is in the manifest, {data and len(data)} in the bucket"
                elif not np.array_equal(_decoded(data), am.colorize_activation_map(array)):
                    yield f"{name}: the pixels of its overlay are others"
        # A map that was done and cannot be read anymore keeps its last overlay, until someone deletes it.
        failed = {f"{_PREFIX}/{name}.png" for name, array in maps.items() if array is None}
        yield from (f"{key} is in the bucket, but in no row" for key in objects.keys() - failed)

    def _verified(self) -> Iterator[str]:
        with closing(sqlite3.connect(self.manifest)) as database:
            (done,) = database.execute("SELECT count(*) FROM maps WHERE status = 'done'").fetchone()
        for flags in (("--repair", "--delete-foreign"), ("--deep",)):
            code, output = self._command("verify", str(self.manifest), *flags)
            if code != 0 and done:
                yield f"verify {' '.join(flags)} ended with {code}: {output}"

    def _started(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "async_maps", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def _command(self, *arguments: str) -> tuple[int | str, str]:
        with self._started(*arguments) as process:
            try:
                output, _ = process.communicate(timeout=_LONGEST_S)
            except subprocess.TimeoutExpired:
                self._kill(process)
                return "a time-out", process.communicate()[0]
            return process.returncode, output


def _decoded(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGBA"))


def main(arguments: Sequence[str]) -> None:
    """Run ``python -m bench soak``."""
    options = parser("soak", __doc__)
    options.add_argument("--minutes", type=float, help="begin no further round after this time (30)")
    options.add_argument("--seed", type=int, default=1, help="the seed of all that is random (1)")
    given = options.parse_args(arguments)
    minutes = given.minutes if given.minutes is not None else 0.3 if given.quick else 30.0
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="async-maps-soak-") as folder, ExitStack() as stack:
        soak = Soak(Path(folder), random.Random(given.seed))
        stack.callback(soak.store.close)
        stack.enter_context(seaweed.in_environment(soak.store.server))
        for number in itertools.count(1):
            disturbance, wrong = soak.round()
            maps = soak.tree.expected()
            broken = sum(array is None for array in maps.values())
            print(
                f"round {number}: {disturbance}, {len(maps):,} maps, {broken:,} of them broken, "
                f"{len(wrong)} differences",
                flush=True,
            )
            if wrong:
                sys.exit("\n".join(wrong[:20]))
            if time.monotonic() - began > 60 * minutes:
                break
    print(f"{number:,} rounds in {(time.monotonic() - began) / 60:.1f} minutes, seed {given.seed}: 0 differences")
