"""Explains why the overlays of a run cannot be seen, and names the setting that shows them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from async_maps.outcomes import Receipt
from async_maps.render.statistics import FAINT_SHARE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from async_maps.outcomes import Outcome
    from async_maps.settings import Settings

_TOLERATED_PERCENT = 90
"""Sets of maps may have empty ones; if more than this percentage of a run cannot be seen, the settings are wrong."""


@dataclass(slots=True)
class InvisibleMaps:
    """The maps of a run whose overlay is fully transparent or nearly invisible.

    Attributes:
        transparent: the number of fully transparent overlays.
        faint: the number of nearly invisible overlays.
        constant: the number of these maps that have a single value.
        minimum: the smallest valid value of these maps; infinite if there is none.
        maximum: the largest valid value of these maps; minus infinity if there is none.
        range_high: the highest end of their value ranges.
    """

    transparent: int = 0
    faint: int = 0
    constant: int = 0
    minimum: float = inf
    maximum: float = -inf
    range_high: float = -inf

    def count(self, outcomes: Sequence[Outcome]) -> None:
        """Count the invisible maps among these outcomes."""
        for outcome in outcomes:
            found = outcome.statistics if isinstance(outcome, Receipt) else None
            if found is None or not (found.transparent or found.faint):
                continue
            self.transparent += found.transparent
            self.faint += found.faint
            self.constant += found.constant
            if found.minimum is not None and found.maximum is not None and found.range_high is not None:
                self.minimum = min(self.minimum, found.minimum)
                self.maximum = max(self.maximum, found.maximum)
                self.range_high = max(self.range_high, found.range_high)

    def warning(self, settings: Settings, uploaded: int) -> str:
        """Return a warning if more than 90% of the uploaded maps are invisible; else an empty text.

        There is none if all colors are visible: then an empty map has a color, and sets such as those of anomaly
        detectors are often almost empty.
        """
        count = self.transparent + self.faint
        hides = settings.png != "gray" and settings.table()[:, 3].min() < FAINT_SHARE * 255
        if not hides or count * 100 <= uploaded * _TOLERATED_PERCENT:
            return ""
        kinds = {"fully transparent": self.transparent, "nearly invisible": self.faint}
        found = " or ".join(kind for kind, number in kinds.items() if number)
        cause = self._cause(settings, "the" if count == uploaded else "their")
        return f"{count:,} of {uploaded:,} {'overlay is' if uploaded == 1 else 'overlays are'} {found}: {cause}"

    def _cause(self, settings: Settings, whose: str) -> str:
        opacities, minimum, maximum = settings.table()[:, 3], self.minimum, self.maximum
        visible = _advice(alpha=0.5)
        if opacities.max() < FAINT_SHARE * 255:
            return f"the colormap has no visible color; {visible}"
        if minimum > maximum:
            return f"no value is finite; check the maps, or {_advice(invalid='error')} to list them as failures"
        values = f"{whose} largest value is {maximum:.6g}"
        if minimum == maximum:
            values = f"all {'' if whose == 'the' else 'their '}values are {maximum:.6g}"
        if opacities[0] > opacities.min() or opacities[-1] < FAINT_SHARE * 255:
            where = values if minimum == maximum else f"{whose} values are {minimum:.6g} to {maximum:.6g}"
            return f"{where}, where the colormap is transparent; {visible}"
        low = min(minimum, 0.0) if maximum > 0 else minimum
        span = f"{low:.6g},{maximum:.6g}"
        if low == maximum:
            return f"{values}; check the maps, or {visible}"
        if settings.value_range.kind == "unit" and self.range_high > 1:
            return f"{values} of 255; for labels, {_advice(range=span, alpha=0.5)}"
        # In its own range, a map of a single value is transparent, too.
        fixed = self.constant * 100 > (self.transparent + self.faint) * (100 - _TOLERATED_PERCENT)
        return f"{values}; {_advice(range=span if fixed else 'per-map')}"


def _advice(**settings: str | float) -> str:
    options = [f"--{name}{'=' if str(value)[0] == '-' else ' '}{value}" for name, value in settings.items()]
    keywords = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    return f"try {' '.join(options)} (in Python: {', '.join(keywords)})"
