"""The values that travel through the pipeline, in the order of the journey."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray

    from async_maps.errors import AsyncMapsError
    from async_maps.sources.formats import Part
    from async_maps.streams import Loan

Stage = Literal["source", "read", "colorize", "encode", "upload"]


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
    """

    name: str
    source: str
    fingerprint: str | None
    max_bytes: int
    path: str | None = None
    part: Part = None
    array: NDArray[Any] | None = None


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


@dataclass(frozen=True, slots=True)
class Failure:
    """One map that did not make it, and why.

    Attributes:
        name: the map's name.
        source: where it came from.
        fingerprint: the source's state; None if it has none.
        stage: where it failed. A map refused at ``source`` (a name that cannot be a key, a second map of one name)
            never entered the pipeline.
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
        loan: the bytes that its array takes while it waits; None if it lies in a file.
    """

    map: ActivationMap
    settle: Callable[[Outcome | AsyncMapsError], None]
    loan: Loan | None = None

    def without_array(self) -> Job:
        """The same job once its array is not needed any more: let go of, and no longer counted."""
        if self.map.array is None:
            return self
        if self.loan is not None:
            self.loan.release()
        return Job(replace(self.map, array=None), self.settle)

    def fail(self, stage: Stage, reason: str) -> None:
        """Settle with a failure."""
        self.settle(Failure(self.map.name, self.map.source, self.map.fingerprint, stage, reason))


@dataclass(frozen=True, slots=True, eq=False)
class Bitmap:
    """A colorized map.

    Attributes:
        job: whose it is.
        pixels: (h, w) uint8 intensities for a palette, or (h, w, 4) uint8 RGBA; a view into a shared block.
        release: gives the view's share of the block back; the pixels must not be touched after it.
    """

    job: Job
    pixels: NDArray[np.uint8]
    release: Callable[[], None]


@dataclass(frozen=True, slots=True, eq=False)
class Png:
    """An encoded bitmap.

    Attributes:
        job: whose it is.
        data: the complete PNG file.
        width: pixels.
        height: pixels.
        loan: the bytes it takes until it is uploaded.
    """

    job: Job
    data: bytes
    width: int
    height: int
    loan: Loan
