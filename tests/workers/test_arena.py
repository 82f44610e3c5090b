from __future__ import annotations

import asyncio
import mmap
import os
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from async_maps.errors import SettingsError
from async_maps.workers.arena import Arena, map_memory
from tests.support.properties import examples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_maps.workers.arena import Block

pytestmark = pytest.mark.fast

PAGE = mmap.ALLOCATIONGRANULARITY


@pytest.fixture
def arena() -> Iterator[Arena]:
    """An arena of eight pages."""
    with Arena(8 * PAGE) as arena:
        yield arena


async def settled() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


def ask(arena: Arena, *pages: int) -> list[asyncio.Task[Block]]:
    """Start one task per size, in this order, that takes a block."""
    return [asyncio.create_task(arena.take(count * PAGE)) for count in pages]


def file_size(arena: Arena) -> int:
    """Return the size of the arena's file."""
    return os.fstat(arena.descriptor).st_size


async def whole(arena: Arena) -> bool:
    """Return whether the whole arena is free, in one piece."""
    try:
        async with asyncio.timeout(0.05):
            block = await arena.take(arena.size)
    except TimeoutError:
        return False
    block.release()
    return True


@pytest.mark.parametrize("size", [2**50, 2**62])
def test_an_arena_above_the_systems_memory_is_refused(size: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(
        SettingsError, match=rf"^queue_bytes: the system cannot provide {size:,} bytes of shared memory: "
    ):
        Arena(size)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_size_is_whole_pages() -> None:
    with Arena(3 * PAGE + 1) as arena:
        assert arena.size == file_size(arena) == 4 * PAGE


async def test_a_block_has_at_least_the_requested_size(arena: Arena) -> None:
    for size, pages in ((0, 1), (1, 1), (PAGE, 1), (PAGE + 1, 2)):
        block = await arena.take(size)
        assert block.size == block.memory.size == pages * PAGE
        assert block.memory.dtype == np.uint8
        assert block.memory.flags.writeable
        block.release()


async def test_another_mapping_sees_a_block_at_its_offset(arena: Arena) -> None:
    other = map_memory(arena.descriptor, arena.size)
    blocks = [await arena.take(2 * PAGE) for _ in range(3)]
    for value, block in enumerate(blocks, start=1):
        block.memory[:] = value
    for value, block in enumerate(blocks, start=1):
        assert (other[block.start : block.start + block.size] == value).all()
    other[blocks[1].start] = 99
    assert blocks[1].memory[0] == 99
    assert (other[6 * PAGE :] == 0).all()


async def test_a_block_is_released_by_its_last_holder(arena: Arena) -> None:
    block = await arena.take(8 * PAGE)
    block.hold()
    block.hold()
    for _ in range(2):
        block.release()
        assert arena.held == 8 * PAGE
    block.release()
    assert arena.held == 0
    assert await whole(arena)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (0, 2, 1, 3), (1, 3, 0, 2)])
async def test_blocks_released_in_any_order_join(arena: Arena, order: tuple[int, ...]) -> None:
    blocks = [await arena.take(2 * PAGE) for _ in range(4)]
    for index in order:
        assert not await whole(arena)
        blocks[index].release()
    assert await whole(arena)


async def test_touched_memory_is_reused(arena: Arena) -> None:
    starts = set()
    for _ in range(10):
        block = await arena.take(2 * PAGE)
        starts.add(block.start)
        block.release()
    assert starts == {0}


async def test_take_waits_for_a_piece_that_is_large_enough(arena: Arena) -> None:
    blocks = [await arena.take(2 * PAGE) for _ in range(4)]
    blocks[0].release()
    blocks[2].release()
    (waiting,) = ask(arena, 3)
    await settled()
    assert not waiting.done()  # 4 pages are free, in two pieces
    blocks[1].release()
    block = await waiting
    assert (block.start, block.size) == (0, 3 * PAGE)


async def test_a_small_request_does_not_overtake_a_large_one(arena: Arena) -> None:
    block = await arena.take(6 * PAGE)
    large, small = ask(arena, 3, 1)
    await settled()
    assert not large.done()
    assert not small.done()
    block.release()
    assert ((await large).start, (await small).start) == (0, 3 * PAGE)


async def test_a_cancelled_waiter_holds_nothing(arena: Arena) -> None:
    block = await arena.take(8 * PAGE)
    first, second = ask(arena, 8, 1)
    await settled()
    first.cancel()
    await settled()
    block.release()
    (await second).release()
    assert arena.held == 0
    assert await whole(arena)


@pytest.mark.parametrize("pages", [8, 20])
async def test_a_waiter_cancelled_while_it_is_served_holds_nothing(arena: Arena, pages: int) -> None:
    block = await arena.take(8 * PAGE)
    served, next_one = ask(arena, pages, 8)
    await settled()
    block.release()
    assert arena.held == pages * PAGE  # served, but its task has not run yet
    served.cancel()
    await settled()
    assert served.cancelled()
    (await next_one).release()
    assert arena.held == 0
    assert await whole(arena)
    assert file_size(arena) == arena.size


async def test_a_block_larger_than_the_arena_waits_and_grows_the_file(arena: Arena) -> None:
    small = await arena.take(1)
    huge, after = ask(arena, 20, 1)
    await settled()
    assert not huge.done()
    small.release()
    block = await huge
    assert (block.start, block.size, file_size(arena)) == (0, 20 * PAGE, 20 * PAGE)
    block.memory[:] = 7
    assert (map_memory(arena.descriptor, 20 * PAGE) == 7).all()
    await settled()
    assert not after.done()
    block.release()
    (await after).release()
    assert await whole(arena)


async def test_two_blocks_larger_than_the_arena_are_held_together(arena: Arena) -> None:
    first = await arena.take(9 * PAGE, spare=9 * PAGE)
    second = await arena.take(9 * PAGE, spare=9 * PAGE)
    assert (first.start, second.start, arena.held, file_size(arena)) == (0, 9 * PAGE, 18 * PAGE, 18 * PAGE)
    (third,) = ask(arena, 9)
    await settled()
    assert not third.done()
    first.release()
    assert (await third).start == 0


async def test_growth_leaves_held_blocks_as_they_are_and_serves_those_that_wait(arena: Arena) -> None:
    small = await arena.take(5 * PAGE)
    small.memory[:] = 3
    (waiting,) = ask(arena, 4)
    await settled()
    assert not waiting.done()
    (huge,) = ask(arena, 20)
    (await waiting).memory[:] = 4
    assert (small.memory == 3).all()
    small.release()
    (await waiting).release()
    assert (await huge).size == 20 * PAGE


async def test_the_file_shrinks_for_a_smaller_block_when_nothing_is_held(arena: Arena) -> None:
    sizes = []
    for pages in (20, 20, 12, 1):
        block = await arena.take(pages * PAGE)
        sizes.append(file_size(arena) // PAGE)
        block.release()
    assert sizes == [20, 20, 12, 8]
    assert await whole(arena)


async def test_the_file_does_not_shrink_while_a_block_is_held(arena: Arena) -> None:
    huge = await arena.take(20 * PAGE, spare=PAGE)
    small = await arena.take(1)
    assert file_size(arena) == 21 * PAGE
    huge.memory[:] = 1
    for block in (huge, small):
        block.release()


@pytest.mark.parametrize("size", [1 << 48, 1 << 62, 1 << 80])
async def test_a_block_above_the_systems_memory_fails_alone(arena: Arena, size: int) -> None:
    block = await arena.take(1)
    greedy = asyncio.create_task(arena.take(size))
    (next_one,) = ask(arena, 8)
    await settled()
    block.release()  # does not raise the other task's error
    with pytest.raises(OSError, match="bytes of shared memory are not available"):
        await greedy
    assert (await next_one).size == 8 * PAGE
    assert file_size(arena) == arena.size


async def test_views_stay_valid_after_the_arena_is_closed() -> None:
    with Arena(PAGE) as arena:
        block = await arena.take(PAGE)
        block.memory[:] = 5
    with pytest.raises(OSError, match="Bad file descriptor"):
        file_size(arena)
    assert (block.memory == 5).all()


async def test_memory_is_unmapped_with_the_last_view() -> None:
    with Arena(PAGE) as arena:
        other = map_memory(arena.descriptor, PAGE)
        mapping = weakref.ref(memoryview(other.base).obj)  # type: ignore[arg-type]
        view = other[10:20].reshape(2, 5)
        del other
        assert mapping() is not None
        del view
        assert mapping() is None


async def test_the_shared_memory_has_no_name() -> None:
    with Arena(PAGE) as arena:
        status = os.fstat(arena.descriptor)
        assert status.st_nlink == 0


ANY = st.integers(0, 9)
"""An index into a list, modulo its length."""


@dataclass
class Asked:
    """A request for a block: the task that waits, and the mark in its block."""

    task: asyncio.Task[Block]
    mark: int = 0


class ArenaMachine(RuleBasedStateMachine):
    """Take, release and cancel in any order. Each block gets a mark, which must stay intact."""

    PAGES = 8

    @initialize()
    def begin(self) -> None:
        """Create a loop, an arena and a second mapping of it."""
        self.loop = asyncio.new_event_loop()
        self.arena = Arena(self.PAGES * PAGE)
        self.other = map_memory(self.arena.descriptor, self.arena.size)
        self.waiting: list[Asked] = []
        self.holding: list[Asked] = []
        self.marks = 0

    def settle(self) -> None:
        """Let the tasks run and mark the new blocks."""
        self.loop.run_until_complete(settled())
        served = [each for each in self.waiting if each.task.done()]
        assert served == self.waiting[: len(served)]  # first come, first served
        del self.waiting[: len(served)]
        for each in served:
            self.marks += 1
            each.mark = self.marks % 251
            each.task.result().memory[:] = each.mark
        self.holding += served

    def give_back(self, which: int) -> None:
        """Release a block after a check of its mark."""
        each = self.holding.pop(which % len(self.holding))
        block = each.task.result()
        assert (block.memory == each.mark).all()
        if block.start + block.size <= self.arena.size:
            assert (self.other[block.start : block.start + block.size] == each.mark).all()
        block.release()

    def cancel_one(self, which: int) -> None:
        """Cancel a request that waits, without a settle."""
        self.waiting.pop(which % len(self.waiting)).task.cancel()

    @rule(
        size=st.integers(0, 9 * PAGE) | st.sampled_from([8 * PAGE, 8 * PAGE + 1, 20 * PAGE]),
        spare=st.sampled_from([0, PAGE, 9 * PAGE]),
    )
    def take(self, size: int, spare: int) -> None:
        """Request a block."""
        self.waiting.append(Asked(self.loop.create_task(self.arena.take(size, spare))))
        self.settle()

    @precondition(lambda self: self.holding)
    @rule(which=ANY)
    def release(self, which: int) -> None:
        """Release a block."""
        self.give_back(which)
        self.settle()

    @precondition(lambda self: self.waiting)
    @rule(which=ANY)
    def cancel(self, which: int) -> None:
        """Cancel a request that waits."""
        self.cancel_one(which)
        self.settle()

    @precondition(lambda self: self.waiting and self.holding)
    @rule(which=ANY, whom=ANY)
    def release_and_cancel(self, which: int, whom: int) -> None:
        """Release a block and cancel a waiting request before its task runs."""
        self.give_back(which)
        self.cancel_one(whom)
        self.settle()

    @invariant()
    def blocks_do_not_overlap(self) -> None:
        """Check that no two blocks overlap, each is in the file, and the bytes held are equal."""
        blocks = sorted((each.task.result() for each in self.holding), key=lambda block: block.start)
        ends = [0, *(block.start + block.size for block in blocks)]
        assert all(block.start >= end for block, end in zip(blocks, ends[:-1], strict=True))
        total = sum(block.size for block in blocks)
        assert self.arena.held == total
        assert ends[-1] <= self.arena.room == file_size(self.arena)
        assert self.arena.room in range(self.arena.size, 29 * PAGE + 1)

    @invariant()
    def nothing_waits_when_all_is_free(self) -> None:
        """Check that nothing waits when everything is free."""
        assert self.holding or not self.waiting

    def teardown(self) -> None:
        """Release every block and check that the arena is one piece again."""
        if not hasattr(self, "loop"):
            return
        for each in self.waiting:
            each.task.cancel()
        self.loop.run_until_complete(settled())
        for each in self.holding:
            each.task.result().release()
        assert self.arena.held == 0
        assert self.loop.run_until_complete(whole(self.arena))
        self.arena.__exit__(None, None, None)
        self.loop.close()


ArenaMachine.TestCase.settings = settings(examples(60), stateful_step_count=30)
TestArenaMachine = ArenaMachine.TestCase


async def test_a_released_block_maps_no_memory() -> None:
    with Arena(2**16) as arena:
        block = await arena.take(100)
        block.release()
    assert block.memory.size == 0
