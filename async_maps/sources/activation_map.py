"""A listed map, before it is colorized."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from async_maps.keys import printable
from async_maps.outcomes import Failure

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from async_maps.outcomes import Stage
    from async_maps.render.statistics import Measured

Part: TypeAlias = Any
"""The position of a map in its file, which the format's reader defines: plain values, as in JSON."""


class ArrayHeader(NamedTuple):
    """The shape and dtype of a map in a file, known before its values are read.

    Attributes:
        shape: the shape of the map when it is read.
        dtype: the dtype of the map when it is read.
        chunks: the shape of the compressed chunks; empty if there are none.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...] = ()


@dataclass(slots=True)
class ActivationMap:
    """A map: its name, and either its array or the file to read it from.

    One object goes from the listing to the outcome: what becomes known on the way is set, and the array is removed when
    it is colorized.

    Attributes:
        name: the name; ``val/0001`` becomes ``{prefix}/val/0001.png``.
        source: the origin, for messages and the manifest.
        fingerprint: changes when the source does; None for an array in memory.
        max_bytes: the maximum number of bytes as an array in its own dtype.
        path: the file to read, or None.
        part: the position in the file, see :data:`Part`.
        array: the array, or None.
        measured: the statistics of the values, if ``array`` contains intensities; else None.
        index: the position in the source, from 0.
        header: the shape and dtype, for a dry run; None if the listing did not open the file.
        problem: the reason why reading will fail, if the listing found one; else empty.
        maybe_at: the locator at which an earlier run with the manifest has stored its overlay; empty if it may have
            stored it anywhere, None if it has not.
        key: the key of its overlay; empty until it is known.
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
    maybe_at: str | None = field(default=None, compare=False)
    key: str = field(default="", compare=False)

    @property
    def file(self) -> str:
        """The file, as in messages; for an array in memory its source."""
        return self.source if self.path is None else printable(self.path)

    def failure(self, stage: Stage, reason: str, *, maybe_stored: bool = False) -> Failure:
        """Return the failure of this map."""
        return Failure(self.name, self.source, self.fingerprint, stage, reason, self.file, maybe_stored)
