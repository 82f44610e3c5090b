"""Value ranges: which value becomes intensity 0 and which 255. Light, for any process and thread."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from async_maps.errors import SettingsError

RangeKind: TypeAlias = Literal["unit", "fixed", "per-map", "percentile", "symmetric", "dataset", "from"]

_PLAIN: dict[str, RangeKind] = {"unit": "unit", "per-map": "per-map", "symmetric": "symmetric", "dataset": "dataset"}
_EXPECTED = "unit, LO,HI, per-map, percentile:P,Q, symmetric, dataset, dataset:P,Q or from:MANIFEST"


@dataclass(frozen=True, slots=True)
class ValueRange:
    """The values that the colormap spans.

    Attributes:
        kind: ``unit``: 0 to 1, as Kolena, and a value outside is an error; uint8 are intensities already.
            ``fixed``: ``low`` to ``high``, and values outside are clipped to it, as they are for all that follow.
            ``per-map``: each map's smallest value to its largest.
            ``percentile``: each map's percentiles ``low`` and ``high``.
            ``symmetric``: each map's largest magnitude, negative, to the same, positive: 0 is in the middle.
            ``dataset``: the percentiles ``low`` and ``high`` of all values of all maps.
            ``from``: the range of another run, which its manifest holds.
        low: a value, or a percentile; see ``kind``.
        high: a value, or a percentile.
        manifest: the other run's.
    """

    kind: RangeKind
    low: float = 0.0
    high: float = 1.0
    manifest: str = ""

    @property
    def is_relative(self) -> bool:
        """Whether it depends on the map: the same value may have another color in another map."""
        return self.kind in {"per-map", "percentile", "symmetric"}

    @property
    def is_known(self) -> bool:
        """Whether a map can be colorized without a look at other maps or a manifest."""
        return self.kind not in {"dataset", "from"}

    def span(self, minimum: float, maximum: float) -> tuple[float, float]:
        """The values with intensities 0 and 255 in a map of these extremes; not for percentiles."""
        if self.kind == "per-map":
            return minimum, maximum
        if self.kind == "symmetric":
            most = max(-minimum, maximum) or 1.0
            return -most, most
        return self.low, self.high

    def __str__(self) -> str:
        if self.kind == "fixed":
            return f"{self.low!r},{self.high!r}"
        if self.kind == "from":
            return f"from:{self.manifest}"
        if self.kind == "percentile" or (self.kind == "dataset" and (self.low, self.high) != (0, 100)):
            return f"{self.kind}:{self.low:.12g},{self.high:.12g}"
        return self.kind


UNIT = ValueRange("unit")


def parse_range(text: str) -> ValueRange:
    """The range of a setting; a SettingsError if the text is none."""
    name, colon, rest = text.strip().partition(":")
    if not colon and name in _PLAIN:
        return ValueRange(_PLAIN[name], 0, 100) if name == "dataset" else ValueRange(_PLAIN[name])
    if name == "from" and rest:
        return ValueRange("from", manifest=rest)
    if name in {"percentile", "dataset"} and rest:
        low, high = _two_numbers(text, rest)
        if not 0 <= low < high <= 100:
            raise SettingsError(f"range {text!r}: percentiles must lie in 0 to 100, the first below the second")
        return ValueRange("percentile" if name == "percentile" else "dataset", low, high)
    low, high = _two_numbers(text, text)
    if not low < high:
        raise SettingsError(f"range {text!r}: the first value must be below the second")
    return ValueRange("fixed", low, high)


def _two_numbers(text: str, numbers: str) -> tuple[float, float]:
    try:
        low, high = (float(number) for number in numbers.split(","))
    except ValueError:
        raise SettingsError(f"unknown range {text!r}; expected {_EXPECTED}") from None
    if not (math.isfinite(low) and math.isfinite(high)):
        raise SettingsError(f"range {text!r}: the values must be finite")
    return low, high
