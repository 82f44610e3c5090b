"""A server that accepts PUTs and keeps nothing, to measure the client alone.

It reads bodies of a stated length or in chunks, answers ``Expect: 100-continue`` and returns 200 to every PUT, with the
checksum of the request as Amazon S3 does; Azure's and Google Cloud's uploads are answered as these do. It is a separate
process on loopback, so that its CPU time does not count as the client's (0.03 to 0.05 ms a PUT). On request it speaks
TLS, answers late, and serves the files of a folder as objects (``bench/bucket.py``). It can log the
key, the size and the CRC-32 of each body before it answers, so that a sink that is killed loses no PUT that it has
answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
import zlib
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from async_maps.concurrency.loop import fastest_loop
from bench.bucket import Answer, Bucket

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_ANSWER = b"HTTP/1.1 %d -%b\r\nContent-Length: %d\r\nConnection: keep-alive\r\n\r\n%b"
_KEY = "key.pem"
_HEAD_END, _LINE_END = b"\r\n\r\n", b"\r\n"
_DATE = b"Mon, 30 Nov 2026 00:00:00 GMT"
_ACCOUNT = "devstoreaccount1"


class _Counts:
    puts = requests = put_bytes = connections = gets = lists = 0
    last_put = 0.0


@dataclass(frozen=True, slots=True)
class _Service:
    """What all connections share: the delay of each answer, the counts, the log's descriptor, and the objects."""

    delay_s: float
    counts: _Counts
    log: int | None
    bucket: Bucket


class _Connection(asyncio.Protocol):
    def __init__(self, service: _Service) -> None:
        self._service = service
        self._counts = service.counts
        self._log = service.log
        self._lines = bytearray()
        self._mark = _HEAD_END
        self._is_last = False
        self._missing = self._crc32 = 0
        self._upload: list[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._counts.connections += 1

    def data_received(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            if self._missing:
                taken = min(self._missing, len(view))
                self._missing -= taken
                if self._log is not None:
                    self._crc32 = zlib.crc32(view[:taken], self._crc32)
                if self._upload is not None:
                    self._upload.append(bytes(view[:taken]))
                view = view[taken:]
            else:
                self._lines += view
                end = self._lines.find(self._mark)
                if end < 0:
                    return
                found = bytes(self._lines[:end])
                view = memoryview(bytes(self._lines[end + len(self._mark) :]))
                self._lines.clear()
                if self._mark is _HEAD_END:
                    self._begin(found)
                else:
                    self._begin_chunk(found)
            if self._is_last and not self._missing:
                self._end()

    def _begin(self, head: bytes) -> None:
        first, *lines = head.split(_LINE_END)
        self._method, self._target, _ = first.split(b" ", 2)
        self._upload = [] if self._target.startswith(b"/upload/") else None
        self._headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        self._missing, self._crc32 = int(self._headers.get(b"content-length", 0)), 0
        self._size = int(self._headers.get(b"x-amz-decoded-content-length", self._missing))
        self._is_last = self._headers.get(b"transfer-encoding") != b"chunked"
        if not self._is_last:
            self._mark = _LINE_END
        if b"expect" in self._headers:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _begin_chunk(self, size: bytes) -> None:
        length = int(size.partition(b";")[0], 16)
        self._missing = length + len(_LINE_END)
        self._is_last = not length

    def _end(self) -> None:
        self._mark, self._is_last = _HEAD_END, False
        status, headers, body = self._respond()
        lines = b"".join(b"\r\n%b: %b" % header for header in headers.items())
        answer = _ANSWER % (status, lines, len(body), b"" if self._method == b"HEAD" else body)
        if self._service.delay_s:
            asyncio.get_running_loop().call_later(self._service.delay_s, self._answer, answer)
        else:
            self._answer(answer)

    def _respond(self) -> Answer:
        counts = self._counts
        if self._target == b"/-/counts":
            names = (name for name in vars(_Counts) if name[0] != "_")
            return Answer(200, {}, json.dumps({name: getattr(counts, name) for name in names}).encode())
        counts.requests += 1
        if self._method == b"PUT":
            counts.puts += 1
            counts.put_bytes += self._size
            counts.last_put = time.monotonic()
            if self._log is not None:
                os.write(self._log, b"%b %d %08x\n" % (self._target, self._size, self._crc32))
        elif self._method in {b"GET", b"HEAD"}:
            path, _, query = self._target.decode().partition("?")
            if query.startswith("list-type=2") or "&list-type=2" in query:
                counts.lists += 1
                return self._service.bucket.page(query)
            counts.gets += 1
            return self._service.bucket.get(path, self._headers.get(b"range", b"").decode())
        if self._upload is not None:
            counts.puts += 1
            return Answer(200, {b"Content-Type": b"application/json"}, _stored(self._headers, b"".join(self._upload)))
        if md5 := self._headers.get(b"content-md5", b"") if b"x-ms-version" in self._headers else None:
            return Answer(201, {b"ETag": b'"0x1"', b"Content-MD5": md5, b"Last-Modified": _DATE}, b"")
        checksum = self._headers.get(b"x-amz-checksum-crc32")
        return Answer(200, {b"ETag": b'"sink-1"', **({b"x-amz-checksum-crc32": checksum} if checksum else {})}, b"")

    def _answer(self, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer)


def _stored(headers: Mapping[bytes, bytes], body: bytes) -> bytes:
    """Return the properties of an object in Google Cloud Storage: those of the upload, and its size."""
    mark = b"--" + headers[b"content-type"].partition(b"boundary=")[2].strip(b'"')
    _, properties, data, _ = body.split(mark)
    size = len(data.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n"))
    return json.dumps({**json.loads(properties.partition(b"\r\n\r\n")[2]), "size": str(size)}).encode()


class Counts(TypedDict):
    """The number of requests, of PUTs and of bytes in their bodies, and the time when the last PUT was complete.

    ``gets`` counts the reads of objects, and ``lists`` the pages of listings. The time is that of the monotonic clock,
    which all processes of a machine share.
    """

    requests: int
    puts: int
    put_bytes: int
    connections: int
    gets: int
    lists: int
    last_put: float


class Sink:
    """A running sink.

    Attributes:
        url: the address of the sink.
        pid: its process.
        certificate: the file of its certificate, which clients must trust; None without TLS.
    """

    def __init__(self, url: str, pid: int, certificate: Path | None = None) -> None:
        self.url = url
        self.pid = pid
        self.certificate = certificate

    def counts(self) -> Counts:
        """Return the counts so far."""
        trusted = ssl.create_default_context(cafile=self.certificate) if self.certificate else None
        with urllib.request.urlopen(f"{self.url}/-/counts", context=trusted) as answer:  # noqa: S310  # our own, on loopback
            found: Counts = json.load(answer)
        return found

    def environment(self) -> dict[str, str]:
        """Return the environment variables for clients of AWS, Google Cloud and Azure."""
        # AWS's libraries read the first one, those that use OpenSSL, rustls or Go the second one.
        trusted = dict.fromkeys(("AWS_CA_BUNDLE", "SSL_CERT_FILE"), str(self.certificate)) if self.certificate else {}
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "sink",
            "AWS_SECRET_ACCESS_KEY": "sink-secret",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "STORAGE_EMULATOR_HOST": self.url,
            "AZURE_STORAGE_CONNECTION_STRING": (
                f"AccountName={_ACCOUNT};AccountKey=c2luaw==;BlobEndpoint={self.url}/{_ACCOUNT}"
            ),
            **trusted,
        }


@contextmanager
def serve(
    delay_s: float = 0.0, *, tls: bool = False, objects: Path | None = None, log: Path | None = None, port: int = 0
) -> Iterator[Sink]:
    """Run a sink during the ``with`` block.

    Args:
        delay_s: the seconds to wait before each answer.
        tls: speak TLS, with a certificate made for this sink.
        objects: the folder whose files are the objects of its bucket; None for no objects.
        log: the file to which a line is appended for each PUT: path, size and CRC-32; None for no log. Not for clients
            that send bodies in chunks.
        port: the port to listen on; 0 for a free one.
    """
    with ExitStack() as stack:
        certificate = None
        if tls:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="async-maps-bench-")))
            certificate = _make_certificate(folder)
        given = {"--certificate": certificate, "--objects": objects, "--log": log}
        flags = [part for flag, value in given.items() if value for part in (flag, str(value))]
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.sink", "--delay", str(delay_s), "--port", str(port), *flags],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        stack.callback(process.communicate)  # closes its input, which ends it
        assert process.stdout is not None  # noqa: S101  # for mypy: it is a pipe
        yield Sink(process.stdout.readline().strip(), process.pid, certificate)


def _make_certificate(folder: Path) -> Path:
    """Make a certificate for loopback in ``certificate.pem``, with its key in ``key.pem``."""
    certificate = folder / "certificate.pem"
    # Rust's webpki refuses a server's certificate that is an authority's.
    request = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-subj", "/CN=sink", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE",
        "-keyout", str(folder / _KEY), "-out", str(certificate),
    ]  # fmt: skip
    subprocess.run(request, check=True, capture_output=True)
    return certificate


async def _serve(options: argparse.Namespace) -> None:
    loop, log, context = asyncio.get_running_loop(), None, None
    if options.log:
        log = os.open(options.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    if options.certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(options.certificate, options.certificate.with_name(_KEY))
    service = _Service(options.delay, _Counts(), log, Bucket(options.objects))
    server = await loop.create_server(lambda: _Connection(service), "127.0.0.1", options.port, ssl=context)
    async with server:
        scheme = "https" if context else "http"
        print(f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
        await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--port", type=int, default=0, help="the port to listen on; a free one by default")
    parser.add_argument("--certificate", type=Path, metavar="FILE", help="speak TLS with FILE and the key beside it")
    parser.add_argument("--objects", type=Path, default=os.devnull, metavar="FOLDER", help="serve the files of FOLDER")
    parser.add_argument("--log", metavar="FILE", help="append the path, size and CRC-32 of each PUT to FILE")
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        runner.run(_serve(parser.parse_args()))
