"""The values that travel through the pipeline, in the order of the journey."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from async_maps.outcomes import Failure

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


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A map inside the pipeline, with its range, a known one."""

    map: ActivationMap
    settle: Callable[[Outcome | AsyncMapsError], None]
    """Takes its outcome, or the error that ends more than this map; called exactly once, on the event loop."""
    value_range: ValueRange
    lease: Lease | None = None
    """The bytes that its array takes while it waits; None if it lies in a file."""

    def without_array(self) -> Job:
        """The same job once its array is not needed any more: let go of, and no longer counted."""
        if self.map.array is None:
            return self
        if self.lease is not None:
            self.lease.release()
        return Job(replace(self.map, array=None), self.settle, self.value_range)

    def fail(self, stage: Stage, reason: str) -> None:
        """Settle with a failure."""
        self.settle(Failure(self.map.name, self.map.source, self.map.fingerprint, stage, reason))


@dataclass(frozen=True, slots=True, eq=False)
class Bitmap:
    """A colorized map, ready to be deflated."""

    job: Job
    scanlines: NDArray[np.uint8]
    """(n,), the PNG scanlines (:mod:`async_maps.render.scanlines`); a view into a shared block."""
    result: Result
    release: Callable[[], None]
    """Gives the view's share of the block back; the scanlines must not be touched after it."""


@dataclass(frozen=True, slots=True, eq=False)
class Png:
    """An encoded bitmap: a complete PNG file, and the lease of the bytes that it takes until it is uploaded."""

    job: Job
    data: bytes
    digest: str
    """SHA-256 in hexadecimal; empty if no key asks for it."""
    crc32: str
    """8 hexadecimal digits."""
    result: Result
    lease: Lease
