"""The activation maps of the demo: saliency maps that are computed from the image, without a model."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray


def spectral_residual(image: NDArray[np.uint8], *, side: int = 48) -> NDArray[np.float32]:
    """Compute a saliency map from the spectrum of an image.

    X. Hou and L. Zhang, "Saliency Detection: A Spectral Residual Approach", CVPR 2007: the log amplitude spectrum
    minus its 3x3 mean, transformed back with the original phase, squared and smoothed. There are two additions. It is
    computed for luminance and both color opponents (red-green, blue-yellow), weighted by their ranges, to find things
    that differ in color. And the borders fade to the mean, because the transform treats the image as periodic, so that
    different opposite borders would be an edge.

    Args:
        image: (height, width, 3) uint8, RGB.
        side: the longer side, in pixels, of the computation; a larger side finds smaller things.

    Returns:
        (height, width) float32, from 0 to 1; all zeros if nothing stands out.
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
    """Return weights (count,) that rise from almost 0 at each end to 1, within a tenth of the length."""
    place = np.arange(count) + 0.5
    weight: NDArray[np.float64] = np.minimum(np.minimum(place, place[::-1]) * 10 / count, 1)
    return weight


def _gaussian(count: int, sigma: float) -> NDArray[np.float64]:
    """Return a matrix (count, count) that blurs a column by ``sigma`` pixels, normalized at the ends."""
    distance = np.subtract.outer(np.arange(count), np.arange(count))
    weight: NDArray[np.float64] = np.exp(-0.5 * (distance / sigma) ** 2)
    weight /= weight.sum(1, keepdims=True)
    return weight
