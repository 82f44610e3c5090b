"""The usual scripts for the whole job: ``python -m bench.scripts NAME SOURCE BUCKET``.

The source is a folder of ``.npy`` files, one ``.npy`` file with a stack of maps, or ``s3://bucket/prefix``, which a
script lists and reads with the client that it uploads with.
"""

from __future__ import annotations

import io
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import numpy as np

from bench import peers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from numpy.typing import NDArray

    Map: TypeAlias = tuple[str, Callable[[], NDArray[np.float32]]]
    """The name of a map and what reads it."""

_THREADS = 16


class Client(Protocol):
    """What a script needs of an S3 client."""

    def keys(self, prefix: str) -> Iterator[str]:
        """List the keys below a prefix."""

    def get(self, key: str) -> bytes:
        """Read an object."""

    def put(self, key: str, data: bytes) -> None:
        """Store an object."""


class Boto3:
    """boto3, with its upload_fileobj, in a number of threads."""

    def __init__(self, bucket: str, threads: int) -> None:
        self._client, self._bucket = peers.boto3_client(threads), bucket

    def keys(self, prefix: str) -> Iterator[str]:
        """List the keys below a prefix."""
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix):
            yield from (entry["Key"] for entry in page["Contents"])

    def get(self, key: str) -> bytes:
        """Read an object."""
        data: bytes = self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        return data

    def put(self, key: str, data: bytes) -> None:
        """Store an object."""
        self._client.upload_fileobj(io.BytesIO(data), self._bucket, key)


class Obstore:
    """obstore, with its blocking functions."""

    def __init__(self, bucket: str) -> None:
        self._store = peers.obstore_store(bucket)

    def keys(self, prefix: str) -> Iterator[str]:
        """List the keys below a prefix."""
        for page in self._store.list(prefix):
            yield from (entry["path"] for entry in page)

    def get(self, key: str) -> bytes:
        """Read an object."""
        return bytes(self._store.get(key).bytes())

    def put(self, key: str, data: bytes) -> None:
        """Store an object."""
        self._store.put(key, data)


def maps_of(source: str, client: Client | None) -> Iterator[Map]:
    """Yield the maps of a source; with the client if it is in S3."""
    if client and source.startswith("s3://"):
        for key in client.keys(f"{urlsplit(source).path.strip('/')}/"):
            yield PurePosixPath(key).stem, partial(_read, client, key)
    elif source.endswith(".npy"):
        stack = np.load(source, mmap_mode="r")
        for index in range(len(stack)):
            yield f"{index:06}", partial(stack.__getitem__, index)
    else:
        for path in sorted(Path(source).rglob("*.npy")):
            yield path.stem, partial(np.load, path)


def opencv_boto3(source: str, bucket: str) -> None:
    """Use OpenCV's jet and PNG encoder and boto3, in threads."""
    _in_threads(source, Boto3(bucket, _THREADS))


def opencv_obstore(source: str, bucket: str) -> None:
    """Use OpenCV's jet and PNG encoder and obstore, in threads."""
    _in_threads(source, Obstore(bucket))


def kolena_example(source: str, bucket: str) -> None:
    """Follow steps 1 and 2 of Kolena's tutorial, one map after the other."""
    from kolena.workflow.visualization import colorize_activation_map, encode_png

    client = Boto3(bucket, 1)
    for name, read in maps_of(source, client):
        client.put(_key(name), encode_png(colorize_activation_map(read()), mode="RGBA").getvalue())


KOLENA = "Kolena's example"
SCRIPTS: dict[str, Callable[[str, str], None]] = {
    f"OpenCV + obstore, {_THREADS} threads": opencv_obstore,
    f"OpenCV + boto3, {_THREADS} threads": opencv_boto3,
}
if peers.HAS_KOLENA:
    SCRIPTS[KOLENA] = kolena_example


def _read(client: Client, key: str) -> NDArray[np.float32]:
    values: NDArray[np.float32] = np.load(io.BytesIO(client.get(key)))
    return values


def _in_threads(source: str, client: Client) -> None:
    import cv2

    cv2.setNumThreads(1)

    def one(found: Map) -> None:
        name, read = found
        client.put(_key(name), peers.opencv_png(peers.opencv_bgra(peers.numpy_intensities(read()))))

    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(one, maps_of(source, client)))


def _key(name: str) -> str:
    return f"scripts/{name}.png"


def _main(name: str, source: str, bucket: str) -> None:
    SCRIPTS[name](source, bucket)
    # obstore sometimes aborts when the interpreter ends, although every PUT was acknowledged.
    os._exit(0)


if __name__ == "__main__":
    _main(*sys.argv[1:])
