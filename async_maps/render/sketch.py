"""Quantile sketch: the approximate distribution of the values of a whole set, in bounded memory.

A value is counted in the bin of the leading bits of its key (``kernels.quantize_float32``): sign, exponent and the
first ten bits of the mantissa. So the width of a bin is at most 1/1024 of its values, as in HDR histograms and DDSketch
(Masson, Rim, Lee: "DDSketch", VLDB 2019). Sketches are combined exactly by adding their counts.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from typing import TYPE_CHECKING

import numpy as np

from async_maps.render.statistics import interpolate

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SHIFT = 42
_BINS = 2 ** (64 - _SHIFT)


class QuantileSketch:
    """Counts values, for percentiles with a relative error of at most 1/2048. It occupies at most 32 MiB.

    Attributes:
        count: the number of values.
        minimum: the exact smallest value; infinity if there is none.
        maximum: the exact largest value; minus infinity if there is none.
    """

    def __init__(self) -> None:
        self.count = 0
        self.minimum = math.inf
        self.maximum = -math.inf
        self._counts = np.zeros(_BINS, np.int64)

    def add(self, values: NDArray[np.float64]) -> None:
        """Count values, (n,), finite and contiguous."""
        from async_maps.render import kernels

        if not values.size:
            return
        kernels.sketch(values.view(np.int64), _SHIFT, self._counts)
        self.count += values.size
        self.minimum = min(self.minimum, float(values.min()))
        self.maximum = max(self.maximum, float(values.max()))

    def percentile(self, percentile: float) -> float:
        """Return a percentile, 0 to 100, interpolated linearly like ``numpy.percentile``.

        Percentiles 0 and 100 are exact. For others, the error is at most 1/2048 of the larger magnitude of the two
        values that are interpolated; for subnormal values it is at most 3e-311.

        Raises:
            ValueError: the sketch has no values.
        """
        if not self.count:
            raise ValueError("an empty sketch has no percentiles")
        rank = percentile / 100 * (self.count - 1)
        below = int(rank)
        bins = self._filled()
        totals = np.cumsum(self._counts[bins])
        neighbor = self._value(bins, totals, min(below + 1, self.count - 1))
        return interpolate(self._value(bins, totals, below), neighbor, rank - below)

    def dump(self) -> str:
        """Return the whole sketch as text."""
        bins = self._filled()
        gaps = np.diff(bins, prepend=0).astype("<i8")
        packed = zlib.compress(gaps.tobytes() + self._counts[bins].astype("<i8").tobytes())
        return json.dumps([self.count, self.minimum, self.maximum, base64.b64encode(packed).decode()])

    @classmethod
    def load(cls, text: str) -> QuantileSketch:
        """Restore a sketch from the text of :meth:`dump`; raise ValueError for other texts."""
        sketch = cls()
        sketch.add_dump(text)
        return sketch

    def add_dump(self, text: str) -> None:
        """Add the counts of a sketch from the text of its :meth:`dump`; raise ValueError for other texts."""
        try:
            count, minimum, maximum, packed = json.loads(text)
            gaps, counts = np.split(np.frombuffer(zlib.decompress(base64.b64decode(packed)), "<i8"), 2)
            self._counts[np.cumsum(gaps)] += counts
        except (TypeError, LookupError, zlib.error) as error:
            raise ValueError(f"not a sketch: {error}") from error
        self.count += count
        self.minimum, self.maximum = min(self.minimum, minimum), max(self.maximum, maximum)

    def _filled(self) -> NDArray[np.intp]:
        """Return the bins that have values."""
        # NumPy finds nonzero bools in a third of the time that it needs for integers.
        return np.flatnonzero(self._counts != 0)

    def _value(self, bins: NDArray[np.intp], totals: NDArray[np.int64], place: int) -> float:
        """Return the approximate value at an index of the sorted values: the middle of its bin."""
        if place in {0, self.count - 1}:
            return self.maximum if place else self.minimum
        key = (int(bins[np.searchsorted(totals, place, "right")]) - _BINS // 2) << _SHIFT
        keys = np.array([key, key + (1 << _SHIFT) - 1])
        edges = np.where(keys < 0, keys ^ np.iinfo(np.int64).max, keys).view(np.float64)
        # Zeros are frequent, and stay exact. Each edge is halved before the addition, because the sum may overflow.
        middle = 0.0 if key in {0, -1 << _SHIFT} else float(edges[0] / 2 + edges[1] / 2)
        return min(max(middle, self.minimum), self.maximum)
