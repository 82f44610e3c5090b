"""``put_nowait`` refuses maps instead of waiting; a deadline affects one map; closing is orderly."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest

import async_maps as am
from async_maps.stores.memory import MemoryStore
from async_maps.workers.pool import ThreadWorker
from tests.support.leftovers import leaves_nothing
from tests.support.maps import decode, random_map
from tests.support.pipelines import THREADS, FailingStore, SlowStore, until, use_store

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from numpy.typing import NDArray


pytestmark = [pytest.mark.fast, pytest.mark.usefixtures(leaves_nothing.__name__)]

SMALL = am.Settings(workers=0, encode_threads=1, concurrency=1, chunk_maps=4)


def nothing_in(pipeline: am.Pipeline) -> bool:
    """Return whether every queue is empty and no map is in flight."""
    statistics = pipeline.statistics()
    full = [stage.queue for stage in statistics.stages.values()]
    return (statistics.in_flight, statistics.waiting, max(full)) == (0, 0, 0)


async def late(putting: Coroutine[Any, Any, am.Receipt], reached: Callable[[], bool]) -> None:
    """Let the deadline of a put pass as soon as a condition is true."""
    deadline = asyncio.timeout(None)

    async def put_in_time() -> None:
        async with deadline:
            await putting

    task = asyncio.create_task(put_in_time())
    await until(reached)
    deadline.reschedule(0)
    with pytest.raises(TimeoutError):
        await task


class Gated(ThreadWorker):
    """A worker that waits for a gate before it colorizes."""

    gate: asyncio.Event
    chunks: list[int]

    async def colorize(self, block: Any, free_from: int, requests: Any) -> Any:
        self.chunks.append(len(requests))
        await self.gate.wait()
        return await super().colorize(block, free_from, requests)


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> type[Gated]:
    """Make all workers of this test gated."""
    Gated.gate, Gated.chunks = asyncio.Event(), []
    monkeypatch.setattr("async_maps.workers.pool.ThreadWorker", Gated)
    return Gated


# Room ----------------------------------------------------------------------------------------------------------------


async def test_put_nowait_stores_a_map(tmp_path: Path) -> None:
    activation_map = random_map(1)
    async with am.Pipeline(tmp_path, settings=THREADS) as pipeline:
        receipt = await pipeline.put_nowait("val/1", activation_map)
    path = tmp_path / "val" / "1.png"
    assert receipt.locator == path.as_uri()
    assert np.array_equal(decode(path.read_bytes()), am.colorize_activation_map(activation_map))


async def test_a_burst_is_accepted_up_to_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = SlowStore()
    use_store(monkeypatch, store)
    async with am.Pipeline("memory://", settings=SMALL) as pipeline:
        taken = [pipeline.put_nowait(f"{i}", random_map(i)) for i in range(4)]
        # Before any of them has been colorized.
        with pytest.raises(am.PipelineFullError, match="full: 4 maps wait to be colorized, the limit of ch"):
            pipeline.put_nowait("4", random_map(4))
        statistics = pipeline.statistics()
        assert (statistics.accepted, statistics.in_flight, statistics.shed) == (4, 4, 1)
        store.gate.set()
        receipts = await asyncio.gather(*taken)
        await pipeline.put_nowait("later", random_map(5))
        assert nothing_in(pipeline)
    assert [receipt.name for receipt in receipts] == ["0", "1", "2", "3"]
    assert set(store.objects) == {"0.png", "1.png", "2.png", "3.png", "later.png"}
    statistics = pipeline.statistics()
    assert (statistics.accepted, statistics.uploaded, statistics.in_flight, statistics.shed) == (5, 5, 0, 1)


async def test_a_stalled_store_fills_the_pipeline_to_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    store = SlowStore()
    use_store(monkeypatch, store)
    taken: list[asyncio.Task[am.Receipt]] = []
    shed = 0
    async with am.Pipeline("memory://", settings=SMALL) as pipeline:
        for i in range(200):
            try:
                taken.append(pipeline.put_nowait(f"{i}", random_map(i)))
            except am.PipelineFullError:
                shed += 1
            await asyncio.sleep(0.002)
        assert pipeline.statistics().in_flight == len(taken)
        # Four wait, four are a chunk without room for bitmaps, two batches wait for the encoder ...
        assert 4 < len(taken) < 40
        store.gate.set()
        await asyncio.gather(*taken)
    assert len(store.objects) == len(taken) == 200 - shed
    assert pipeline.statistics().shed == shed


async def test_put_nowait_is_bounded_by_bytes(gated: type[Gated], tmp_path: Path) -> None:
    size = random_map(0).nbytes
    settings = am.Settings(workers=0, queue_bytes=3 * size)
    async with am.Pipeline(tmp_path, settings=settings) as pipeline:
        taken = [pipeline.put_nowait(f"{i}", random_map(i)) for i in range(3)]
        with pytest.raises(
            am.PipelineFullError, match=f"7,200 bytes of arrays wait, and {size:,} more exceed queue_bytes"
        ):
            pipeline.put_nowait("3", random_map(3))
        gated.gate.set()
        await asyncio.gather(*taken)
        # A map larger than the whole queue passes when no other waits.
        assert (await pipeline.put_nowait("large", random_map(4, (100, 100)))).width == 100
        assert nothing_in(pipeline)


async def test_put_nowait_does_not_overtake_waiting_puts(gated: type[Gated], tmp_path: Path) -> None:
    size = random_map(0).nbytes
    async with am.Pipeline(tmp_path, settings=am.Settings(workers=0, queue_bytes=3 * size)) as pipeline:
        first = pipeline.put_nowait("first", random_map(0))
        await until(lambda: gated.chunks == [1])
        waiting = asyncio.create_task(pipeline.put("waiting", random_map(1, (100, 100))))
        await until(lambda: pipeline.statistics().waiting == 1)
        with pytest.raises(am.PipelineFullError, match="full: 1 other map waits for room"):
            pipeline.put_nowait("small", random_map(2, (1, 1)))
        gated.gate.set()
        await asyncio.gather(first, waiting)
        assert (await pipeline.put_nowait("small", random_map(2, (1, 1)))).name == "small"


@pytest.mark.parametrize("way", [am.Pipeline.put, am.Pipeline.put_nowait])
async def test_an_array_is_released_when_it_is_colorized(
    way: Callable[..., Coroutine[Any, Any, am.Receipt]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SlowStore()
    use_store(monkeypatch, store)
    array = random_map(1)
    there = weakref.ref(array)
    async with am.Pipeline("memory://", settings=SMALL) as pipeline:
        task = asyncio.ensure_future(way(pipeline, "x", array))
        del array
        assert there() is not None
        await until(lambda: store.asked == 1)
        if there() is not None:
            # The frames of a stage that waits for its next map may still refer to this one.
            gc.collect()
        assert there() is None
        store.gate.set()
        await task


class Tensor:
    """An array of another library, which is converted in a thread and is smaller afterwards.

    Args:
        array: the array after the conversion.
    """

    nbytes = 2_000

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array
        self.shape = array.shape
        self.thread = ""
        self.gate = threading.Event()

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
        self.thread = threading.current_thread().name
        assert self.gate.wait(60)
        return self._array


async def test_a_tensor_reserves_its_bytes_and_is_converted_in_a_thread(gated: type[Gated], tmp_path: Path) -> None:
    tensor = Tensor(np.zeros((20, 30), np.uint8))
    async with am.Pipeline(tmp_path, settings=am.Settings(workers=0, queue_bytes=4_000)) as pipeline:
        converting = pipeline.put_nowait("tensor", tensor)
        assert pipeline.statistics().colorize.queue == 2_000 / 4_000
        with pytest.raises(am.PipelineFullError, match="2,000 bytes of arrays wait"):
            pipeline.put_nowait("other", random_map(1))
        await until(lambda: tensor.thread != "")
        assert "AnyIO" in tensor.thread
        tensor.gate.set()
        await until(lambda: gated.chunks == [1])
        assert pipeline.statistics().colorize.queue == 600 / 4_000
        gated.gate.set()
        await converting
        assert nothing_in(pipeline)


class Sparse:
    """An array that does not tell its size, as PyTorch's sparse tensors."""

    @property
    def nbytes(self) -> int:
        raise RuntimeError("not defined for sparse tensors")

    shape = nbytes


@pytest.mark.parametrize("what", ["text", None, [[0.5]], Sparse(), np.full((2, 2), np.nan), np.zeros((2, 3, 4))])
async def test_an_invalid_map_fails_when_awaited_and_takes_no_room(what: Any, tmp_path: Path) -> None:
    async with am.Pipeline(tmp_path, settings=SMALL) as pipeline:
        for _ in range(6):
            with pytest.raises(am.MapFailedError):
                await pipeline.put_nowait("x", what)
        assert nothing_in(pipeline)
        assert pipeline.statistics().failed == pipeline.statistics().accepted == 6


# Deadlines ------------------------------------------------------------------------------------------------------------


async def put(pipeline: am.Pipeline, name: str, activation_map: Any) -> am.Receipt:
    return await pipeline.put(name, activation_map)


async def put_nowait(pipeline: am.Pipeline, name: str, activation_map: Any) -> am.Receipt:
    return await pipeline.put_nowait(name, activation_map)


@pytest.mark.parametrize("way", [put, put_nowait])
async def test_a_deadline_does_not_affect_other_maps_of_the_chunk(
    way: Callable[..., Coroutine[Any, Any, am.Receipt]], gated: type[Gated], tmp_path: Path
) -> None:
    settings = am.Settings(workers=0, chunk_maps=8)
    async with am.Pipeline(tmp_path, settings=settings) as pipeline:
        first = asyncio.create_task(way(pipeline, "first", random_map(0)))
        await until(lambda: gated.chunks == [1])
        neighbors = [asyncio.create_task(way(pipeline, f"{i}", random_map(i))) for i in range(4)]
        await late(way(pipeline, "late", random_map(9)), lambda: pipeline.statistics().accepted == 6)
        gated.gate.set()
        receipts = await asyncio.gather(first, *neighbors)
        await until(lambda: nothing_in(pipeline))
    assert [receipt.name for receipt in receipts] == ["first", "0", "1", "2", "3"]
    assert {f"{receipt.name}.png" for receipt in receipts} <= {path.name for path in tmp_path.iterdir()}
    # All five, including the late one, were one chunk.
    assert gated.chunks == [1, 5]


async def test_a_deadline_while_waiting_for_room_takes_none(gated: type[Gated], tmp_path: Path) -> None:
    settings = am.Settings(workers=0, queue_bytes=random_map(0).nbytes)
    async with am.Pipeline(tmp_path, settings=settings) as pipeline:
        first = pipeline.put_nowait("first", random_map(0))
        await late(pipeline.put("late", random_map(1)), lambda: pipeline.statistics().waiting == 1)
        assert pipeline.statistics().waiting == 0
        gated.gate.set()
        await first
        await pipeline.put_nowait("next", random_map(2))
        assert nothing_in(pipeline)
    assert {path.name for path in tmp_path.iterdir()} == {"first.png", "next.png"}


async def test_a_deadline_while_room_is_granted_keeps_the_counts_right(gated: type[Gated], tmp_path: Path) -> None:
    settings = am.Settings(workers=0, chunk_maps=1)
    async with am.Pipeline(tmp_path, settings=settings) as pipeline:
        others = [asyncio.create_task(pipeline.put(f"{i}", random_map(i))) for i in range(2)]
        await until(lambda: gated.chunks == [1])
        late = asyncio.create_task(pipeline.put("late", random_map(2)))
        assert pipeline._lifecycle.stages is not None
        jobs = pipeline._lifecycle.stages._jobs
        await until(lambda: jobs.statistics().tasks_waiting_send == 1)
        gated.gate.set()
        while jobs.statistics().tasks_waiting_send:  # noqa: ASYNC110  # each turn of the loop counts
            await asyncio.sleep(0)
        assert not late.done()
        late.cancel()
        await asyncio.wait([late, *others])
        assert late.cancelled()
        await until(lambda: pipeline.statistics().uploaded == 3)
        assert nothing_in(pipeline)
        assert pipeline.statistics().accepted == 3


async def test_a_map_cancelled_before_it_starts_releases_its_room(tmp_path: Path) -> None:
    async with am.Pipeline(tmp_path, settings=SMALL) as pipeline:
        for _ in range(3):
            taken = [pipeline.put_nowait(f"{i}", random_map(i)) for i in range(4)]
            for task in taken:
                task.cancel()
            await asyncio.wait(taken)
        assert nothing_in(pipeline)
        assert pipeline.statistics().accepted == 0
        await asyncio.gather(*(pipeline.put_nowait(f"{i}", random_map(i)) for i in range(4)))


async def test_the_loop_reports_the_failed_map_of_an_unawaited_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = FailingStore({"bad.png"})
    use_store(monkeypatch, store)
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    tasks = asyncio.all_tasks()
    async with am.Pipeline("memory://", settings=THREADS) as pipeline:
        for name in ("good", "bad", "../bad"):
            pipeline.put_nowait(name, random_map(1))
    gc.collect()
    assert asyncio.all_tasks() == tasks
    assert sorted(str(complaint["exception"]).partition(": ")[0] for complaint in complaints) == [
        "../bad",
        "bad",
    ]
    assert set(store.objects) == {"good.png"}
    assert (pipeline.statistics().uploaded, pipeline.statistics().failed) == (1, 2)


# Closing --------------------------------------------------------------------------------------------------------------


async def test_leaving_finishes_accepted_maps_and_refuses_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    store = SlowStore()
    use_store(monkeypatch, store)
    tensor = Tensor(np.zeros((2, 2), np.uint8))
    pipeline = am.Pipeline("memory://", settings=THREADS)
    await pipeline.__aenter__()
    taken = [pipeline.put_nowait("tensor", tensor), *(pipeline.put_nowait(f"{i}", random_map(i)) for i in range(5))]
    leaving = asyncio.create_task(pipeline.__aexit__(None, None, None))
    await asyncio.sleep(0.02)
    for way in (put, put_nowait):
        with pytest.raises(am.PipelineClosedError, match="is being closed and accepts no more maps"):
            await way(pipeline, "late", random_map(9))
    assert not leaving.done()
    tensor.gate.set()
    store.gate.set()
    receipts = await asyncio.gather(*taken)
    await leaving
    assert len(receipts) == len(store.objects) == 6
    with pytest.raises(am.PipelineClosedError, match="not open"):
        pipeline.put_nowait("late", random_map(9))
    assert pipeline.statistics().shed == 0


async def test_leaving_with_an_error_ends_all_waiting_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    use_store(monkeypatch, SlowStore())
    pipeline = am.Pipeline("memory://", settings=THREADS)
    await pipeline.__aenter__()
    taken = [pipeline.put_nowait(f"{i}", random_map(i)) for i in range(5)]
    await asyncio.sleep(0.02)
    taken.append(pipeline.put_nowait("not begun", random_map(6)))
    await pipeline.__aexit__(LookupError, LookupError(), None)
    for task in taken:
        with pytest.raises(am.PipelineClosedError):
            await task
    assert pipeline.statistics().in_flight == 0


async def test_each_call_after_an_internal_error_names_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(MemoryStore):
        async def put(self, key: str, data: bytes) -> str:
            raise LookupError("a bug")

    use_store(monkeypatch, Broken())
    pipeline = am.Pipeline("memory://", settings=THREADS)
    await pipeline.__aenter__()
    with pytest.raises(am.PipelineClosedError, match="was closed before"):
        await pipeline.put_nowait("first", random_map(1))
    for way in (put, put_nowait):
        with pytest.raises(am.PipelineClosedError, match="not open anymore") as caught:
            await way(pipeline, "later", random_map(1))
        assert caught.value.__cause__ is not None
        assert isinstance(caught.value.__cause__.__cause__, LookupError)
    assert pipeline.statistics().in_flight == 0
    with pytest.raises(LookupError):
        await pipeline.__aexit__(None, None, None)


async def test_a_call_from_another_event_loop_is_refused(tmp_path: Path) -> None:
    async with am.Pipeline(tmp_path, settings=THREADS) as pipeline:
        for way in (put, put_nowait):
            with pytest.raises(am.PipelineClosedError, match="open in another event loop"):
                await asyncio.to_thread(asyncio.run, way(pipeline, "x", random_map(1)))
        with pytest.raises(RuntimeError, match="no running event loop"):
            await asyncio.to_thread(pipeline.put_nowait, "x", random_map(1))
        assert nothing_in(pipeline)
        assert (await pipeline.put_nowait("x", random_map(1))).name == "x"


@pytest.mark.parametrize("library", ["asyncio", "uvloop"])
@pytest.mark.parametrize("groups", ["asyncio", "anyio"])
def test_puts_work_in_task_groups_on_any_loop(library: str, groups: str, tmp_path: Path) -> None:
    async def serve() -> None:
        async with am.Pipeline(tmp_path, settings=THREADS) as pipeline:

            async def request(number: int) -> None:
                with anyio.fail_after(60):
                    way = pipeline.put_nowait if number % 2 else pipeline.put
                    assert (await way(f"{number}", random_map(number))).name == f"{number}"

            if groups == "anyio":
                async with anyio.create_task_group() as anyios:
                    for number in range(20):
                        anyios.start_soon(request, number)
            else:
                async with asyncio.TaskGroup() as asyncios:
                    for number in range(20):
                        asyncios.create_task(request(number))

    with asyncio.Runner(loop_factory=pytest.importorskip(library).new_event_loop) as runner:
        runner.run(serve())
    assert len(list(tmp_path.iterdir())) == 20
