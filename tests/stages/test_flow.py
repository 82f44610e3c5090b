from __future__ import annotations

import asyncio
import random

import pytest

from async_maps.errors import PipelineClosedError, StoreError
from async_maps.outcomes import Failure, Outcome
from async_maps.stages.flow import Flow

pytestmark = pytest.mark.fast


def outcome(name: str) -> Failure:
    """Return an outcome with this name."""
    return Failure(name, name, None, "colorize", "a test")


def names(outcomes: list[Outcome]) -> list[str]:
    """Return the names of the outcomes."""
    return [each.name for each in outcomes]


async def settled() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def admitted(flow: Flow, count: int) -> None:
    """Admit ``count`` maps."""
    async with asyncio.timeout(60):
        for _ in range(count):
            await flow.admit()


async def test_admit_waits_while_the_window_is_full() -> None:
    flow = Flow(3)
    await admitted(flow, 3)
    feeder = asyncio.create_task(admitted(flow, 1))
    await settled()
    assert not feeder.done()
    flow.settle(outcome("a"))
    flow.settle(outcome("b"))
    await settled()
    assert not feeder.done()  # an outcome that is not collected still counts
    assert names(await flow.collect()) == ["a", "b"]
    await feeder
    await admitted(flow, 1)
    feeder = asyncio.create_task(admitted(flow, 1))
    await settled()
    assert not feeder.done()
    feeder.cancel()


async def test_collect_returns_new_outcomes_in_order() -> None:
    flow = Flow(10)
    await admitted(flow, 4)
    for name in ("b", "a", "c"):
        flow.settle(outcome(name))
    assert names(await flow.collect()) == ["b", "a", "c"]
    flow.settle(outcome("d"))
    assert names(await flow.collect()) == ["d"]


async def test_collect_waits_for_an_outcome() -> None:
    flow = Flow(10)
    await admitted(flow, 1)
    collector = asyncio.create_task(flow.collect())
    await settled()
    assert not collector.done()
    flow.settle(outcome("a"))
    assert names(await collector) == ["a"]


async def test_a_closed_flow_ends_after_its_last_outcome() -> None:
    flow = Flow(10)
    await admitted(flow, 2)
    flow.close()
    flow.settle(outcome("a"))
    assert names(await flow.collect()) == ["a"]
    collector = asyncio.create_task(flow.collect())
    await settled()
    assert not collector.done()
    flow.settle(outcome("b"))
    assert names(await collector) == ["b"]
    assert await flow.collect() == []
    assert await flow.collect() == []


async def test_closing_a_flow_ends_a_waiting_collect() -> None:
    flow = Flow(10)
    collector = asyncio.create_task(flow.collect())
    await settled()
    assert not collector.done()
    flow.close()
    assert await collector == []


async def test_collect_raises_an_error_after_earlier_outcomes() -> None:
    flow = Flow(10)
    await admitted(flow, 3)
    flow.settle(outcome("a"))
    flow.abort(StoreError("no bucket"))
    flow.settle(outcome("late"))
    assert names(await flow.collect()) == ["a", "late"]
    for _ in range(2):
        with pytest.raises(StoreError, match="no bucket"):
            await flow.collect()


async def test_an_error_ends_a_waiting_collect() -> None:
    flow = Flow(10)
    await admitted(flow, 1)
    collector = asyncio.create_task(flow.collect())
    await settled()
    flow.abort(StoreError("no bucket"))
    with pytest.raises(StoreError, match="no bucket"):
        await collector


async def test_collect_raises_the_first_error() -> None:
    flow = Flow(10)
    flow.abort(StoreError("the cause"))
    flow.abort(PipelineClosedError("what came of it"))
    with pytest.raises(StoreError, match="the cause"):
        await flow.collect()


async def test_a_map_settled_with_an_error_ends_the_flow() -> None:
    flow = Flow(2)
    await admitted(flow, 2)
    flow.settle(outcome("a"))
    flow.settle(PipelineClosedError("closed"))
    assert names(await flow.collect()) == ["a"]
    with pytest.raises(PipelineClosedError, match="closed"):
        await flow.collect()


async def test_a_closed_flow_still_raises_its_error() -> None:
    flow = Flow(2)
    await admitted(flow, 1)
    flow.close()
    flow.settle(StoreError("no bucket"))
    with pytest.raises(StoreError, match="no bucket"):
        await flow.collect()


async def test_a_cancelled_feeder_or_collector_takes_nothing() -> None:
    flow = Flow(1)
    await admitted(flow, 1)
    feeder = asyncio.create_task(admitted(flow, 1))
    collector = asyncio.create_task(flow.collect())
    await settled()
    feeder.cancel()
    collector.cancel()
    await asyncio.gather(feeder, collector, return_exceptions=True)
    flow.settle(outcome("a"))
    assert names(await flow.collect()) == ["a"]
    await admitted(flow, 1)


async def test_a_collect_cancelled_with_an_outcome_loses_none() -> None:
    flow = Flow(1)
    await admitted(flow, 1)
    collector = asyncio.create_task(flow.collect())
    await settled()
    flow.settle(outcome("a"))
    collector.cancel()
    await asyncio.gather(collector, return_exceptions=True)
    assert collector.cancelled()
    assert names(await flow.collect()) == ["a"]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("window", [1, 2, 7])
@pytest.mark.parametrize("seed", range(5))
async def test_every_map_is_collected_once_within_the_window(window: int, seed: int, ordered: bool) -> None:
    rng = random.Random(seed)  # noqa: S311  # a test's dice
    flow = Flow(window, ordered=ordered)
    inside = 0
    most = 0
    todo: list[int] = []
    collected: list[str] = []

    async def feed() -> None:
        nonlocal inside, most
        for _ in range(200):
            number = await flow.admit()
            inside += 1
            most = max(most, inside)
            todo.append(number)
            if rng.random() < 0.3:
                await asyncio.sleep(0)
        flow.close()

    async def work() -> None:
        done = 0
        while done < 200:
            await asyncio.sleep(0)
            rng.shuffle(todo)
            while todo and rng.random() < 0.7:
                number = todo.pop()
                flow.settle(outcome(f"{number}"), number)
                done += 1

    async def collect() -> None:
        nonlocal inside
        while outcomes := await flow.collect():
            inside -= len(outcomes)
            collected.extend(names(outcomes))
            if rng.random() < 0.3:
                await asyncio.sleep(0)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for task in (feed, work, collect):
            tasks.create_task(task())
    assert (collected if ordered else sorted(collected, key=int)) == [f"{number}" for number in range(1, 201)]
    assert most == window


async def test_end_is_an_error_only_for_an_unfinished_flow() -> None:
    through, waiting = Flow(10), Flow(10)
    for flow in (through, waiting):
        assert await flow.admit()
        flow.close()
    through.settle(outcome("a"))
    for flow in (through, waiting):
        flow.end(PipelineClosedError("gone"))
    assert await through.collect() == [outcome("a")]
    assert await through.collect() == []
    with pytest.raises(PipelineClosedError):
        await waiting.collect()


async def test_the_error_of_the_source_comes_after_the_last_outcome() -> None:
    flow = Flow(10)
    assert await flow.admit()
    flow.close(LookupError("mine"))
    flow.settle(outcome("a"))
    assert await flow.collect() == [outcome("a")]
    with pytest.raises(LookupError, match="mine"):
        await flow.collect()


async def test_an_ordered_outcome_waits_for_earlier_ones() -> None:
    flow = Flow(10, ordered=True)
    numbers = [await flow.admit() for _ in range(5)]
    assert numbers == [1, 2, 3, 4, 5]
    for number in (3, 2):
        flow.settle(outcome(f"{number}"), number)
    collector = asyncio.create_task(flow.collect())
    await settled()
    assert not collector.done()
    flow.settle(outcome("1"), 1)
    assert names(await collector) == ["1", "2", "3"]
    flow.settle(outcome("4"), 4)
    assert names(await flow.collect()) == ["4"]
    flow.close()
    flow.settle(outcome("5"), 5)
    assert names(await flow.collect()) == ["5"]
    assert await flow.collect() == []


async def test_ordered_outcomes_held_back_count_in_the_window() -> None:
    flow = Flow(3, ordered=True)
    await admitted(flow, 3)
    flow.settle(outcome("2"), 2)
    flow.settle(outcome("3"), 3)
    feeder = asyncio.create_task(admitted(flow, 1))
    await settled()
    assert not feeder.done()
    flow.settle(outcome("1"), 1)
    await settled()
    assert not feeder.done()
    assert names(await flow.collect()) == ["1", "2", "3"]
    await feeder


async def test_an_ordered_error_comes_after_earlier_outcomes() -> None:
    flow = Flow(5, ordered=True)
    await admitted(flow, 4)
    flow.settle(outcome("4"), 4)
    flow.settle(StoreError("no bucket"), 2)
    flow.settle(outcome("1"), 1)
    assert names(await flow.collect()) == ["1"]
    with pytest.raises(StoreError, match="no bucket"):
        await flow.collect()


async def test_a_withdrawn_map_does_not_block_ordered_outcomes() -> None:
    flow = Flow(5, ordered=True)
    await admitted(flow, 2)
    flow.withdraw()
    flow.close(LookupError("mine"))
    flow.settle(outcome("1"), 1)
    assert names(await flow.collect()) == ["1"]
    with pytest.raises(LookupError, match="mine"):
        await flow.collect()
