"""A server on loopback that takes objects until it gets a fault: an answer that comes early, slowly or not at all."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from tests.support.scripted_server import CHECKSUM

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    import pytest

_BUFFER = 16 * 2**10
_DRIP_S = 0.02


class Faulty:
    """Answers PUTs with 200 and their checksum while ``fault`` is empty, and otherwise as the fault says.

    Attributes:
        fault: a key of :data:`FAULTS` or :data:`EARLY`, "closes", or empty.
        of: the methods that meet the fault; empty for all.
        heads: the heads of the requests.
        met: is set when a request has met the fault.
        left: is set while no connection is open.
    """

    def __init__(self) -> None:
        self.fault = ""
        self.of: set[str] = set()
        self.heads: list[bytes] = []
        self.met = asyncio.Event()
        self.left = asyncio.Event()
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._serving)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self.left.clear()
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._serve(reader, writer)
        finally:
            self._serving.discard(task)
            writer.transport.abort()
            if not self._serving:
                self.left.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = b"" if self.fault == "silent" else await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            if self.fault and (not self.of or head.split(b" ", 1)[0].decode() in self.of):
                self.met.set()
                await _ended((FAULTS | EARLY | _CLOSES)[self.fault](reader, writer, head), writer)
                return
            await reader.readexactly(_length(head))
            # The fault of another method is that an object exists.
            status = 412 if self.fault else 200
            checksum = b"".join(CHECKSUM.findall(head))
            writer.write(b'HTTP/1.1 %d x\r\nETag: "tag"%b\r\nContent-Length: 0\r\n\r\n' % (status, checksum))

    async def close(self) -> None:
        """End all connections."""
        serving = [*self._serving]
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


async def _ended(fault: Awaitable[None], writer: asyncio.StreamWriter) -> None:
    """Wait until the fault is over, or the client has left."""
    running = asyncio.ensure_future(fault)
    try:
        # It notices the client's end although nobody reads.
        while not running.done() and not _is_left(writer):
            await asyncio.wait({running}, timeout=_DRIP_S)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def _is_left(writer: asyncio.StreamWriter) -> bool:
    if writer.is_closing():  # with TLS, it has no socket any more
        return True
    state = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    established = 1
    return bool(state != established)


async def _closes(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter, _head: bytes) -> None:
    """Return, so that the connection is closed."""


async def _silent(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter, _head: bytes) -> None:
    await asyncio.Event().wait()


async def _no_answer(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter, head: bytes) -> None:
    await reader.readexactly(_length(head))
    await asyncio.Event().wait()


async def _drips_a_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
    await reader.readexactly(_length(head))
    writer.write(b"HTTP/1.1 200 OK\r\nX: ")
    await _drip(writer)


async def _drips_a_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
    await reader.readexactly(_length(head))
    writer.write(b'HTTP/1.1 200 OK\r\nETag: "tag"\r\nContent-Length: 300\r\n\r\n')
    await _drip(writer)


async def _stalls_in_a_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
    await reader.readexactly(_length(head))
    writer.write(b'HTTP/1.1 200 OK\r\nETag: "tag"\r\nContent-Length: 300\r\n\r\nabc')
    await asyncio.Event().wait()


async def _continues_forever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
    await reader.readexactly(_length(head))
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await asyncio.sleep(10 * _DRIP_S)


async def _takes_drops(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter, _head: bytes) -> None:
    for _ in range(1000):
        await reader.read(1)
        await asyncio.sleep(_DRIP_S)


async def _drip(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"a")
        await asyncio.sleep(_DRIP_S)


async def _refuse_early(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _head: bytes) -> None:
    body = b"<Error><Code>EntityTooLarge</Code><Message>too large</Message></Error>"
    writer.write(b"HTTP/1.1 400 x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


async def _refuse_early_and_stay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
    await _refuse_early(reader, writer, head)
    await asyncio.Event().wait()


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


FAULTS: dict[str, Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]] = {
    "silent": _silent,
    "stops reading": _silent,
    "takes drops": _takes_drops,
    "no answer": _no_answer,
    "drips a head": _drips_a_head,
    "drips a body": _drips_a_body,
    "stalls in a body": _stalls_in_a_body,
    "continues forever": _continues_forever,
}
EARLY = {"refuses early": _refuse_early, "refuses early and stays": _refuse_early_and_stay}
"""Answers before the body is read; the request ends with the answer."""
_CLOSES = {"closes": _closes}


@asynccontextmanager
async def faulty(monkeypatch: pytest.MonkeyPatch, certificate: Path | None = None) -> AsyncIterator[Faulty]:
    """Run the server; every AWS client of this process uses it, with TLS if there is a certificate for localhost."""
    server = Faulty()
    tls = None
    if certificate is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate)
    listening = socket.socket()
    # Accepted connections inherit it: a client soon notices that its bytes are not read.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    listening.bind(("127.0.0.1", 0))
    serving = await asyncio.start_server(server.serve, sock=listening, limit=_BUFFER, ssl=tls)
    host = "http://127.0.0.1" if tls is None else "https://localhost"
    with monkeypatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"{host}:{listening.getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        if certificate is not None:
            patch.setenv("AWS_CA_BUNDLE", str(certificate))
        try:
            yield server
        finally:
            serving.close()
            await server.close()
            await serving.wait_closed()
