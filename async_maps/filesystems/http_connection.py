"""One connection of HTTP/1.1: it sends a request and reads the answer, one after the other. Runs on the event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from async_maps.filesystems.http_messages import AnswerError, AnswerParser, read_all
from async_maps.filesystems.http_session import reset

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_maps.filesystems.http_messages import Limit

_PIECE = 256 * 2**10
"""Bytes of a body that are written together."""


class Connection(asyncio.Protocol):
    """A connection that a server has accepted.

    Args:
        on_made: called with the connection when it begins.
        on_lost: called with the connection when it has ended.

    Attributes:
        transport: the connection's transport.
        answer: the answer to the last request, as far as it has come.
    """

    transport: asyncio.Transport

    def __init__(self, on_made: Callable[[Connection], None], on_lost: Callable[[Connection], None]) -> None:
        self._on_made, self._on_lost = on_made, on_lost
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._is_paused = self._is_asking = self._is_sent = False
        self.answer = AnswerParser()

    async def ask(self, head: Callable[[], bytes], body: bytes, limit: Limit = read_all) -> AnswerParser:
        """Send a request, and return the whole answer. An answer that comes before the body is sent is the answer.

        If it fails, or is cancelled, the connection is reset. The head is made now, so that its signature is new.

        Raises:
            OSError: there was no whole answer; the request may have had its effect.
        """
        answer = self.answer = AnswerParser(limit)
        if self.transport.is_closing():
            raise ConnectionResetError("the server closed the connection before the request")
        self._is_asking, self._is_sent = True, False
        try:
            await self._send(head(), body)
            while not answer.is_complete:
                await self._changed()
        except BaseException:
            self.abort()
            raise
        self._is_asking = False
        return answer

    @property
    def is_reusable(self) -> bool:
        """Whether another request may be sent: request and answer are complete, and no byte is left."""
        return (
            self._is_sent
            and not self._is_asking
            and self.answer.keeps_alive
            and not self.answer.has_leftover
            and not self.transport.is_closing()
            and not self.transport.get_write_buffer_size()
        )

    def close(self) -> None:
        """End an idle connection, without the farewell of TLS."""
        self.transport.abort()

    def abort(self) -> None:
        """Reset the connection, whose request fails: the other side need not read what was sent."""
        self._fail(ConnectionAbortedError("the client has closed the connection"))
        reset(self.transport)

    async def _send(self, head: bytes, body: bytes) -> None:
        if len(body) <= _PIECE:
            self.transport.writelines((head, body) if body else (head,))
            self._is_sent = True
            return
        self.transport.write(head)
        view = memoryview(body)
        for start in range(0, len(view), _PIECE):
            self.transport.write(view[start : start + _PIECE])
            # Other tasks run between two pieces.
            await asyncio.sleep(0)
            while (self._failure or self._is_paused or self.transport.is_closing()) and not self.answer.is_complete:
                await self._changed()
            if self.answer.is_complete:
                return
        self._is_sent = True

    async def _changed(self) -> None:
        """Wait until the answer is complete, or more can be sent."""
        if self._failure is None:
            self._waiter = self._loop.create_future()
            await self._waiter
        if self._failure is not None:
            raise self._failure

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
        self._wake()

    # Called by the transport ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        # uvloop's transports are not subclasses of asyncio's.
        self.transport = cast("asyncio.Transport", transport)
        self._on_made(self)

    def pause_writing(self) -> None:  # noqa: D102
        self._is_paused = True

    def resume_writing(self) -> None:  # noqa: D102
        self._is_paused = False
        self._wake()

    def data_received(self, data: bytes) -> None:  # noqa: D102
        if not self._is_asking:
            # A server says why it closes an idle connection; a request must not take that for its answer.
            self.abort()
            return
        if self._failure is not None:
            return
        try:
            self.answer.feed(data)
        except AnswerError as error:
            self._fail(error)
        if self.answer.is_complete:
            self._wake()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: D102
        if self._is_asking and self._failure is None and not self.answer.is_complete:
            self._end_answer(error)
        self._is_sent = False
        self._on_lost(self)

    def _end_answer(self, error: Exception | None) -> None:
        if error is not None:
            self._fail(error if isinstance(error, OSError) else ConnectionError(str(error)))
            return
        try:
            self.answer.feed_end()
        except AnswerError as unfinished:
            self._fail(unfinished)
        else:
            self._wake()
