"""Where maps come from. Listing runs in a thread, reading in a worker process; one file per format.

A source is an iterable of :class:`~async_maps.records.ActivationMap` in a stable order, and of a
:class:`~async_maps.records.Failure` for each map that cannot enter. It may be iterated more than once, and never holds
more of its list in memory than it is about to hand out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from async_maps.sources import files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

    from async_maps.records import ActivationMap, Failure


class Source(Protocol):
    """What :func:`open_source` gives; iterate it in a thread."""

    def __iter__(self) -> Iterator[ActivationMap | Failure]:
        """The maps, listed but not read."""


def open_source(place: str | PathLike[str]) -> Source:
    """The source at a place: a file, a folder (recursive, sorted) or a glob (``maps/**/cam_*.npy``).

    Raises:
        SourceError: there is nothing, or nothing that is read as a map.
    """
    return files.open_files(place)
