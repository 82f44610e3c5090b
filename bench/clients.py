"""The clients of ``bench put``, each a process: ``python -m bench.clients NAME KILOBYTES CONCURRENCY SECONDS``.

In its turn, a client puts the same bytes under new keys until the time is up. It prints its PUTs per second and its CPU
time, including its children's. All asyncio clients run on the same loop, the fastest one installed.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from async_maps.concurrency.loop import fastest_loop
from bench import peers
from bench.measure import BUCKET, cpu_s, take_turns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from typing import Literal, TypeAlias

    from bench.measure import Figures

    Turn: TypeAlias = Callable[[], Awaitable[int]]

_S5CMD_FILES, _S5CMD_BYTES = 500, 30_000_000
_numbers = itertools.count()


class Load(NamedTuple):
    """The work of a client's turn: the bytes to put, the concurrent PUTs and the seconds."""

    data: bytes
    concurrency: int
    seconds: float


@asynccontextmanager
async def with_async_maps(
    load: Load, client: Literal["direct", "sdk"] = "direct", scheme: str = "s3"
) -> AsyncIterator[Turn]:
    """Our store, with the settings of the pipeline."""
    import async_maps as am
    from async_maps.stores import open_store

    settings = am.Settings(concurrency=load.concurrency, s3=am.S3Settings(client=client))
    async with open_store(f"{scheme}://{BUCKET}/put", settings) as store:
        yield partial(_put_concurrently, load, store.put)


@asynccontextmanager
async def with_boto3(load: Load) -> AsyncIterator[Turn]:
    """The upload_fileobj of boto3, in threads."""
    client = peers.boto3_client(load.concurrency)

    def put_until(deadline: float) -> int:
        done = 0
        while time.monotonic() < deadline:
            client.upload_fileobj(io.BytesIO(load.data), BUCKET, _key())
            done += 1
        return done

    with ThreadPoolExecutor(load.concurrency) as threads:

        async def turn() -> int:
            deadline = time.monotonic() + load.seconds
            return sum(threads.map(put_until, [deadline] * load.concurrency))

        yield turn


@asynccontextmanager
async def with_aioboto3(load: Load) -> AsyncIterator[Turn]:
    """The defaults of aioboto3, but with one connection for each concurrent PUT."""
    from aioboto3 import Session
    from aiobotocore.config import AioConfig

    async with Session().client("s3", config=AioConfig(max_pool_connections=load.concurrency)) as client:

        async def put(key: str, data: bytes) -> None:
            await client.put_object(Bucket=BUCKET, Key=key, Body=data)

        yield partial(_put_concurrently, load, put)


@asynccontextmanager
async def with_obstore(load: Load) -> AsyncIterator[Turn]:
    """The put_async of obstore."""
    yield partial(_put_concurrently, load, peers.obstore_store(BUCKET).put_async)


@asynccontextmanager
async def with_fast_s3(load: Load) -> AsyncIterator[Turn]:
    """The asynchronous client of fast-s3."""
    from fast_s3 import AsyncS3Client  # it ships no types

    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
    place = (os.environ[name] for name in names)
    async with AsyncS3Client(*place, BUCKET, max_connections=load.concurrency) as client:
        yield partial(_put_concurrently, load, client.put_object)


@asynccontextmanager
async def with_s5cmd(load: Load) -> AsyncIterator[Turn]:
    """The command s5cmd. Its turn includes its start and puts a whole folder without a time limit."""
    binary = next(
        file.locate() for file in distribution("s5cmd").files or [] if file.parts[-3:] == ("s5cmd", "bin", "s5cmd")
    )
    count = min(_S5CMD_FILES, _S5CMD_BYTES // len(load.data))
    with tempfile.TemporaryDirectory(prefix="async-maps-bench-") as folder:
        for number in range(count):
            (Path(folder) / f"{number:06}.png").write_bytes(load.data)
        command = [str(binary), "--endpoint-url", os.environ["AWS_ENDPOINT_URL"], "--log", "error",
                   "--numworkers", str(load.concurrency), "cp", f"{folder}/*", f"s3://{BUCKET}/put/"]  # fmt: skip

        async def turn() -> int:
            await asyncio.to_thread(subprocess.run, command, check=True)
            return count

        yield turn


@asynccontextmanager
async def with_google_cloud_storage(load: Load) -> AsyncIterator[Turn]:
    """The upload_from_string of google-cloud-storage, in threads."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.storage import Client

    bucket = Client("bench", AnonymousCredentials()).bucket(BUCKET)

    def put_until(deadline: float) -> int:
        done = 0
        while time.monotonic() < deadline:
            bucket.blob(_key()).upload_from_string(load.data, content_type="image/png", checksum="md5")
            done += 1
        return done

    with ThreadPoolExecutor(load.concurrency) as threads:

        async def turn() -> int:
            deadline = time.monotonic() + load.seconds
            return sum(await asyncio.to_thread(lambda: list(threads.map(put_until, [deadline] * load.concurrency))))

        yield turn


@asynccontextmanager
async def with_azure_storage_blob(load: Load) -> AsyncIterator[Turn]:
    """The upload_blob of azure-storage-blob on asyncio, which checks the MD5."""
    from azure.storage.blob import ContentSettings
    from azure.storage.blob.aio import ContainerClient

    connection = os.environ["AZURE_STORAGE_CONNECTION_STRING"]
    async with ContainerClient.from_connection_string(connection, BUCKET) as container:

        async def put(key: str, data: bytes) -> None:
            kind = ContentSettings(content_type="image/png")
            await container.upload_blob(key, data, overwrite=True, validate_content=True, content_settings=kind)

        yield partial(_put_concurrently, load, put)


@asynccontextmanager
async def with_blocking_socket(load: Load) -> AsyncIterator[Turn]:
    """The floor: one socket, one PUT after the other, without a signature, a checksum and a look at the answer."""
    url = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    with socket.create_connection((url.hostname or "", url.port or 0)) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # With the certificates in SSL_CERT_FILE.
        tls = ssl.create_default_context() if url.scheme == "https" else None
        connection = tls.wrap_socket(plain, server_hostname=url.hostname) if tls else plain

        async def turn() -> int:
            deadline, done = time.monotonic() + load.seconds, 0
            while time.monotonic() < deadline:
                head = (
                    f"PUT /{BUCKET}/{_key()} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: {len(load.data)}\r\n\r\n"
                )
                connection.sendall(head.encode() + load.data)
                connection.recv(4096)
                done += 1
            return done

        yield turn


BOTO3, FLOOR = "boto3 upload_fileobj", "blocking socket"
CLIENTS: dict[str, Callable[[Load], AbstractAsyncContextManager[Turn]]] = {
    "async_maps": partial(with_async_maps, client="direct"),
    "async_maps, client=sdk": partial(with_async_maps, client="sdk"),
    BOTO3: with_boto3,
    "aioboto3 put_object": with_aioboto3,
    "obstore put_async": with_obstore,
    "fast-s3 put_object": with_fast_s3,
    "s5cmd cp, whole process": with_s5cmd,
    FLOOR: with_blocking_socket,
}
OF_CLOUDS: dict[str, dict[str, Callable[[Load], AbstractAsyncContextManager[Turn]]]] = {
    "gs": {
        "async_maps gs://": partial(with_async_maps, scheme="gs"),
        "google-cloud-storage upload_from_string": with_google_cloud_storage,
    },
    "az": {
        "async_maps az://": partial(with_async_maps, scheme="az"),
        "azure-storage-blob aio upload_blob": with_azure_storage_blob,
    },
}
"""Our client and the vendor's of each other cloud."""


async def _put_concurrently(load: Load, put: Callable[[str, bytes], Awaitable[object]]) -> int:
    deadline, done = time.monotonic() + load.seconds, 0

    async def put_until() -> None:
        nonlocal done
        while time.monotonic() < deadline:
            await put(_key(), load.data)
            done += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(load.concurrency):
            tasks.create_task(put_until())
    return done


def _key() -> str:
    return f"{os.getpid()}/{next(_numbers):08}.png"


async def _measured(turn: Turn) -> Figures:
    used_s, started = cpu_s(), time.perf_counter()
    count = await turn()
    wall_s = time.perf_counter() - started
    return {"PUT/s": count / wall_s, "CPU ms/PUT": 1000 * (cpu_s() - used_s) / count}


async def _main(name: str, kilobytes: str, concurrency: str, seconds: str) -> None:
    data = np.random.default_rng(0).bytes(1000 * int(kilobytes))
    load = Load(data, int(concurrency), float(seconds))
    clients = {name: client for of_one in (CLIENTS, *OF_CLOUDS.values()) for name, client in of_one.items()}
    async with clients[name](load) as turn:
        # The first turn opens connections and is not measured.
        await turn()
        await take_turns(partial(_measured, turn))
    # obstore sometimes aborts when the interpreter ends, although every PUT was acknowledged.
    os._exit(0)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        runner.run(_main(*sys.argv[1:]))
