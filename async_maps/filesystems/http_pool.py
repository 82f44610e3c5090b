"""The connections to one server, which requests take and give back. Runs on the event loop."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from async_maps.filesystems.http_connection import Connection
from async_maps.filesystems.http_messages import read_all
from async_maps.machine.shortage import describe_shortage

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from async_maps.filesystems.http_messages import AnswerParser, Limit
    from async_maps.filesystems.http_session import Watch
    from async_maps.filesystems.traffic import Traffic

_PORTS = {"http": 80, "https": 443}
_REMEMBERED_S = 300.0
"""How long the addresses of a server are used before its name is resolved again."""
_IDLE_S = 12.0
"""The longest time that a connection waits for a request, as in the SDK: servers close them later."""
_TIMEOUT = re.compile(r"timeout\s*=\s*\"?(\d{1,6})")
_MARGIN_S = 1.0
"""How long before the server an idle connection is closed here."""


class _Idle(NamedTuple):
    connection: Connection
    until: float


class Pool:
    """Connections to one server. Idle ones are used again, the last one first.

    Args:
        origin: the start of the server's URLs: scheme, host and port.
        limit: the most connections with a request.
        connect_timeout_s: the longest time to connect to one address.
        tls: the context of connections with TLS; True for Python's default, None for no TLS.
        traffic: counts the bytes of the connections.
    """

    def __init__(
        self,
        origin: str,
        *,
        limit: int,
        connect_timeout_s: float | None,
        tls: ssl.SSLContext | bool | None,
        traffic: Traffic,
    ) -> None:
        url = urlsplit(origin)
        self.origin = origin
        self._host, self._port = url.hostname or "", url.port or _PORTS[url.scheme]
        self._tls = tls
        self._connect_timeout_s = connect_timeout_s
        self._traffic = traffic
        self._free = asyncio.Semaphore(limit)
        self._idle: list[_Idle] = []
        self._open: set[Connection] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._resolving = asyncio.Lock()
        self._addresses: list[tuple[Any, ...]] = []
        self._resolved_until = 0.0
        self._is_closed = False
        self._all_lost = asyncio.Event()

    async def request(
        self, watch: Watch, head: Callable[[], bytes], body: bytes, *, may_repeat: bool, limit: Limit = read_all
    ) -> AnswerParser:
        """Send a request, and return the answer.

        Args:
            watch: the watch of the request.
            head: returns the head of the request. It is called when a connection is there, so that signatures are new.
            body: the body.
            may_repeat: whether the request may be sent again, if an idle connection ended before a byte of the answer.
            limit: limits the body of the answer.

        Raises:
            OSError: no connection, or no whole answer.
        """
        try:
            async with self._free:
                connection = self._take()
                if connection is not None:
                    watch.uses(connection)
                    try:
                        return await self._ask(connection, head, body, limit)
                    except OSError:
                        if not may_repeat or connection.answer.has_begun or self._is_closed:
                            raise
                connection = await self._connect()
                watch.uses(connection)
                return await self._ask(connection, head, body, limit)
        except (ConnectionError, TimeoutError, ssl.SSLError, socket.gaierror):
            raise
        except OSError as error:
            if describe_shortage(error):
                raise
            # Such as EPERM by a firewall: it is the link's, not that of a file.
            raise ConnectionError(str(error)) from error

    async def close(self) -> None:
        """End all connections, and wait until they have ended."""
        self._is_closed = True
        self._idle.clear()
        self._look_later()
        for connection in list(self._open):
            connection.abort()
        if self._open:
            await self._all_lost.wait()

    async def _ask(self, connection: Connection, head: Callable[[], bytes], body: bytes, limit: Limit) -> AnswerParser:
        answer = await connection.ask(head, body, limit)
        self._give_back(connection, answer.headers.get("keep-alive"))
        return answer

    # Idle connections -----------------------------------------------------------------------------------------------

    def _take(self) -> Connection | None:
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection, until = self._idle.pop()
            if now < until and connection.is_reusable:
                return connection
            connection.close()
        return None

    def _give_back(self, connection: Connection, keep_alive: str | None) -> None:
        idle_s = _IDLE_S
        if keep_alive is not None and (told := _TIMEOUT.search(keep_alive.lower())):
            idle_s = min(idle_s, int(told[1]) - _MARGIN_S)
        if self._is_closed or idle_s <= 0 or not connection.is_reusable:
            connection.abort()
            return
        self._idle.append(_Idle(connection, asyncio.get_running_loop().time() + idle_s))
        if self._timer is None:
            self._look_later()

    def _look_later(self) -> None:
        """Close idle connections when it is their time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._idle:
            loop = asyncio.get_running_loop()
            first = min(idle.until for idle in self._idle)
            self._timer = loop.call_at(first, self._close_old)

    def _close_old(self) -> None:
        now = asyncio.get_running_loop().time()
        old = [idle for idle in self._idle if idle.until <= now]
        self._idle = [idle for idle in self._idle if idle.until > now]
        for idle in old:
            idle.connection.close()
        self._look_later()

    def _lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._idle = [idle for idle in self._idle if idle.connection is not connection]
        if self._is_closed and not self._open:
            self._all_lost.set()

    # New connections ------------------------------------------------------------------------------------------------

    async def _connect(self) -> Connection:
        for address in (addresses := await self._resolve()):
            try:
                return await self._connect_to(address)
            except OSError:
                # Without it until the name is resolved again, which is now if none is left.
                self._addresses = [other for other in self._addresses if other != address]
                if address is addresses[-1]:
                    raise
        raise AssertionError("a name has an address")

    async def _connect_to(self, address: tuple[Any, ...]) -> Connection:
        loop = asyncio.get_running_loop()
        opened = self._traffic.open_socket(address)
        connection = Connection(self._open.add, self._lost)
        try:
            opened.setblocking(False)
            try:
                async with asyncio.timeout(self._connect_timeout_s):
                    await loop.sock_connect(opened, address[4])
            except TimeoutError:
                place = f"{self._host}:{self._port}"
                raise TimeoutError(
                    f"{place} did not accept a connection within {self._connect_timeout_s:g} s (s3.connect_timeout_s)"
                ) from None
            await loop.create_connection(
                lambda: connection,
                sock=opened,
                ssl=self._tls,
                # A name with a dot at its end is not in certificates.
                server_hostname=self._host.rstrip(".") if self._tls else None,
            )
        except BaseException:
            if connection in self._open:
                # Cancelled when it was made: asyncio would go on to read its socket, uvloop never says that it ended.
                connection.abort()
                self._lost(connection)
            opened.close()
            raise
        if self._is_closed:
            connection.abort()
            raise ConnectionError("the client is closed")
        return connection

    async def _resolve(self) -> list[tuple[Any, ...]]:
        loop = asyncio.get_running_loop()
        async with self._resolving:
            if not self._addresses or loop.time() >= self._resolved_until:
                found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
                self._addresses, self._resolved_until = list(found), loop.time() + _REMEMBERED_S
            # Spread the connections over the addresses.
            self._addresses.append(self._addresses.pop(0))
            return list(self._addresses)
