"""Servers of other clouds for tests: Azurite, gcp-storage-emulator, and a stand-in of Google Cloud Storage.

Each test has a bucket of its own, and an object of :class:`Cloud` to look into it without the package.
"""

from __future__ import annotations

import base64
import http.client
import itertools
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import pytest

from async_maps.filesystems.services.azure_account import Account
from async_maps.filesystems.services.azure_keys import authorization
from tests.support.certificates import make_certificate
from tests.support.gcs_server import GcsServer, serving
from tests.support.s3_proxy import Refusal, passing_on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

_numbers = itertools.count(1)
_START_S = 60.0
_NAME, _KEY = "devstoreaccount1", base64.b64encode(b"a key of the tests").decode()
WITHOUT_GCS = "the packages google-auth and google-crc32c are not installed (extra gcs)"
WITHOUT_EMULATOR = "the package gcp-storage-emulator is not installed (extra test-clouds)"
WITHOUT_AZURITE = "the command azurite-blob is not installed (npm install -g azurite@3.35)"


class Cloud:
    """A bucket in a cloud.

    Attributes:
        scheme: the scheme of its addresses.
        bucket: the bucket.
        denied: a refusal that may concern one object alone.
        busy: a refusal that asks for fewer requests.
    """

    scheme = ""
    denied = busy = Refusal(0)
    bucket: str

    @property
    def address(self) -> str:
        """The address of the bucket."""
        return f"{self.scheme}://{self.bucket}"

    def upload(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> None:
        """Store an object."""
        raise NotImplementedError

    def read(self, key: str) -> bytes:
        """Return the bytes of an object."""
        raise NotImplementedError

    def delete(self, key: str) -> None:
        """Delete an object."""
        raise NotImplementedError

    def refuse_with(self, refuse: Callable[[str, str, str], Refusal | None]) -> None:
        """Let the server refuse requests; see :class:`~tests.support.s3_proxy.Proxy`."""
        raise NotImplementedError


def _ask(url: str, method: str, target: str, body: bytes = b"", **headers: str) -> bytes:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        connection.request(method, target, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        data = answer.read()
        assert answer.status < 300, (method, target, answer.status, data)
        return data
    finally:
        connection.close()


class Gcs(Cloud):
    """A bucket in the stand-in or in the emulator."""

    scheme = "gs"
    denied = Refusal(403, "forbidden", "not for you")
    busy = Refusal(429, "rateLimitExceeded", "less")

    def __init__(self, url: str, bucket: str) -> None:
        self.url, self.bucket = url, bucket

    def upload(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> None:
        mark = "mark-of-the-tests"
        body = (
            f'--{mark}\r\nContent-Type: application/json\r\n\r\n{{"contentType": "{content_type}"}}\r\n'
            f"--{mark}\r\nContent-Type: {content_type}\r\n\r\n"
        ).encode()
        target = f"/upload/storage/v1/b/{self.bucket}/o?uploadType=multipart&name={quote(key, safe='')}"
        kind = f"multipart/related; boundary={mark}"
        _ask(self.url, "POST", target, body + data + f"\r\n--{mark}--\r\n".encode(), Content_Type=kind)

    def read(self, key: str) -> bytes:
        return _ask(self.url, "GET", f"/storage/v1/b/{self.bucket}/o/{quote(key, safe='')}?alt=media")

    def delete(self, key: str) -> None:
        _ask(self.url, "DELETE", f"/storage/v1/b/{self.bucket}/o/{quote(key, safe='')}")


class StandIn(Gcs):
    """A bucket in the stand-in."""

    def __init__(self, server: GcsServer, bucket: str) -> None:
        super().__init__(server.url, bucket)
        self.server = server
        server.objects[bucket] = {}

    def refuse_with(self, refuse: Callable[[str, str, str], Refusal | None]) -> None:
        self.server.refuse = refuse


class Azure(Cloud):
    """A container in Azurite, behind a proxy."""

    scheme = "az"
    denied = Refusal(403, "AuthorizationFailure", "not for you")
    busy = Refusal(503, "ServerBusy", "less")

    def __init__(self, url: str, bucket: str) -> None:
        self.bucket = bucket
        self._account = Account(f"{url}/{_NAME}", base64.b64decode(_KEY))
        self._ask("PUT", f"{bucket}?restype=container")

    def upload(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> None:
        headers = {"x-ms-blob-type": "BlockBlob", "Content-Type": content_type}
        self._ask("PUT", f"{self.bucket}/{quote(key)}", data, headers)

    def read(self, key: str) -> bytes:
        return self._ask("GET", f"{self.bucket}/{quote(key)}")

    def delete(self, key: str) -> None:
        self._ask("DELETE", f"{self.bucket}/{quote(key)}")

    def refuse_with(self, refuse: Callable[[str, str, str], Refusal | None]) -> None:
        raise NotImplementedError

    def _ask(self, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
        url = f"{self._account.url}/{target}"
        sent = {
            **(headers or {}),
            "Content-Length": str(len(body)),
            "x-ms-version": "2021-12-02",
            "x-ms-date": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()),
        }
        sent["Authorization"] = authorization(self._account, method, url, sent)
        return _ask(url, method, f"/{_NAME}/{target}", body, **sent)


def connection_string(url: str) -> str:
    """Return the connection string of an emulator with this URL."""
    return f"AccountName={_NAME};AccountKey={_KEY};BlobEndpoint={url}/{_NAME}"


@contextmanager
def _serving(command: Sequence[str], listens: str, log: Path, **options: Any) -> Iterator[None]:
    """Run a server until the block ends; the block begins when these words are in its log."""
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, **options) as process:
        try:
            deadline = time.monotonic() + _START_S
            while listens not in log.read_text():
                assert process.poll() is None, f"{command[0]} did not start: {log.read_text()}"
                assert time.monotonic() < deadline, f"{command[0]} did not start: {log.read_text()}"
                time.sleep(0.05)
            yield
        finally:
            process.kill()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def azurite(folder: Path, *, with_tokens: bool = False) -> Iterator[str]:
    """Run Azurite on loopback, with its objects in a folder; yield its URL.

    It takes tokens only with TLS: then the folder gets a certificate for localhost, in ``certificate.pem``.
    """
    executable = shutil.which("azurite-blob")
    if executable is None:
        pytest.skip(WITHOUT_AZURITE)
    port, url = _free_port(), "http://127.0.0.1"
    command = [
        executable, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder), "--silent",
        "--skipApiVersionCheck", "--disableTelemetry",
    ]  # fmt: skip
    if with_tokens:
        make_certificate(folder, ["localhost"])
        url = "https://localhost"
        certificate, key = (str(folder / name) for name in ("certificate.pem", "key.pem"))
        command += ["--oauth", "basic", "--cert", certificate, "--key", key]
    environment = {**os.environ, "AZURITE_ACCOUNTS": f"{_NAME}:{_KEY}"}
    with _serving(command, "successfully listens", folder / "azurite.log", env=environment):
        yield f"{url}:{port}"


@contextmanager
def gcs_emulator(folder: Path) -> Iterator[str]:
    """Run gcp-storage-emulator on loopback, with its log in a folder; yield its URL."""
    if not _is_installed("gcp_storage_emulator"):
        pytest.skip(WITHOUT_EMULATOR)
    port = _free_port()
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host=127.0.0.1", f"--port={port}"]
    with _serving([*command, "--in-memory"], "All services started", folder / "emulator.log"):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def azurite_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of Azurite."""
    with azurite(tmp_path_factory.mktemp("azurite")) as url:
        yield url


@pytest.fixture(scope="session")
def emulator_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of gcp-storage-emulator."""
    with gcs_emulator(tmp_path_factory.mktemp("emulator")) as url:
        yield url


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even its package is
        return False


def _without_others(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (_is_installed("google_crc32c") and _is_installed("google.auth")):
        pytest.skip(WITHOUT_GCS)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)


@pytest.fixture
def gcs_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[GcsServer]:
    """The stand-in of Google Cloud Storage, which this process uses."""
    _without_others(monkeypatch)
    with serving(GcsServer()) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        yield server


@pytest.fixture
def stand_in(gcs_server: GcsServer) -> StandIn:
    """A bucket in the stand-in."""
    return StandIn(gcs_server, f"bucket-{next(_numbers)}")


@pytest.fixture
def emulator(emulator_url: str, monkeypatch: pytest.MonkeyPatch) -> Gcs:
    """A bucket in gcp-storage-emulator."""
    _without_others(monkeypatch)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator_url)
    bucket = f"bucket-{next(_numbers)}"
    _ask(emulator_url, "POST", "/storage/v1/b", f'{{"name": "{bucket}"}}'.encode(), Content_Type="application/json")
    return Gcs(emulator_url, bucket)


@pytest.fixture
def azure(azurite_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Azure]:
    """A container in Azurite, which this process uses through a proxy."""
    container = Azure(azurite_url, f"container-{next(_numbers)}")
    with passing_on(azurite_url) as (proxy, url):
        proxy.code_header = "x-ms-error-code"

        def refuse_with(refuse: Callable[[str, str, str], Refusal | None]) -> None:
            # The account comes first in the paths of emulators.
            proxy.refuse = lambda method, path, query: refuse(method, path.removeprefix(f"/{_NAME}"), query)

        monkeypatch.setattr(container, "refuse_with", refuse_with)
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection_string(url))
        yield container


@pytest.fixture(params=["gs", "az"])
def cloud(request: pytest.FixtureRequest) -> Cloud:
    """A bucket in each cloud besides S3."""
    found: Cloud = request.getfixturevalue({"gs": "stand_in", "az": "azure"}[request.param])
    return found
