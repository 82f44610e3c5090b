"""What becomes of a map: a receipt or a failure, and what was counted of it. Imports nothing of this package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from datetime import datetime

Stage = Literal["source", "read", "colorize", "encode", "upload", "verify"]


class MapStatistics(NamedTuple):
    """What the kernels counted of one map; None where it has no valid value.

    Attributes:
        minimum: the smallest value, in the map's own units, as are the next four.
        maximum: the largest.
        mean: in float64.
        range_low: the value that the colormap starts at.
        range_high: the value that it ends at.
        high_share: share of the pixels in the upper half of the range (intensity 128 and more).
        entropy: of the intensities, 0 to 8 bits.
        center_x: center of mass of the intensities, in pixels from the center of the leftmost; None if all are 0.
        center_y: likewise, from the uppermost.
        invalid_pixels: how many are NaN or infinite.
        constant: whether all valid pixels have the same value.
    """

    minimum: float | None
    maximum: float | None
    mean: float | None
    range_low: float | None
    range_high: float | None
    high_share: float | None
    entropy: float | None
    center_x: float | None
    center_y: float | None
    invalid_pixels: int
    constant: bool

    @property
    def is_flat(self) -> bool:
        """Whether the colors tell nothing: one value throughout, or a range that has come to a single value."""
        return self.constant or (self.range_low is not None and self.range_low == self.range_high)


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof of one overlay: the store has answered for exactly these bytes.

    Attributes:
        name: the map's name.
        locator: where the PNG lies, ``s3://bucket/key`` or ``file:///path``.
        source: where the map came from.
        fingerprint: the source's state when it was read; None if it has none.
        size: bytes of the PNG.
        width: pixels.
        height: pixels.
        etag: the store's own tag of the object, without quotes; None if the store gives none.
        stored_at: when the store answered, UTC.
        statistics: what was counted of the map; None only of receipts that are not the pipeline's.
        crc32: of the PNG, 8 hexadecimal digits; None only of receipts that are not the pipeline's.
    """

    name: str
    locator: str
    source: str
    fingerprint: str | None
    size: int
    width: int
    height: int
    etag: str | None
    stored_at: datetime
    statistics: MapStatistics | None = None
    crc32: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """One map that did not make it, and why.

    Attributes:
        name: the map's name.
        source: where it came from.
        fingerprint: the source's state; None if it has none.
        stage: where it failed. A map refused at ``source`` (a name that cannot be a key, a second map of one name)
            never entered the pipeline; one at ``verify`` was done, and what lies at its locator is not what it was.
        reason: one sentence: what was expected, what was found, what to do.
    """

    name: str
    source: str
    fingerprint: str | None
    stage: Stage
    reason: str

    def __str__(self) -> str:
        where = self.source if self.source == self.name else f"{self.name} ({self.source})"
        return f"{where}: {self.stage}: {self.reason}"


Outcome: TypeAlias = Receipt | Failure
