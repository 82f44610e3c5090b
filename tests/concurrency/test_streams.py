from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import pytest
from anyio import BrokenResourceError
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from async_maps.concurrency.streams import ByteBudget, WaitingLine, receive, send
from tests.support.properties import examples

if TYPE_CHECKING:
    from async_maps.concurrency.streams import Lease

pytestmark = pytest.mark.fast


async def settled() -> None:
    """Every task has gone as far as it can without us."""
    for _ in range(10):
        await asyncio.sleep(0)


def ask(budget: ByteBudget, *sizes: int) -> list[asyncio.Task[Lease]]:
    """Tasks that each want a lease, in this order."""
    return [asyncio.create_task(budget.acquire(size)) for size in sizes]


async def cancel(*tasks: asyncio.Task[Lease]) -> None:
    """Cancel tasks, and see that they are."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert all(task.cancelled() for task in tasks)


async def test_what_is_free_is_lent_at_once() -> None:
    budget = ByteBudget(100)
    first, second = budget.acquire(60), budget.acquire(40)
    for coroutine in (first, second):
        with pytest.raises(StopIteration):
            coroutine.send(None)  # it never waits
    assert budget.held == 100


async def test_no_more_is_lent_than_the_limit() -> None:
    budget = ByteBudget(100)
    tasks = ask(budget, 60, 41)
    await settled()
    assert [task.done() for task in tasks] == [True, False]
    assert budget.held == 60
    tasks[0].result().release()
    await settled()
    assert tasks[1].done()
    assert budget.held == 41


async def test_first_come_first_served_even_where_a_later_one_would_fit() -> None:
    budget = ByteBudget(100)
    lease = await budget.acquire(60)
    large, small = ask(budget, 70, 1)
    await settled()
    assert not large.done()
    assert not small.done()
    late = ask(budget, 1)[0]
    await settled()
    assert not late.done()
    lease.release()
    await settled()
    assert large.done()
    assert small.done()
    assert late.done()
    assert budget.held == 72


async def test_one_release_serves_as_many_as_fit() -> None:
    budget = ByteBudget(100)
    lease = await budget.acquire(100)
    tasks = ask(budget, 30, 30, 40, 1)
    await settled()
    lease.release()
    await settled()
    assert [task.done() for task in tasks] == [True, True, True, False]
    await cancel(tasks[3])


async def test_a_lease_larger_than_the_budget_is_given_alone() -> None:
    budget = ByteBudget(100)
    small = await budget.acquire(1)
    huge, after = ask(budget, 1_000, 1)
    await settled()
    assert not huge.done()
    small.release()
    await settled()
    assert huge.done()
    assert not after.done()
    assert budget.held == 1_000
    huge.result().release()
    await settled()
    assert after.done()
    assert budget.held == 1


async def test_nothing_takes_no_room() -> None:
    budget = ByteBudget(100)
    await budget.acquire(100)
    empty = ask(budget, 0)[0]
    await settled()
    assert empty.done()
    empty.result().release()
    assert budget.held == 100


async def test_a_lease_released_twice_is_given_back_once() -> None:
    budget = ByteBudget(100)
    lease, other = await budget.acquire(60), await budget.acquire(40)
    lease.release()
    lease.release()
    assert budget.held == 40
    other.release()
    assert budget.held == 0


async def test_who_is_cancelled_while_waiting_has_taken_nothing() -> None:
    budget = ByteBudget(100)
    lease = await budget.acquire(100)
    tasks = ask(budget, 50, 50, 50)
    await settled()
    await cancel(tasks[1])
    assert budget.held == 100
    lease.release()
    await settled()
    assert tasks[0].done()
    assert tasks[2].done()
    assert budget.held == 100


async def test_those_behind_a_cancelled_one_are_served_when_there_is_room_for_them() -> None:
    budget = ByteBudget(100)
    await budget.acquire(60)
    head, behind = ask(budget, 50, 40)
    await settled()
    assert not behind.done()
    await cancel(head)
    await settled()
    assert behind.done()
    assert budget.held == 100


async def test_who_is_cancelled_in_the_moment_it_is_served_has_taken_nothing() -> None:
    budget = ByteBudget(100)
    lease = await budget.acquire(100)
    served, next_one = ask(budget, 100, 100)
    await settled()
    lease.release()
    assert budget.held == 100  # it is served, and does not know it yet
    await cancel(served)
    await settled()
    assert next_one.done()
    assert budget.held == 100
    next_one.result().release()
    assert budget.held == 0


async def test_a_time_out_while_waiting_takes_nothing() -> None:
    budget = ByteBudget(10)
    lease = await budget.acquire(10)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await budget.acquire(5)
    lease.release()
    assert budget.held == 0


async def test_at_once_is_lent_what_is_free_and_nothing_while_others_wait() -> None:
    budget = ByteBudget(100)
    lease = budget.acquire_nowait(60)
    assert lease is not None
    assert budget.acquire_nowait(41) is None
    (waiting,) = ask(budget, 50)
    await settled()
    assert budget.waiting == 1
    assert budget.acquire_nowait(1) is None
    lease.release()
    assert budget.waiting == 0
    assert budget.acquire_nowait(51) is None
    assert budget.acquire_nowait(50) is not None
    (await waiting).release()
    budget.close()
    assert budget.acquire_nowait(1) is None
    assert budget.held == 50


async def test_a_lease_may_turn_out_smaller_or_larger() -> None:
    budget = ByteBudget(100)
    lease = await budget.acquire(80)
    (waiting,) = ask(budget, 50)
    await settled()
    lease.resize(50)
    await settled()
    assert waiting.done()
    assert budget.held == 100
    lease.resize(150)
    assert budget.held == 200
    lease.release()
    waiting.result().release()
    assert budget.held == 0


async def test_who_waits_for_a_budget_that_is_closed_is_sent_away_and_who_comes_later_too() -> None:
    budget = ByteBudget(100)
    lease = await budget.acquire(100)
    tasks = ask(budget, 1, 100)
    await settled()
    budget.close()
    for task in tasks:
        with pytest.raises(BrokenResourceError):
            await task
    with pytest.raises(BrokenResourceError):
        await budget.acquire(1)
    assert budget.held == 100
    lease.release()
    assert budget.held == 0


async def test_who_was_served_in_the_moment_of_the_closing_has_its_lease() -> None:
    budget = ByteBudget(100)
    lease = await budget.acquire(100)
    served, waiting = ask(budget, 100, 1)
    await settled()
    lease.release()
    budget.close()
    (await served).release()
    with pytest.raises(BrokenResourceError):
        await waiting
    assert budget.held == 0


async def test_who_is_cancelled_in_the_moment_of_the_closing_is_cancelled() -> None:
    budget = ByteBudget(100)
    await budget.acquire(100)
    tasks = ask(budget, 1, 1)
    await settled()
    budget.close()
    await cancel(*tasks)
    assert budget.held == 100


async def test_a_line_hands_on_whatever_it_is_given_shares_of() -> None:
    free = ["a", "b"]
    line: WaitingLine[str] = WaitingLine(lambda _size: free.pop(0) if free else None, free.append)
    assert [await line.wait(1), await line.wait(1)] == ["a", "b"]
    waiting = asyncio.create_task(line.wait(1))
    await settled()
    free.append("a")
    line.serve()
    assert await waiting == "a"


ANY = st.integers(0, 9)
"""Which one of several, counted round."""


@dataclass
class Asked:
    """One who asked: the size, and the task that waits."""

    size: int
    task: asyncio.Task[Lease]


class BudgetMachine(RuleBasedStateMachine):
    """Any order of asking, giving back and cancelling, beside a model that counts."""

    LIMIT = 10

    @initialize()
    def begin(self) -> None:
        """A fresh loop and budget."""
        self.loop = asyncio.new_event_loop()
        self.budget = ByteBudget(self.LIMIT)
        self.waiting: list[Asked] = []
        self.holding: list[Asked] = []

    def settle(self) -> None:
        """Let the tasks run, and let the model serve its line as the budget should."""
        self.loop.run_until_complete(settled())
        while self.waiting and self.fits(self.waiting[0].size):
            self.holding.append(self.waiting.pop(0))

    def held(self) -> int:
        """What the model holds."""
        return sum(each.size for each in self.holding)

    def fits(self, size: int) -> bool:
        """Whether there is room."""
        return not self.held() or self.held() + size <= self.LIMIT

    @rule(size=st.integers(1, 14))
    def acquire(self, size: int) -> None:
        """Ask for a lease."""
        self.waiting.append(Asked(size, self.loop.create_task(self.budget.acquire(size))))
        self.settle()

    @precondition(lambda self: self.holding)
    @rule(which=ANY, times=st.integers(1, 2))
    def release(self, which: int, times: int) -> None:
        """Give a lease back, once or twice."""
        lease = self.holding.pop(which % len(self.holding)).task.result()
        for _ in range(times):
            lease.release()
        self.settle()

    @precondition(lambda self: self.waiting)
    @rule(which=ANY)
    def cancel(self, which: int) -> None:
        """Cancel one who waits."""
        self.waiting.pop(which % len(self.waiting)).task.cancel()
        self.settle()

    @precondition(lambda self: self.waiting and self.holding)
    @rule(which=ANY, whom=ANY)
    def release_and_cancel_at_once(self, which: int, whom: int) -> None:
        """Give a lease back, and cancel one who waits before it can see whether it was served."""
        self.holding.pop(which % len(self.holding)).task.result().release()
        self.waiting.pop(whom % len(self.waiting)).task.cancel()
        self.settle()

    @invariant()
    def as_the_model(self) -> None:
        """The same ones hold and wait, and the bytes are counted right."""
        assert self.budget.held == self.held()
        assert self.held() <= max(self.LIMIT, *(each.size for each in self.holding), 0)
        assert all(each.task.done() for each in self.holding)
        assert not any(each.task.done() for each in self.waiting)

    def teardown(self) -> None:
        """All is given back."""
        if not hasattr(self, "loop"):
            return
        for each in self.waiting:
            each.task.cancel()
        self.loop.run_until_complete(settled())
        for each in self.holding:
            each.task.result().release()
        assert self.budget.held == 0
        self.loop.close()


BudgetMachine.TestCase.settings = settings(examples(60), stateful_step_count=30)
TestBudgetMachine = BudgetMachine.TestCase


# The quick way through a stream -------------------------------------------------------------------------------------


async def test_what_has_room_or_is_there_passes_without_a_turn_of_the_loop() -> None:
    into, out = anyio.create_memory_object_stream[int](2)
    with into, out:
        turned = False

        def turn() -> None:
            nonlocal turned
            turned = True

        asyncio.get_running_loop().call_soon(turn)
        await send(into, 1)
        await send(into, 2)
        assert [await receive(out), await receive(out)] == [1, 2]
        assert not turned


async def test_what_has_no_room_waits_and_what_is_not_there_is_waited_for() -> None:
    into, out = anyio.create_memory_object_stream[int](1)
    with into, out:
        await send(into, 1)
        sending = asyncio.create_task(send(into, 2))
        await asyncio.sleep(0)
        assert not sending.done()
        assert [await receive(out), await receive(out)] == [1, 2]
        receiving = asyncio.create_task(receive(out))
        await asyncio.sleep(0)
        await sending
        await send(into, 3)
        assert await receiving == 3


async def test_the_end_is_none_whether_it_is_there_or_waited_for() -> None:
    into, out = anyio.create_memory_object_stream[int](1)
    with out:
        waiting = asyncio.create_task(receive(out))
        await asyncio.sleep(0)
        into.close()
        assert await waiting is None
        assert await receive(out) is None


async def test_an_item_is_not_lost_with_a_receiver_who_is_cancelled() -> None:
    into, out = anyio.create_memory_object_stream[int](1)
    with into, out:
        waiting = asyncio.create_task(receive(out))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        await send(into, 1)
        assert await receive(out) == 1
