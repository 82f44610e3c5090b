"""A lane: a process that runs all stages for the maps that its parent sends.

The parent lists, selects and records. It owns the credentials, the manifest and the signals. Messages are tuples whose
first item is their kind; both sides send what they have when the socket takes it, and nothing waits to fill a batch.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections import deque
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from anyio import create_task_group, to_thread

from async_maps.concurrency.launch import ignore_signals, resume_collection
from async_maps.concurrency.loop import fastest_loop
from async_maps.concurrency.messages import frame, receive_message
from async_maps.concurrency.tasks import first_error
from async_maps.errors import AsyncMapsError, name_shortage
from async_maps.filesystems.addresses import is_in_s3
from async_maps.filesystems.services.tokens import Tokens
from async_maps.lanes.others import OfOthers
from async_maps.lanes.packing import Hello, pack_error, pack_outcome, unpack_map
from async_maps.render.kernel_cache import sharing
from async_maps.settings import Settings, part_of
from async_maps.stages.graph import Stages
from async_maps.stores import open_store
from async_maps.workers.arena import Arena
from async_maps.workers.pool import launched_workers, start_workers
from async_maps.workers.worker import Recipe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Any

    from async_maps.errors import AsyncMapsError
    from async_maps.outcomes import Outcome

STOP_TIMEOUT_S = 10.0
"""The longest time in which a lane ends its workers."""
BATCH = 256
"""The maximum number of maps in a message, in both directions."""
_INTERVAL_S = 0.2
_RECORDS = 1000
_logger = logging.getLogger("async_maps")


class _Records(logging.Handler):
    """Passes log messages to the parent, which handles them."""

    def __init__(self, child: Child) -> None:
        super().__init__()
        self._child = child

    def emit(self, record: logging.LogRecord) -> None:
        """Pass one on."""
        self._child.say_from_thread("log", record.levelno, record.getMessage())


class Child:
    """The stages of a lane, and the messages to and from its parent."""

    def __init__(self, hello: Hello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._hello = hello
        self._reader = reader
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._settings = part_of(Settings(**hello.settings), hello.parts)
        self._jobs: deque[tuple[Any, ...]] = deque()
        self._arrived, self._something = asyncio.Event(), asyncio.Event()
        self._is_reading, self._is_closed, self._has_borrowed = True, False, False
        self._feed_number = self._kept_of = -1
        self._open = self._others = 0
        self._outcomes: deque[tuple[Any, ...]] = deque()
        self._messages: deque[tuple[Any, ...]] = deque()
        self._asked: dict[str, deque[asyncio.Future[Any]]] = {}
        self._stages: Stages | None = None
        self._told: object = None
        self._told_at = 0.0

    async def run(self) -> None:
        """Run the stages until the parent closes the lane, or the socket ends."""
        _logger.setLevel(self._hello.level)
        _logger.propagate = False
        _logger.addHandler(_Records(self))
        try:
            async with create_task_group() as tasks:
                tasks.start_soon(self._receive)
                tasks.start_soon(self._send)
                tasks.start_soon(self._tick)
                await self._process()
                tasks.cancel_scope.cancel()
        except (Exception, BaseExceptionGroup) as caught:  # noqa: BLE001  # told to the parent
            error = name_shortage(first_error(caught))
            if isinstance(error, EOFError):
                return  # the parent abandons its maps, or has died
            packed = pack_error(error) if isinstance(error, AsyncMapsError) else ("", repr(error), False)
            self.say("error", *packed)
        else:
            self.say("end")
        with suppress(OSError):
            while messages := self._collect():
                self._writer.write(b"".join(map(frame, messages)))
            await self._writer.drain()

    async def _process(self) -> None:
        async with self._opened_stages() as stages:
            self._stages = stages
            stages.control.maps = lambda: self._open + self._others
            stages.control.has_others = lambda: self._others > 0
            stages.control.is_reading = lambda: self._is_reading
            stages.control.earlier, stages.earlier_reads = OfOthers(self, "stored"), OfOthers(self, "read")
            self.say("ready")
            async with create_task_group() as tasks:
                tasks.start_soon(stages.run, asyncio.Event())
                tasks.start_soon(self._feed, stages)

    @asynccontextmanager
    async def _opened_stages(self) -> AsyncIterator[Stages]:
        """Open what the stages need, as the pipeline does; the parent has checked the store."""
        settings, destination = self._settings, self._hello.destination
        recipe = Recipe.of(settings)
        async with AsyncExitStack() as stack:
            arena = stack.enter_context(Arena(settings.queue_size))
            kernels = self._hello.kernels
            launching = launched_workers(recipe, settings.worker_count, arena, kernels=kernels)
            workers = await stack.enter_async_context(launching)
            if is_in_s3(destination):
                await self._borrow()
            store = await stack.enter_async_context(open_store(destination, settings))
            tokens = getattr(store, "tokens", None)
            if isinstance(tokens, Tokens) and self._hello.token is not None:
                tokens.begin(self._hello.token)
            with sharing(kernels):
                await start_workers(workers)
            yield Stages(settings, store, arena, recipe, workers)

    # From the parent ------------------------------------------------------------------------------------------------

    async def _receive(self) -> None:
        try:
            while True:
                kind, *values = await receive_message(self._reader)
                self._hear(kind, *values)
        except (OSError, EOFError):
            # What is under way is cancelled. If that takes too long, this ends the process.
            signal.alarm(int(STOP_TIMEOUT_S))
            raise EOFError from None

    def _hear(self, kind: str, *values: Any) -> None:
        if kind == "maps":
            self._jobs.extend(values[0])
        elif kind == "reading":
            ((self._is_reading, feed_number),) = values
            if feed_number != self._feed_number and self._stages is not None:
                self._feed_number = feed_number
                self._stages.control.forget()
        elif kind == "others":
            (self._others,) = values
        elif kind == "promises":
            self._store_promises().load(values[0])
        elif kind in {"credentials", "stored", "read"}:
            waiting = self._asked.get(kind)
            if waiting and not (asked := waiting.popleft()).done():
                asked.set_result(values[0])
            elif kind == "stored":
                self.say("done")
        elif kind == "close":
            self._is_closed = True
        self._arrived.set()

    async def _feed(self, stages: Stages) -> None:
        while True:
            while self._jobs:
                number, map_, value_range = unpack_map(self._jobs.popleft())
                if not self._has_borrowed and map_.path is not None and is_in_s3(map_.path):
                    await self._borrow()
                self._open += 1
                await stages.submit(map_, partial(self._settle, number), value_range)
            if self._is_closed:
                return stages.close()
            self._arrived.clear()
            await self._arrived.wait()

    def _store_promises(self) -> Any:
        return getattr(self._stages and self._stages.store, "promises", None)

    async def _borrow(self) -> None:
        self._has_borrowed = True
        # In a thread, because the import takes long.
        module = await to_thread.run_sync(import_module, "async_maps.filesystems.credentials")
        module.borrow_credentials(self._hello.credentials, self._ask)

    def _ask(self, in_use: str, is_refused: bool) -> list[Any]:
        """Ask the parent for credentials, in a thread."""
        asking = self.request("credentials", in_use, is_refused)
        answer: list[Any] = asyncio.run_coroutine_threadsafe(asking, self._loop).result()
        return answer

    # To the parent --------------------------------------------------------------------------------------------------

    async def request(self, kind: str, *values: Any) -> Any:
        """Send a message, and return the answer of the same kind."""
        answer = self._loop.create_future()
        self._asked.setdefault(kind, deque()).append(answer)
        self.say(kind, *values)
        return await answer

    def say_from_thread(self, *message: Any) -> None:
        """Send a message, from any thread; after the end of the loop, nothing."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.say, *message)

    def say(self, *message: Any) -> None:
        """Send a message."""
        if message[0] != "log" or len(self._messages) < _RECORDS:
            self._messages.append(message)
            self._something.set()

    def _settle(self, number: int, outcome: Outcome | AsyncMapsError) -> None:
        self._open -= 1
        self._outcomes.append(pack_outcome(number, outcome))
        self._something.set()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL_S)
            self._something.set()

    async def _send(self) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            while messages := self._collect():
                self._writer.write(b"".join(map(frame, messages)))
                await self._writer.drain()

    def _collect(self) -> list[object]:
        """Return what is to be sent now: the outcomes last, after what they follow from."""
        found: list[object] = [*self._messages]
        self._messages.clear()
        if (promises := self._store_promises()) is not None and promises.is_news:
            found.append(("promises", promises.dump()))
        if self._kept_of != self._feed_number and self._stages is not None and (kept := self._stages.control.kept):
            self._kept_of = self._feed_number
            found.append(("kept", self._feed_number, *kept))
        now = self._loop.time()
        # A pipeline that is idle has its final statistics.
        if self._stages is not None and (not self._open or now - self._told_at >= _INTERVAL_S):
            self._told_at = now
            if (state := self._state(self._stages)) != self._told:
                self._told = state
                found.append(("state", state))
        if self._outcomes:
            batch = [self._outcomes.popleft() for _ in range(min(BATCH, len(self._outcomes)))]
            found.append(("outcomes", batch))
        return found

    def _state(self, stages: Stages) -> tuple[Any, ...]:
        """Return the state of the stages as plain values, see :class:`~async_maps.lanes.totals.State`."""
        found = {name: (one.workers, one.busy_s, one.maps, one.queue) for name, one in stages.statistics().items()}
        is_stuck = 0 < self._open <= stages.held or stages.control.alone > 0
        return found, tuple(stages.pace), stages.waiting_since, stages.life(), is_stuck


def main() -> None:
    """Run the process of a lane; its standard input is the socket."""
    ignore_signals()
    resume_collection()
    try:
        os.fstat(2)
    except OSError:  # closed, as in daemons
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    # Libraries that print must not write between the messages: send their output to standard error.
    parent = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        runner.run(_run(parent))


async def _run(parent: socket.socket) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=parent)
    try:
        with suppress(EOFError, OSError):
            await Child(Hello(*await receive_message(reader)), reader, writer).run()
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
