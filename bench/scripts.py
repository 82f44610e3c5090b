"""The usual scripts for the whole job: ``python -m bench.scripts NAME FOLDER BUCKET [COUNT]``."""

from __future__ import annotations

import io
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench import peers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_THREADS = 16


def opencv_boto3(paths: Sequence[Path], bucket: str) -> None:
    """Use OpenCV's jet and PNG encoder and boto3's upload_fileobj, in threads."""
    client = peers.boto3_client(_THREADS)
    _in_threads(paths, lambda path: client.upload_fileobj(io.BytesIO(_opencv_overlay(path)), bucket, _key(path)))


def opencv_obstore(paths: Sequence[Path], bucket: str) -> None:
    """Use OpenCV's jet and PNG encoder and obstore's put, in threads."""
    store = peers.obstore_store(bucket)
    _in_threads(paths, lambda path: store.put(_key(path), _opencv_overlay(path)))


def kolena_example(paths: Sequence[Path], bucket: str) -> None:
    """Follow steps 1 and 2 of Kolena's tutorial, one map after the other."""
    from kolena.workflow.visualization import colorize_activation_map, encode_png

    client = peers.boto3_client(1)
    for path in paths:
        client.upload_fileobj(encode_png(colorize_activation_map(np.load(path)), mode="RGBA"), bucket, _key(path))


SCRIPTS: dict[str, Callable[[Sequence[Path], str], None]] = {
    f"OpenCV + obstore, {_THREADS} threads": opencv_obstore,
    f"OpenCV + boto3, {_THREADS} threads": opencv_boto3,
}
if peers.HAS_KOLENA:
    SCRIPTS["Kolena's example"] = kolena_example


def _opencv_overlay(path: Path) -> bytes:
    return peers.opencv_png(peers.opencv_bgra(peers.numpy_intensities(np.load(path))))


def _in_threads(paths: Sequence[Path], one: Callable[[Path], object]) -> None:
    import cv2

    cv2.setNumThreads(1)
    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(one, paths))


def _key(path: Path) -> str:
    return f"scripts/{path.stem}.png"


def _main(name: str, folder: str, bucket: str, count: str | None = None) -> None:
    SCRIPTS[name](sorted(Path(folder).glob("*.npy"))[: int(count) if count else None], bucket)
    # obstore sometimes aborts when the interpreter ends, although every PUT was acknowledged.
    os._exit(0)


if __name__ == "__main__":
    _main(*sys.argv[1:])
