"""A proxy between the client and the real S3 server that breaks a share of the requests in several ways.

It is a separate process on loopback (``python -m tests.support.chaos``). Its faults are seeded and counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import struct
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import pytest

    from async_maps.demo.seaweed import S3Server

FAULTS = (
    "slow down", "internal error", "reset before the body", "reset in the body", "reset after the body",
    "truncated answer", "garbage", "drip", "latency", "200 without a proof", "200 without the object",
)  # fmt: skip


class _Request(NamedTuple):
    method: str
    head: bytes
    size: int


class _BrokenError(Exception):
    """Ends the connection."""


class _Proxy:
    def __init__(self, upstream: tuple[str, int], seed: int, rate: float, methods: set[str], kinds: list[str]) -> None:
        self._upstream = upstream
        self._random = random.Random(seed)  # noqa: S311  # seeded faults
        self._rate = rate
        self._methods = methods
        self._kinds = kinds
        self.counts: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        try:
            async for request in _requests(reader):
                faulty = request.method in self._methods and self._random.random() < self._rate
                kind = self._random.choice(self._kinds) if faulty else "none"
                self.counts[kind] += 1
                if b"expect: 100-continue" in request.head.lower():
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                await self._answer(kind, request, (reader, writer), (up_reader, up_writer))
        except (_BrokenError, asyncio.IncompleteReadError, ConnectionError):
            _reset(writer)
        finally:
            writer.close()
            up_writer.close()

    async def _answer(  # noqa: PLR0912  # a branch a fault
        self,
        kind: str,
        request: _Request,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        reader, writer = client
        if kind == "reset before the body":
            raise _BrokenError
        if kind == "reset in the body":
            await reader.readexactly(request.size // 2)
            raise _BrokenError
        body = await reader.readexactly(request.size)
        if kind == "latency":
            await asyncio.sleep(self._random.random())
        if kind in {"none", "latency", "reset after the body", "truncated answer", "drip"}:
            answer = await _ask(upstream, request, body)
            if kind == "reset after the body":
                raise _BrokenError
            if kind == "truncated answer":
                writer.write(answer[: len(answer) // 2])
                await writer.drain()
                raise _BrokenError
            if kind == "drip":
                for start in range(0, len(answer), 16):
                    writer.write(answer[start : start + 16])
                    await asyncio.sleep(0.02)
            else:
                writer.write(answer)
        elif kind == "garbage":
            writer.write(b"\x00\xffno HTTP at all\r\n\r\n")
            raise _BrokenError
        elif kind == "slow down":
            writer.write(_error(503, "SlowDown", "Please reduce your request rate."))
        elif kind == "internal error":
            writer.write(_error(500, "InternalError", "We encountered an internal error."))
        elif kind == "200 without a proof":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        else:
            etag = "d41d8cd98f00b204e9800998ecf8427e"  # the MD5 of no bytes
            writer.write(f'HTTP/1.1 200 OK\r\nETag: "{etag}"\r\nContent-Length: 0\r\n\r\n'.encode())
        await writer.drain()


async def _requests(reader: asyncio.StreamReader) -> AsyncIterator[_Request]:
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return
        yield _Request(head.split(b" ", 1)[0].decode(), head, _length(head))


async def _ask(upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter], request: _Request, body: bytes) -> bytes:
    """Return the server's whole answer."""
    reader, writer = upstream
    lines = [line for line in request.head[:-4].split(b"\r\n") if not line.lower().startswith(b"expect:")]
    writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
    await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    return head + (b"" if request.method == "HEAD" else await reader.readexactly(_length(head)))


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def _error(status: int, code: str, message: str) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return f"HTTP/1.1 {status} x\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Make the close send a reset instead of an end."""
    connection = writer.get_extra_info("socket")
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Chaos:
    """A running proxy. After the ``with`` block, ``counts`` has the requests by fault; "none" is without one."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    @property
    def faults(self) -> int:
        """The number of broken PUTs."""
        return sum(count for kind, count in self.counts.items() if kind != "none")


@contextmanager
def chaos(
    server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    *,
    seed: int,
    rate: float,
    methods: str = "PUT",
    kinds: tuple[str, ...] = FAULTS,
) -> Iterator[Chaos]:
    """Run a proxy that every AWS client of this process uses during the ``with`` block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.chaos", server.endpoint_url, str(seed), str(rate), methods, *kinds],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    running = Chaos()
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", process.stdout.readline().strip())
        try:
            yield running
        finally:
            out, _ = process.communicate()
            running.counts = json.loads(out)


async def _main(upstream: str, seed: int, rate: float, methods: str, kinds: list[str]) -> None:
    host, _, port = upstream.removeprefix("http://").partition(":")
    proxy = _Proxy((host, int(port)), seed, rate, set(methods.split()), kinds)
    async with await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=2**20) as listening:
        print(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", flush=True)  # noqa: T201  # for the parent
        await asyncio.to_thread(sys.stdin.read)
    print(json.dumps(proxy.counts))  # noqa: T201  # for the parent


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("upstream")
    parser.add_argument("seed", type=int)
    parser.add_argument("rate", type=float)
    parser.add_argument("methods")
    parser.add_argument("kinds", nargs="+")
    options = parser.parse_args()
    asyncio.run(_main(options.upstream, options.seed, options.rate, options.methods, options.kinds))
