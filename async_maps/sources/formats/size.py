"""Limits of a map's size, checked by its shape before any memory is taken for it."""

from __future__ import annotations

import math
import sys

from async_maps.errors import AsyncMapsError, SourceError

_WIDEST = 16
"""Bytes of the widest real number, a longdouble; a value of an array of anything else may have any number of them."""
_LARGE_CHUNK = 256 * 2**20
"""Bytes."""
MAX_DIMENSIONS = 64
"""NumPy's own limit."""


def check_size(
    shape: tuple[int, ...], itemsize: int, max_pixels: int | None, error: type[AsyncMapsError] = SourceError
) -> None:
    """Raise ``error`` if an array of that shape is too large: as its header claims, with ``itemsize`` bytes a value."""
    if len(shape) > MAX_DIMENSIONS:
        raise error(f"expected an array of up to {MAX_DIMENSIONS} dimensions, found {len(shape):,}")
    pixels = math.prod(shape)
    if max_pixels is not None and pixels > max_pixels:
        raise error(
            f"too large: its shape is {_shown(shape)}, and max_pixels allows {max_pixels:,} pixels: scale it down, or "
            "raise --max-pixels"
        )
    if max_pixels is not None and pixels * itemsize > max_pixels * _WIDEST:
        raise error(f"too large: {itemsize:,} bytes for each value, which is no real number")
    # Also of an empty one, for NumPy.
    if math.prod(size or 1 for size in shape) * itemsize > sys.maxsize:
        raise error(f"its shape is {_shown(shape)}, which no array can have")


def check_chunk(shape: tuple[int, ...], itemsize: int, max_pixels: int | None) -> None:
    """Refuse an array by the size of its chunks: one is unpacked whole, however little of it is asked for.

    A chunk of several maps may be as large as the block that readers keep for the next one.
    """
    if max_pixels is not None and math.prod(shape) * itemsize > max(max_pixels * itemsize, _LARGE_CHUNK):
        raise SourceError(
            f"too large: its chunks are of the shape {_shown(shape)}, and are unpacked whole: write it with smaller "
            "ones, or raise --max-pixels"
        )


def _shown(shape: tuple[int, ...]) -> str:
    """A shape, cut short: a header may claim sizes of thousands of digits."""
    text = f"({', '.join(f'{size:,}' if size < 10**18 else f'about 2^{size.bit_length() - 1}' for size in shape[:5])}"
    return f"{text}, ...)" if len(shape) > 5 else f"{text})"
