"""The whole pipeline: every map ends in the store or as a failure, within the bounds, and in the manifest."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from anyio import to_thread

import async_maps as am
from async_maps.manifest.manifest import Manifest
from async_maps.stages.items import Png
from tests.support.leftovers import leaves_nothing
from tests.support.maps import decode, random_map
from tests.support.pipelines import THREADS, FailingStore, SlowStore, until, use_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from numpy.typing import NDArray


pytestmark = [pytest.mark.runs, pytest.mark.usefixtures(leaves_nothing.__name__)]

SMALL_QUEUE = am.Settings(workers=0, queue_bytes=2**16)


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
async def test_an_invalid_name_is_refused_before_the_upload(tmp_path: Path, name: str) -> None:
    async with am.Pipeline(tmp_path / "out", settings=THREADS) as pipeline:
        with pytest.raises(am.MapFailedError) as caught:
            await pipeline.put(name, random_map(1))
    assert caught.value.failure.stage == "source"
    assert not (tmp_path / "out").exists()


async def test_stream_accepts_an_async_iterable(tmp_path: Path) -> None:
    async def maps() -> AsyncIterator[tuple[str, NDArray[Any]]]:
        for i in range(20):
            await asyncio.sleep(0)
            yield f"{i}", random_map(i)

    async with am.Pipeline(tmp_path, settings=THREADS) as pipeline:
        names = [outcome.name async for outcome in pipeline.stream(maps())]
    assert sorted(names, key=int) == [f"{i}" for i in range(20)]


async def test_an_error_of_the_iterable_reaches_the_caller(tmp_path: Path) -> None:
    def maps() -> Iterator[tuple[str, NDArray[Any]]]:
        yield "first", random_map(1)
        raise LookupError("mine")

    async with am.Pipeline(tmp_path, settings=THREADS) as pipeline:
        with pytest.raises(LookupError, match="mine"):
            async for _ in pipeline.stream(maps()):
                pass
        assert (await pipeline.put("after", random_map(2))).name == "after"


async def test_a_run_over_a_blocked_iterable_can_be_cancelled(tmp_path: Path) -> None:
    asked, answer = threading.Event(), threading.Event()

    def maps() -> Iterator[tuple[str, NDArray[Any]]]:
        yield "first", random_map(1)
        asked.set()
        answer.wait()

    async with am.Pipeline(tmp_path, settings=THREADS) as pipeline:
        running = asyncio.create_task(pipeline.run(maps()))
        assert await to_thread.run_sync(asked.wait, 60)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(running, 60)
        answer.set()


async def test_maps_before_an_error_of_the_source_are_uploaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
        report = await asyncio.wait_for(running, 60)
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


async def test_idle_uploads_hold_no_png(tmp_path: Path) -> None:
    def pngs() -> list[Png]:
        return [value for value in gc.get_objects() if type(value) is Png]

    noise = np.random.default_rng(0).random((200, 200))
    # Errors that pytest keeps from earlier tests hold some.
    earlier = pngs()
    async with am.Pipeline(tmp_path, settings=THREADS) as pipeline:
        await asyncio.gather(*(pipeline.put(f"{i}", noise) for i in range(40)))
        gc.collect()
        # On a busy machine the frames of a stage live on for a moment.
        await until(lambda: all(any(png is other for other in earlier) for png in pngs()))


async def test_a_stream_left_early_stops_reading(tmp_path: Path) -> None:
    read = 0
    closed = threading.Event()

    def maps() -> Iterator[tuple[str, NDArray[Any]]]:
        nonlocal read
        try:
            for i in range(100_000):
                read += 1
                yield f"{i}", random_map(i, (4, 4))
        finally:
            closed.set()

    async with am.Pipeline(tmp_path, settings=SMALL_QUEUE) as pipeline:
        async with aclosing(pipeline.stream(maps())) as stream:
            async for _ in stream:
                break
        assert await to_thread.run_sync(closed.wait, 60)
        assert read < 10_000
        assert (await pipeline.put("after", random_map(1))).name == "after"


async def test_a_stalled_store_bounds_the_maps_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    store = SlowStore()
    use_store(monkeypatch, store)
    read = 0
    size = 64 * 64 * 4

    def maps() -> Iterator[tuple[str, NDArray[Any]]]:
        nonlocal read
        for i in range(1_000):
            read += 1
            yield f"{i}", random_map(i, (64, 64))

    settings = am.Settings(workers=0, concurrency=4, queue_bytes=40 * size, chunk_maps=16, encode_threads=1)
    async with am.Pipeline("memory://", settings=settings) as pipeline:
        running = asyncio.create_task(pipeline.run(maps()))
        await until(lambda: store.asked == 4 and pipeline.statistics().upload.queue > 0.5)
        before = -1
        while read != before:
            before = read
            await asyncio.sleep(0.3)
        assert store.asked == 4
        # Waiting arrays (the bytes of 40 maps), one listed batch (up to 256 maps), blocks and PNGs (40 maps' bytes).
        assert read < 40 + 256 + 16 + 5 * 40
        store.gate.set()
        report = await running
    assert report.uploaded == len(store.objects) == 1_000


async def test_a_resumed_run_uploads_only_changed_and_failed_maps(maps: Path, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("manifest", ["manifest.sqlite", None])
async def test_a_second_map_with_the_same_name_fails(maps: Path, tmp_path: Path, manifest: str | None) -> None:
    np.save(maps / "a.npy", random_map(1))
    np.savez(maps / "a.npz", x=random_map(2))
    async with am.Pipeline(tmp_path / "out", settings=THREADS) as pipeline:
        report = await pipeline.run(maps, manifest=tmp_path / manifest if manifest else None)
    assert (report.uploaded, report.failed) == (1, 1)
    assert "another map of this run has the same name" in report.failures[0].reason
    planned = await am.adry_run(maps, tmp_path / "out", manifest=tmp_path / "new.sqlite" if manifest else None)
    assert (planned.planned, planned.failures) == (1, report.failures)


async def test_the_second_map_of_a_stream_with_the_same_name_fails() -> None:
    store = am.MemoryStore()
    async with am.Pipeline(store, settings=THREADS) as pipeline:
        maps = (("a", random_map(1)), ("b", random_map(2)), ("a", random_map(3)))
        outcomes = [outcome async for outcome in pipeline.stream(maps, ordered=True)]
    assert [outcome.name for outcome in outcomes] == ["a", "b", "a"]
    assert [type(outcome) for outcome in outcomes] == [am.Receipt, am.Receipt, am.Failure]
    assert len(store.objects) == 2


async def test_a_refused_object_fails_alone_and_a_dead_store_ends_the_run(
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


async def test_put_raises_the_error_of_a_dead_store_and_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    store = FailingStore(set(), dies_after=0)
    use_store(monkeypatch, store)
    async with am.Pipeline("memory://", settings=THREADS) as pipeline:
        with pytest.raises(am.StoreError, match="on fire"):
            await pipeline.put("x", random_map(1))
        store.dies_after = 10
        assert (await pipeline.put("x", random_map(1))).name == "x"


async def test_a_run_ends_above_max_failures(tmp_path: Path) -> None:
    settings = am.Settings(workers=0, max_failures=3)
    with pytest.raises(am.TooManyFailuresError, match="more than max_failures = 3"):
        async with am.Pipeline(tmp_path, settings=settings) as pipeline:
            await pipeline.run((f"{i}", np.full((2, 2), np.inf)) for i in range(1000))


async def test_a_pipeline_that_is_not_open_is_refused(tmp_path: Path) -> None:
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


async def test_draining_stops_reading_and_finishes_accepted_maps(tmp_path: Path) -> None:
    read = 0

    def maps() -> Iterator[tuple[str, NDArray[Any]]]:
        nonlocal read
        for i in range(100_000):
            read += 1
            yield f"{i}", random_map(i, (4, 4))

    async with am.Pipeline(tmp_path / "out", settings=SMALL_QUEUE) as pipeline:
        running = asyncio.create_task(pipeline.run(maps(), manifest=tmp_path / "m.sqlite"))
        while pipeline.statistics().uploaded < 100:  # noqa: ASYNC110  # it is counted, not announced
            await asyncio.sleep(0.01)
        pipeline.drain()
        report = await running
    assert report.drained
    assert 100 <= report.uploaded <= read < 100_000
    with Manifest(tmp_path / "m.sqlite", read_only=True) as manifest:
        assert manifest.counts() == {"done": report.uploaded}


async def test_a_dry_run_counts_maps_and_writes_nothing(maps: Path, tmp_path: Path) -> None:
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


async def test_statistics_count_every_stage(tmp_path: Path) -> None:
    async with am.Pipeline(tmp_path, settings=THREADS) as pipeline:
        await pipeline.run([("a", random_map(1)), ("b", np.full((3, 3), 9.0))])
        statistics = pipeline.statistics()
    assert (statistics.uploaded, statistics.failed) == (1, 1)
    assert (statistics.colorize.maps, statistics.encode.maps, statistics.upload.maps) == (2, 1, 1)
    assert statistics.uploaded_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.png"))


async def test_concurrent_puts_of_one_file_leave_one_whole_file(tmp_path: Path) -> None:
    async with am.Pipeline(tmp_path, settings=am.Settings(workers=0, files=am.FilesSettings(fsync=True))) as pipeline:
        await asyncio.gather(*(pipeline.put("same", random_map(i)) for i in range(40)))
    (path,) = tmp_path.iterdir()
    assert path.name == "same.png"
    assert any(np.array_equal(decode(path.read_bytes()), am.colorize_activation_map(random_map(i))) for i in range(40))
    assert decode((tmp_path / "same.png").read_bytes()).shape == (20, 30, 4)
