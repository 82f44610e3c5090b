"""One lane, as its parent sees it: the maps that it has, and the messages to and from its process."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Protocol

from anyio import create_task_group

from async_maps.concurrency.interpreter import Interpreter, StartError, describe_end
from async_maps.concurrency.tasks import first_error
from async_maps.errors import WorkerError
from async_maps.lanes.child import BATCH, STOP_TIMEOUT_S
from async_maps.lanes.packing import pack_map, unpack_error, unpack_outcome
from async_maps.lanes.totals import State
from async_maps.outcomes import Receipt
from async_maps.stages.meters import LaneStatistics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from async_maps.sources.activation_map import ActivationMap
    from async_maps.stages.items import Job

_START_TIMEOUT_S = 120.0
"""The first start compiles the kernels, possibly on a busy machine."""
_COST_BYTES = 64 * 2**10
"""What a map costs besides its bytes, in bytes of maps."""

_numbers = count()


class LaneDiedError(WorkerError):
    """The process of a lane could not start, or has ended without an order to do so."""


class Parent(Protocol):
    """What a lane asks of its parent."""

    kernels: int
    """The file in memory through which all processes share compiled kernels."""

    def hello(self) -> tuple[Any, ...]:
        """Return the first message to a process."""

    def news(self, lane: Lane, told: dict[str, object]) -> list[tuple[Any, ...]]:
        """Return messages about what has changed since, and note it in ``told``."""

    def hear(self, lane: Lane, kind: str, values: Sequence[Any]) -> None:
        """Receive any other message."""


class Lane:
    """A lane. Its process is started by :meth:`run`, any number of times.

    Args:
        parent: what it asks.
        on_room: called when maps have got their outcomes.
        window: the maximum number of its maps without an outcome.

    Attributes:
        unsent: the maps that the process does not know yet.
        sent: the maps that it has, by number.
        load: the bytes of all of them, with a cost for each.
        state: what the process has told of its stages.
        settled: the number of outcomes.
        stored: the number of receipts.
        pid: the id of its process; None if there is none.
        deaths: how often its process has died.
        kept: the number of the feed in which it has stored an object, the key, and the bytes; None if there is none.
        last: the last map that it has stored.
    """

    def __init__(self, parent: Parent, on_room: Callable[[Lane], None], window: int) -> None:
        self.window = window
        self.unsent: deque[Job] = deque()
        self.sent: dict[int, Job] = {}
        self.load = 0
        self.state = State()
        self.settled = self.stored = self.deaths = 0
        self.pid: int | None = None
        self.kept: tuple[int, str, bytes] | None = None
        self.last: ActivationMap | None = None
        self._parent = parent
        self._on_room = on_room
        self._messages: deque[tuple[Any, ...]] = deque()
        self._something = asyncio.Event()
        self._is_closed = self._is_ready = self._has_ended = False

    @property
    def maps(self) -> int:
        """The number of its maps without an outcome."""
        return len(self.unsent) + len(self.sent)

    @property
    def is_full(self) -> bool:
        """Whether it takes no further map now."""
        return self.maps >= self.window

    @property
    def has_started(self) -> bool:
        """Whether it has or had a process or maps."""
        return self.pid is not None or self.deaths > 0 or self.settled + self.maps > 0

    def statistics(self, name: str, waiting: int = 0) -> LaneStatistics:
        """Return its state; ``waiting`` maps will be added to it."""
        in_flight = self.maps + waiting
        if not in_flight:
            waits_for = "" if self._is_closed else "maps"
        else:
            waits_for = self.state.waits_for if self.pid is not None and self._is_ready else "start"
        return LaneStatistics(name, self.pid, self.settled, in_flight, waits_for, self.deaths)

    def add(self, job: Job) -> None:
        """Give it a map."""
        self.unsent.append(job)
        self.load += _cost(job)
        self._something.set()

    def say(self, *message: Any) -> None:
        """Send a message to its process."""
        self._messages.append(message)
        self._something.set()

    def wake(self) -> None:
        """Send what is new."""
        self._something.set()

    def close(self, *, closed: bool = True) -> None:
        """Let its process end when all of its maps have an outcome; with False, the next one does not."""
        self._is_closed = closed
        self._something.set()

    @property
    def is_ready(self) -> bool:
        """Whether its process runs, and takes maps."""
        return self.pid is not None and self._is_ready

    def take_unsent(self) -> list[Job]:
        """Take the maps that its process does not know yet."""
        jobs = [*self.unsent]
        self.unsent.clear()
        self.load -= sum(map(_cost, jobs))
        return jobs

    def take_sent(self) -> list[Job]:
        """Take the maps that a dead process had; it may have stored them, without an answer."""
        jobs = [*self.sent.values()]
        self.sent.clear()
        self.load -= sum(map(_cost, jobs))
        return jobs

    async def run(self) -> None:
        """Start the process, and run it until it is closed.

        Raises:
            LaneDiedError: it cannot be started, or has ended for another reason.
            AsyncMapsError: what ended its stages.
        """
        process = Interpreter("async_maps.lanes.child", [self._parent.kernels])
        self._messages.clear()
        self._is_ready = self._has_ended = False
        told: dict[str, object] = {}
        try:
            await process.start()
            self.pid = process.pid
            async with create_task_group() as tasks:
                tasks.start_soon(self._write, process, told)
                await self._read(process)
                tasks.cancel_scope.cancel()
        except StartError as error:
            reason = f"the process of a lane cannot be started: {error}; set processes = 1"
            raise LaneDiedError(reason) from error
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        finally:
            status = await process.stop(STOP_TIMEOUT_S)
            self.pid = None
            self.state = self.state.ended(self.stored)
        if not self._has_ended:
            self.deaths += 1
            raise LaneDiedError(f"the process of a lane {describe_end(status)}")

    async def _read(self, process: Interpreter) -> None:
        try:
            async with asyncio.timeout(_START_TIMEOUT_S) as starting:
                await _send(process, self._parent.hello())
                while (message := await _next(process)) is not None:
                    self._hear(*message)
                    if self._is_ready:
                        starting.reschedule(None)
        except TimeoutError:
            raise LaneDiedError(f"the process of a lane was not ready after {_START_TIMEOUT_S:.0f} s") from None

    async def _write(self, process: Interpreter, told: dict[str, object]) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            while messages := self._collect(told):
                await _send(process, *messages)

    def _collect(self, told: dict[str, object]) -> list[tuple[Any, ...]]:
        """Return what is to be sent now."""
        if not self._is_ready:
            messages = [*self._messages]
            self._messages.clear()
            return messages
        messages = [*self._parent.news(self, told), *self._messages]
        self._messages.clear()
        if self.unsent:
            batch = []
            for _ in range(min(BATCH, len(self.unsent))):
                number, job = next(_numbers), self.unsent.popleft()
                self.sent[number] = job
                batch.append(pack_map(number, job.map, job.value_range))
            messages.append(("maps", batch))
        elif self._is_closed and "closed" not in told:
            told["closed"] = True
            messages.append(("close",))
        return messages

    def _hear(self, kind: str, *values: Any) -> None:
        if kind == "outcomes":
            for packed in values[0]:
                job = self.sent.pop(packed[0])
                self.load -= _cost(job)
                self.settled += 1
                outcome = unpack_outcome(packed, job.map)
                if isinstance(outcome, Receipt):
                    self.last, self.stored = job.map, self.stored + 1
                job.settle(outcome)
            self._on_room(self)
        elif kind == "state":
            self.state = self.state.now(values[0])
        elif kind == "ready":
            self._is_ready = True
            self._something.set()
        elif kind == "kept":
            self.kept = values
        elif kind == "end":
            self._has_ended = True
        elif kind == "error":
            name, message, may_pass = values
            if name == WorkerError.__name__ and not self._is_ready:
                raise LaneDiedError(message)  # a lack of memory may be brief
            if name:
                raise unpack_error((name, message, may_pass))
            raise WorkerError(f"a lane has failed: {message}")
        else:
            self._parent.hear(self, kind, values)


async def _send(process: Interpreter, *messages: object) -> None:
    with suppress(OSError):  # it has ended, which the reader finds
        await process.send(*messages)


async def _next(process: Interpreter) -> Any:
    """Return the next message; None after the last one of a process that has ended."""
    try:
        return await process.receive()
    except (OSError, EOFError):
        return None


def _cost(job: Job) -> int:
    return job.map.max_bytes + _COST_BYTES
