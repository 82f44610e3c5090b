"""A cancel at any moment hangs nothing, leaves nothing behind and records nothing false."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.manifest.manifest import Manifest
from tests.support.leftovers import children, leaves_nothing
from tests.support.pipelines import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)


def random_maps(count: int, side: int = 24) -> Iterator[tuple[str, NDArray[Any]]]:
    rng = np.random.default_rng(0)
    for i in range(count):
        yield f"{i}", rng.random((side, side), np.float32)


async def steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("workers", [0, 1])
async def test_a_put_cancelled_at_any_step_leaves_the_pipeline_usable(tmp_path: Path, workers: int) -> None:
    array = next(random_maps(1))[1]
    settings = am.Settings(workers=workers, queue_bytes=10_000, chunk_maps=2, concurrency=2)
    async with am.Pipeline(tmp_path, settings=settings) as pipeline:
        for count in range(60):
            puts = [asyncio.create_task(pipeline.put(f"{count}-{i}", array)) for i in range(8)]
            await steps(count)
            for put in puts[::2]:
                put.cancel()
            results = await asyncio.gather(*puts, return_exceptions=True)
            assert all(isinstance(result, am.Receipt) for result in results[1::2])
            assert all(isinstance(result, am.Receipt | asyncio.CancelledError) for result in results)
        receipt = await asyncio.wait_for(pipeline.put("last", array), 60)
    assert receipt.name == "last"


async def test_cancelled_puts_release_all_bytes(tmp_path: Path) -> None:
    array = next(random_maps(1))[1]
    async with am.Pipeline(tmp_path, settings=am.Settings(workers=0, queue_bytes=5_000, chunk_maps=1)) as pipeline:
        for count in range(40):
            puts = [asyncio.create_task(pipeline.put(f"{i}", array)) for i in range(6)]
            await steps(count)
            for put in puts:
                put.cancel()
            await asyncio.gather(*puts, return_exceptions=True)
        await pipeline.put("last", array)
    statistics = pipeline.statistics()
    assert (statistics.colorize.queue, statistics.encode.queue, statistics.upload.queue) == (0, 0, 0)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
async def test_a_cancelled_run_records_only_stored_maps(tmp_path: Path, workers: int) -> None:
    for moment, seconds in enumerate((0.0, 0.01, 0.03, 0.1, 0.2)):
        manifest = tmp_path / f"{moment}.sqlite"
        async with am.Pipeline(tmp_path / f"{moment}", settings=am.Settings(workers=workers)) as pipeline:
            running = asyncio.create_task(pipeline.run(random_maps(5000), manifest=manifest))
            await asyncio.sleep(seconds)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert (await pipeline.put("after", next(random_maps(1))[1])).name == "after"
        stored = {path.stem for path in (tmp_path / f"{moment}").glob("*.png")}
        if manifest.exists():
            with Manifest(manifest, read_only=True) as opened:
                done = {row[0] for row in opened.rows()}
            assert done <= stored


@pytest.mark.parametrize("workers", [0, 2])
async def test_an_error_in_the_body_closes_the_pipeline_and_its_runs(tmp_path: Path, workers: int) -> None:
    runs: list[asyncio.Task[am.Report]] = []

    async def work() -> None:
        async with am.Pipeline(tmp_path, settings=am.Settings(workers=workers)) as pipeline:
            runs.append(asyncio.create_task(pipeline.run(random_maps(100_000))))
            await asyncio.sleep(0.2)
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await asyncio.wait_for(work(), 60)
    with pytest.raises(am.PipelineClosedError):
        await asyncio.wait_for(runs[0], 60)


async def test_a_cancel_while_entering_leaves_no_process(tmp_path: Path) -> None:
    before = children()
    for seconds in (0.0, 0.001, 0.01, 0.05, 0.2, 0.5):

        async def enter() -> None:
            async with am.Pipeline(tmp_path, settings=am.Settings(workers=2)):
                pass

        entering = asyncio.create_task(enter())
        await asyncio.sleep(seconds)
        entering.cancel()
        with suppress(asyncio.CancelledError):
            await entering
    assert children() == before


async def test_a_cancel_while_leaving_ends_with_maps_in_flight(tmp_path: Path) -> None:
    puts: list[asyncio.Task[am.Receipt]] = []
    leaving = asyncio.Event()

    async def work() -> None:
        async with am.Pipeline(tmp_path, settings=am.Settings(workers=1)) as pipeline:
            puts.extend(asyncio.create_task(pipeline.put(name, array)) for name, array in random_maps(3000, 64))
            await asyncio.sleep(0.1)
            leaving.set()

    working = asyncio.create_task(work())
    await leaving.wait()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(working, 60)
    results = await asyncio.wait_for(asyncio.gather(*puts, return_exceptions=True), 60)
    assert any(isinstance(result, am.PipelineClosedError) for result in results)
    assert all(isinstance(result, am.Receipt | am.PipelineClosedError) for result in results)


async def test_leaving_finishes_accepted_maps(tmp_path: Path) -> None:
    async with am.Pipeline(tmp_path, settings=am.Settings(workers=1)) as pipeline:
        puts = [asyncio.create_task(pipeline.put(name, array)) for name, array in random_maps(100)]
        await steps(20)
    results = await asyncio.gather(*puts, return_exceptions=True)
    receipts = [result for result in results if isinstance(result, am.Receipt)]
    assert len(receipts) == len(list(tmp_path.glob("*.png"))) == 100


async def test_a_cancelled_stream_leaves_no_task(tmp_path: Path) -> None:
    async def consume() -> None:
        async with aclosing(pipeline.stream(random_maps(100_000))) as stream:
            async for _ in stream:
                pass

    async with am.Pipeline(tmp_path, settings=am.Settings(workers=0)) as pipeline:
        before = len(asyncio.all_tasks())
        consuming = asyncio.create_task(consume())
        await asyncio.sleep(0.2)
        consuming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consuming
        # Maps that were accepted are finished.
        await until(lambda: len(asyncio.all_tasks()) == before)
