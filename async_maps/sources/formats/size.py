"""Limits on the size of a map, checked by its shape before memory is allocated."""

from __future__ import annotations

import math
import sys

from async_maps.errors import AsyncMapsError, SourceError

_WIDEST = 16
"""The bytes of the widest real number, a longdouble; values of other types can have any size."""
_LARGE_CHUNK = 256 * 2**20
"""In bytes."""
DEFLATE_RATIO = 1032
"""The maximum ratio of compression of Deflate, a property of its format."""
MAX_DIMENSIONS = 64
"""NumPy's limit."""


def check_size(
    shape: tuple[int, ...], itemsize: int, max_pixels: int | None, error: type[AsyncMapsError] = SourceError
) -> None:
    """Raise ``error`` if an array with this shape and ``itemsize``, as a header claims them, is too large."""
    if len(shape) > MAX_DIMENSIONS:
        raise error(f"expected an array of up to {MAX_DIMENSIONS} dimensions, found {len(shape):,}")
    pixels = math.prod(shape)
    if max_pixels is not None and pixels > max_pixels:
        raise error(
            f"too large: its shape is {_shown(shape)}, and max_pixels allows {max_pixels:,} pixels: scale it down, or "
            "raise max_pixels"
        )
    if max_pixels is not None and pixels * itemsize > max_pixels * _WIDEST:
        raise error(f"too large: a value has {itemsize:,} bytes, more than any real number")
    # NumPy has this limit even for empty arrays.
    if math.prod(size or 1 for size in shape) * itemsize > sys.maxsize:
        raise error(f"its shape is {_shown(shape)}, which is too large for any array")


def check_chunk(shape: tuple[int, ...], itemsize: int, max_pixels: int | None) -> None:
    """Raise SourceError if the chunks of an array are too large, because each is unpacked completely.

    A chunk of several maps may be as large as the block that readers keep for the next map.
    """
    if max_pixels is not None and math.prod(shape) * itemsize > max(max_pixels * itemsize, _LARGE_CHUNK):
        raise SourceError(
            f"too large: its chunks have the shape {_shown(shape)}, and are unpacked completely: write smaller chunks, "
            "or raise max_pixels"
        )


def _shown(shape: tuple[int, ...]) -> str:
    """Return a shape as a short text: a header can claim sizes of thousands of digits."""
    text = f"({', '.join(f'{size:,}' if size < 10**18 else f'about 2^{size.bit_length() - 1}' for size in shape[:5])}"
    return f"{text}, ...)" if len(shape) > 5 else f"{text})"
