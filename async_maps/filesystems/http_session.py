"""The HTTP session of aiobotocore's clients: each of its requests ends within limits. Runs on the event loop.

aiohttp has no limit for a proxy's answer to CONNECT, for ``100 Continue``, and for a body that the server does not
read. Its limit for the answer starts when the body is in this machine's buffers, which a slow link empties later.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from contextvars import ContextVar
from math import inf
from typing import TYPE_CHECKING, NamedTuple, Protocol

from aiobotocore.httpsession import AIOHTTPSession
from aiohttp import ClientRequest, ClientTimeout, ServerTimeoutError

from async_maps.filesystems.time_limits import TimeLimits, too_few
from async_maps.filesystems.traffic import Traffic, moved_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

    from aiohttp import ClientResponse, ClientSession
    from aiohttp.connector import Connection

_NO_LINGER = struct.pack("ii", 1, 0)
_DEFAULT = TimeLimits(60.0, 300.0)
_LOOKS = 4
"""Looks for a sign of life in the time of the longest silence."""
_LOOK_S = 1.0
"""The longest time between two looks."""


class _Life(NamedTuple):
    """What changes while a request is alive: the bytes of its connection, and those that wait to be sent."""

    waiting: int = 0
    sent: int = 0
    received: int = 0


class _Connected(Protocol):
    @property
    def transport(self) -> asyncio.Transport | None: ...


class Watches:
    """Looks at the requests of a client, all in turn: a timer for each request takes longer than all else here.

    Args:
        limits: those of each request.
    """

    def __init__(self, limits: TimeLimits) -> None:
        self.limits = limits
        self._open: set[Watch] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._next_at = 0.0

    def watch(self, size: int) -> Watch:
        """Return the watch of a request with a body of that size."""
        return Watch(size, self)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self, watch: Watch) -> None:
        self._open.add(watch)
        if self._timer is None:
            self._look_in(inf)

    def _look(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        # This process was stopped or busy: what the other side sent meanwhile has not been read.
        late_s = now - self._next_at
        ends = [watch._look(now, late_s) for watch in self._open]
        if ends:
            self._look_in(min(ends) - now)

    def _look_in(self, seconds: float) -> None:
        seconds = min(seconds, self.limits.silence_s / _LOOKS, _LOOK_S)
        # Not when() of the handle: uvloop's handles of timers that are due lack it.
        loop = asyncio.get_running_loop()
        self._next_at = loop.time() + seconds
        self._timer = loop.call_later(seconds, self._look)


class Watch:
    """Ends the request in its ``with`` block if its bytes do not move within the limits.

    A connection whose request failed is closed without waiting for the other side.

    Raises:
        TooSlowError: the limits were exceeded.
    """

    def __init__(self, size: int, watches: Watches) -> None:
        self._watches, self._size, self._answer_size = watches, size, 0
        self._has_ended = False
        self._connection: _Connected | None = None
        self._transport: asyncio.Transport | None = None
        self._life = _Life()
        self._is_silent = False

    def __enter__(self) -> Watch:
        # As asyncio.timeout does it, which takes longer for each request.
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a request runs in a task
        self._task, self._cancelling = task, task.cancelling()
        self._began_at = self._sent_at = self._lived_at = task.get_loop().time()
        self._token = _current.set(self)
        self._watches._begin(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watches._open.discard(self)
        _current.reset(self._token)
        if error is not None and (transport := self._transport) is not None and self._is_free(transport):
            reset(transport)
        if self._has_ended and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            too_slow = too_few(self._task.get_loop().time() - self._began_at)
            raise (self._watches.limits.silent() if self._is_silent else too_slow) from error

    def expect(self, size: int) -> None:
        """Note the number of bytes in the body of the answer."""
        self._answer_size = size

    def uses(self, connection: _Connected) -> None:
        """Note the connection on which the request is sent."""
        self._connection, self._transport = connection, connection.transport

    def _look(self, now: float, late_s: float) -> float:
        """End the request if that is due; return when it would be. ``late_s`` is the delay of this look."""
        life = self._look_for_life()
        self._began_at, self._sent_at, self._lived_at = (
            min(moment + late_s, now) for moment in (self._began_at, self._sent_at, self._lived_at)
        )
        if life != self._life:
            self._lived_at = now
        if life[:2] != self._life[:2]:
            self._sent_at = now
        self._life = life
        limits = self._watches.limits
        silent_at = self._lived_at + limits.silence_s
        # An answer that takes long after the last byte was sent comes in drops.
        answered_by = self._sent_at + limits.longest_s(self._answer_size)
        end = min(silent_at, answered_by, self._began_at + limits.longest_s(self._size + self._answer_size))
        if end <= now and not self._has_ended:
            self._is_silent = end == silent_at
            self._has_ended = True
            self._task.cancel()
        return inf if self._has_ended else end

    def _look_for_life(self) -> _Life:
        if self._transport is None or self._transport.is_closing():
            return self._life
        moved = moved_bytes(self._transport.get_extra_info("socket"))
        return _Life(self._transport.get_write_buffer_size(), moved.sent, moved.received)

    def _is_free(self, transport: asyncio.Transport) -> bool:
        # A connection that was given back may be another request's.
        is_ours = self._connection is not None and self._connection.transport is transport
        return is_ours or transport.is_closing()


def reset(transport: asyncio.Transport) -> None:
    """End a connection without waiting until the other side has read what was sent."""
    # Closed already: also in uvloop, or a connection with TLS, which then has no socket.
    with suppress(AttributeError, OSError, ValueError):
        # Otherwise the system keeps the connection until the other side has read what it holds.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()


_current: ContextVar[Watch | None] = ContextVar("_current", default=None)


class WatchedRequest(ClientRequest):
    """A request that tells its watch the connection on which it is sent."""

    async def send(self, conn: Connection) -> ClientResponse:
        """Send the request."""
        if (watch := _current.get()) is not None:
            watch.uses(conn)
        return await super().send(conn)


class LimitedSession(AIOHTTPSession):
    """The HTTP session of a client. Pass what :func:`session_class` returns as ``http_session_cls``.

    Attributes:
        watches: its requests, and their limits.
        traffic: counts the bytes that its connections have sent.
    """

    if TYPE_CHECKING:  # what the stubs leave out
        _connector_args: dict[str, Any]
        _timeout: ClientTimeout

    def __init__(self, *arguments: Any, limits: TimeLimits = _DEFAULT, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.watches = Watches(limits)
        self.traffic = Traffic()
        self._connector_args = {**self._connector_args, "socket_factory": self.traffic.open_socket}
        # The watch of a request replaces aiohttp's limit for the answer.
        self._timeout = ClientTimeout(sock_connect=self._timeout.sock_connect)

    async def __aexit__(self, *arguments: Any) -> None:
        self.traffic.shut_down()
        self.watches.close()
        await super().__aexit__(*arguments)

    async def send(self, request: Any) -> Any:
        """Send a request of the SDK. Only the limit of silence applies to a body of an answer that is streamed."""
        # A hop that never answers 100 Continue would keep the body from being sent; it is in memory anyway.
        request.headers.pop("Expect", None)
        with self.watches.watch(int(request.headers.get("Content-Length") or 0)):
            answer = await super().send(request)
        if request.stream_output and (connection := answer.raw.connection) is not None:
            connection.protocol.read_timeout = self.watches.limits.silence_s
            connection.protocol.start_timeout()
        return answer

    async def _get_session(self, proxy_url: str | None) -> ClientSession:
        session: ClientSession = await super()._get_session(proxy_url)  # type: ignore[misc]  # the stubs leave it out
        session._request_class = WatchedRequest
        return session


def session_class(limits: TimeLimits) -> Callable[..., LimitedSession]:
    """Return what creates the HTTP session of a client with these limits."""
    return lambda *arguments, **options: LimitedSession(*arguments, limits=limits, **options)


async def read_body(answer: Any, limits: TimeLimits) -> bytes:
    """Read the body of the SDK's answer to GetObject.

    Raises:
        aiohttp.ClientError, TooSlowError: it did not end, or not within the limits.
    """
    longest_s = limits.longest_s(answer.get("ContentLength", 0))
    try:
        async with answer["Body"] as body, asyncio.timeout(longest_s):
            data: bytes = await body.read()
            return data
    except ServerTimeoutError as error:
        raise limits.silent() from error
    except TimeoutError as error:
        raise too_few(longest_s) from error
