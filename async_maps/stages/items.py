"""The items that the stages pass on, in the order of the stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from async_maps.concurrency.streams import Lease
    from async_maps.errors import AsyncMapsError
    from async_maps.outcomes import Outcome, Stage
    from async_maps.render.ranges import ValueRange
    from async_maps.sources.activation_map import ActivationMap
    from async_maps.workers.worker import Result


@dataclass(slots=True, eq=False)
class Job:
    """A map inside the pipeline, with its value range, whose kind is never ``dataset`` or ``from``."""

    map: ActivationMap
    settle: Callable[[Outcome | AsyncMapsError], None]
    """Called exactly once, on the event loop, with the outcome, or with the error that ends the whole run."""
    value_range: ValueRange
    lease: Lease | None = None
    """The bytes of the waiting array; None if the map is in a local file."""

    def drop_array(self) -> None:
        """Remove the array from the map, and release its lease."""
        if self.map.array is not None:
            self.map.array = None
            if self.lease is not None:
                self.lease.release()

    def fail(self, stage: Stage, reason: str, *, maybe_stored: bool = False) -> None:
        """Settle with a failure."""
        self.settle(self.map.failure(stage, reason, maybe_stored=maybe_stored))


@dataclass(slots=True, eq=False)
class Bitmap:
    """A colorized map."""

    job: Job
    data: NDArray[np.uint8]
    """(n,) uint8, the zlib stream or the scanlines (:mod:`async_maps.render.scanlines`); a view into a shared block."""
    result: Result
    release: Callable[[], None]
    """Releases the block; the data must not be used afterwards."""


@dataclass(slots=True, eq=False)
class Png:
    """A complete PNG file."""

    job: Job
    data: bytes
    digest: str
    """SHA-256 in hexadecimal; empty if the key template does not use it."""
    crc32: str
    """8 hexadecimal digits."""
    result: Result
    lease: Lease = field(init=False)
    """The lease of its bytes until it is uploaded, taken when it is sent on."""
