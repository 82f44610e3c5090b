"""Maps in S3 through the whole pipeline: reading ahead is bounded, known maps are skipped, bad ones fail alone."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING

import numpy as np
import pytest
from anyio import CapacityLimiter

import async_maps as am
from async_maps.filesystems.filesystem import Filesystems
from async_maps.progress import reporting
from async_maps.stages.control import Control
from async_maps.stages.fetch import ReadControl
from async_maps.stages.judge import Case, Judge
from tests.support.commands import invoke
from tests.support.leftovers import leaves_nothing
from tests.support.maps import decode, npy, npz, random_map
from tests.support.s3 import delete, objects, upload
from tests.support.s3_proxy import Proxy, counting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from async_maps.demo import seaweed

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

THREADS = am.Settings(workers=0)


@pytest.fixture
def proxy(s3: seaweed.S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with counting(s3, monkeypatch) as proxy:
        yield proxy


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_maps_go_from_s3_to_s3(bucket: str, workers: int) -> None:
    made = {f"val/{i}": random_map(i, (20 + i, 30)) for i in range(40)}
    stack = np.random.default_rng(0).random((5, 16, 16), np.float32)
    upload(bucket, {f"maps/{name}.npy": npy(array) for name, array in made.items()})
    upload(bucket, {"maps/stack.npy": npy(stack), "maps/two.npz": npz(x=stack[0], y=stack[1])})
    made |= {f"stack/{i:06}": plane for i, plane in enumerate(stack)} | {"two/x": stack[0], "two/y": stack[1]}

    report = am.run(f"s3://{bucket}/maps/", f"s3://{bucket}/overlays", settings=am.Settings(workers=workers))

    assert (report.uploaded, report.failed) == (len(made), 0)
    assert report.statistics is not None
    assert report.statistics.fetch.maps == len(made)
    stored = asyncio.run(objects(bucket))
    for name, array in made.items():
        expected = am.colorize_activation_map(array)
        assert np.array_equal(decode(stored[f"overlays/{name}.png"][0]), expected), name


def test_unchanged_objects_are_skipped_without_a_request(bucket: str, proxy: Proxy, tmp_path: Path) -> None:
    upload(bucket, {f"{i}.npy": npy(random_map(i)) for i in range(30)})
    upload(bucket, {"bad.npy": b"no array"})

    def run() -> am.Report:
        return am.run(f"s3://{bucket}/", tmp_path / "out", settings=THREADS, manifest=tmp_path / "m.sqlite")

    first = run()
    assert (first.uploaded, first.failed, first.skipped) == (30, 1, 0)
    before = len(proxy.gets())
    # A bad map is read again, for its reason.
    assert before == 32
    assert not [asked for asked in proxy.asked if asked.method == "HEAD"]
    upload(bucket, {"7.npy": npy(random_map(77))})
    second = run()
    assert (second.uploaded, second.failed, second.skipped) == (1, 1, 29)
    assert {asked.path for asked in proxy.gets()[before:]} == {f"/{bucket}/7.npy", f"/{bucket}/bad.npy"}
    delete(bucket, "bad.npy")
    before = len(proxy.gets())
    third = run()
    assert (third.uploaded, third.failed, third.skipped) == (0, 0, 30)
    assert len(proxy.gets()) == before


@pytest.mark.slow
def test_a_dry_run_does_not_read_known_objects(bucket: str, proxy: Proxy, tmp_path: Path) -> None:
    upload(bucket, {f"{i}.npy": npy(random_map(i)) for i in range(5)})
    place, manifest = f"s3://{bucket}/", tmp_path / "m.sqlite"
    am.run(place, tmp_path / "out", settings=THREADS, manifest=manifest)
    before = len(proxy.gets())
    report = asyncio.run(am.adry_run(place, tmp_path / "out", settings=THREADS, manifest=manifest))
    assert (report.planned, report.skipped) == (0, 5)
    assert len(proxy.gets()) == before


def test_bad_objects_among_many_fail_alone(bucket: str, tmp_path: Path) -> None:
    upload(bucket, {f"{i}.npy": npy(random_map(i)) for i in range(50)})
    bad = {
        "nan": (npy(np.full((4, 4), np.nan, np.float32)), "colorize", "found NaN"),
        "ints": (npy(np.ones((4, 4), np.int64)), "colorize", "found int64"),
        "text": (b"no array at all", "read", "expected an .npy file"),
        "short": (npy(random_map(0))[:-1], "read", "truncated"),
        "liar": (npy(random_map(0)).replace(b"(20, 30)", b"(9**9,1)"), "read", "expected an .npy file"),
        "giant": (
            npy(random_map(0)).replace(b"(20, 30), }" + b" " * 6, b"(99999, 99999), }"),
            "read",
            "promises 39,999,200,004",
        ),
    }
    upload(bucket, {f"{name}.npy": data for name, (data, _, _) in bad.items()})
    report = am.run(f"s3://{bucket}/", tmp_path, settings=THREADS)
    assert (report.uploaded, report.failed) == (50, len(bad))
    for failure in report.failures:
        _, stage, reason = bad[failure.name]
        assert failure.stage == stage
        assert reason in failure.reason
        assert failure.source == f"s3://{bucket}/{failure.name}.npy"


@pytest.mark.slow
def test_an_object_deleted_between_listing_and_reading_fails_alone(bucket: str, proxy: Proxy, tmp_path: Path) -> None:
    upload(bucket, {f"{i}.npy": npy(random_map(i)) for i in range(10)})
    from async_maps.sources import open_source

    listed = list(open_source(f"s3://{bucket}/"))
    delete(bucket, "4.npy")
    report = am.run(listed, tmp_path, settings=THREADS)
    assert (report.uploaded, report.failed) == (9, 1)
    assert (report.failures[0].name, report.failures[0].stage) == ("4", "read")
    assert "does not exist" in report.failures[0].reason


def test_concurrent_reads_are_bounded_by_prefetch(bucket: str, proxy: Proxy, tmp_path: Path) -> None:
    from async_maps.sources import open_source

    upload(bucket, {f"{i:03}.npy": npy(random_map(i)) for i in range(60)})
    listed = list(open_source(f"s3://{bucket}/"))
    proxy.most_concurrent = 0
    proxy.gate.clear()
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(am.run, listed, tmp_path, settings=am.Settings(workers=0, prefetch=4))
        while proxy.under_way < 4:
            time.sleep(0.005)
        time.sleep(0.2)  # time for a fifth to arrive
        proxy.gate.set()
        assert running.result().uploaded == 60
    assert proxy.most_concurrent == 4


@pytest.mark.slow
def test_concurrent_reads_grow_if_the_store_answers_late(bucket: str, proxy: Proxy, tmp_path: Path) -> None:
    upload(bucket, {f"{i:03}.npy": npy(random_map(i)) for i in range(200)})
    proxy.most_concurrent, proxy.delay_s = 0, 0.3
    assert am.run(f"s3://{bucket}", tmp_path, settings=am.Settings(workers=0)).uploaded == 200
    assert 16 < proxy.most_concurrent <= 256


@pytest.mark.slow
async def test_bytes_read_ahead_are_bounded_by_queue_bytes(bucket: str, proxy: Proxy, tmp_path: Path) -> None:
    from async_maps.sources import open_source

    arrays = {f"{i:03}.npy": npy(random_map(i, (100, 100))) for i in range(12)}
    await asyncio.to_thread(upload, bucket, arrays | {"large.npy": npy(random_map(0, (400, 400)))})
    listed = await asyncio.to_thread(lambda: list(open_source(f"s3://{bucket}/")))
    proxy.most_concurrent, proxy.delay_s = 0, 0.05
    settings = am.Settings(workers=0, queue_bytes=2 * 40_000)
    async with am.Pipeline(tmp_path, settings=settings) as pipeline:
        report = await pipeline.run(listed)
    # A map larger than the whole budget passes too.
    assert report.uploaded == 13
    assert proxy.most_concurrent <= 2
    assert pipeline.statistics().colorize.queue == 0


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.slow
async def test_a_run_cancelled_while_it_reads_leaves_nothing(
    bucket: str, proxy: Proxy, tmp_path: Path, workers: int
) -> None:
    from async_maps.sources import open_source

    await asyncio.to_thread(upload, bucket, {f"{i:03}.npy": npy(random_map(i)) for i in range(60)})
    listed = await asyncio.to_thread(lambda: list(open_source(f"s3://{bucket}/")))
    patience = am.S3Settings(read_timeout_s=120)
    for soon in (True, False):
        proxy.gate.set()
        running = threading.active_count()

        async def work() -> None:
            settings = am.Settings(workers=workers, prefetch=8, s3=patience)
            async with am.Pipeline(tmp_path / "out", settings=settings) as pipeline:
                await pipeline.run(listed)

        proxy.gate.clear()
        working = asyncio.create_task(work())
        async with asyncio.timeout(60):
            while proxy.under_way < (1 if soon else 8):
                assert not working.done()
                await asyncio.sleep(0.005)
        working.cancel()
        # No answer comes, and the run does not wait for one.
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(working, 60)
        assert threading.active_count() <= running + 20
    proxy.gate.set()


async def test_a_stream_left_early_leaves_nothing(bucket: str, tmp_path: Path) -> None:
    await asyncio.to_thread(upload, bucket, {f"{i:03}.npy": npy(random_map(i)) for i in range(60)})
    async with am.Pipeline(tmp_path, settings=THREADS) as pipeline:
        async with aclosing(pipeline.stream(f"s3://{bucket}/")) as outcomes:
            async for outcome in outcomes:
                assert isinstance(outcome, am.Receipt)
                break
        assert (await pipeline.put("after", random_map(0))).name == "after"


@pytest.mark.slow
async def test_a_run_cancelled_while_it_lists_leaves_nothing(bucket: str, proxy: Proxy, tmp_path: Path) -> None:
    await asyncio.to_thread(upload, bucket, {f"{i:03}.npy": npy(random_map(i)) for i in range(60)})
    proxy.gate.clear()
    settings = am.Settings(workers=0, s3=am.S3Settings(read_timeout_s=1.0, max_attempts=1))
    async with am.Pipeline(tmp_path, settings=settings) as pipeline:
        running = asyncio.create_task(pipeline.run(f"s3://{bucket}/"))
        async with asyncio.timeout(60):
            while not proxy.under_way:  # noqa: ASYNC110  # threads of the proxy
                await asyncio.sleep(0.005)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        proxy.gate.set()
        assert (await pipeline.put("after", random_map(0))).name == "after"


@pytest.mark.slow
async def test_a_source_in_s3_is_counted_without_reading_it(
    bucket: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("async_maps.progress._COUNT_AFTER_S", 0)
    await asyncio.to_thread(upload, bucket, {f"maps/{i}.npy": npy(random_map(i)) for i in range(7)})
    await asyncio.to_thread(upload, bucket, {"archives/a.npz": npz(x=random_map(0), y=random_map(1))})
    totals = []

    def show(progress: am.Progress) -> None:
        totals.append(progress.total)

    async with am.Pipeline(tmp_path, settings=THREADS) as pipeline:
        async with reporting(show, am.Report(), f"s3://{bucket}/maps/", pipeline.statistics), asyncio.timeout(60):
            while totals[-1:] != [7]:  # noqa: ASYNC110  # shown by another task
                await asyncio.sleep(0.01)
        async with reporting(show, am.Report(), f"s3://{bucket}/archives/", pipeline.statistics):
            await asyncio.sleep(1)
            assert totals[-1] is None
    assert not proxy.gets()


@pytest.mark.slow
def test_the_command_reads_from_s3_and_names_its_errors(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    upload(bucket, {"maps/a.npy": npy(random_map(0)), "notes.txt": b""})
    assert invoke("run", f"s3://{bucket}/maps/", "out", "--progress", "none", "--workers", "0") == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    for place, reason in (
        ("s3://no-such-bucket/maps", "the bucket does not exist"),
        (f"s3://{bucket}/none/", "contains no activation maps"),
        (f"s3://{bucket}/notes.txt", "contains no activation maps"),
    ):
        capsys.readouterr()
        assert invoke("run", place, "out", "--progress", "none", "--workers", "0") == 2
        assert reason in capsys.readouterr().err


async def test_a_control_of_a_folder_or_a_deleted_object_is_not_used(bucket: str) -> None:
    judge = Judge(max_attempts=3, give_up_s=60.0)

    async def nothing(*_: object) -> None:
        pass

    uploads = Control(judge, nothing, nothing)
    with Filesystems() as filesystems:
        control = ReadControl(judge, filesystems, CapacityLimiter(1), uploads)
        control.keep(f"s3://{bucket}/maps.zarr", b"")
        case = Case(ended_at=1.0)
        assert await control.ask(case) is False
