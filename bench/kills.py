"""Does every map lie in the store once and in the manifest once, although lanes, runs and the store are killed?

One process stores maps of 14x14. Then two lanes store them under another prefix. At random moments, a lane is killed
three times, the run three times, and the store once. A killed run is started again with the same command. Then
``bench.check`` compares the maps, the manifests and the objects, and the command ends with 1 if anything differs. It
measures nothing.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.format import open_memmap

from bench.measure import BUCKET, family, parser
from bench.servers import RESTARTABLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike, NDArray

    from bench.servers import Server

_SHAPE = (14, 14)
_STACKS, _FILE_SHARE, _BLOCK = 3, 100, 10_000
"""One map in 100 is a file of its own; the others are in three stacks."""
_DISTURBANCES = ("lane", "run") * 3 + ("store",)
EARLIEST, LATEST = 0.02, 0.6
"""The shares of all maps between which the disturbances happen."""
LONGEST_WAIT_S = 0.2
"""The longest wait after the rows of a moment are there, because they are committed in groups."""
POLL_S = 0.02
_LANES = 2
QUICK_COUNT, QUICK_RATE = 3_000, 500.0
"""A small job, and PUTs a second that leave time for the kills."""
_END_S = 60
_LANE = b"async_maps.lanes.child"


class KilledJob:
    """Maps, a store, a run in one process, and a run with lanes that is killed.

    Args:
        place: an existing empty folder.
        store: the store of all objects.
        count: the number of maps.
        chance: the source of randomness.
        rate: the PUTs a second of the run that is killed; None for no limit.

    Attributes:
        disturbed: how the job is run and what is killed.
    """

    disturbed = f"with {_LANES} lanes and {len(_DISTURBANCES)} kills"

    def __init__(
        self, place: Path, store: Server, count: int, chance: random.Random, rate: float | None = None
    ) -> None:
        self._place = place
        self._store = store
        self._count = count
        self._chance = chance
        self._rate = [] if rate is None else ["--rate", str(rate)]
        self._lanes: set[tuple[int, str]] = set()
        self._source = place / "maps"
        self._output = place / "output.txt"
        self._write_maps()

    def run(self) -> float:
        """Run the job in one process, undisturbed, and return its seconds."""
        began = time.monotonic()
        process = self._start("single", 1)
        try:
            self._end(process)
        finally:
            kill(process)
        return time.monotonic() - began

    def run_killed(self) -> float:
        """Run the job with lanes, disturb it at random moments until it is complete, and return its seconds.

        Raises:
            RuntimeError: a run ended early or wrongly, or a lane was left behind.
        """
        began = time.monotonic()
        moments = sorted(self._chance.uniform(EARLIEST, LATEST) * self._count for _ in _DISTURBANCES)
        process = self._start("lanes", _LANES)
        try:
            for moment, disturbance in zip(moments, self._chance.sample(_DISTURBANCES, len(moments)), strict=True):
                self._wait_for(moment, process)
                print(f"after {self._rows():,} rows, the {disturbance} is killed", flush=True)
                if disturbance == "lane":
                    self._kill_lane(process)
                elif disturbance == "store":
                    self._store.restart()
                else:
                    self._lanes |= set(_lanes(process.pid))
                    kill(process)
                    process = self._start("lanes", _LANES)
            self._end(process)
        finally:
            kill(process)
        self._wait_for_lanes()
        return time.monotonic() - began

    def check(self) -> tuple[int, str]:
        """Compare everything, and return the exit code and the output of ``bench.check``."""
        return self._compared("bench.check", self._manifest("lanes"), f"s3://{BUCKET}/lanes")

    def _compared(self, module: str, rows: object, destination: str) -> tuple[int, str]:
        command = [
            *("-m", module, rows, self._source, destination),
            *("--single", self._manifest("single"), f"s3://{BUCKET}/single", *self._store.check_options()),
        ]
        done = subprocess.run(
            [sys.executable, *map(str, command)], env=self._environment(), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout

    def _write_maps(self) -> None:
        write_maps(self._source, self._count, self._count // _FILE_SHARE, _STACKS, np.uint8)

    def _start(self, prefix: str, processes: int) -> subprocess.Popen[bytes]:
        rate = self._rate if processes > 1 else []
        command = [
            *("-m", "async_maps", "run", self._source, f"s3://{BUCKET}/{prefix}", "--progress", "none"),
            *("--manifest", self._manifest(prefix), "--processes", processes, *rate),
        ]
        return self._launch(*command)

    def _launch(self, *command: object) -> subprocess.Popen[bytes]:
        # Not a pipe: the lanes of a killed run would keep it open.
        with self._output.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, *map(str, command)], stdout=output, stderr=output, env=self._environment()
            )

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.wait() != 0:
            raise self._error(f"expected exit code 0, found {process.returncode}")

    def _wait_for(self, moment: float, process: subprocess.Popen[bytes]) -> None:
        while self._rows() < moment:
            if process.poll() is not None:
                raise self._error(f"the run ended with {process.returncode} after {self._rows():,} rows")
            time.sleep(POLL_S)
        time.sleep(self._chance.uniform(0, LONGEST_WAIT_S))

    def _kill_lane(self, process: subprocess.Popen[bytes]) -> None:
        while not (lanes := _lanes(process.pid)):
            if process.poll() is not None:
                raise self._error(f"the run ended with {process.returncode}, and no lane was left to be killed")
            time.sleep(POLL_S)
        pid, _ = self._chance.choice(lanes)
        os.kill(pid, signal.SIGKILL)

    def _wait_for_lanes(self) -> None:
        """Wait until the lanes of killed runs have ended."""
        deadline = time.monotonic() + _END_S
        while left := [pid for pid, began in self._lanes if _began(pid) == began]:
            if time.monotonic() > deadline:
                raise self._error(f"after {_END_S} s, the lanes {left} of a killed run are still there")
            time.sleep(POLL_S)

    def _rows(self) -> int:
        """Return the number of rows, which is the number of the last one: a count would read all of them."""
        try:
            with closing(sqlite3.connect(f"{self._manifest('lanes').as_uri()}?mode=ro", uri=True)) as database:
                (found,) = database.execute("SELECT ifnull(max(rowid), 0) FROM maps").fetchone()
        except sqlite3.OperationalError:  # there is no manifest yet, or no table
            return 0
        return int(found)

    def _manifest(self, prefix: str) -> Path:
        return self._place / f"{prefix}.sqlite"

    def _environment(self) -> dict[str, str]:
        # Without the user's AWS account.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        nowhere = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
        return {**kept, **nowhere, **self._store.environment()}

    def _error(self, what: str) -> RuntimeError:
        return RuntimeError(f"{what}; the runs have printed:\n{self._output.read_text()[-2000:]}")


def write_maps(folder: Path, count: int, files: int, stacks: int, dtype: DTypeLike) -> None:
    """Write maps of noise as ``.npy`` files: some of one map, the others in stacks."""
    (folder / "files").mkdir(parents=True)
    for number in range(files):
        np.save(folder / "files" / f"{number:06}.npy", noise(number, 1)[0])
    sizes = [(count - files + number) // stacks for number in range(stacks)]
    for number, size in enumerate(filter(None, sizes)):
        stack = open_memmap(folder / f"stack-{number}.npy", mode="w+", dtype=dtype, shape=(size, *_SHAPE))
        for first in range(0, size, _BLOCK):
            block = stack[first : first + _BLOCK]
            values = noise(count + number * size + first, len(block))
            block[:] = values if dtype == np.uint8 else values / 255


def noise(seed: int, count: int) -> NDArray[np.uint8]:
    """Return maps of noise."""
    return np.random.default_rng(seed).integers(0, 256, (count, *_SHAPE), np.uint8)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and wait for its end."""
    process.kill()
    process.wait()


def _lanes(pid: int) -> list[tuple[int, str]]:
    """Return the lanes of a run: pid and start."""
    found = {}
    for child in family(pid)[1:]:
        with suppress(OSError):  # it has just ended
            if _LANE in Path(f"/proc/{child}/cmdline").read_bytes():
                found[child] = _began(child)
    return [(child, began) for child, began in sorted(found.items()) if began]


def _began(pid: int) -> str | None:
    """Return the start of a process, in ticks of the clock; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def main(arguments: Sequence[str]) -> None:
    """Run ``python -m bench kills``."""
    options = parser("kills", __doc__)
    options.add_argument("--maps", type=int, help="the number of maps (100,000)")
    options.add_argument("--store", choices=[*RESTARTABLE], default="sink", help="the store (sink)")
    options.add_argument("--plan", action="store_true", help="share the job out in parts, and kill planner and shares")
    options.add_argument("--seed", type=int, default=1, help="the seed of all that is random (1)")
    given = options.parse_args(arguments)
    count = given.maps or (QUICK_COUNT if given.quick else 100_000)
    rate = QUICK_RATE if given.quick else None
    with tempfile.TemporaryDirectory(prefix="async-maps-kills-") as folder:
        if compare(Path(folder), given.store, count, given.seed, rate, plan=given.plan):
            sys.exit(1)


def compare(place: Path, store: str, count: int, seed: int, rate: float | None, *, plan: bool = False) -> int:  # noqa: PLR0913  # options
    """Run a job, run it with lanes or in parts and with kills, and print what differs.

    Args:
        place: an existing empty folder.
        store: a key of ``RESTARTABLE``.
        count: the number of maps.
        seed: the seed of all that is random.
        rate: the PUTs a second of the run that is killed, or of all shares; None for no limit.
        plan: whether the job is shared out in parts.

    Returns:
        The exit code of ``bench.check``.
    """
    from bench.killed_plan import KilledPlan

    with closing(RESTARTABLE[store](place / store)) as running:
        job = (KilledPlan if plan else KilledJob)(place, running, count, random.Random(seed), rate)
        single_s, killed_s = job.run(), job.run_killed()
        code, output = job.check()
    print(output, end="")
    print(
        f"{count:,} maps, {store}, seed {seed}: {single_s:.0f} s ({count / single_s:,.0f} maps/s) in one process, "
        f"{killed_s:.0f} s ({count / killed_s:,.0f} maps/s) {job.disturbed}"
    )
    return code
