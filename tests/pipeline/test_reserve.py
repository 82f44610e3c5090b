"""``reserve`` takes room before a map is computed, gives it back, and says how long to wait when there is none."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.stages.meters import Throughput
from tests.support.leftovers import leaves_nothing
from tests.support.maps import decode, random_map
from tests.support.pipelines import THREADS, SlowStore, until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.fast, pytest.mark.usefixtures(leaves_nothing.__name__)]

SIZE = random_map(0).nbytes
ONE = am.Settings(workers=0, queue_bytes=SIZE)
TWO = am.Settings(workers=0, chunk_maps=2)


async def test_a_map_is_put_into_its_room(tmp_path: Path) -> None:
    activation_map = random_map(1)
    async with am.Pipeline(tmp_path, settings=ONE) as pipeline, pipeline.reserve(activation_map.nbytes) as room:
        receipt = await room.put("val/1", activation_map)
        assert room.nbytes == 0
    path = tmp_path / "val" / "1.png"
    assert receipt.locator == path.as_uri()
    assert np.array_equal(decode(path.read_bytes()), am.colorize_activation_map(activation_map))


async def test_a_call_that_waits_for_room_is_refused_when_the_pipeline_is_left(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def enter(pipeline: am.Pipeline) -> None:
        async with pipeline.reserve(SIZE):
            await gate.wait()

    async with am.Pipeline(tmp_path, settings=ONE) as pipeline:
        first, second = (asyncio.create_task(enter(pipeline)) for _ in range(2))
        await until(
            lambda: pipeline._lifecycle.stages is not None and pipeline._lifecycle.stages._array_bytes.waiting == 1
        )
        asyncio.get_running_loop().call_later(0.1, gate.set)
    await first
    with pytest.raises(am.PipelineClosedError, match="is being closed"):
        await second


async def test_a_room_keeps_others_out_until_its_block_ends(tmp_path: Path) -> None:
    async with am.Pipeline(tmp_path, settings=ONE) as pipeline:
        async with pipeline.reserve(SIZE):
            with pytest.raises(am.PipelineFullError, match=f"{SIZE:,} bytes of arrays wait, and 1 more exceed"):
                pipeline.put_nowait("other", np.zeros((1, 1), np.uint8))
            with pytest.raises(am.PipelineFullError, match="full: there was no room for 1 bytes in 0 s; try again in"):
                async with pipeline.reserve(1, timeout_s=0):
                    pytest.fail("entered")
            assert pipeline.statistics().shed == 2
        # The block was left without a put.
        await pipeline.put_nowait("other", random_map(1))
        statistics = pipeline.statistics()
    assert (statistics.accepted, statistics.colorize.queue) == (1, 0.0)


async def test_rooms_and_accepted_maps_share_the_places_of_chunk_maps(tmp_path: Path) -> None:
    async with am.Pipeline(tmp_path, settings=TWO) as pipeline, pipeline.reserve(1):
        taken = pipeline.put_nowait("first", random_map(1))
        with pytest.raises(am.PipelineFullError, match="full: 2 maps wait to be colorized, the limit of chunk_maps"):
            pipeline.put_nowait("second", random_map(2))
        await taken
        # The place of a map is free when it was handed over, that of a room at its end.
        async with pipeline.reserve(1, timeout_s=0):
            with pytest.raises(am.PipelineFullError):
                async with pipeline.reserve(1, timeout_s=0):
                    pytest.fail("entered")


async def test_waiting_rooms_are_served_in_their_order(tmp_path: Path) -> None:
    served: list[str] = []
    async with am.Pipeline(tmp_path, settings=ONE) as pipeline:

        async def serve(name: str) -> None:
            async with pipeline.reserve(SIZE) as room:
                served.append(name)
                await room.put(name, random_map(1))

        async with pipeline.reserve(SIZE):
            waiting = [asyncio.create_task(serve(f"{i}")) for i in range(5)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert served == []
            with pytest.raises(am.PipelineFullError, match=r"other maps? waits? for room"):
                pipeline.put_nowait("overtakes", random_map(1))
            assert (pipeline.statistics().waiting, pipeline.statistics().in_flight) == (0, 0)
        await asyncio.gather(*waiting)
    assert served == ["0", "1", "2", "3", "4"]


async def test_a_cancelled_wait_for_room_takes_none(tmp_path: Path) -> None:
    async with am.Pipeline(tmp_path, settings=ONE) as pipeline:
        async with pipeline.reserve(SIZE):
            for steps in range(4):
                with pytest.raises(am.PipelineFullError):
                    async with pipeline.reserve(SIZE, timeout_s=0.001 * steps):
                        pytest.fail("entered")
        async with pipeline.reserve(SIZE, timeout_s=0) as room:
            await room.put("x", random_map(1))


async def test_several_maps_share_a_room(tmp_path: Path) -> None:
    settings = am.Settings(workers=0, queue_bytes=3 * SIZE)
    async with am.Pipeline(tmp_path, settings=settings) as pipeline, pipeline.reserve(3 * SIZE) as room:
        receipts = await asyncio.gather(*(room.put(f"{i}", random_map(i)) for i in range(3)))
        assert room.nbytes == 0
        with pytest.raises(
            am.SettingsError, match=r"map 3 has 2,400 bytes, but 0 are left of its room: reserve the nb"
        ):
            await room.put("3", random_map(3))
    assert [receipt.name for receipt in receipts] == ["0", "1", "2"]


async def test_a_failed_map_gives_its_room_back(tmp_path: Path) -> None:
    async with am.Pipeline(tmp_path, settings=ONE) as pipeline:
        for name, array in {"nan": np.full((10, 10), np.nan), "../x": random_map(1)}.items():
            async with pipeline.reserve(SIZE) as room:
                with pytest.raises(am.MapFailedError):
                    await room.put(name, array)
        await pipeline.put_nowait("good", random_map(1))
        assert pipeline.statistics().colorize.queue == 0


async def test_a_room_that_was_left_refuses_maps(tmp_path: Path) -> None:
    async with am.Pipeline(tmp_path, settings=ONE) as pipeline:
        async with pipeline.reserve(SIZE) as room:
            pass
        with pytest.raises(am.PipelineClosedError, match="map x: its room was given back; put it inside"):
            await room.put("x", random_map(1))


@pytest.mark.parametrize(("nbytes", "timeout_s"), [(-1, None), (float("nan"), None), (1, -1.0), (1, float("nan"))])
async def test_a_wrong_size_or_time_is_refused(nbytes: Any, timeout_s: float | None, tmp_path: Path) -> None:
    async with am.Pipeline(tmp_path, settings=ONE) as pipeline:
        with pytest.raises(am.SettingsError, match="expected nbytes and timeout_s of 0 or more"):
            async with pipeline.reserve(nbytes, timeout_s=timeout_s):
                pytest.fail("entered")


async def test_closing_waits_for_a_room_and_stores_its_map() -> None:
    store = SlowStore()
    pipeline = am.Pipeline(store, settings=THREADS)
    store.gate.set()
    entered, computed = asyncio.Event(), asyncio.Event()

    async def request() -> am.Receipt:
        async with pipeline.reserve(SIZE) as room:
            entered.set()
            await computed.wait()
            return await room.put("x", random_map(1))

    async with pipeline:
        requesting = asyncio.create_task(request())
        await entered.wait()
        asyncio.get_running_loop().call_later(0.05, computed.set)
    assert (await requesting).name == "x"
    assert set(store.objects) == {"x.png"}
    with pytest.raises(am.PipelineClosedError, match="not open anymore"):
        async with pipeline.reserve(SIZE):
            pytest.fail("entered")


async def test_a_call_that_waits_for_room_ends_with_the_pipeline() -> None:
    store = SlowStore()
    pipeline = am.Pipeline(store, settings=ONE)
    await pipeline.__aenter__()

    async def request() -> None:
        async with pipeline.reserve(SIZE):
            pytest.fail("entered")

    async with pipeline.reserve(SIZE):
        waiting = asyncio.create_task(request())
        await asyncio.sleep(0.01)
        await pipeline.__aexit__(LookupError, LookupError(), None)
        with pytest.raises(am.PipelineClosedError, match="left by LookupError"):
            await waiting


# How long to wait -----------------------------------------------------------------------------------------------------


async def test_a_full_pipeline_says_when_to_try_again() -> None:
    store = SlowStore()
    async with am.Pipeline(store, settings=am.Settings(workers=0, chunk_maps=2, concurrency=1)) as pipeline:
        taken = [pipeline.put_nowait(f"{i}", random_map(i)) for i in range(2)]
        with pytest.raises(am.PipelineFullError, match=r"; try again in 1\.0 s$") as told:
            pipeline.put_nowait("2", random_map(2))
        # Nothing was measured yet.
        assert told.value.retry_after_s == 1.0
        store.gate.set()
        await asyncio.gather(*taken)
        store.gate.clear()
        taken = [pipeline.put_nowait(f"{i}", random_map(i)) for i in range(2)]
        await until(lambda: store.asked == 3)
        async with pipeline.reserve(1), pipeline.reserve(1):
            with pytest.raises(am.PipelineFullError) as told:
                pipeline.put_nowait("2", random_map(2))
        assert 0.1 <= told.value.retry_after_s <= 60
        store.gate.set()
        await asyncio.gather(*taken)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_wait_is_the_queue_over_the_measured_throughput() -> None:
    clock = Clock()
    throughput = Throughput(clock)
    throughput.begin()
    for _ in range(1000):
        clock.now += 0.02
        throughput.count()
    assert throughput.wait_s(256) == pytest.approx(256 * 0.02)
    assert throughput.wait_s(1) == 0.1
    # An idle hour does not count.
    clock.now += 3600
    throughput.begin()
    assert throughput.wait_s(256) == pytest.approx(256 * 0.02)


def test_the_wait_grows_during_an_outage_to_a_minute() -> None:
    clock = Clock()
    throughput = Throughput(clock)
    assert throughput.wait_s(256) == 1.0
    throughput.begin()
    for _ in range(1000):
        clock.now += 0.01
        throughput.count()
    waits = []
    for _ in range(4):
        waits.append(throughput.wait_s(256))
        clock.now += 10
    assert waits == sorted(waits)
    assert waits[1] == pytest.approx(256 * (1 + 10) / 100, rel=0.01)
    clock.now += 3600
    assert throughput.wait_s(256) == 60.0
