"""The values that travel through the pipeline, in the order of the journey."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray

    from async_maps.errors import AsyncMapsError
    from async_maps.quantise import Measured
    from async_maps.ranges import ValueRange
    from async_maps.sources.formats import Part
    from async_maps.streams import Loan

Stage = Literal["source", "read", "colorize", "encode", "upload", "verify"]


@dataclass(frozen=True, slots=True)
class ActivationMap:
    """A map on its way in: a name, and either an array or the file where a worker will read it.

    Attributes:
        name: what its locator is made of: ``val/0001`` becomes ``{prefix}/val/0001.png``.
        source: where it came from, for people and for the manifest.
        fingerprint: changes when the source does; None if that cannot be told (an array in memory).
        max_bytes: at most so many bytes it has as a plain array, in its own dtype.
        path: the file to read, or None.
        part: where in that file it lies, as the format's reader knows it.
        array: the map itself, or None.
        measured: what was seen of the map's values, if ``array`` holds its intensities already; else None.
        index: its position in its source, from 0.
    """

    name: str
    source: str
    fingerprint: str | None
    max_bytes: int
    path: str | None = None
    part: Part = None
    array: NDArray[Any] | None = None
    measured: Measured | None = None
    index: int = 0


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
        center_x: centre of mass of the intensities, in pixels from the centre of the leftmost; None if all are 0.
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
        """Whether the colours tell nothing: one value throughout, or a range that has come to a single value."""
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


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A map inside the pipeline, and who waits for it.

    Attributes:
        map: the map.
        settle: takes its outcome, or the error that ends more than this map; called exactly once, on the event loop.
        value_range: which values its colours span; a known one.
        loan: the bytes that its array takes while it waits; None if it lies in a file.
    """

    map: ActivationMap
    settle: Callable[[Outcome | AsyncMapsError], None]
    value_range: ValueRange
    loan: Loan | None = None

    def without_array(self) -> Job:
        """The same job once its array is not needed any more: let go of, and no longer counted."""
        if self.map.array is None:
            return self
        if self.loan is not None:
            self.loan.release()
        return Job(replace(self.map, array=None), self.settle, self.value_range)

    def fail(self, stage: Stage, reason: str) -> None:
        """Settle with a failure."""
        self.settle(Failure(self.map.name, self.map.source, self.map.fingerprint, stage, reason))


@dataclass(frozen=True, slots=True, eq=False)
class Bitmap:
    """A colorized map, ready to be deflated.

    Attributes:
        job: whose it is.
        scanlines: (n,) uint8, the image's PNG scanlines (:mod:`async_maps.scanlines`); a view into a shared block.
        width: pixels.
        height: pixels.
        rgba: whether the pixels are RGBA colours; else they are intensities.
        transparent: the intensity that this map has transparent, other than the colour table says; or None.
        statistics: what was counted of the map.
        release: gives the view's share of the block back; the scanlines must not be touched after it.
    """

    job: Job
    scanlines: NDArray[np.uint8]
    width: int
    height: int
    rgba: bool
    transparent: int | None
    statistics: MapStatistics | None
    release: Callable[[], None]


@dataclass(frozen=True, slots=True, eq=False)
class Png:
    """An encoded bitmap.

    Attributes:
        job: whose it is.
        data: the complete PNG file.
        digest: SHA-256 of it, in hexadecimal; empty if no key asks for it.
        crc32: likewise, 8 digits.
        width: pixels.
        height: pixels.
        statistics: what was counted of the map.
        loan: the bytes it takes until it is uploaded.
    """

    job: Job
    data: bytes
    digest: str
    crc32: str
    width: int
    height: int
    statistics: MapStatistics | None
    loan: Loan
