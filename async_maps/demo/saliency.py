"""The demo's activation maps: a true saliency map, from the image alone (NumPy and Pillow)."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray


def spectral_residual(image: NDArray[np.uint8], *, side: int = 48) -> NDArray[np.float32]:
    """Where the eye goes first, from the spectrum alone.

    X. Hou and L. Zhang, "Saliency Detection: A Spectral Residual Approach", CVPR 2007: the log amplitude spectrum
    minus its 3x3 mean, transformed back with the original phase, squared and smoothed. Two things are added: it is
    done for luminance and for both color opponents (red-green, blue-yellow) and weighted by their ranges, for
    things that differ from their surroundings by color; and the borders fade to the mean, since the transform
    takes the image as periodic, where opposite borders that differ are an edge.

    Args:
        image: (height, width, 3) uint8, RGB.
        side: the longer side, in pixels, at which it is computed: the larger, the smaller what it finds.

    Returns:
        (height, width) float32 in [0, 1], of which both ends are reached; all zeros if nothing stands out.
    """
    height, width = image.shape[:2]
    scale = side / max(height, width)
    rows, columns = ceil(height * scale), ceil(width * scale)
    small = Image.fromarray(image).resize((columns, rows), Image.Resampling.BOX)
    red, green, blue = np.moveaxis(np.asarray(small, np.float64), -1, 0)
    channels = np.stack([(red + green + blue) / 3, red - green, blue - (red + green) / 2])
    faded = (channels - channels.mean((1, 2), keepdims=True)) * _border(rows)[:, None] * _border(columns)
    spectrum = np.fft.fft2(faded)
    log_amplitude = np.log(np.abs(spectrum) + 1e-3)
    steps = (-1, 0, 1)
    mean = np.mean([np.roll(log_amplitude, (down, right), (1, 2)) for down in steps for right in steps], 0)
    energy = np.abs(np.fft.ifft2(np.exp(log_amplitude - mean + 1j * np.angle(spectrum)))) ** 2
    energy = np.tensordot(np.ptp(channels, (1, 2)), energy, 1)
    smooth = (_gaussian(rows, side / 14) @ energy @ _gaussian(columns, side / 14).T).astype(np.float32)
    large = np.asarray(Image.fromarray(smooth).resize((width, height), Image.Resampling.BILINEAR))
    low, high = large.min(), large.max()
    return (large - low) / (high - low) if high > low else np.zeros_like(large)


def _border(count: int) -> NDArray[np.float64]:
    """Weights (count,) that rise from nearly 0 at both ends to 1, each within a tenth of the way."""
    place = np.arange(count) + 0.5
    weight: NDArray[np.float64] = np.minimum(np.minimum(place, place[::-1]) * 10 / count, 1)
    return weight


def _gaussian(count: int, sigma: float) -> NDArray[np.float64]:
    """The matrix (count, count) that blurs a column by ``sigma`` pixels and takes nothing from beyond its ends."""
    distance = np.subtract.outer(np.arange(count), np.arange(count))
    weight: NDArray[np.float64] = np.exp(-0.5 * (distance / sigma) ** 2)
    weight /= weight.sum(1, keepdims=True)
    return weight
