"""A map on its way in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from async_maps.render.quantize import Measured

Part: TypeAlias = Any
"""Where in a file a map lies: whatever the format's reader makes of it, as long as JSON can carry it."""


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
