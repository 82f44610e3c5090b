"""A map on its way in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from async_maps.render.quantize import Measured

Part: TypeAlias = Any
"""A map's place in its file: any value of JSON, which the format's reader defines."""


@dataclass(frozen=True, slots=True)
class ActivationMap:
    """A map on its way in: a name, and either an array or the file where a worker will read it.

    Attributes:
        name: ``val/0001`` becomes ``{prefix}/val/0001.png``.
        source: its origin, for messages and the manifest.
        fingerprint: changes when the source does; None for an array in memory.
        max_bytes: the most bytes that it can have as a plain array, in its own dtype.
        path: the file to read, or None.
        part: see :data:`Part`.
        array: the map itself, or None.
        measured: the statistics of the map's values, if ``array`` holds its intensities already; else None.
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
