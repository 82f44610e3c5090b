"""PNG scanlines: the rows of an image, each after the number of its filter."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def scanline_bytes(height: int, width: int, channels: int) -> int:
    """Return the bytes of an image's scanlines, including one byte per row for the filter."""
    return height * (1 + width * channels)


def write_scanlines(pixels: NDArray[np.uint8], scanlines: NDArray[np.uint8]) -> None:
    """Filter an image so that it compresses well (PNG specification, third edition, 7.3 and 9).

    All rows get the filter "up", or "none" if a sample of rows has a lower entropy without it, as in noise. Pixels are
    (h, w) or (h, w, channels) uint8, C-contiguous; scanlines, the output, are (:func:`scanline_bytes`,) uint8.
    """
    from async_maps.render import kernels

    kernels.filter_rows(pixels.reshape(-1), pixels[0].size, scanlines)
