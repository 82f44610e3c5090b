"""A server that accepts PUTs and keeps nothing, to measure the client alone.

It reads bodies of a stated length, answers ``Expect: 100-continue`` and returns 200 to every request, with the checksum
of the request as Amazon S3 does. It is a separate process on loopback, so that its CPU time does not count as the
client's (0.03 to 0.05 ms a PUT). On request it logs the key, the size and the CRC-32 of each body before it answers, so
that a sink that is killed loses no PUT that it has answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypedDict, cast

from async_maps.concurrency.loop import fastest_loop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ANSWER = b'HTTP/1.1 200 OK\r\nETag: "sink-1"%b\r\nContent-Length: %d\r\nConnection: keep-alive\r\n\r\n%b'


class _Counts:
    puts = requests = put_bytes = connections = 0
    last_put = 0.0


class _Connection(asyncio.Protocol):
    def __init__(self, delay_s: float, counts: _Counts, log: int | None) -> None:
        self._delay_s = delay_s
        self._counts = counts
        self._log = log
        self._head = bytearray()
        self._method = b""
        self._missing = self._crc32 = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._counts.connections += 1

    def data_received(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            if not self._method:
                self._head += view
                end = self._head.find(b"\r\n\r\n")
                if end < 0:
                    return
                view = memoryview(bytes(self._head[end + 4 :]))
                self._begin(bytes(self._head[:end]))
                self._head.clear()
            taken = min(self._missing, len(view))
            self._missing -= taken
            if self._log is not None:
                self._crc32 = zlib.crc32(view[:taken], self._crc32)
            view = view[taken:]
            if not self._missing:
                self._end()

    def _begin(self, head: bytes) -> None:
        lines = head.split(b"\r\n")
        self._method, self._path, _ = lines[0].split(b" ", 2)
        self._size, self._checksum, self._crc32 = 0, b"", 0
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                self._size = int(value)
            elif name.lower() == b"x-amz-checksum-crc32":
                self._checksum = b"\r\n" + line
            elif name.lower() == b"expect":
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._missing = self._size

    def _end(self) -> None:
        counts = self._counts
        body = b""
        if self._path == b"/-/counts":
            body = json.dumps({name: getattr(counts, name) for name in vars(_Counts) if name[0] != "_"}).encode()
        else:
            counts.requests += 1
            if self._method == b"PUT":
                counts.puts += 1
                counts.put_bytes += self._size
                counts.last_put = time.monotonic()
                if self._log is not None:
                    os.write(self._log, b"%b %d %08x\n" % (self._path, self._size, self._crc32))
        self._method = b""
        answer = _ANSWER % (self._checksum, len(body), body)
        if self._delay_s:
            asyncio.get_running_loop().call_later(self._delay_s, self._answer, answer)
        else:
            self._answer(answer)

    def _answer(self, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer)


class Counts(TypedDict):
    """The number of requests, of PUTs and of bytes in their bodies, and the time when the last PUT was complete.

    The time is that of the monotonic clock, which all processes of a machine share.
    """

    requests: int
    puts: int
    put_bytes: int
    connections: int
    last_put: float


class Sink:
    """A running sink.

    Attributes:
        url: the address of the sink.
        pid: its process.
    """

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self.pid = pid

    def counts(self) -> Counts:
        """Return the counts so far."""
        with urllib.request.urlopen(f"{self.url}/-/counts") as answer:  # noqa: S310  # our own, on loopback
            found: Counts = json.load(answer)
        return found

    def environment(self) -> dict[str, str]:
        """Return the environment variables for AWS clients."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "sink",
            "AWS_SECRET_ACCESS_KEY": "sink-secret",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextmanager
def serve(delay_s: float = 0.0, *, log: Path | None = None, port: int = 0) -> Iterator[Sink]:
    """Run a sink during the ``with`` block.

    Args:
        delay_s: the seconds to wait before each answer.
        log: the file to which a line is appended for each PUT: path, size and CRC-32; None for no log.
        port: the port to listen on; 0 for a free one.
    """
    logging = [] if log is None else ["--log", str(log)]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.sink", "--delay", str(delay_s), "--port", str(port), *logging],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None  # noqa: S101  # for mypy: it is a pipe
        yield Sink(process.stdout.readline().strip(), process.pid)
    finally:
        process.communicate()  # closes its input, which ends it


async def _serve(delay_s: float, port: int, log: str | None) -> None:
    loop, counts = asyncio.get_running_loop(), _Counts()
    file = None if log is None else os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    server = await loop.create_server(lambda: _Connection(delay_s, counts, file), "127.0.0.1", port)
    async with server:
        print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
        await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--port", type=int, default=0, help="the port to listen on; a free one by default")
    parser.add_argument("--log", metavar="FILE", help="append the path, size and CRC-32 of each PUT to FILE")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        runner.run(_serve(options.delay, options.port, options.log))
