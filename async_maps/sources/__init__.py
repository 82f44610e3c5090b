"""Where maps come from. Listing runs in a thread; reading in a worker process, or from S3 in threads.

A source is an iterable of :class:`~async_maps.sources.activation_map.ActivationMap` in a stable order, and of a
:class:`~async_maps.outcomes.Failure` for each map that cannot enter. It may be iterated more than once, and never holds
more of its list in memory than it is about to hand out.
"""

from __future__ import annotations

from os import PathLike, fspath
from os.path import abspath, isfile
from typing import TYPE_CHECKING, Protocol

from async_maps.errors import SourceError
from async_maps.filesystems.filesystem import is_remote
from async_maps.sources import files
from async_maps.tables import is_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_maps.outcomes import Failure
    from async_maps.settings import S3Settings
    from async_maps.sources.activation_map import ActivationMap
    from async_maps.sources.named import Known, PassOver


STDIN_FILE = "/dev/stdin"


class Source(Protocol):
    """What :func:`open_source` gives; iterate it in a thread."""

    def __iter__(self) -> Iterator[ActivationMap | Failure]:
        """The maps, listed but not read."""


def is_stdin(place: object) -> bool:
    """Whether a source is standard input: ``-``, as for every command, or by its name as a file."""
    return isinstance(place, str) and place in {"-", STDIN_FILE}


def place_of(source: object) -> str | None:
    """The absolute path or the address of a source; None if it can be read only once."""
    if not isinstance(source, str | PathLike) or is_stdin(source):
        return None
    place = str(fspath(source))
    return place if is_remote(place) else abspath(place)


def open_source(
    place: str | PathLike[str],
    *,
    s3: S3Settings | None = None,
    known: Known | None = None,
    pass_over: PassOver = lambda _: None,
) -> Source:
    """The source at a place.

    Args:
        place: a file, a folder (recursive, sorted) or a glob (``maps/**/cam_*.npy``), each on a disk or in S3
            (``s3://bucket/prefix/``), or a listing (``.csv``, ``.parquet``, ``.jsonl``).
        s3: the timeouts and attempts of the client.
        known: the files that need not be opened to count their maps; each opening may be a request.
        pass_over: called with the suffix of each file that is no map, in the thread that iterates the source.

    Raises:
        SourceError: there is nothing, or nothing that is read as a map; or the place is standard input, which
            :func:`async_maps.sources.batches.list_maps` reads. S3 is asked when the source is iterated.
    """
    path = fspath(place)
    if is_stdin(path):
        raise SourceError("standard input can be read only once, by a run")
    # A folder may be called like a listing.
    if is_table(path) and (is_remote(path) or isfile(path)):
        # Where it is used: worker processes import this package too.
        from async_maps.sources.listing import Listing

        return Listing(path, s3, known)
    if is_remote(path):
        from async_maps.sources.s3_objects import S3Objects

        return S3Objects(path, s3, known, pass_over)
    return files.open_files(path, known, pass_over)
