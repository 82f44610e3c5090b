"""PNG scanlines: the rows of an image, each after the number of its filter. Runs where it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def scanline_bytes(height: int, width: int, channels: int) -> int:
    """Bytes of an image's scanlines: one for the filter of each row."""
    return height * (1 + width * channels)


def write_scanlines(pixels: NDArray[np.uint8], scanlines: NDArray[np.uint8]) -> None:
    """Filter an image so that it deflates well (PNG specification, third edition, 7.3 and 9).

    All rows have the filter "up", or "none" if the bytes of a sample of rows have less entropy without: in noise, a
    difference is noisier than a value. Pixels are (h, w) or (h, w, channels) uint8, C-contiguous, and scanlines
    (:func:`scanline_bytes`,) uint8.
    """
    from async_maps.render import kernels

    kernels.filter_rows(pixels.reshape(-1), pixels[0].size, scanlines)
