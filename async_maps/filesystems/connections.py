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
            opened = [connection.sock for connection in self._opened]
        for connected in opened:
            if connected is not None:
                # Not the method of a TLS socket, whose state another thread is using.
                with suppress(OSError):
                    socket.socket.shutdown(connected, socket.SHUT_RDWR)

    def _watched(self, pool: Any) -> Any:
        opened, lock = self._opened, self._lock

        class Watched(pool.ConnectionCls):  # type: ignore[misc]  # known at run time only
            def connect(self) -> None:
                super().connect()
                with lock:
                    opened.add(self)

        return type(pool.__name__, (pool,), {"ConnectionCls": Watched})
