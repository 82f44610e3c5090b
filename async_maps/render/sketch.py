"""The distribution of the values of a whole set: counted in bounded memory, merged, kept as text.

A value is counted by the leading bits of its key (``kernels.quantize_float32``): sign, exponent and the
first ten bits of the mantissa. So a bin is at most 1/1024 of its values wide, wherever they lie; the idea is that of
HDR histograms and of DDSketch (Masson, Rim, Lee: "DDSketch", VLDB 2019). Adding counts merges two sketches, exactly.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from typing import TYPE_CHECKING

import numpy as np

from async_maps.render.quantize import interpolate

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SHIFT = 42
_BINS = 2 ** (64 - _SHIFT)


class QuantileSketch:
    """Counts of values, which give percentiles with an error of 1/2048 of their magnitude at most.

    It takes 32 MiB at most, less where its values share bins.

    Attributes:
        count: the number of values.
        minimum: the smallest, exactly; infinity if there is none.
        maximum: the largest, exactly; minus infinity if there is none.
    """

    def __init__(self) -> None:
        self.count = 0
        self.minimum = math.inf
        self.maximum = -math.inf
        self._counts = np.zeros(_BINS, np.int64)

    def add(self, values: NDArray[np.float64]) -> None:
        """Count values: (n,) finite, contiguous."""
        from async_maps.render import kernels

        if not values.size:
            return
        kernels.sketch(values.view(np.int64), _SHIFT, self._counts)
        self.count += values.size
        self.minimum = min(self.minimum, float(values.min()))
        self.maximum = max(self.maximum, float(values.max()))

    def merge(self, other: QuantileSketch) -> None:
        """Add the counts of another sketch."""
        self._counts += other._counts
        self.count += other.count
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)

    def percentile(self, percentile: float) -> float:
        """The percentile, 0 to 100, interpolated linearly as ``numpy.percentile`` does.

        0 and 100 are exact. Any other is off by at most 1/2048 of the magnitude of the larger of the two values that it
        lies between (or by 3e-311, where values are subnormal).

        Raises:
            ValueError: nothing was counted.
        """
        if not self.count:
            raise ValueError("an empty sketch has no percentiles")
        rank = percentile / 100 * (self.count - 1)
        below = int(rank)
        totals = np.cumsum(self._counts)
        neighbour = self._value(totals, min(below + 1, self.count - 1))
        return interpolate(self._value(totals, below), neighbour, rank - below)

    def dump(self) -> str:
        """All of it, as text."""
        bins = np.flatnonzero(self._counts)
        gaps = np.diff(bins, prepend=0).astype("<i8")
        packed = zlib.compress(gaps.tobytes() + self._counts[bins].astype("<i8").tobytes())
        return json.dumps([self.count, self.minimum, self.maximum, base64.b64encode(packed).decode()])

    @classmethod
    def load(cls, text: str) -> QuantileSketch:
        """The sketch of a :meth:`dump`; a ValueError if the text is none."""
        sketch = cls()
        try:
            sketch.count, sketch.minimum, sketch.maximum, packed = json.loads(text)
            gaps, counts = np.split(np.frombuffer(zlib.decompress(base64.b64decode(packed)), "<i8"), 2)
            sketch._counts[np.cumsum(gaps)] = counts
        except (TypeError, LookupError, zlib.error) as error:
            raise ValueError(f"no sketch: {error}") from error
        return sketch

    def _value(self, totals: NDArray[np.int64], place: int) -> float:
        """The approximate value at a place of the sorted values: the middle of its bin."""
        if place in {0, self.count - 1}:
            return self.maximum if place else self.minimum
        key = (int(np.searchsorted(totals, place, "right")) - _BINS // 2) << _SHIFT
        keys = np.array([key, key + (1 << _SHIFT) - 1])
        edges = np.where(keys < 0, keys ^ np.iinfo(np.int64).max, keys).view(np.float64)
        # Zeros are frequent in most sets, and stay exact. Halved before they are added: the edges' sum may overflow.
        middle = 0.0 if key in {0, -1 << _SHIFT} else float(edges[0] / 2 + edges[1] / 2)
        return min(max(middle, self.minimum), self.maximum)
