"""Killing the process or its workers at any moment loses no map, leaves no partial object and no leftovers."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import aioboto3
import numpy as np
import pytest
from anyio import CapacityLimiter, create_memory_object_stream, create_task_group

import async_maps as am
from async_maps.manifest.manifest import Manifest
from async_maps.render.colormap import ColormapJet, color_table
from async_maps.render.ranges import UNIT
from async_maps.sources.activation_map import ActivationMap
from async_maps.stages.colorize import ColorizeStage
from async_maps.stages.items import Bitmap, Job
from async_maps.stages.meters import Meter
from async_maps.stores.memory import MemoryStore
from async_maps.workers.arena import Arena
from async_maps.workers.pool import ProcessWorker
from async_maps.workers.worker import Recipe
from tests.support.leftovers import leaves_nothing
from tests.support.maps import decode, random_map
from tests.support.pipelines import until, use_store, worker_pids
from tests.support.processes import hook, kill_at_opening
from tests.support.s3_proxy import Proxy, counting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from async_maps.demo.seaweed import S3Server

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)


# The whole process


@pytest.fixture
def proxy(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with counting(s3, monkeypatch) as proxy:
        yield proxy


CHAIN = 5
"""The number of kills of one job, before a run without a kill."""


class KilledJob:
    """A job of the command that is killed and run again: a folder of maps, a prefix of a bucket, a manifest."""

    def __init__(self, maps: Path, bucket: str, folder: Path, proxy: Proxy, *options: object) -> None:
        folder.mkdir()
        self._proxy = proxy
        self._temporary = folder / "tmp"
        self._temporary.mkdir()
        self.manifest = folder / "m.sqlite"
        self._prefix = folder.name
        self._bucket = bucket
        self._command = [
            *(sys.executable, "-m", "async_maps", "run", maps, f"s3://{bucket}/{self._prefix}"),
            *("--manifest", self.manifest, "--progress", "none", *options),
        ]

    def run(self, kill_after: float | None = None, *, kill_at_put: int = 0) -> int:
        """Run the command, kill it after ``kill_after`` seconds or at a PUT, and return its exit status."""
        puts = 0

        def count(method: str, *_: object) -> None:
            nonlocal puts
            puts += method == "PUT"
            if puts == kill_at_put:
                running.kill()

        self._proxy.refuse = count if kill_at_put else lambda *_: None
        running = subprocess.Popen(
            [str(argument) for argument in self._command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(self._temporary)},
        )
        try:
            running.wait(kill_after)
        except subprocess.TimeoutExpired:
            running.kill()
        # The workers inherit its standard error, so this waits until the last of them ends.
        _, err = running.communicate(timeout=60)
        assert err == ""
        assert os.listdir(self._temporary) == []
        return running.returncode

    def recorded(self) -> dict[str, tuple[str, int]]:
        """Return name and size by locator, from the manifest, and check that the manifest is intact."""
        if not self.manifest.exists():
            return {}
        with closing(sqlite3.connect(self.manifest)) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'maps'").fetchone():
                return {}  # killed before it wrote anything
            rows = database.execute("SELECT locator, name, bytes FROM maps WHERE status = 'done'").fetchall()
        return {locator: (name, size) for locator, name, size in rows}

    async def sizes(self) -> dict[str, int]:
        """Return the sizes of the objects in the bucket by locator."""
        async with aioboto3.Session().client("s3") as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=f"{self._prefix}/")
            entries = [entry async for page in pages for entry in page.get("Contents", [])]
        return {f"s3://{self._bucket}/{entry['Key']}": entry["Size"] for entry in entries}

    async def overlays(self) -> dict[str, NDArray[np.uint8]]:
        """Return the decoded pixels of the objects in the bucket by name."""
        found: dict[str, NDArray[np.uint8]] = {}
        limiter = CapacityLimiter(10)
        async with aioboto3.Session().client("s3") as client:

            async def fetch(key: str) -> None:
                async with limiter:
                    answer = await client.get_object(Bucket=self._bucket, Key=key)
                    found[key.removeprefix(f"{self._prefix}/").removesuffix(".png")] = decode(
                        await answer["Body"].read()
                    )

            async with create_task_group() as fetching:
                for locator in await self.sizes():
                    fetching.start_soon(fetch, locator.removeprefix(f"s3://{self._bucket}/"))
        return found


@pytest.mark.parametrize(
    "goal",
    [
        pytest.param(6, marks=pytest.mark.slow),
        pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(3_600)]),
    ],
)
def test_a_job_killed_at_any_moment_can_be_completed(
    goal: int, proxy: Proxy, bucket: str, maps: Path, tmp_path: Path
) -> None:
    expected = {}
    for i in range(300):
        array = random_map(i, (24 + i % 40, 30))
        np.save(maps / f"{i:03}.npy", array)
        expected[f"{i:03}"] = am.colorize_activation_map(array)
    # One upload at a time: at the second PUT, one object is in the bucket.
    options = (proxy, "--concurrency", 1, "--chunk-maps", 8)
    whole = KilledJob(maps, bucket, tmp_path / "whole", *options)
    began = time.monotonic()
    assert whole.run() == 0
    life = time.monotonic() - began
    assert whole.run() == 0
    # The duration of a run that skips every map.
    start = time.monotonic() - began - life

    rng = random.Random(5)  # noqa: S311  # seeded on purpose
    kills = jobs = 0
    while kills < goal:
        job = KilledJob(maps, bucket, tmp_path / f"job{jobs}", *options, "--workers", (0, 1, 2, 0)[jobs % 4])
        jobs += 1
        sizes: dict[str, int] = {}
        for _ in range(CHAIN):
            left = len(expected) - len(sizes)
            amid = kills % 2 == 0 and left > 1
            if amid:
                status = job.run(kill_at_put=rng.randint(2, left))
            else:
                # A moment after the end of the run would not be a kill.
                status = job.run(rng.uniform(0, 0.85 * (start + (life - start) * left / len(expected))))
            recorded, sizes = job.recorded(), asyncio.run(job.sizes())
            assert {locator: size for locator, (_, size) in recorded.items()}.items() <= sizes.items()
            assert not amid or (status == -signal.SIGKILL and sizes)
            kills += status == -signal.SIGKILL
            if status == 0 or kills == goal:
                break
        if status != 0:
            assert job.run() == 0
        with Manifest(job.manifest, read_only=True) as manifest:
            assert manifest.counts() == {"done": len(expected)}
        assert {name for name, _ in job.recorded().values()} == set(expected)
        overlays = asyncio.run(job.overlays())
        assert overlays.keys() == expected.keys()
        assert all(np.array_equal(overlays[name], expected[name]) for name in expected)
        assert not [path.name for path in job.manifest.parent.iterdir() if path.name not in {"tmp", "m.sqlite"}]
    seconds = time.monotonic() - began
    print(f"{kills} kills in {jobs} jobs, half amid the uploads, {seconds:.0f} s; maps lost: 0")  # noqa: T201  # README's


# Workers

MAPS_PER_KILL = 150


def slowed(monkeypatch: pytest.MonkeyPatch, seconds: float) -> MemoryStore:
    """Let the pipelines of this test use a store that takes ``seconds`` for each object."""

    class Slow(MemoryStore):
        async def put(self, key: str, data: bytes) -> str:
            await asyncio.sleep(seconds)
            return await super().put(key, data)

    store = Slow()
    use_store(monkeypatch, store)
    return store


@pytest.mark.parametrize(
    ("count", "goal"),
    [
        pytest.param(3_000, 12, marks=pytest.mark.slow),
        pytest.param(30_000, 100, marks=[pytest.mark.long, pytest.mark.timeout(1_200)]),
    ],
)
async def test_workers_killed_at_random_lose_no_map(
    count: int, goal: int, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(count):
        np.save(maps / f"{i:04}.npy", random_map(i, (12, 16)))
    store = slowed(monkeypatch, 0.01)
    rng = random.Random(7)  # noqa: S311  # seeded on purpose
    kills, due, began = 0, 0, time.monotonic()
    async with am.Pipeline("memory://", settings=am.Settings(workers=2, concurrency=6)) as pipeline:
        running = asyncio.create_task(pipeline.run(maps))
        while not running.done():
            # Maps instead of seconds, because a start that is killed six times in a row ends the run. They count from
            # the last kill: a map during which its worker is killed three times in a row fails.
            uploaded = pipeline.statistics().uploaded
            if kills < goal and uploaded >= due and (alive := sorted(worker_pids())):
                # The worker may be busy, idle or just starting.
                os.kill(rng.choice(alive), signal.SIGKILL)
                kills, due = kills + 1, uploaded + MAPS_PER_KILL
            await asyncio.wait({running}, timeout=0.02)
        report = await running
    assert kills == goal
    assert report.failed == 0, report.failures
    assert report.uploaded == len(store.objects) == count
    for i in range(count):
        expected = am.colorize_activation_map(random_map(i, (12, 16)))
        assert np.array_equal(decode(store.objects[f"{i:04}.png"]), expected)
    print(f"{kills} workers killed in {time.monotonic() - began:.0f} s; maps lost: 0")  # noqa: T201  # README's


@pytest.mark.slow
async def test_a_file_that_kills_its_reader_fails_alone(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at_opening("/150.npy", tmp_path / "hook", monkeypatch)
    for i in range(300):
        np.save(maps / f"{i:03}.npy", random_map(i))
    async with am.Pipeline(tmp_path / "out", settings=am.Settings(workers=2)) as pipeline:
        report = await pipeline.run(maps)
    assert (report.uploaded, report.failed) == (299, 1)
    failure = report.failures[0]
    assert (failure.name, failure.stage) == ("150", "colorize")
    assert failure.reason == "a worker process was killed by signal 9 (out of memory?) each time it processed this map"
    assert len(list((tmp_path / "out").glob("*.png"))) == 299


@pytest.mark.slow
async def test_workers_that_cannot_restart_end_the_run(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The kernel kills processes like this when memory runs out.
    hook(
        tmp_path / "hook",
        monkeypatch,
        "import os, signal\n"
        f"with open({str(tmp_path / 'starts')!r}, 'a') as starts:\n"
        "    starts.write('.')\n"
        f"if os.path.exists({str(tmp_path / 'no-memory')!r}):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n",
    )
    for i in range(2000):
        np.save(maps / f"{i:04}.npy", random_map(i))
    slowed(monkeypatch, 0.01)
    settings = am.Settings(workers=2, concurrency=4, queue_bytes=50_000)
    manifest = tmp_path / "m.sqlite"

    async def run(destination: Path | str) -> None:
        async with am.Pipeline(destination, settings=settings) as pipeline:
            running = asyncio.create_task(pipeline.run(maps, manifest=manifest))
            while not pipeline.statistics().uploaded:  # noqa: ASYNC110  # it is counted, not announced
                await asyncio.sleep(0.01)
            (tmp_path / "no-memory").touch()
            for worker in worker_pids():
                os.kill(worker, signal.SIGKILL)
            await running

    with pytest.raises(am.WorkerError) as caught:
        await asyncio.wait_for(run("memory://"), 100)
    assert str(caught.value) == (
        "a worker process was killed by signal 9 (out of memory?) when it was restarted, 6 times in a row; "
        "use fewer workers, which need less memory"
    )
    report = caught.value.report
    # Two workers start, and each is restarted at most six times.
    assert 2 + 6 <= len((tmp_path / "starts").read_text()) <= 2 + 2 * 6
    with Manifest(manifest, read_only=True) as opened:
        assert opened.counts() == {"done": report.uploaded}
    assert 0 < report.uploaded < 2000

    (tmp_path / "no-memory").unlink()
    async with am.Pipeline("memory://", settings=settings) as pipeline:
        rest = await pipeline.run(maps, manifest=manifest)
    assert (rest.uploaded, rest.skipped, rest.failed) == (2000 - report.uploaded, report.uploaded, 0)


async def test_a_map_is_not_blamed_if_its_worker_dies_while_it_waits() -> None:
    failures: list[object] = []
    received: list[Bitmap] = []
    jobs, jobs_out = create_memory_object_stream[Job](1)
    bitmaps, bitmaps_out = create_memory_object_stream[list[Bitmap]](1)

    async def receive() -> None:
        async with bitmaps_out:
            async for batch in bitmaps_out:
                received.extend(batch)
                for bitmap in batch:
                    bitmap.release()

    with Arena(2**16) as arena:
        worker = ProcessWorker(Recipe(color_table(ColormapJet())), arena)
        await worker.start()
        stage = ColorizeStage(arena, chunk_maps=4, chunk_bytes=2**16, channels=1, meter=Meter(1))
        all_of_it = await arena.take(arena.size)
        async with create_task_group() as tasks:
            tasks.start_soon(stage.run, worker, jobs_out, bitmaps)
            tasks.start_soon(receive)
            await jobs.send(Job(ActivationMap("a", "a", None, 0, array=random_map(1)), failures.append, UNIT))
            await until(lambda: arena._line.length == 1)
            while not received and not failures:
                # The worker dies while its map waits for a block, between two requests for the whole arena.
                after_it = asyncio.create_task(arena.take(arena.size))
                await asyncio.sleep(0)
                assert worker.pid is not None
                os.kill(worker.pid, signal.SIGKILL)
                await asyncio.sleep(0.05)
                all_of_it.release()
                all_of_it = await after_it
                # Wait until the worker runs again and the map waits again or is done.
                await until(lambda: bool(received or failures) or (worker.pid is not None and arena._line.length == 1))
            all_of_it.release()
            jobs.close()
        await worker.stop()
    assert failures == []
    assert [bitmap.job.map.name for bitmap in received] == ["a"]


@pytest.mark.parametrize("heard", [b"", b"\0\0", b"\0\0\1\0{"], ids=["nothing", "half a length", "half a message"])
def test_a_worker_without_a_parent_ends_silently(heard: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            if heard:
                # The arena.
                socket.send_fds(ours, [b"\0"], [0])
                ours.sendall(heard)
        done = subprocess.run(
            [sys.executable, "-c", "from async_maps.workers.worker import main; main()"],
            stdin=theirs.fileno(), capture_output=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
