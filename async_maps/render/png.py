"""PNG encoding: the replacement of Kolena's encoder, and our own writers, which release the interpreter lock."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

import isal
import numpy as np
from isal import isal_zlib

from async_maps.errors import InputValidationError

if TYPE_CHECKING:
    from typing import Any, TypeAlias

    from numpy.typing import NDArray

    Stream: TypeAlias = tuple[bytes | memoryview, ...]
    """The pieces of a zlib stream."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGBA, _PALETTE, _GRAY = 6, 3, 0
"""Color types (PNG specification, third edition, 11.2.1)."""
_FIRST = 4
"""Bytes that ISA-L compresses alone. If it gets more at its start, it stores the third position under a hash of an
address, so that one of about 100 to 10,000 maps has other bytes in another process."""

_VERSION = 3
"""Higher if the same map gets other bytes."""


def encoder_version() -> str:
    """Return the version of all that decides the bytes of our PNGs: of this module, and of what compresses."""
    return f"{_VERSION}, isal {isal.__version__}"


def encode_png(image: NDArray[Any], mode: str) -> io.BytesIO:
    """Encode an image with Pillow, byte-equal to ``kolena.workflow.visualization.encode_png``.

    Args:
        image: (h, w), (h, w, 2), (h, w, 3) or (h, w, 4), as the mode requires; uint8 for most modes.
        mode: a Pillow mode that PNG can store, such as ``"RGBA"`` or ``"L"``.

    Returns:
        The PNG file, at position 0.

    Raises:
        InputValidationError: the image is empty or does not have 2 or 3 dimensions.
        ValueError: Pillow does not know the mode.
    """
    if not isinstance(image, np.ndarray):
        raise InputValidationError(f"an image must be a NumPy array; found {type(image).__name__}")
    if image.size == 0:
        raise InputValidationError(f"the image is empty: its shape is {image.shape}")
    if image.ndim not in {2, 3}:
        raise InputValidationError(f"an image must have the shape (h, w) or (h, w, channels); found {image.shape}")
    from PIL import Image

    Image.fromarray(image[:1, :1])  # raises for dtypes that Pillow does not support
    if image.ndim == 3 and mode in {"1", "L", "P", "I", "F"}:
        raise ValueError("Too many dimensions: 3 > 2.")
    # Pillow 13 refuses ``fromarray(image, mode)`` if the mode has another type than the image, and PNGs of mode I.
    picture = Image.frombuffer(mode, image.shape[1::-1], np.ascontiguousarray(image), "raw", mode, 0, 1)
    if mode == "I":
        picture = picture.convert("I;16")
    file = io.BytesIO()
    picture.save(file, format="png")
    file.seek(0)
    return file


def deflate(scanlines: NDArray[np.uint8], level: int) -> Stream:
    """Compress scanlines (:mod:`async_maps.render.scanlines`), (n,) uint8, with ISA-L at a level of 0 to 3."""
    if not level:
        return (isal_zlib.compress(scanlines, level),)
    compressor = isal_zlib.compressobj(level)
    first = compressor.compress(scanlines[:_FIRST]) + compressor.flush(isal_zlib.Z_SYNC_FLUSH)
    return first, compressor.compress(scanlines[_FIRST:]), compressor.flush()


def write_palette(stream: Stream, shape: tuple[int, ...], table: NDArray[np.uint8]) -> bytes:
    """Write an indexed PNG: color type 3, PLTE and tRNS (PNG specification, third edition, 11.2.2 and 11.3.1.1).

    Args:
        stream: the zlib stream of the scanlines, with one byte per pixel.
        shape: (h, w).
        table: (256, 4) uint8, RGBA. The alpha is always written, so that every reader gets four channels.
    """
    colors = _chunk(b"PLTE", table[:, :3].tobytes()) + _chunk(b"tRNS", table[:, 3].tobytes())
    return _write(stream, shape, _PALETTE, colors)


def write_rgba(stream: Stream, shape: tuple[int, ...]) -> bytes:
    """Write an RGBA PNG, color type 6, from the zlib stream of scanlines with four bytes per pixel."""
    return _write(stream, shape, _RGBA, b"")


def write_gray(stream: Stream, shape: tuple[int, ...]) -> bytes:
    """Write a grayscale PNG, color type 0, from the zlib stream of scanlines with one byte per pixel."""
    return _write(stream, shape, _GRAY, b"")


def _write(stream: Stream, shape: tuple[int, ...], kind: int, colors: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", shape[1], shape[0], 8, kind, 0, 0, 0)
    return b"".join((_SIGNATURE, _chunk(b"IHDR", header), colors, *_parts(b"IDAT", *stream), *_parts(b"IEND")))


def _parts(kind: bytes, *body: bytes | memoryview) -> Stream:
    checksum = isal_zlib.crc32(kind)
    for piece in body:
        checksum = isal_zlib.crc32(piece, checksum)
    return struct.pack(">I", sum(map(len, body))), kind, *body, struct.pack(">I", checksum)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return b"".join(_parts(kind, body))
