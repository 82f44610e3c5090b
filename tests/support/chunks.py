"""Requests of a worker's chunk, and the pixels of its results."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from async_maps.render.colormap import ColormapJet, color_table
from async_maps.sources.formats.registry import Readers
from async_maps.workers import worker
from async_maps.workers.worker import Failed, Recipe, Reply, Request, Result

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
TABLE = color_table(ColormapJet())
PALETTE, RGBA = Recipe(TABLE), Recipe(TABLE, "rgba")


def colorize_chunk(block: NDArray[np.uint8], free_from: int, requests: list[Request], recipe: Recipe) -> Reply:
    """Colorize maps with readers that are closed behind them."""
    with Readers(max_pixels=recipe.max_pixels, channels=recipe.reduce) as readers:
        return worker.colorize_chunk(block, free_from, requests, recipe, readers)


def random_array(*shape: int, dtype: Any = np.float32, seed: int = 0) -> NDArray[Any]:
    """Return values from 0 to 1, equal for equal seeds."""
    return np.random.default_rng(seed).random(shape).astype(dtype)


def intensities(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the intensities of a map."""
    return array if array.dtype == np.uint8 else np.rint(array * 255).astype(np.uint8)


def in_file(path: Path, member: str | None = None) -> Request:
    """Return the request of a map in a file."""
    return Request(str(path), None if member is None else (member, None), 0, (), "")


def saved(path: Path, array: NDArray[Any]) -> Request:
    """Save a map to a file and return its request."""
    np.save(path, array)
    return in_file(path)


def placed(block: NDArray[np.uint8], offset: int, array: NDArray[Any]) -> Request:
    """Write a map into a block and return its request."""
    np.ndarray(array.shape, array.dtype, block.data, offset)[...] = array
    return Request(None, None, offset, array.shape, array.dtype.str)


def pixels(block: NDArray[np.uint8], result: Result, recipe: Recipe) -> NDArray[np.uint8]:
    """Return the pixels of a result."""
    assert result.rgba == (recipe.png == "rgba")
    shape = (result.height, result.width, 4) if result.rgba else (result.height, result.width)
    return unfiltered(data_of(block, result), shape, stream=bool(result.stream))


def data_of(block: NDArray[np.uint8], result: Result) -> NDArray[np.uint8]:
    """Return the zlib stream or the scanlines of a result."""
    return block[result.offset : result.offset + result.size]


def unfiltered(data: NDArray[np.uint8], shape: tuple[int, ...], *, stream: bool) -> NDArray[np.uint8]:
    """Return the pixels of scanlines or of their zlib stream, of which all have the filter none, up or Paeth."""
    lines = np.frombuffer(zlib.decompress(data.data) if stream else data.tobytes(), np.uint8).reshape(shape[0], -1)
    (kind,) = set(lines[:, 0].tolist())
    assert kind in {0, 2, 4}
    rows = lines[:, 1:].copy()
    if kind == 2:
        rows = np.cumsum(rows, 0, np.uint8)
    elif kind == 4:
        header = struct.pack(">IIBBBBB", shape[1], shape[0], 8, 0, 0, 0, 0)
        parts = [(b"IHDR", header), (b"IDAT", zlib.compress(lines.data)), (b"IEND", b"")]
        chunks = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts]
        rows = np.asarray(Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))))
    return rows.reshape(shape)


def colorized(reply: Reply) -> list[Result]:
    """Return the results of a chunk, and check that no map failed."""
    assert not [result for result in reply.results if isinstance(result, Failed)]
    return [result for result in reply.results if isinstance(result, Result)]
