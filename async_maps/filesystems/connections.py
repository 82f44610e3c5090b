"""The open connections of a blocking AWS client, so that threads that wait for an answer can be ended."""

from __future__ import annotations

import socket
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from typing import Any


class Connections:
    """Keeps the connections of a client. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._opened: WeakSet[Any] = WeakSet()
        self._is_shut = False

    def watch(self, client: Any) -> None:
        """Keep all connections that the client opens, except those through a proxy."""
        # botocore has no public way to its pools.
        manager = client._endpoint.http_session._manager
        manager.pool_classes_by_scheme = {
            scheme: self._watched(pool) for scheme, pool in manager.pool_classes_by_scheme.items()
        }

    def shut_down(self) -> None:
        """End every wait for an answer: it fails as if the server had closed the connection."""
        with self._lock:
            self._is_shut = True
            for connection in self._opened:
                _shut_down(connection)

    def _add(self, connection: Any) -> None:
        with self._lock:
            self._opened.add(connection)
            if self._is_shut:
                _shut_down(connection)

    def _watched(self, pool: Any) -> Any:
        add = self._add

        class Watched(pool.ConnectionCls):  # type: ignore[misc]  # known at run time only
            def connect(self) -> None:
                super().connect()
                add(self)

        return type(pool.__name__, (pool,), {"ConnectionCls": Watched})


def _shut_down(connection: Any) -> None:
    # Read once: another thread may be closing the connection.
    if (sock := connection.sock) is not None:
        # Not the method of a TLS socket, whose state another thread is using.
        with suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
