"""A stand-in of Google Cloud Storage on loopback: it keeps conditions and checksums, and takes many connections."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.s3_proxy import Refusal

_UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o")
_OBJECT = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)")
_LISTING = re.compile(r"/storage/v1/b/([^/]+)/o")
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class Stored(NamedTuple):
    """An object: its bytes and its properties."""

    data: bytes
    properties: dict[str, Any]


class GcsServer:
    """The state of a server.

    Attributes:
        objects: the objects of each bucket by key; other buckets do not exist.
        refuse: called with the method, the path and the query of each request; returns an answer in place of the
            server's, or None.
        token: the token that requests must have; empty if they need none.
        page_objects: the maximum number of objects in a page of a listing.
        keeps_conditions: whether ``ifGenerationMatch`` counts.
        md5s: whether answers have MD5s.
        requests: the method and the path of each request.
    """

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Stored]] = {}
        self.refuse: Callable[[str, str, str], Refusal | None] = lambda *_: None
        self.token = ""
        self.page_objects = 1000
        self.keeps_conditions = self.md5s = True
        self.requests: list[tuple[str, str]] = []
        self.url = ""
        self._lock = threading.Lock()
        self._generation = 0

    def answer(self, method: str, path: str, query: str, headers: Any, body: bytes) -> Answered:
        """Answer a request."""
        options = {name: values[0] for name, values in parse_qs(query, keep_blank_values=True).items()}
        with self._lock:
            self.requests.append((method, unquote(path)))
            # By the key, as paths of S3.
            refusal = self.refuse("PUT" if "/upload/" in path else method, _shown(path, options), query)
            if refusal is not None:
                return _refused(refusal.status, refusal.code, refusal.message)
            if self.token and headers.get("Authorization") != f"Bearer {self.token}":
                return _refused(401, "authError", "Invalid Credentials")
            if (found := _UPLOAD.fullmatch(path)) and method == "POST":
                return self._insert(unquote(found[1]), options, headers, body)
            if found := _OBJECT.fullmatch(path):
                return self._on_object(method, unquote(found[1]), unquote(found[2]), options, headers)
            if (found := _LISTING.fullmatch(path)) and method == "GET":
                return self._list(unquote(found[1]), options)
        return _refused(404, "notFound", "Not Found")

    def _insert(self, bucket: str, options: dict[str, str], headers: Any, body: bytes) -> Answered:
        if bucket not in self.objects:
            return _no_bucket()
        mark = b"--" + headers["Content-Type"].partition("boundary=")[2].encode()
        first, second = body.removeprefix(mark + b"\r\n").removesuffix(b"\r\n" + mark + b"--\r\n").split(mark, 1)
        properties = json.loads(first.partition(b"\r\n\r\n")[2])
        data = second.partition(b"\r\n\r\n")[2]
        key = options["name"]
        if options.get("ifGenerationMatch") == "0" and key in self.objects[bucket] and self.keeps_conditions:
            return _refused(412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
        md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        crc32c = _crc32c(data)
        for name, right in (("md5Hash", md5), ("crc32c", crc32c)):
            if properties.get(name, right) != right:
                message = f'Provided {name} "{properties[name]}" doesn\'t match calculated {name} "{right}".'
                return _refused(400, "invalid", message)
        self._generation += 1
        properties |= {
            "name": key, "size": str(len(data)), "md5Hash": md5, "crc32c": crc32c, "generation": str(self._generation),
            "updated": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        }  # fmt: skip
        if not self.md5s:
            del properties["md5Hash"]
        self.objects[bucket][key] = Stored(data, properties)
        return _told(properties)

    def _on_object(self, method: str, bucket: str, key: str, options: dict[str, str], headers: Any) -> Answered:
        if bucket not in self.objects:
            return _no_bucket()
        found = self.objects[bucket].get(key)
        if found is None:
            message = f"No such object: {bucket}/{key}"
            if options.get("alt") == "media":
                return Answered(404, {"Content-Type": "text/html; charset=UTF-8"}, message.encode())
            return _refused(404, "notFound", message)
        if method == "DELETE":
            del self.objects[bucket][key]
            return Answered(204, {}, b"")
        return _media(found, headers) if options.get("alt") == "media" else _told(found.properties)

    def _list(self, bucket: str, options: dict[str, str]) -> Answered:
        if bucket not in self.objects:
            return _no_bucket()
        prefix, delimiter, after = (options.get(name, "") for name in ("prefix", "delimiter", "pageToken"))
        entries: dict[str, dict[str, Any] | None] = {}
        for key, stored in sorted(self.objects[bucket].items()):
            if key.startswith(prefix) and key > after:
                end = key.find(delimiter, len(prefix)) if delimiter else -1
                folder = key[: end + len(delimiter)]
                if end < 0:
                    entries[key] = stored.properties
                elif not after.startswith(folder):
                    entries[folder] = None
        most = min(int(options.get("maxResults", self.page_objects)), self.page_objects)
        page = list(entries.items())[:most]
        told: dict[str, Any] = {
            "kind": "storage#objects",
            "items": [properties for _, properties in page if properties is not None],
            "prefixes": [name for name, properties in page if properties is None],
        }
        if len(entries) > most:
            told["nextPageToken"] = page[-1][0]
        return _told({name: value for name, value in told.items() if value})


class Answered(NamedTuple):
    """An answer; with status 0, the connection is reset."""

    status: int
    headers: dict[str, str]
    body: bytes


def _shown(path: str, options: dict[str, str]) -> str:
    if found := _UPLOAD.fullmatch(path):
        return f"/{unquote(found[1])}/{options.get('name', '')}"
    found = _OBJECT.fullmatch(path) or _LISTING.fullmatch(path)
    return f"/{'/'.join(map(unquote, found.groups()))}" if found else path


def _media(found: Stored, headers: Any) -> Answered:
    properties = found.properties
    md5 = f",md5={properties['md5Hash']}" if "md5Hash" in properties else ""
    told = {
        "Content-Type": properties["contentType"],
        "x-goog-hash": f"crc32c={properties['crc32c']}{md5}",
        "x-goog-generation": properties["generation"],
    }
    wanted = _RANGE.fullmatch(headers.get("Range", ""))
    if wanted is None:
        return Answered(200, told, found.data)
    first, last = int(wanted[1]), min(int(wanted[2]), len(found.data) - 1)
    if first >= len(found.data):
        return _refused(416, "requestedRangeNotSatisfiable", "Request range not satisfiable")
    told["Content-Range"] = f"bytes {first}-{last}/{len(found.data)}"
    return Answered(206, told, found.data[first : last + 1])


def _told(value: dict[str, Any]) -> Answered:
    return Answered(200, {"Content-Type": "application/json; charset=UTF-8"}, json.dumps(value).encode())


def _refused(status: int, reason: str, message: str) -> Answered:
    if not reason:
        return Answered(status, {}, b"")
    error = {"code": status, "message": message, "errors": [{"reason": reason, "message": message}]}
    return _told({"error": error})._replace(status=status)


def _no_bucket() -> Answered:
    return _refused(404, "notFound", "The specified bucket does not exist.")


def _crc32c(data: bytes) -> str:
    from google_crc32c import value

    return base64.b64encode(value(data).to_bytes(4, "big")).decode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512

    def handle_error(self, *_: object) -> None:
        """Say nothing: clients that leave are part of the tests."""


@contextmanager
def serving(state: GcsServer) -> Iterator[GcsServer]:
    """Run a server with this state."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Headers and bodies are separate writes, and Nagle's algorithm would delay the second.
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

        def answer(self) -> None:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, data = state.answer(self.command, url.path, url.query, self.headers, body)
            if not status:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815  # the names that http.server wants

    with _Server(("127.0.0.1", 0), Handler) as httpd:
        running = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05}, name="gcs-server")
        running.start()
        state.url = f"http://127.0.0.1:{httpd.server_address[1]}"
        try:
            yield state
        finally:
            httpd.shutdown()
            running.join()
