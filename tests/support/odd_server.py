"""An S3 server in memory that records its requests, and ignores, refuses or forgets what a test says."""

from __future__ import annotations

import hashlib
import re
import ssl
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SESSION = (
    "<CreateSessionResult><Credentials><SessionToken>session-token</SessionToken><SecretAccessKey>s</SecretAccessKey>"
    "<AccessKeyId>session-id</AccessKeyId><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>"
    "</CreateSessionResult>"
)
_KEPT = re.compile("content-type|cache-control|x-amz-(storage-class|server-side-encryption.*|meta-.*)")
_ANSWERED = re.compile("x-amz-(server-side-encryption.*|checksum-crc32)")


class Asked(NamedTuple):
    """A request; the path is as it was sent, and the names of the headers are in lower case."""

    method: str
    host: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]


class OddServer:
    """The state of the server.

    Attributes:
        asked: the requests.
        objects: the body and the headers of each object, by its path with the bucket.
        ignores: headers of requests that it does not know.
        refuses: the status, the code and the message for requests with these headers.
        answers: the status and the code for requests with a method, such as ``GET``.
        questions: the status and the body of the answers to requests with these parameters, such as ``versioning``.
        heads_bucket: the status of the answer to HeadBucket.
        etag: the ETag for a body.
        stores: what is kept of a body.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.objects: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.ignores: set[str] = set()
        self.refuses: dict[str, tuple[int, str, str]] = {}
        self.answers: dict[str, tuple[int, str]] = {}
        self.questions: dict[str, tuple[int, bytes]] = {}
        self.heads_bucket = 200
        self.endpoint, self.port = "", 0

    def etag(self, data: bytes) -> str:
        return hashlib.md5(data, usedforsecurity=False).hexdigest()

    def stores(self, data: bytes) -> bytes:
        return data

    def count(self, method: str) -> int:
        """Return the number of requests with this method, without those for a bucket."""
        return sum(asked.method == method and asked.path.count("/") > 1 for asked in self.asked)

    def answer(self, asked: Asked, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Return the status, the headers and the body of the answer."""
        path, headers = unquote(asked.path), {n: v for n, v in asked.headers.items() if n not in self.ignores}
        for name, refusal in self.refuses.items():
            if name in headers:
                return _error(*refusal)
        for name in asked.query.keys() & self.questions.keys():
            status, data = self.questions[name]
            return status, {}, data
        if asked.method in self.answers and path.count("/") > 1:
            return _error(*self.answers[asked.method], "as the test says")
        if asked.method == "PUT":
            return self._put(path, headers, body)
        if asked.method == "POST":
            for key in re.findall("<Key>(.*?)</Key>", body.decode()):
                self.objects.pop(f"{path.rstrip('/')}/{key}", None)
            return 200, {}, b"<DeleteResult/>"
        return self._read(path, asked.query)

    def _put(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if "if-none-match" in headers and path in self.objects:
            return _error(412, "PreconditionFailed", "it exists")
        tag = {"ETag": f'"{self.etag(body)}"'}
        kept = {name: value for name, value in headers.items() if _KEPT.fullmatch(name)}
        self.objects[path] = self.stores(body), {**tag, **kept}
        return 200, {**tag, **{name: value for name, value in headers.items() if _ANSWERED.fullmatch(name)}}, b""

    def _read(self, path: str, query: dict[str, list[str]]) -> tuple[int, dict[str, str], bytes]:
        if "session" in query:
            return 200, {}, SESSION.encode()
        if "list-type" in query:
            return 200, {}, self._listing(path, query.get("prefix", [""])[0])
        if path in self.objects:
            data, kept = self.objects[path]
            return 200, kept, data
        is_bucket = path.count("/") == 1
        return (self.heads_bucket, {}, b"") if is_bucket else _error(404, "NoSuchKey", "it does not exist")

    def _listing(self, path: str, prefix: str) -> bytes:
        start = f"{path.rstrip('/')}/"
        entries = "".join(
            f"<Contents><Key>{escape(key.removeprefix(start))}</Key><Size>{len(data)}</Size>"
            f"<ETag>{headers['ETag']}</ETag><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
            for key, (data, headers) in sorted(self.objects.items())
            if key.startswith(start + prefix)
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()


def _error(status: int, code: str, message: str) -> tuple[int, dict[str, str], bytes]:
    return status, {}, f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


@contextmanager
def serving(certificate: Path | None = None) -> Iterator[OddServer]:
    """Run the server on loopback; with TLS if there is a file with a certificate and its key."""
    state = OddServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            url = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            host = url.netloc or headers["host"]
            asked = Asked(self.command, host, url.path, parse_qs(url.query, keep_blank_values=True), headers)
            state.asked.append(asked)
            status, ours, data = state.answer(asked, body)
            self.send_response_only(status)
            for name, value in ours.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = respond  # noqa: N815  # the names that http.server wants

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads, httpd.block_on_close = True, False
        if certificate is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(certificate)
            httpd.socket = tls.wrap_socket(httpd.socket, server_side=True, do_handshake_on_connect=False)
        httpd.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that leave are part of the tests
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, name="odd-server")
        thread.start()
        state.port = httpd.server_address[1]
        state.endpoint = f"http://127.0.0.1:{state.port}"
        try:
            yield state
        finally:
            httpd.shutdown()
            thread.join()


@pytest.fixture
def odd_server(monkeypatch: pytest.MonkeyPatch, service_descriptions_read_once: None) -> Iterator[OddServer]:
    """An odd server that every AWS client of this process uses."""
    with serving() as state:
        for name, value in {
            "AWS_ENDPOINT_URL": state.endpoint,
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        yield state
