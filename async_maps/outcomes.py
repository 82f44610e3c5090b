"""The outcome of a map: a receipt with statistics, or a failure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from async_maps.masking import mask

if TYPE_CHECKING:
    from datetime import datetime

Stage = Literal["source", "read", "colorize", "encode", "upload", "verify"]


class MapStatistics(NamedTuple):
    """The statistics of one map; those without a value are None, for instance if the map has no valid pixel.

    A pixel is valid if its value is finite. Intensities are the values quantized to 0 to 255 over the value range.

    Attributes:
        minimum: the smallest valid value, in the units of the map.
        maximum: the largest valid value, in the units of the map.
        mean: the mean of the valid values, computed in float64, in the units of the map.
        range_low: the value with intensity 0, in the units of the map.
        range_high: the value with intensity 255, in the units of the map.
        high_share: the share of the valid pixels with intensity 128 or more, 0 to 1.
        entropy: the Shannon entropy of the histogram of the intensities, ``-sum(p * log2(p))``, 0 to 8 bits.
        center_x: the center of mass of the intensities, in pixels to the right of the center of the leftmost column;
            None if all intensities are 0.
        center_y: the same, in pixels down from the center of the topmost row.
        invalid_pixels: the number of pixels that are NaN or infinite.
        constant: whether all valid pixels have the same value.
        transparent: whether the overlay is fully transparent: every pixel of the PNG has alpha 0.
        faint: whether the overlay is nearly invisible, but not fully transparent: its highest alpha is less than 2% of
            255, or the largest value is less than 2% of the way from ``range_low`` to ``range_high``. The second
            condition does not apply if other intensities are more transparent than 0.
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
    transparent: bool
    faint: bool

    @property
    def is_flat(self) -> bool:
        """Whether the overlay has one color: the map is constant, or its value range is a single value."""
        return self.constant or (self.range_low is not None and self.range_low == self.range_high)


@dataclass(frozen=True, slots=True)
class Receipt:
    """The proof of one upload: the store has confirmed exactly these bytes.

    Attributes:
        name: the name of the map.
        locator: the URL of the PNG, such as ``s3://bucket/key``, ``file:///path``, or ``https://`` in Azure.
        source: where the map was read from.
        fingerprint: the state of the source when it was listed, such as size and time of a file; None for an array.
        size: the size of the PNG in bytes.
        width: the width in pixels.
        height: the height in pixels.
        etag: the store's tag of the object, without quotes; None if the store has none that can be
            compared.
        stored_at: the time of the store's answer, in UTC.
        statistics: the statistics of the map.
        crc32: the CRC-32 of the PNG in 8 hexadecimal digits.
        file: the file of the source, without the map's place in it.
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
    statistics: MapStatistics
    crc32: str
    file: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Failure:
    """One map without an overlay, and the reason.

    Attributes:
        name: the name of the map.
        source: where the map was read from.
        fingerprint: the state of the source when it was listed; None for an array.
        stage: the stage that failed. ``source``: the map was refused before it was read, because its name cannot be a
            key or another map has that name. ``verify``: the overlay was uploaded, but is missing or changed now.
        reason: one sentence: what was found, what was expected, what to do.
        file: the file of the source, without the map's place in it.
        maybe_stored: whether the store may have the overlay, because the answer to its upload did not arrive.
    """

    name: str
    source: str
    fingerprint: str | None
    stage: Stage
    reason: str
    file: str = field(default="", compare=False)
    maybe_stored: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if (masked := mask(self.reason)) != self.reason:
            object.__setattr__(self, "reason", masked)

    def __str__(self) -> str:
        return f"{self.where}: {self.stage}: {self.reason}"

    @property
    def where(self) -> str:
        """The name, and the source if that is another text."""
        return self.source if self.source == self.name else f"{self.name} ({self.source})"


Outcome: TypeAlias = Receipt | Failure
"""The result of processing one map."""
