"""PNG: the drop-in for Kolena's encoder, our own writers, and the stage of threads that runs them.

The writers run in threads; what takes the time (deflate, checksum) releases the interpreter lock.
"""

from __future__ import annotations

import hashlib
import io
import struct
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from anyio import to_thread
from isal import isal_zlib

from async_maps.errors import InputValidationError
from async_maps.records import Png
from async_maps.scanlines import scanline_bytes, write_scanlines
from async_maps.streams import receive, send

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from anyio import CapacityLimiter
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
    from numpy.typing import NDArray

    from async_maps.meters import Meter
    from async_maps.records import Bitmap, Job, MapStatistics
    from async_maps.streams import ByteBudget

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGBA, _PALETTE, _GRAY = 6, 3, 0
"""Colour types (PNG specification, third edition, 11.2.1)."""


def encode_png(image: NDArray[Any], mode: str) -> io.BytesIO:
    """Encode an image with Pillow: a drop-in for ``kolena.workflow.visualization.encode_png``, byte-equal to it.

    Args:
        image: (h, w), (h, w, 2), (h, w, 3) or (h, w, 4), as the mode asks for.
        mode: any Pillow mode that PNG knows: ``"RGBA"``, ``"L"``, ...

    Returns:
        the PNG file, at position 0.

    Raises:
        InputValidationError: the image is empty or has not 2 or 3 dimensions.
        ValueError: Pillow does not know the mode.
    """
    if not isinstance(image, np.ndarray):
        raise InputValidationError(f"an image must be a NumPy array; found {type(image).__name__}")
    if image.size == 0:
        raise InputValidationError(f"the image is empty: its shape is {image.shape}")
    if image.ndim not in {2, 3}:
        raise InputValidationError(f"an image must have the shape (h, w) or (h, w, channels); found {image.shape}")
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image, mode=mode).save(file, format="png")
    file.seek(0)
    return file


def encode_palette(plane: NDArray[np.uint8], table: NDArray[np.uint8], level: int = 1) -> bytes:
    """Write an indexed PNG whose palette is the colour table: the same pixels as RGBA from a quarter of the bytes.

    Args:
        plane: (h, w) uint8, the intensities.
        table: (256, 4) uint8, RGBA. All of its alpha is written, also where it is opaque throughout, so that every
            reader sees four channels.
        level: ISA-L's, 0 to 3.

    Returns:
        the PNG file: colour type 3, PLTE and tRNS (PNG specification, third edition, 11.2.2 and 11.3.1.1).
    """
    return _write(_scanlines(plane), plane.shape, _PALETTE, _colors(table), level)


def encode_rgba(pixels: NDArray[np.uint8], level: int = 1) -> bytes:
    """Write an RGBA PNG (colour type 6), for readers that insist on it.

    Args:
        pixels: (h, w, 4) uint8, C-contiguous.
        level: ISA-L's, 0 to 3.
    """
    return _write(_scanlines(pixels), pixels.shape, _RGBA, b"", level)


def encode_bitmap(bitmap: Bitmap, table: NDArray[np.uint8] | None, level: int) -> bytes:
    """Write a bitmap's PNG: RGBA if it holds colours; if it holds intensities, indexed or grayscale.

    Args:
        bitmap: colorized.
        table: (256, 4) uint8, the colours of intensities; None to write intensities as they are, grayscale.
        level: ISA-L's, 0 to 3.
    """
    kind, colors = _GRAY, b""
    if bitmap.rgba:
        kind = _RGBA
    elif table is not None:
        if bitmap.transparent is not None:
            table = table.copy()
            table[bitmap.transparent, 3] = 0
        kind, colors = _PALETTE, _colors(table)
    return _write(bitmap.scanlines, (bitmap.height, bitmap.width), kind, colors, level)


def _scanlines(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    scanlines = np.empty(scanline_bytes(height, width, pixels[0, 0].size), np.uint8)
    write_scanlines(pixels, scanlines)
    return scanlines


def _colors(table: NDArray[np.uint8]) -> bytes:
    return _chunk(b"PLTE", table[:, :3].tobytes()) + _chunk(b"tRNS", table[:, 3].tobytes())


def _write(scanlines: NDArray[np.uint8], shape: tuple[int, ...], kind: int, colors: bytes, level: int) -> bytes:
    header = struct.pack(">IIBBBBB", shape[1], shape[0], 8, kind, 0, 0, 0)
    body = isal_zlib.compress(scanlines, level)
    return b"".join((_SIGNATURE, _chunk(b"IHDR", header), colors, *_parts(b"IDAT", body), *_parts(b"IEND", b"")))


def _parts(kind: bytes, body: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    checksum = isal_zlib.crc32(body, isal_zlib.crc32(kind))
    return struct.pack(">I", len(body)), kind, body, struct.pack(">I", checksum)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return b"".join(_parts(kind, body))


class Encoding(NamedTuple):
    """How bitmaps become PNGs: with ``encode``, and with the digest of each if ``digest`` says so."""

    encode: Callable[[Bitmap], bytes]
    digest: bool = False


class _Encoded(NamedTuple):
    data: bytes
    digest: str
    crc32: str
    width: int
    height: int
    statistics: MapStatistics | None


def _encode_batch(batch: Sequence[Bitmap], encoding: Encoding) -> list[_Encoded | str]:
    """Encode each bitmap, or say why not. Runs in a thread."""
    encoded: list[_Encoded | str] = []
    for bitmap in batch:
        try:
            data = encoding.encode(bitmap)
            digest = hashlib.sha256(data).hexdigest() if encoding.digest else ""
            crc32 = f"{isal_zlib.crc32(data):08x}"
            encoded.append(_Encoded(data, digest, crc32, bitmap.width, bitmap.height, bitmap.statistics))
        except Exception as error:  # noqa: BLE001  # one map's failure is data, whatever it is
            encoded.append(f"could not be encoded: {error!r}")
    return encoded


async def encode_stage(
    bitmaps: MemoryObjectReceiveStream[list[Bitmap]],
    pngs: MemoryObjectSendStream[Png],
    encoding: Encoding,
    bounds: tuple[CapacityLimiter, ByteBudget],
    meter: Meter,
) -> None:
    """One encoder: takes batches of bitmaps, encodes each batch in one call of a thread, sends the PNGs on.

    Cancelled, it still waits for its thread (milliseconds a batch), because the thread reads a shared block.

    Args:
        bitmaps: ends the stage when it ends.
        pngs: closed when the stage ends.
        encoding: how a bitmap becomes a PNG.
        bounds: how many threads, and how many bytes of PNGs may wait or be under way, until they are uploaded.
        meter: the stage's.
    """
    threads, budget = bounds
    async with bitmaps, pngs:
        while (batch := await receive(bitmaps)) is not None:
            started = perf_counter()
            jobs = [bitmap.job for bitmap in batch]
            try:
                encoded = await to_thread.run_sync(_encode_batch, batch, encoding, limiter=threads)
            finally:
                # No view may outlive its share of the block.
                while batch:
                    batch.pop().release()
            meter.worked(perf_counter() - started, len(jobs))
            # Taken off the lists one by one: what is sent on, or waits for the next batch, is counted elsewhere.
            encoded.reverse()
            for job in jobs:
                await _send(job, encoded.pop(), pngs, budget)
            del jobs, job


async def _send(job: Job, result: _Encoded | str, pngs: MemoryObjectSendStream[Png], budget: ByteBudget) -> None:
    if isinstance(result, str):
        job.fail("encode", result)
    else:
        await send(pngs, Png(job, *result, await budget.acquire(len(result.data))))
