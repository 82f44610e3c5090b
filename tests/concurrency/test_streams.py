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
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


def ask(budget: ByteBudget, *sizes: int) -> list[asyncio.Task[Lease]]:
    """Start one task per size, in this order, that acquires a lease."""
    return [asyncio.create_task(budget.acquire(size)) for size in sizes]


async def cancel(*tasks: asyncio.Task[Lease]) -> None:
    """Cancel the tasks and check that they are cancelled."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert all(task.cancelled() for task in tasks)


async def test_acquire_does_not_wait_when_bytes_are_free() -> None:
    budget = ByteBudget(100)
    first, second = budget.acquire(60), budget.acquire(40)
    for coroutine in (first, second):
        with pytest.raises(StopIteration):
            coroutine.send(None)  # StopIteration: it never waits
    assert budget.held == 100


async def test_leases_stay_within_the_limit() -> None:
    budget = ByteBudget(100)
    tasks = ask(budget, 60, 41)
    await settled()
    assert [task.done() for task in tasks] == [True, False]
    assert budget.held == 60
    tasks[0].result().release()
    await settled()
    assert tasks[1].done()
    assert budget.held == 41


async def test_a_small_request_does_not_overtake_a_large_one() -> None:
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


async def test_one_release_serves_every_waiter_that_fits() -> None:
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


async def test_an_empty_lease_never_waits() -> None:
    budget = ByteBudget(100)
    await budget.acquire(100)
    empty = ask(budget, 0)[0]
    await settled()
    assert empty.done()
    empty.result().release()
    assert budget.held == 100


async def test_releasing_a_lease_twice_returns_its_bytes_once() -> None:
    budget = ByteBudget(100)
    lease, other = await budget.acquire(60), await budget.acquire(40)
    lease.release()
    lease.release()
    assert budget.held == 40
    other.release()
    assert budget.held == 0


async def test_a_cancelled_waiter_holds_nothing() -> None:
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


async def test_cancelling_a_waiter_serves_those_behind_it() -> None:
    budget = ByteBudget(100)
    await budget.acquire(60)
    head, behind = ask(budget, 50, 40)
    await settled()
    assert not behind.done()
    await cancel(head)
    await settled()
    assert behind.done()
    assert budget.held == 100


async def test_a_waiter_cancelled_while_it_is_served_holds_nothing() -> None:
    budget = ByteBudget(100)
    lease = await budget.acquire(100)
    served, next_one = ask(budget, 100, 100)
    await settled()
    lease.release()
    assert budget.held == 100  # served, but its task has not run yet
    await cancel(served)
    await settled()
    assert next_one.done()
    assert budget.held == 100
    next_one.result().release()
    assert budget.held == 0


async def test_a_waiter_that_times_out_holds_nothing() -> None:
    budget = ByteBudget(10)
    lease = await budget.acquire(10)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await budget.acquire(5)
    lease.release()
    assert budget.held == 0


async def test_acquire_nowait_returns_none_without_room_or_behind_waiters() -> None:
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


async def test_a_lease_can_be_resized() -> None:
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


async def test_closing_a_budget_refuses_waiters_and_later_requests() -> None:
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


async def test_a_waiter_served_before_the_close_keeps_its_lease() -> None:
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


async def test_waiters_cancelled_during_the_close_are_cancelled() -> None:
    budget = ByteBudget(100)
    await budget.acquire(100)
    tasks = ask(budget, 1, 1)
    await settled()
    budget.close()
    await cancel(*tasks)
    assert budget.held == 100


async def test_a_waiting_line_works_with_any_kind_of_share() -> None:
    free = ["a", "b"]
    line: WaitingLine[str] = WaitingLine(lambda _size: free.pop(0) if free else None, free.append)
    assert [await line.wait(1), await line.wait(1)] == ["a", "b"]
    waiting = asyncio.create_task(line.wait(1))
    await settled()
    free.append("a")
    line.serve()
    assert await waiting == "a"


ANY = st.integers(0, 9)
"""An index into a list, modulo its length."""


@dataclass
class Asked:
    """A request for a lease: its size and the task that waits for it."""

    size: int
    task: asyncio.Task[Lease]


class BudgetMachine(RuleBasedStateMachine):
    """Acquire, release and cancel in any order, compared with a model that counts."""

    LIMIT = 10

    @initialize()
    def begin(self) -> None:
        """Create a loop and a budget."""
        self.loop = asyncio.new_event_loop()
        self.budget = ByteBudget(self.LIMIT)
        self.waiting: list[Asked] = []
        self.holding: list[Asked] = []

    def settle(self) -> None:
        """Let the tasks run and serve the model's waiting line as the budget should."""
        self.loop.run_until_complete(settled())
        while self.waiting and self.fits(self.waiting[0].size):
            self.holding.append(self.waiting.pop(0))

    def held(self) -> int:
        """Return the bytes that the model holds."""
        return sum(each.size for each in self.holding)

    def fits(self, size: int) -> bool:
        """Return whether there is room for a lease of this size."""
        return not self.held() or self.held() + size <= self.LIMIT

    @rule(size=st.integers(1, 14))
    def acquire(self, size: int) -> None:
        """Request a lease."""
        self.waiting.append(Asked(size, self.loop.create_task(self.budget.acquire(size))))
        self.settle()

    @precondition(lambda self: self.holding)
    @rule(which=ANY, times=st.integers(1, 2))
    def release(self, which: int, times: int) -> None:
        """Release a lease, once or twice."""
        lease = self.holding.pop(which % len(self.holding)).task.result()
        for _ in range(times):
            lease.release()
        self.settle()

    @precondition(lambda self: self.waiting)
    @rule(which=ANY)
    def cancel(self, which: int) -> None:
        """Cancel a request that waits."""
        self.waiting.pop(which % len(self.waiting)).task.cancel()
        self.settle()

    @precondition(lambda self: self.waiting and self.holding)
    @rule(which=ANY, whom=ANY)
    def release_and_cancel(self, which: int, whom: int) -> None:
        """Release a lease and cancel a waiting request before its task runs."""
        self.holding.pop(which % len(self.holding)).task.result().release()
        self.waiting.pop(whom % len(self.waiting)).task.cancel()
        self.settle()

    @invariant()
    def matches_the_model(self) -> None:
        """Check that the same requests hold and wait, and the bytes held are equal."""
        assert self.budget.held == self.held()
        assert self.held() <= max(self.LIMIT, *(each.size for each in self.holding), 0)
        assert all(each.task.done() for each in self.holding)
        assert not any(each.task.done() for each in self.waiting)

    def teardown(self) -> None:
        """Release every lease and check that the budget holds nothing."""
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


# send() and receive() ------------------------------------------------------------------------------------------------


async def test_send_and_receive_do_not_yield_when_they_need_not_wait() -> None:
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


async def test_send_waits_for_room_and_receive_for_an_item() -> None:
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


async def test_receive_returns_none_at_the_end() -> None:
    into, out = anyio.create_memory_object_stream[int](1)
    with out:
        waiting = asyncio.create_task(receive(out))
        await asyncio.sleep(0)
        into.close()
        assert await waiting is None
        assert await receive(out) is None


async def test_a_cancelled_receiver_loses_no_item() -> None:
    into, out = anyio.create_memory_object_stream[int](1)
    with into, out:
        waiting = asyncio.create_task(receive(out))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        await send(into, 1)
        assert await receive(out) == 1
