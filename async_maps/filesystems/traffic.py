"""Counts the bytes of connections, also within one request: signs of life on a slow link."""

from __future__ import annotations

import socket
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from typing import Any

_INFO = struct.Struct("=120xQQ")
"""The fields ``tcpi_bytes_acked`` and ``tcpi_bytes_received`` of Linux's ``struct tcp_info``."""
_OPTION: int = getattr(socket, "TCP_INFO", -1)
_MAX_PACING_RATE = 47
"""Linux's ``SO_MAX_PACING_RATE``, which Python does not name."""
_FASTEST = 2**31 - 1
_IGNORED_BYTES = 16 * 2**10
"""Of each connection: handshakes, and small requests that are repeated on new connections, are no progress."""


class Moved(NamedTuple):
    """The bytes of a connection: those that the other side has acknowledged, and those that it has sent."""

    sent: int
    received: int


def moved_bytes(opened: Any) -> Moved:
    """Return the bytes that a socket has moved; Linux tells them, elsewhere and for a closed socket they are 0."""
    try:
        return Moved(*_INFO.unpack(opened.getsockopt(socket.IPPROTO_TCP, _OPTION, _INFO.size)))
    except (OSError, ValueError, struct.error):  # ValueError: closed, in uvloop
        return Moved(0, 0)


class Traffic:
    """The sockets of a client. Linux tells how many bytes their other ends have received; elsewhere none are counted.

    The bytes in this machine's buffers are not counted. They can be some megabytes for each connection.

    Attributes:
        bytes_per_s: the most that a new connection sends a second, on Linux; None for no limit.
    """

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[socket.socket, int] = WeakKeyDictionary()
        self._sent = 0
        self.bytes_per_s: int | None = None

    def open_socket(self, address: tuple[Any, ...]) -> socket.socket:
        """Create a socket for an address as ``getaddrinfo`` returns it, and count its bytes."""
        family, kind, protocol, *_ = address
        created = socket.socket(family, kind, protocol)
        if self.bytes_per_s is not None and sys.platform == "linux":
            with suppress(OSError):
                created.setsockopt(socket.SOL_SOCKET, _MAX_PACING_RATE, min(self.bytes_per_s, _FASTEST))
        self._seen[created] = 0
        return created

    def sent_bytes(self) -> int:
        """Return the number of bytes sent so far; of a connection that closes between two calls, those of the first."""
        for opened, before in list(self._seen.items()):
            now = max(moved_bytes(opened).sent - _IGNORED_BYTES, before)
            self._sent += now - before
            self._seen[opened] = now
        return self._sent

    def shut_down(self) -> None:
        """End all connections, also those with bytes that the other side does not read."""
        for opened in list(self._seen):
            with suppress(OSError):  # closed, or not connected
                opened.shutdown(socket.SHUT_RDWR)
