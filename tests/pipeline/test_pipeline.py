"""The pipeline as a whole: what goes in comes out, bounded, in the store and in the manifest, whatever fails."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import zipfile
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aioboto3
import numpy as np
import pytest
from anyio import create_task_group, from_thread, to_thread

import async_maps as am
from async_maps.manifest.manifest import Manifest
from async_maps.stages.items import Png
from async_maps.stores.files import FileStore
from async_maps.stores.s3 import S3Store
from async_maps.workers.pool import ProcessWorker
from tests.support.leftovers import leaves_nothing
from tests.support.maps import decode, random_map
from tests.support.pipelines import THREADS, FailingStore, SlowStore, use_store, worker_pids

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from numpy.typing import NDArray

    from async_maps.settings import PngKind
    from async_maps.workers.arena import Block
    from async_maps.workers.worker import Reply, Request

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("png", ["palette", "rgba"])
async def test_put_stores_the_map_with_the_pixels_of_colorize_activation_map(
    tmp_path: Path, workers: int, png: PngKind
) -> None:
    activation_map = random_map(1)
    async with am.Pipeline(tmp_path / "out", settings=am.Settings(workers=workers, png=png)) as pipeline:
        receipt = await pipeline.put("val/0001", activation_map)
    path = tmp_path / "out" / "val" / "0001.png"
    assert receipt.locator == path.as_uri()
    assert (receipt.name, receipt.height, receipt.width) == ("val/0001", 20, 30)
    assert receipt.size == path.stat().st_size
    assert np.array_equal(decode(path.read_bytes()), am.colorize_activation_map(activation_map))


async def test_put_into_s3_gives_the_locator_of_an_object_with_these_bytes(bucket: str) -> None:
    activation_map = random_map(2)
    async with am.Pipeline(f"s3://{bucket}/some/prefix/") as pipeline:
        receipt = await pipeline.put("a b/ü+%?#.cam", activation_map)
    assert receipt.locator == f"s3://{bucket}/some/prefix/a b/ü+%?#.cam.png"
    async with aioboto3.Session().client("s3") as client:
        answer = await client.get_object(Bucket=bucket, Key="some/prefix/a b/ü+%?#.cam.png")
        data = await answer["Body"].read()
    assert answer["ContentType"] == "image/png"
    assert receipt.etag == answer["ETag"].strip('"')
    assert np.array_equal(decode(data), am.colorize_activation_map(activation_map))


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "u1", np.longdouble])
@pytest.mark.slow
async def test_every_dtype_layout_and_shape_goes_through_the_shared_memory(tmp_path: Path, dtype: str) -> None:
    values = random_map(3, (17, 23)).astype(np.float64)
    array = (values * 255).astype("u1") if dtype == "u1" else values.astype(dtype)
    shapes = {
        "plain": array,
        "fortran": np.asfortranarray(array),
        "strided": array[::2, ::-3],
        "channel": array[..., None],
        "one": array[:1, :1],
        "row": array[:1],
    }
    async with am.Pipeline(tmp_path, settings=am.Settings(workers=1)) as pipeline:
        await asyncio.gather(*(pipeline.put(name, variant) for name, variant in shapes.items()))
    for name, variant in shapes.items():
        assert np.array_equal(decode((tmp_path / f"{name}.png").read_bytes()), am.colorize_activation_map(variant)), (
            name
        )


async def test_concurrent_puts_share_chunks_and_a_lone_one_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks: list[int] = []
    original = ProcessWorker.colorize

    async def counted(self: ProcessWorker, block: Block, free_from: int, requests: list[Request]) -> Reply:
        chunks.append(len(requests))
        return await original(self, block, free_from, requests)

    monkeypatch.setattr(ProcessWorker, "colorize", counted)
    async with am.Pipeline(tmp_path, settings=am.Settings(workers=1)) as pipeline:
        await pipeline.put("alone", random_map(0))
        assert chunks == [1]
        await asyncio.gather(*(pipeline.put(f"{i}", random_map(i)) for i in range(100)))
    assert sum(chunks) == 101
    assert len(chunks) < 20


async def test_a_bad_map_fails_its_own_caller_only(tmp_path: Path) -> None:
    bad = random_map(1)
    bad[3, 4] = np.nan
    async with am.Pipeline(tmp_path, settings=THREADS) as pipeline:
        results = await asyncio.gather(
            *(pipeline.put(f"{i}", bad if i == 5 else random_map(i)) for i in range(10)), return_exceptions=True
        )
    (error,) = [result for result in results if isinstance(result, BaseException)]
    assert isinstance(error, am.MapFailedError)
    assert (error.failure.name, error.failure.stage) == ("5", "colorize")
    assert "found NaN at index (3, 4)" in error.failure.reason
    assert sum(isinstance(result, am.Receipt) for result in results) == 9


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a//b", "a/../b", "a\nb", "x/", "x" * 1021, "\udcff"])
async def test_a_name_that_makes_no_key_is_refused_before_anything_is_done(tmp_path: Path, name: str) -> None:
    async with am.Pipeline(tmp_path / "out", settings=THREADS) as pipeline:
        with pytest.raises(am.MapFailedError) as caught:
            await pipeline.put(name, random_map(1))
    assert caught.value.failure.stage == "source"
    assert not (tmp_path / "out").exists()


async def test_stream_gives_each_outcome_once(tmp_path: Path) -> None:
    def maps() -> Iterator[tuple[str, NDArray[Any]]]:
        for i in range(500):
            yield f"m{i}", np.zeros((2, 2), np.int32) if i % 50 == 7 else random_map(i)

    outcomes: dict[str, am.Outcome] = {}
    async with am.Pipeline(tmp_path, settings=am.Settings(workers=1)) as pipeline:
        async for outcome in pipeline.stream(maps()):
            assert outcome.name not in outcomes
            outcomes[outcome.name] = outcome
    assert len(outcomes) == 500
    failed = {name for name, outcome in outcomes.items() if isinstance(outcome, am.Failure)}
    assert failed == {f"m{i}" for i in range(500) if i % 50 == 7}


async def test_stream_takes_an_async_iterable(tmp_path: Path) -> None:
    async def maps() -> AsyncIterator[tuple[str, NDArray[Any]]]:
        for i in range(20):
            await asyncio.sleep(0)
            yield f"{i}", random_map(i)

    async with am.Pipeline(tmp_path, settings=THREADS) as pipeline:
        names = [outcome.name async for outcome in pipeline.stream(maps())]
    assert sorted(names, key=int) == [f"{i}" for i in range(20)]


async def test_an_error_of_the_callers_own_iterable_reaches_the_caller(tmp_path: Path) -> None:
    def maps() -> Iterator[tuple[str, NDArray[Any]]]:
        yield "first", random_map(1)
        raise LookupError("mine")

    async with am.Pipeline(tmp_path, settings=THREADS) as pipeline:
        with pytest.raises(LookupError, match="mine"):
            async for _ in pipeline.stream(maps()):
                pass
        assert (await pipeline.put("after", random_map(2))).name == "after"


async def test_a_run_over_an_iterable_that_never_answers_can_be_cancelled(tmp_path: Path) -> None:
    answer = threading.Event()

    def maps() -> Iterator[tuple[str, NDArray[Any]]]:
        yield "first", random_map(1)
        answer.wait()

    async with am.Pipeline(tmp_path, settings=THREADS) as pipeline:
        running = asyncio.create_task(pipeline.run(maps()))
        await asyncio.sleep(0.2)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(running, 5)
        answer.set()


async def test_an_error_of_the_source_loses_nothing_that_came_before_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = SlowStore()
    use_store(monkeypatch, store)

    def maps() -> Iterator[tuple[str, NDArray[Any]]]:
        for i in range(100):
            yield f"{i}", random_map(i)
        store.gate.set()
        raise LookupError("mine")

    async with am.Pipeline("memory://", settings=THREADS) as pipeline:
        with pytest.raises(LookupError, match="mine"):
            await pipeline.run(maps(), manifest=tmp_path / "m.sqlite")
    assert pipeline.statistics().uploaded == len(store.objects) == 100
    with Manifest(tmp_path / "m.sqlite", read_only=True) as manifest:
        assert manifest.counts() == {"done": 100}


async def test_draining_ends_a_run_whose_source_is_waiting(tmp_path: Path) -> None:
    async def maps() -> AsyncIterator[tuple[str, NDArray[Any]]]:
        yield "one", random_map(1)
        await asyncio.Event().wait()

    async with am.Pipeline(tmp_path, settings=THREADS) as pipeline:
        running = asyncio.create_task(pipeline.run(maps()))
        while pipeline.statistics().uploaded < 1:  # noqa: ASYNC110  # it is counted, not announced
            await asyncio.sleep(0.01)
        pipeline.drain()
        report = await asyncio.wait_for(running, 5)
    assert (report.uploaded, report.drained) == (1, True)


async def test_leaving_the_context_finishes_another_tasks_run(tmp_path: Path) -> None:
    settings = am.Settings(workers=0, chunk_maps=2, queue_bytes=10_000)
    async with am.Pipeline(tmp_path / "out", settings=settings) as pipeline:
        maps = ((f"{i}", random_map(i)) for i in range(5000))
        running = asyncio.create_task(pipeline.run(maps, manifest=tmp_path / "m.sqlite"))
        while pipeline.statistics().uploaded < 20:  # noqa: ASYNC110  # it is counted, not announced
            await asyncio.sleep(0.01)
    report = await running
    assert report.drained
    assert 20 <= report.uploaded == len(list((tmp_path / "out").glob("*.png"))) < 5000
    with Manifest(tmp_path / "m.sqlite", read_only=True) as manifest:
        assert manifest.counts() == {"done": report.uploaded}


async def test_callers_in_all_of_anyios_threads_do_not_stop_the_pipeline(tmp_path: Path) -> None:
    large = np.zeros((200, 200), np.float32)
    async with am.Pipeline(tmp_path, settings=am.Settings(workers=1)) as pipeline, create_task_group() as tasks:
        for i in range(40):
            tasks.start_soon(to_thread.run_sync, from_thread.run, pipeline.put, f"{i}", large)
    assert len(list(tmp_path.glob("*.png"))) == 40


async def test_idle_uploads_hold_no_png(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).random((500, 500))
    async with am.Pipeline(tmp_path, settings=THREADS) as pipeline:
        await asyncio.gather(*(pipeline.put(f"{i}", noise) for i in range(40)))
        gc.collect()
        held = [value for value in gc.get_objects() if isinstance(value, Png)]
        assert not held


async def test_one_refused_object_does_not_end_a_run_that_nothing_else_stops(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = S3Store.put

    async def refused(self: S3Store, key: str, data: bytes) -> str | None:
        if key == "x/0.png":
            key = "x/" + "k" * 2000
        return await original(self, key, data)

    monkeypatch.setattr(S3Store, "put", refused)
    async with am.Pipeline(f"s3://{bucket}/x", settings=am.Settings(workers=0, concurrency=1)) as pipeline:
        report = await pipeline.run((f"{i}", random_map(i)) for i in range(5))
    assert (report.uploaded, report.failed) == (4, 1)


async def test_a_system_that_starts_no_process_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(am.WorkerError, match="cannot be started: No such file or directory; with workers = 0"):
        async with am.Pipeline(tmp_path, settings=am.Settings(workers=1)):
            pytest.fail("entered")


async def test_a_stream_left_early_stops_reading_and_leaves_the_pipeline_usable(tmp_path: Path) -> None:
    read = 0

    def maps() -> Iterator[tuple[str, NDArray[Any]]]:
        nonlocal read
        for i in range(100_000):
            read += 1
            yield f"{i}", random_map(i, (4, 4))

    async with am.Pipeline(tmp_path, settings=THREADS) as pipeline:
        async with aclosing(pipeline.stream(maps())) as stream:
            async for _ in stream:
                break
        await asyncio.sleep(0.2)
        after = read
        await pipeline.put("after", random_map(1))
        assert read == after < 10_000


async def test_a_store_that_stalls_stops_the_reading_at_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    store = SlowStore()
    use_store(monkeypatch, store)
    read = 0
    size = 64 * 64 * 4

    def maps() -> Iterator[tuple[str, NDArray[Any]]]:
        nonlocal read
        for i in range(3000):
            read += 1
            yield f"{i}", random_map(i, (64, 64))

    settings = am.Settings(workers=0, concurrency=4, queue_bytes=40 * size, chunk_maps=16, encode_threads=1)
    async with am.Pipeline("memory://", settings=settings) as pipeline:
        running = asyncio.create_task(pipeline.run(maps()))
        before = -1
        while read != before:
            before = read
            await asyncio.sleep(0.3)
        statistics = pipeline.statistics()
        assert store.asked == 4
        # Arrays waiting (40 maps' bytes), one listing batch of 256 at most, blocks and PNGs of at most 40 maps' bytes.
        assert read < 40 + 256 + 16 + 5 * 40
        assert statistics.upload.queue > 0.5
        store.gate.set()
        report = await running
    assert report.uploaded == len(store.objects) == 3000


async def test_a_map_larger_than_every_bound_passes_alone(tmp_path: Path) -> None:
    settings = am.Settings(workers=1, queue_bytes=100_000, chunk_bytes=10_000)
    large = random_map(1, (700, 900))
    np.save(tmp_path / "large.npy", (large * 255).astype(np.uint8))
    for i in range(20):
        np.save(tmp_path / f"small{i}.npy", random_map(i))
    async with am.Pipeline(tmp_path / "out", settings=settings) as pipeline:
        report, receipt = await asyncio.gather(pipeline.run(tmp_path), pipeline.put("array", large))
    assert (report.uploaded, report.failed) == (21, 0)
    assert receipt.width == 900
    assert np.array_equal(decode((tmp_path / "out/array.png").read_bytes()), am.colorize_activation_map(large))


async def test_a_run_with_a_manifest_does_again_only_what_is_not_done(maps: Path, tmp_path: Path) -> None:
    for i in range(100):
        np.save(maps / f"{i:03}.npy", random_map(i))
    for i in (10, 11, 12, 13, 14):
        (maps / f"{i:03}.npy").write_bytes(b"no array")
    manifest = tmp_path / "manifest.sqlite"

    async def run(select: Any = "changed", **settings: Any) -> tuple[int, int, int]:
        async with am.Pipeline(tmp_path / "out", settings=am.Settings(workers=0, **settings)) as pipeline:
            report = await pipeline.run(maps, manifest=manifest, select=select)
        return report.uploaded, report.skipped, report.failed

    assert await run() == (95, 0, 5)
    assert await run() == (0, 95, 5)
    np.save(maps / "010.npy", random_map(10))
    assert await run("failed") == (1, 95, 4)
    for i in range(20, 30):
        os.utime(maps / f"{i:03}.npy", ns=(1, 1))
    assert await run() == (10, 86, 4)
    np.save(maps / "new.npy", random_map(1))
    assert await run() == (1, 96, 4)
    assert await run("all") == (97, 0, 4)
    assert await run(png="rgba") == (97, 0, 4)
    with Manifest(manifest, read_only=True) as opened:
        assert opened.counts() == {"done": 97, "failed": 4}
        failed = [row for row in opened.rows(failed=True) if row[2] == "failed"]
    assert [row[0] for row in failed] == ["011", "012", "013", "014"]
    assert all(row[10] == "read" and "expected an .npy file" in str(row[11]) for row in failed)


async def test_two_maps_of_one_name_are_told_apart_before_one_overwrites_the_other(maps: Path, tmp_path: Path) -> None:
    (maps / "a").mkdir()
    np.save(maps / "a" / "x.npy", random_map(1))
    np.savez(maps / "a.npz", x=random_map(2))
    async with am.Pipeline(tmp_path / "out", settings=THREADS) as pipeline:
        report = await pipeline.run(maps, manifest=tmp_path / "manifest.sqlite")
    assert (report.uploaded, report.failed) == (1, 1)
    assert "another map of this run has the same name" in report.failures[0].reason


async def test_a_refused_object_fails_its_map_and_a_dead_store_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_store(monkeypatch, FailingStore({"7.png"}))
    async with am.Pipeline("memory://", settings=THREADS) as pipeline:
        report = await pipeline.run((f"{i}", random_map(i)) for i in range(50))
    assert (report.uploaded, report.failed) == (49, 1)
    assert (report.failures[0].stage, report.failures[0].reason) == ("upload", "not this one")

    store = FailingStore(set(), dies_after=20)
    use_store(monkeypatch, store)
    manifest = tmp_path / "manifest.sqlite"
    with pytest.raises(am.StoreError, match="on fire"):
        async with am.Pipeline("memory://", settings=THREADS) as pipeline:
            await pipeline.run(((f"{i}", random_map(i)) for i in range(50)), manifest=manifest)
    with Manifest(manifest, read_only=True) as opened:
        assert opened.counts() == {"done": len(store.objects)} == {"done": 20}


async def test_put_tells_its_caller_that_the_store_is_dead_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    store = FailingStore(set(), dies_after=0)
    use_store(monkeypatch, store)
    async with am.Pipeline("memory://", settings=THREADS) as pipeline:
        with pytest.raises(am.StoreError, match="on fire"):
            await pipeline.put("x", random_map(1))
        store.dies_after = 10
        assert (await pipeline.put("x", random_map(1))).name == "x"


async def test_a_run_ends_when_more_maps_failed_than_allowed(tmp_path: Path) -> None:
    settings = am.Settings(workers=0, max_failures=3)
    with pytest.raises(am.TooManyFailuresError, match="more than max_failures = 3"):
        async with am.Pipeline(tmp_path, settings=settings) as pipeline:
            await pipeline.run((f"{i}", np.full((2, 2), np.inf)) for i in range(1000))


@pytest.mark.parametrize("queue_bytes", [pytest.param(20_000, marks=pytest.mark.slow), 2**26])
async def test_a_killed_worker_costs_nothing_but_time(maps: Path, tmp_path: Path, queue_bytes: int) -> None:
    for i in range(600):
        np.save(maps / f"{i}.npy", random_map(i, (60, 60)))
    killed = 0
    settings = am.Settings(workers=2, queue_bytes=queue_bytes)
    async with am.Pipeline(tmp_path / "out", settings=settings) as pipeline:
        running = asyncio.create_task(pipeline.run(maps))
        while not running.done():
            if killed < 3 and (pids := worker_pids()):
                os.kill(pids[0], signal.SIGKILL)
                killed += 1
            await asyncio.sleep(0.2)
        report = await running
    assert killed > 0
    assert report.failed == 0, report.failures
    assert report.uploaded == len(list((tmp_path / "out").glob("*.png"))) == 600


@pytest.mark.parametrize("size", [2**50, 2**60])
async def test_an_archive_that_lies_about_its_size_fails_alone(maps: Path, tmp_path: Path, size: int) -> None:
    np.save(maps / "a.npy", random_map(1))
    np.savez(maps / "lying.npz", x=random_map(2))
    with zipfile.ZipFile(maps / "lying.npz", "a") as archive:
        archive.filelist[0].file_size = size
        archive.writestr("y.npy", (maps / "a.npy").read_bytes())
    async with am.Pipeline(tmp_path / "out", settings=am.Settings(workers=1)) as pipeline:
        report = await pipeline.run(maps)
        assert (await pipeline.put("after", random_map(3))).name == "after"
    assert report.uploaded + report.failed == 3
    assert report.uploaded >= 2
    assert (tmp_path / "out" / "a.png").exists()


@pytest.mark.slow
async def test_a_map_that_kills_its_worker_twice_fails_and_the_others_of_its_chunk_arrive(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ProcessWorker.colorize

    async def deadly(self: ProcessWorker, block: Block, free_from: int, requests: list[Request]) -> Reply:
        if any("poison" in str(request.path) for request in requests):
            assert self.pid is not None
            os.kill(self.pid, signal.SIGKILL)
        return await original(self, block, free_from, requests)

    monkeypatch.setattr(ProcessWorker, "colorize", deadly)
    for name in ("a", "b", "poison", "z"):
        np.save(maps / f"{name}.npy", random_map(1))
    async with am.Pipeline(tmp_path / "out", settings=am.Settings(workers=1)) as pipeline:
        report = await pipeline.run(maps)
        receipt = await pipeline.put("array", random_map(5))
    assert (report.uploaded, report.failed) == (3, 1)
    assert report.failures[0].name == "poison"
    assert "killed by signal 9" in report.failures[0].reason
    assert receipt.name == "array"


async def test_the_pipeline_is_refused_where_it_is_not_open(tmp_path: Path) -> None:
    pipeline = am.Pipeline(tmp_path, settings=THREADS)
    with pytest.raises(am.PipelineClosedError):
        await pipeline.put("x", random_map(1))
    async with pipeline:
        assert pipeline.is_open
    assert not pipeline.is_open
    with pytest.raises(am.PipelineClosedError):
        await pipeline.put("x", random_map(1))
    with pytest.raises(am.PipelineClosedError):
        await pipeline.__aenter__()


async def test_the_context_may_be_left_in_another_task_than_it_was_entered_in(tmp_path: Path) -> None:
    pipeline = am.Pipeline(tmp_path, settings=am.Settings(workers=1))
    await asyncio.create_task(pipeline.__aenter__())
    assert (await pipeline.put("x", random_map(1))).name == "x"
    await asyncio.create_task(pipeline.__aexit__(None, None, None))


@pytest.mark.parametrize(
    ("destination", "error"),
    [
        ("s3://no-such-bucket/x", am.StoreError),
        ("s3://b", am.SettingsError),
        ("gs://bucket/x", am.SettingsError),
        ("s3://bucket/a/../b", am.SettingsError),
        ("", am.SettingsError),
        ("/proc/version/x", am.StoreError),
    ],
)
@pytest.mark.usefixtures("s3")
async def test_a_destination_that_cannot_be_used_is_refused_on_entering(
    destination: str, error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        async with am.Pipeline(destination, settings=am.Settings(workers=1)):
            pytest.fail("entered")
    assert not isinstance(caught.value, BaseExceptionGroup)


async def test_draining_reads_no_further_and_finishes_what_was_taken_in(tmp_path: Path) -> None:
    read = 0

    def maps() -> Iterator[tuple[str, NDArray[Any]]]:
        nonlocal read
        for i in range(100_000):
            read += 1
            yield f"{i}", random_map(i, (4, 4))

    async with am.Pipeline(tmp_path / "out", settings=THREADS) as pipeline:
        running = asyncio.create_task(pipeline.run(maps(), manifest=tmp_path / "m.sqlite"))
        while pipeline.statistics().uploaded < 100:  # noqa: ASYNC110  # it is counted, not announced
            await asyncio.sleep(0.01)
        pipeline.drain()
        report = await running
    assert report.drained
    assert 100 <= report.uploaded <= read < 100_000
    with Manifest(tmp_path / "m.sqlite", read_only=True) as manifest:
        assert manifest.counts() == {"done": report.uploaded}


async def test_a_dry_run_says_what_a_run_would_do_and_does_nothing(maps: Path, tmp_path: Path) -> None:
    for i in range(10):
        np.save(maps / f"{i}.npy", random_map(i))
    manifest = tmp_path / "m.sqlite"
    report = await am.adry_run(maps, tmp_path / "out", manifest=manifest)
    assert (report.planned, report.skipped) == (10, 0)
    assert not manifest.exists()
    assert not (tmp_path / "out").exists()
    async with am.Pipeline(tmp_path / "out", settings=THREADS) as pipeline:
        await pipeline.run(maps, manifest=manifest)
    np.save(maps / "5.npy", random_map(50))
    before = manifest.read_bytes()
    report = await am.adry_run(maps, tmp_path / "out", manifest=manifest)
    assert (report.planned, report.skipped) == (1, 9)
    assert manifest.read_bytes() == before


def test_run_works_in_a_plain_script_without_a_main_guard(maps: Path, tmp_path: Path) -> None:
    for i in range(5):
        np.save(maps / f"{i}.npy", random_map(i))
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
            import async_maps as am
            print("once")
            report = am.run({str(maps)!r}, {str(tmp_path / "out")!r}, settings=am.Settings(workers=2))
            assert report.uploaded == 5
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "once\n", "")


async def test_statistics_count_every_stage(tmp_path: Path) -> None:
    async with am.Pipeline(tmp_path, settings=THREADS) as pipeline:
        await pipeline.run([("a", random_map(1)), ("b", np.full((3, 3), 9.0))])
        statistics = pipeline.statistics()
    assert (statistics.uploaded, statistics.failed) == (1, 1)
    assert (statistics.colorize.maps, statistics.encode.maps, statistics.upload.maps) == (2, 1, 1)
    assert statistics.uploaded_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.png"))


async def test_files_are_stored_by_many_uploads_at_once_and_left_whole(tmp_path: Path) -> None:
    async with am.Pipeline(tmp_path, settings=am.Settings(workers=0, files=am.FilesSettings(fsync=True))) as pipeline:
        await asyncio.gather(*(pipeline.put("same", random_map(i)) for i in range(40)))
    assert [path.name for path in tmp_path.iterdir()] == ["same.png"]
    assert isinstance(FileStore(tmp_path).destination, str)
    assert decode((tmp_path / "same.png").read_bytes()).shape == (20, 30, 4)
