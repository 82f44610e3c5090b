"""A map on its way in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from async_maps.render.quantize import Measured

Part: TypeAlias = Any
"""A map's place in its file: any value of JSON, which the format's reader defines."""


class ArrayHeader(NamedTuple):
    """What a file says of a map before its values are read.

    Attributes:
        shape: of the map, as it will be read.
        dtype: of its values, as they will be read.
        chunks: the shape of the pieces in which the values are packed; empty if they are not.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...] = ()


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
        header: what its file says of it, for a dry run; None where the listing did not look.
        problem: the reason for which reading it fails, if the listing met one; else empty.
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
    header: ArrayHeader | None = field(default=None, compare=False)
    problem: str = field(default="", compare=False)
