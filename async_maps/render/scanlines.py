"""PNG scanlines: the rows of an image, each after the number of its filter; filtered and compressed by kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from isal import isal_zlib

from async_maps.render.png import deflate

if TYPE_CHECKING:
    from numpy.typing import NDArray

NONE, UP, PAETH = 0, 2, 4
"""Filters (PNG specification, third edition, 9.2)."""
SYMBOLS = 285
"""Literals, the end of the block, and the lengths of matches up to 257 (RFC 1951, section 3.2.5)."""
MARGIN = 4096
"""The bytes between the start of a stream and the scanlines behind it, which it must not overtake."""
_LEAST_BYTES = 300 * 300
"""For a smaller image, the tables of a code take longer than ISA-L."""
_SAMPLE_BYTES, _SAMPLE_SHARE, _LEAST_BAND = 8192, 16, 8
"""The sample: two bands of these bytes or one of 16 rows, whichever is less, but of at least 8 rows each."""
_LARGE_SAMPLE_BYTES = 2**20
_CODE_BYTES = 70
"""About the bytes of ISA-L's stream that describe its code."""
_TOLERANCE_PERCENT = 105
"""How long a stream may be, compared with ISA-L's, by the sample."""
_COUNTED = 8
"""One of 8 chunks of the scanlines is counted for the code."""
_SURPRISE_PERCENT = 110
"""How long a stream may be, compared with what those chunks promise."""


def scanline_bytes(height: int, width: int, channels: int) -> int:
    """Return the bytes of an image's scanlines, including one byte per row for the filter."""
    return height * (1 + width * channels)


def room_bytes(height: int, width: int, channels: int) -> int:
    """Return the bytes that :func:`write_scanlines` needs."""
    size = scanline_bytes(height, width, channels)
    return size + MARGIN if channels == 1 and size >= _LEAST_BYTES else size


def write_scanlines(pixels: NDArray[np.uint8], room: NDArray[np.uint8], *, compress: bool = False) -> int:
    """Write an image's scanlines, compressed if that is faster than ISA-L and the stream about as small.

    All rows have the same filter, "none", "up" or "Paeth", chosen by a sample, in integers: the bytes depend on the
    image only.

    Args:
        pixels: (h, w) or (h, w, channels) uint8, C-contiguous.
        room: (:func:`room_bytes`,) uint8, the output, aligned to 8 bytes.
        compress: whether it may be compressed.

    Returns:
        The bytes of the zlib stream at the start of the room; 0 if there are scanlines
        (:func:`scanline_bytes`), filtered so that ISA-L compresses them well.
    """
    from async_maps.render import deflate_kernels as kernels

    rows, row_bytes, height = pixels.reshape(-1), pixels[0].size, len(pixels)
    size = scanline_bytes(height, row_bytes, 1)
    kind, ours = _choose(rows, row_bytes, compress=compress and pixels.ndim == 2 and size >= _LEAST_BYTES)
    if ours is not None and (stream := _compress(rows, row_bytes, ours, room)):
        return stream
    kernels.filter_rows(rows, row_bytes, (0, height), kind, room[:size])
    return 0


def _choose(rows: NDArray[np.uint8], row_bytes: int, *, compress: bool) -> tuple[int, int | None]:
    """Return the better filter for ISA-L, and the best for our stream; None if that would be too long."""
    from async_maps.render import deflate_kernels as kernels

    height = rows.size // row_bytes
    share = min(_SAMPLE_BYTES, rows.size // _SAMPLE_SHARE) // (2 * row_bytes)
    band = min(max(share, _LEAST_BAND), max(height // 2, 1))
    sampled = scanline_bytes(2 * band, row_bytes, 1)
    if sampled > max(_LARGE_SAMPLE_BYTES, rows.size // _SAMPLE_SHARE):
        # A few long rows.
        return UP, None
    filters = 3 if compress else 2
    lines = np.empty((filters, -(-sampled // 8) * 8), np.uint8)
    counts, lengths = np.zeros((filters, 2 * SYMBOLS), np.int64), np.empty(SYMBOLS, np.int64)
    kernels.sample(rows, row_bytes, band, lines.reshape(-1), counts.reshape(-1))
    bits = [kernels.code_lengths(count, 0, lengths) for count in counts]
    # Equal bits: "up" has more matches.
    kind = NONE if bits[0] < bits[1] else UP
    if not compress:
        return kind, None
    theirs = sum(map(len, deflate(lines[kind // 2, :sampled], 1))) - _CODE_BYTES
    is_short = 100 * min(bits) <= _TOLERANCE_PERCENT * 8 * theirs
    return kind, (PAETH if bits[2] == min(bits) else kind) if is_short else None


def _compress(rows: NDArray[np.uint8], row_bytes: int, kind: int, room: NDArray[np.uint8]) -> int:
    """Filter and compress rows into a room; return the bytes of the zlib stream, 0 if it is longer than promised."""
    from async_maps.render import deflate_kernels as kernels

    height = rows.size // row_bytes
    scanlines = room[MARGIN : MARGIN + height * (row_bytes + 1)]
    kernels.filter_rows(rows, row_bytes, (0, height), kind, scanlines)
    checksum = isal_zlib.adler32(scanlines)
    words = room[: room.size // 8 * 8].view(np.uint64)
    counts, lengths = np.zeros(2 * SYMBOLS, np.int64), np.empty(SYMBOLS, np.int64)
    kernels.count_groups(words, MARGIN // 8, (MARGIN + scanlines.size) // 8, _COUNTED, counts)
    promised = kernels.code_lengths(counts, 1, lengths) * _COUNTED // 8 + 2 * SYMBOLS
    stream = int(kernels.deflate(room, words, scanlines.size, lengths))
    if not stream or 100 * stream > _SURPRISE_PERCENT * promised:
        return 0
    room[stream : stream + 4] = memoryview(checksum.to_bytes(4, "big"))
    return stream + 4
