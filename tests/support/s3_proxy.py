"""A proxy between clients and the real server that counts requests and can delay and change answers."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

    from async_maps.demo.seaweed import S3Server


class Asked(NamedTuple):
    """A request and the size of its answer in bytes."""

    method: str
    path: str
    query: dict[str, list[str]]
    range: str | None
    size: int


class Refusal(NamedTuple):
    """An answer in place of the server's; with status 0, the connection is reset."""

    status: int
    code: str = ""
    message: str = ""

    def body(self) -> bytes:
        if not self.code:
            return b""
        return f"<Error><Code>{self.code}</Code><Message>{self.message}</Message></Error>".encode()


class Proxy:
    """Passes requests on to a server.

    Attributes:
        asked: the answered requests.
        authorizations: the Authorization headers of the requests.
        delay_s: the delay of each GET of an object.
        gate: GETs of objects wait until it is set.
        most_concurrent: the highest number of concurrent GETs of objects.
        under_way: the current number of GETs of objects.
        break_off: the number of answers to GETs of objects to truncate in the middle.
        headers: headers that replace the server's; those with None are removed.
        statuses: statuses that replace the server's, with an empty body.
        refuse: called with the method, the path and the query of each request; returns an answer in place of the
            server's, or None.
        spell: changes the body of each listing.
        code_header: the header of refusals that has their code; empty for none.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.authorizations: list[str] = []
        self.delay_s = 0.0
        self.gate = threading.Event()
        self.gate.set()
        self.most_concurrent = self.under_way = self.break_off = 0
        self.headers: dict[str, str | None] = {}
        self.statuses: dict[int, int] = {}
        self.refuse: Callable[[str, str, str], Refusal | None] = lambda *_: None
        self.spell: Callable[[bytes], bytes] = lambda listing: listing
        self.code_header = ""
        self.lock = threading.Lock()

    def gets(self, *, of: str = "") -> list[Asked]:
        """Return the GETs of objects, without listings."""
        return [asked for asked in self.asked if asked.method == "GET" and not asked.query and of in asked.path]


@contextmanager
def counting(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Run a proxy that every AWS client of this process uses."""
    with passing_on(server.endpoint_url) as (proxy, url):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield proxy


@contextmanager
def passing_on(endpoint: str) -> Iterator[tuple[Proxy, str]]:
    """Run a proxy before a server, and yield it with its URL."""
    proxy = Proxy()
    upstream = urlsplit(endpoint).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Headers and bodies are separate writes, and Nagle's algorithm would delay the second.
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

        def answer(self) -> None:
            url = urlsplit(self.path)
            query = parse_qs(url.query, keep_blank_values=True)
            query.pop("x-id", None)
            reading = self.command == "GET" and not query
            with proxy.lock:
                proxy.under_way += reading
                proxy.most_concurrent = max(proxy.most_concurrent, proxy.under_way)
            try:
                if reading:
                    time.sleep(proxy.delay_s)
                    proxy.gate.wait()
                self.pass_on(unquote(url.path), query, reading)
            finally:
                with proxy.lock:
                    proxy.under_way -= reading

        def pass_on(self, path: str, query: dict[str, list[str]], reading: bool) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with proxy.lock:
                refusal = proxy.refuse(self.command, path, urlsplit(self.path).query)
            if refusal is not None:
                self.refuse(refusal)
                return
            connection = HTTPConnection(upstream)
            try:
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in {"expect", "connection"}:
                        connection.putheader(name, value)
                connection.endheaders(body)
                answer = connection.getresponse()
                data = b"" if answer.status in proxy.statuses else answer.read()
            finally:
                connection.close()
            if "list-type" in query:
                data = proxy.spell(data)
            with proxy.lock:
                broken = reading and proxy.break_off > 0
                proxy.break_off -= broken
                proxy.authorizations.append(self.headers.get("Authorization", ""))
                proxy.asked.append(Asked(self.command, path, query, self.headers.get("Range"), len(data)))
            self.send_response_only(proxy.statuses.get(answer.status, answer.status))
            replaced = {name.lower() for name in proxy.headers} | {"transfer-encoding", "content-length", "connection"}
            ours = [(name, value) for name, value in proxy.headers.items() if value is not None]
            for name, value in [*answer.getheaders(), *ours]:
                if name.lower() not in replaced or (name, value) in ours:
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else len(data)
            self.send_header("Content-Length", str(length or 0))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if broken else data)
            self.close_connection |= broken

        def refuse(self, refusal: Refusal) -> None:
            if not refusal.status:
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.close_connection = True
                return
            data = b"" if self.command == "HEAD" else refusal.body()
            self.send_response_only(refusal.status)
            self.send_header("Content-Length", str(len(data)))
            if proxy.code_header and refusal.code:
                self.send_header(proxy.code_header, refusal.code)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815  # the names that http.server wants

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        httpd.block_on_close = False
        httpd.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that leave are part of the tests
        serving = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05}, name="proxy")
        serving.start()
        try:
            yield proxy, f"http://127.0.0.1:{httpd.server_address[1]}"
        finally:
            proxy.gate.set()
            httpd.shutdown()
            serving.join()
