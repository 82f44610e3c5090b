"""Counts the bytes that connections have sent, also within one request: signs of life on a slow link."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from typing import Any

_ACKNOWLEDGED = struct.Struct("=120xQ")
"""The field ``tcpi_bytes_acked`` of Linux's ``struct tcp_info``."""
_IGNORED_BYTES = 16 * 2**10
"""Of each connection: handshakes, and small requests that are repeated on new connections, are no progress."""


class Traffic:
    """The sockets of a client. Linux tells how many bytes their other ends have received; elsewhere none are counted.

    The bytes in this machine's buffers are not counted. They can be some megabytes for each connection.
    """

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[socket.socket, int] = WeakKeyDictionary()
        self._sent = 0

    def open_socket(self, address: tuple[Any, ...]) -> socket.socket:
        """Create a socket for an address as ``getaddrinfo`` returns it, and count its bytes."""
        family, kind, protocol, *_ = address
        created = socket.socket(family, kind, protocol)
        self._seen[created] = 0
        return created

    def sent_bytes(self) -> int:
        """Return the number of bytes sent so far; of a connection that closes between two calls, those of the first."""
        option: int = getattr(socket, "TCP_INFO", -1)
        for opened, before in list(self._seen.items()):
            with suppress(OSError, struct.error):  # closed, or not known there
                (acknowledged,) = _ACKNOWLEDGED.unpack(
                    opened.getsockopt(socket.IPPROTO_TCP, option, _ACKNOWLEDGED.size)
                )
                now = max(acknowledged - _IGNORED_BYTES, 0)
                self._sent += now - before
                self._seen[opened] = now
        return self._sent
