"""The statistics of maps, from their values and intensities."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from async_maps.outcomes import MapStatistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

FAINT_SHARE = 0.02
"""An overlay is nearly invisible if it reaches less than this share of the full alpha, or of its value range."""

_OPAQUE = np.full(256, 255, np.uint8)
_OPAQUE.flags.writeable = False


class Measured(NamedTuple):
    """The statistics of a map's valid values. They are None if there is no valid value.

    Attributes:
        minimum: the smallest value.
        maximum: the largest value.
        mean: the mean, computed in float64.
        low: the value with intensity 0.
        high: the value with intensity 255.
        invalid: the number of values that are NaN or infinite.
        hidden: (h, w) bool, the transparent pixels; None if there are none.
    """

    minimum: float | None
    maximum: float | None
    mean: float | None
    low: float | None
    high: float | None
    invalid: int = 0
    hidden: NDArray[np.bool_] | None = None


def summarize(
    plane: NDArray[np.uint8], measured: Measured | None, opacities: NDArray[np.uint8] = _OPAQUE
) -> tuple[MapStatistics, NDArray[np.int64]]:
    """Compute the statistics of a map.

    Args:
        plane: (h, w) uint8, the intensities.
        measured: the result of :func:`quantize`.
        opacities: (256,) uint8, the alpha of each intensity. Hidden pixels are transparent.

    Returns:
        The statistics, and the histogram of the intensities, (256,) int64, without hidden pixels.
    """
    from async_maps.render import kernels

    histogram = np.zeros(256, np.int64)
    columns, rows = np.zeros(plane.shape[1], np.uint32), np.empty(plane.shape[0], np.uint32)
    kernels.count(plane.reshape(-1), histogram, columns, rows)
    if measured is None:
        present = np.flatnonzero(histogram)
        mean = float(histogram @ np.arange(256)) / plane.size
        measured = Measured(float(present[0]), float(present[-1]), mean, 0.0, 255.0)
    elif measured.hidden is not None:
        histogram[0] -= measured.invalid
    described = np.empty(6)
    kernels.describe(histogram, columns, rows, opacities, described)
    valid, high, entropy, center_x, center_y, highest = described.tolist()
    nowhere = math.isnan(center_x)
    return MapStatistics(
        minimum=measured.minimum,
        maximum=measured.maximum,
        mean=measured.mean,
        range_low=measured.low,
        range_high=measured.high,
        high_share=high / valid if valid else None,
        entropy=entropy if valid else None,
        center_x=None if nowhere else center_x,
        center_y=None if nowhere else center_y,
        invalid_pixels=measured.invalid,
        constant=valid > 0 and measured.minimum == measured.maximum,
        transparent=highest == 0,
        faint=0 < highest < FAINT_SHARE * 255
        or (highest > 0 and _is_low(measured) and bool(opacities[0] == opacities.min())),
    ), histogram


def _is_low(measured: Measured) -> bool:
    """Whether the largest value is less than 2% of the way from the low to the high end of the range."""
    maximum, low, high = measured.maximum, measured.low, measured.high
    if maximum is None or low is None or high is None:
        return False
    return maximum <= low or maximum < interpolate(low, high, FAINT_SHARE)


def interpolate(below: float, above: float, share: float) -> float:
    """Interpolate linearly at a share, 0 to 1, with the same operations and rounding as ``numpy.percentile``."""
    width = above - below
    if not math.isfinite(width):
        return below * (1 - share) + above * share
    return above - width * (1 - share) if share >= 0.5 else below + width * share
