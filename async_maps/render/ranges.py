"""Value ranges: the values that become intensity 0 and 255."""

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
        kind: ``unit``: 0 to 1 as in Kolena; a value outside is an error, and uint8 values are intensities already. All
            other kinds clip values outside the range.
            ``fixed``: ``low`` to ``high``.
            ``per-map``: the smallest to the largest value of each map.
            ``percentile``: the percentiles ``low`` to ``high`` of each map.
            ``symmetric``: -m to m, where m is the largest magnitude in each map.
            ``dataset``: the percentiles ``low`` to ``high`` of all values of all maps.
            ``from``: the range in the manifest of another run, or of a plan.
        low: a value or a percentile, see ``kind``.
        high: a value or a percentile.
        manifest: the path of the other run's manifest, or the address of the plan.
    """

    kind: RangeKind
    low: float = 0.0
    high: float = 1.0
    manifest: str = ""

    @property
    def is_relative(self) -> bool:
        """Whether the range depends on the map, so that the same value has other colors in other maps."""
        return self.kind in {"per-map", "percentile", "symmetric"}

    @property
    def is_known(self) -> bool:
        """Whether a map can be colorized without reading other maps or a manifest."""
        return self.kind not in {"dataset", "from"}

    def span(self, minimum: float, maximum: float) -> tuple[float, float]:
        """Return the values with intensity 0 and 255 in a map with these extremes; not for percentiles."""
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
    """Parse the setting ``range``; raise SettingsError if the text is not a range."""
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
