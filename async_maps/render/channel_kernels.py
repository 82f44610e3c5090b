"""The numba kernels that reduce channels, imported only if a run does so; the notes in :mod:`.kernels` apply."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numba
import numpy as np
from numba import types

from async_maps.render.kernel_compiler import kernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SUM, MEAN, NORM, MAXABS = range(4)

_BLOCK = 1024
"""Pixels per block: their totals stay in the first-level cache while the channels are added."""

Reduce: TypeAlias = "Callable[[NDArray[Any], int, int, NDArray[Any]], None]"


@numba.njit(inline="always")
def larger(magnitude: float, value: float) -> float:
    """Return the larger magnitude, or NaN if there is one, which max() may drop."""
    other = abs(np.float64(value))
    return magnitude if other <= magnitude or np.isnan(magnitude) else other


def _kernel_for(dtype: Any) -> Reduce:
    real = types.float32 if dtype == np.float32 else types.float64
    planes, plane = types.Array(real, 1, "C", readonly=True), types.Array(real, 1, "C")

    @kernel(types.void(planes, types.int64, types.int64, plane), name=f"reduce_{np.dtype(dtype).name}")
    def reduce(values: NDArray[Any], channels: int, how: int, out: NDArray[Any]) -> None:  # noqa: PLR0912  # a loop for each
        """Reduce the channels of each pixel, in float64.

        Args:
            values: (channels * n,), one channel after the other.
            channels: the number of channels.
            how: ``SUM``, ``MEAN``, ``NORM`` or ``MAXABS``. A NaN in a channel makes the result NaN.
            out: (n,) output.
        """
        pixels = out.size
        totals = np.empty(_BLOCK, np.float64)
        for start in range(0, pixels, _BLOCK):
            result = out[start : start + _BLOCK]
            size = result.size
            if how == SUM and channels == 3:
                # The usual case needs no totals.
                one = values[start : start + size]
                two = values[start + pixels : start + pixels + size]
                three = values[start + 2 * pixels : start + 2 * pixels + size]
                for i in range(size):
                    result[i] = np.float64(one[i]) + np.float64(two[i]) + np.float64(three[i])
                continue
            totals[:] = 0.0
            # Sums take three channels in one pass, the usual number; others, and what is left, take one.
            threes = channels // 3 * 3 if how < NORM else 0
            for channel in range(0, threes, 3):
                first = channel * pixels + start
                one = values[first : first + size]
                two = values[first + pixels : first + pixels + size]
                three = values[first + 2 * pixels : first + 2 * pixels + size]
                for i in range(size):
                    totals[i] += np.float64(one[i]) + np.float64(two[i]) + np.float64(three[i])
            for channel in range(threes, channels):
                first = channel * pixels + start
                part = values[first : first + size]
                if how == MAXABS:
                    for i in range(size):
                        totals[i] = larger(totals[i], part[i])
                elif how == NORM:
                    for i in range(size):
                        totals[i] += np.float64(part[i]) * np.float64(part[i])
                else:
                    for i in range(size):
                        totals[i] += np.float64(part[i])
            if how == NORM:
                for i in range(size):
                    result[i] = np.sqrt(totals[i])
            elif how == MEAN:
                for i in range(size):
                    result[i] = totals[i] / channels
            else:
                for i in range(size):
                    result[i] = totals[i]

    return reduce


reduce_float32 = _kernel_for(np.float32)
reduce_float64 = _kernel_for(np.float64)
