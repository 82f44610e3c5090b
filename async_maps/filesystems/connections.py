"""The connections of a blocking AWS client: each answer ends within limits, and threads that wait can be ended.

The time-out of a socket is that of one read: a server that sends a byte a minute would hold a thread for ever.
"""

from __future__ import annotations

import errno
import io
import os
import socket
from contextlib import suppress
from http.client import HTTPResponse
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from typing import Any

    from typing_extensions import Buffer

    from async_maps.filesystems.time_limits import TimeLimits


class Connections:
    """Keeps the sockets of a client. Thread-safe."""

    def __init__(self, limits: TimeLimits) -> None:
        self._limits = limits
        self._lock = Lock()
        self._opened: WeakSet[socket.socket] = WeakSet()
        self._is_shut = False

    def watch(self, client: Any) -> None:
        """Keep all sockets that the client opens, those through a proxy included, and limit its answers."""
        # botocore has no public way to its pools.
        session = client._endpoint.http_session
        pools = {scheme: self._watched(pool) for scheme, pool in session._pool_classes_by_scheme.items()}
        session._pool_classes_by_scheme = session._manager.pool_classes_by_scheme = pools

    def shut_down(self) -> None:
        """End every wait for an answer: it fails as if the server had closed the connection."""
        with self._lock:
            self._is_shut = True
            for opened in self._opened:
                _shut_down(opened)

    def _add(self, opened: socket.socket | None) -> None:
        if opened is None:  # another thread has closed the connection
            return
        with self._lock:
            self._opened.add(opened)
            if self._is_shut:
                _shut_down(opened)

    def _watched(self, pool: Any) -> Any:
        add, limits = self._add, self._limits

        class Limited(HTTPResponse):
            def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
                super().__init__(sock, *arguments, **options)
                self.fp = io.BufferedReader(_LimitedReader(self.fp.detach(), limits))

        class Watched(pool.ConnectionCls):  # type: ignore[misc]  # known at run time only
            response_class = Limited

            def _new_conn(self) -> Any:
                opened = super()._new_conn()
                add(opened)
                return opened

            def connect(self) -> None:
                super().connect()
                # Another socket than before, if it is one of TLS.
                add(self.sock)

        return type(pool.__name__, (pool,), {"ConnectionCls": Watched})


class _LimitedReader(io.RawIOBase):
    """Reads from a socket, each time within its time-out, until the bytes are too few for the time since it began."""

    def __init__(self, raw: io.RawIOBase, limits: TimeLimits) -> None:
        super().__init__()
        self._raw = raw
        self._limits = limits
        self._began_at = monotonic()
        self._received = 0

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def readinto(self, buffer: Buffer, /) -> int | None:
        took_s = monotonic() - self._began_at
        if took_s > self._limits.longest_s(self._received):
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        count: int | None = self._raw.readinto(buffer)
        self._received += count or 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def _shut_down(opened: socket.socket) -> None:
    # Not the method of a TLS socket, whose state another thread is using.
    with suppress(OSError):
        socket.socket.shutdown(opened, socket.SHUT_RDWR)
