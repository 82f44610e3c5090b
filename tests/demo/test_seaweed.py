from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock
from urllib.parse import urlsplit

import pytest
from aioboto3 import Session
from botocore.exceptions import ClientError

from async_maps.demo import seaweed
from async_maps.demo.seaweed import S3Server, ServerError, create_bucket, is_installed, serve
from async_maps.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
_LOOPBACK = "0100007F"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with serve(tmp_path_factory.mktemp("seaweedfs")) as running:
        yield running


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Return a function that installs a shell script as the only ``weed``."""

    def write(script: str) -> None:
        weed = tmp_path / "bin" / "weed"
        weed.parent.mkdir()
        weed.write_text(f"#!/bin/sh\n{script}\n")
        weed.chmod(0o755)
        _hide_weed(monkeypatch)
        monkeypatch.setenv("PATH", str(weed.parent))

    return write


async def test_an_object_can_be_put_and_read(server: S3Server) -> None:
    await create_bucket(server, "round-trip")
    async with _client(server) as client:
        await client.put_object(Bucket="round-trip", Key="a/b c+ü.png", Body=b"pixels", ContentType="image/png")
        answer = await client.get_object(Bucket="round-trip", Key="a/b c+ü.png")
        assert await answer["Body"].read() == b"pixels"
        assert answer["ContentType"] == "image/png"


async def test_a_bucket_exists_only_after_its_creation(server: S3Server) -> None:
    async with _client(server) as client:
        with pytest.raises(ClientError, match="NoSuchBucket"):
            await client.put_object(Bucket="not-created", Key="key", Body=b"")
        await create_bucket(server, "not-created")
        await client.put_object(Bucket="not-created", Key="key", Body=b"")
    with pytest.raises(ClientError, match="BucketAlready"):
        await create_bucket(server, "not-created")


async def test_a_restarted_server_has_the_address_the_credentials_and_the_objects(tmp_path: Path) -> None:
    with serve(tmp_path) as before:
        await create_bucket(before, "kept")
        async with _client(before) as client:
            await client.put_object(Bucket="kept", Key="key", Body=b"pixels")
    with serve(tmp_path, like=before) as after:
        assert replace(after, pid=before.pid) == before
        async with _client(after) as client:
            answer = await client.get_object(Bucket="kept", Key="key")
            assert await answer["Body"].read() == b"pixels"


@pytest.mark.parametrize("field", ["access_key", "secret_key"])
async def test_wrong_credentials_are_refused(server: S3Server, field: str) -> None:
    wrong: dict[str, Any] = {field: "0" * 40}
    async with _client(replace(server, **wrong)) as client:
        with pytest.raises(ClientError) as refusal:
            await client.list_buckets()
    assert refusal.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


async def test_environment_variables_connect_a_client_to_the_server(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    await create_bucket(server, "by-environment")
    async with Session().client("s3") as client:
        assert "by-environment" in [bucket.get("Name") for bucket in (await client.list_buckets())["Buckets"]]


def test_the_secret_is_not_in_the_repr(server: S3Server) -> None:
    assert server.access_key in repr(server)
    assert server.secret_key not in repr(server)


@linux_only
def test_the_server_listens_on_loopback_only(server: S3Server) -> None:
    listening = _listening(server.pid)
    assert _port(server) in {port for _, port in listening}
    assert {address for address, _ in listening} == {_LOOPBACK}


@linux_only
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.slow
def test_no_process_or_socket_is_left_after_the_block(tmp_path: Path, error: type[BaseException] | None) -> None:
    try:
        with serve(tmp_path) as server:
            ports = [port for _, port in _listening(server.pid)]
            assert _sockets(ports)
            if error is not None:
                raise error
    except (RuntimeError, KeyboardInterrupt) as raised:
        assert type(raised) is error  # noqa: PT017 (pytest.raises would demand an error in the case without one)
    assert not _is_alive(server.pid)
    assert not _sockets(ports)


@linux_only
def test_the_server_is_stopped_if_its_watcher_was_killed(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        ports = [port for _, port in _listening(server.pid)]
        (watcher,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        os.kill(int(watcher), signal.SIGKILL)
    assert not _is_alive(server.pid)
    for left_without_its_watcher in _sockets(ports):
        left_without_its_watcher.unlink()


@linux_only
@pytest.mark.slow
def test_the_server_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    with _program(tmp_path) as (program, server_pid):
        ports = [port for _, port in _listening(server_pid)]
        assert _sockets(ports)
        program.kill()
        _eventually(lambda: not _is_alive(server_pid) and not _sockets(ports))


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(server: S3Server) -> None:
    assert os.getpgid(server.pid) != os.getpgid(0)
    assert os.getsid(server.pid) != os.getsid(0)


def test_a_server_that_cannot_start_shows_the_end_of_its_log(install: Callable[[str], None], tmp_path: Path) -> None:
    install("echo first line; echo disk on fire >&2; exit 3")
    with pytest.raises(ServerError, match=r"died at its start[^\n]*\n(?s:.*)disk on fire$"), serve(tmp_path / "data"):
        pytest.fail("it cannot have started")


def test_a_server_that_never_answers_is_stopped(
    install: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    launched = Mock(wraps=seaweed._launched)
    monkeypatch.setattr(seaweed, "_launched", launched)
    install("echo $$ > pid; echo thinking; exec /bin/sleep 60")
    with pytest.raises(ServerError, match=r"not ready in time(?s:.*)thinking"), serve(tmp_path, start_timeout_s=2.0):
        pytest.fail("it cannot have started")
    assert launched.call_count == 1
    assert not _is_alive(int((tmp_path / "pid").read_text()))


def test_a_server_that_lost_its_port_is_restarted(install: Callable[[str], None], tmp_path: Path) -> None:
    real = seaweed._find_weed()
    install(f"[ -e lost ] || {{ : > lost; echo address in use; exit 1; }}\nexec '{real}' \"$@\"")
    with serve(tmp_path) as server:
        socket.create_connection(("127.0.0.1", _port(server)), timeout=60).close()
    assert (tmp_path / "lost").exists()


def test_a_missing_binary_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert is_installed()
    _hide_weed(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not is_installed()
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[demo\]'"), serve(tmp_path / "data"):
        pytest.fail("it cannot have started")
    assert not (tmp_path / "data").exists()


def _client(server: S3Server) -> Any:
    session = Session(server.access_key, server.secret_key, region_name="us-east-1")
    return session.client("s3", endpoint_url=server.endpoint_url)


def _hide_weed(monkeypatch: pytest.MonkeyPatch) -> None:
    def files(distribution_name: str) -> list[metadata.PackagePath] | None:
        raise metadata.PackageNotFoundError(distribution_name)

    monkeypatch.setattr(metadata, "files", files)


@contextmanager
def _program(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run a program that serves until it is killed. Yields it and its server's pid."""
    script = f"""
import signal
from pathlib import Path
from async_maps.demo.seaweed import serve
with serve(Path({str(folder)!r})) as server:
    print(server.pid, flush=True)
    signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        try:
            yield program, int(program.stdout.readline())
        finally:
            program.kill()


def _port(server: S3Server) -> int:
    port = urlsplit(server.endpoint_url).port
    assert port is not None
    return port


def _listening(pid: int) -> list[tuple[str, int]]:
    """Return the listening TCP sockets of a process, as (hexadecimal address of /proc, port)."""
    inodes = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()}
    rows = [
        row.split() for table in ("tcp", "tcp6") for row in Path(f"/proc/{pid}/net/{table}").read_text().split("\n")
    ]
    local = [row[1].split(":") for row in rows if row and row[3] == "0A" and f"socket:[{row[9]}]" in inodes]
    return [(address, int(port, 16)) for address, port in local]


def _sockets(ports: list[int]) -> list[Path]:
    return [path for port in ports for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")]  # noqa: S108


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _eventually(happens: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not happens():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
