"""A network link to the real S3 server: it has a bandwidth, and can stall."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from async_maps.demo.seaweed import S3Server

_BUFFER = 16 * 2**10
"""Bytes that each connection holds; few, so that a client sees how fast the link is."""


class Link:
    """Passes bytes on between clients and a server.

    Attributes:
        flows: bytes pass while it is set; connections are still accepted when it is not.
        bytes_per_s: the bandwidth to the server, of all connections together; None for no limit.
        holds: whether bytes of clients are taken at their speed, and wait here for the link.
        swallows: whether bytes of clients are taken, but not passed on.
        sent: the number of bytes taken from clients.
        stops_at: the number of bytes from clients after which nothing flows; None to go on. A test that waits for a
            number, and then ends the flow, can be too late.
    """

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.flows = asyncio.Event()
        self.flows.set()
        self.bytes_per_s: float | None = None
        self.holds = self.swallows = False
        self.sent = 0
        self.stops_at: int | None = None
        self._upstream = upstream
        self._free_at = 0.0
        self._serving: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        try:
            with suppress(OSError, asyncio.CancelledError):
                await asyncio.gather(self._send(reader, up_writer), self._answer(up_reader, writer))
        finally:
            writer.transport.abort()
            up_writer.transport.abort()
            self._serving.discard(task)

    async def _send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held: asyncio.Queue[bytes] = asyncio.Queue()
        holding = asyncio.create_task(self._hold(reader, held))
        try:
            while data := await held.get():
                await self.flows.wait()
                if self.bytes_per_s is not None:
                    self._free_at = max(self._free_at, monotonic()) + len(data) / self.bytes_per_s
                    await asyncio.sleep(self._free_at - monotonic())
                self.sent += len(data)
                if self.stops_at is not None and self.sent >= self.stops_at:
                    self.flows.clear()
                if not self.swallows:
                    writer.write(data)
                    await writer.drain()
                held.task_done()
        finally:
            holding.cancel()
        writer.write_eof()

    async def _hold(self, reader: asyncio.StreamReader, held: asyncio.Queue[bytes]) -> None:
        with suppress(OSError):
            while data := await reader.read(_BUFFER):
                held.put_nowait(data)
                if not self.holds:
                    await held.join()
        while not held.empty():  # of a client that is gone
            held.get_nowait()
        held.put_nowait(b"")

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_BUFFER):
            await self.flows.wait()
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    async def stopped(self) -> None:
        """Wait until nothing flows, for at most 3 minutes: a command may have to start before."""
        async with asyncio.timeout(180):
            while self.flows.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    async def close(self) -> None:
        """End all connections."""
        serving = [*self._serving]
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


@asynccontextmanager
async def linked(server: S3Server | str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Link]:
    """Put a link between a server, or its URL, and every AWS client of this process and of commands that it starts."""
    endpoint_url = server if isinstance(server, str) else server.endpoint_url
    host, _, port = endpoint_url.removeprefix("http://").partition(":")
    link = Link((host, int(port)))
    listening = socket.socket()
    # Accepted connections inherit it.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    listening.bind(("127.0.0.1", 0))
    serving = await asyncio.start_server(link.serve, sock=listening, limit=_BUFFER)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
        try:
            yield link
        finally:
            serving.close()
            await link.close()
            await serving.wait_closed()
