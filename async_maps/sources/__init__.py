"""Where maps come from. A thread lists them; worker processes read them, or threads if they are in buckets.

A source is an iterable of :class:`~async_maps.sources.activation_map.ActivationMap` in a stable order, with a
:class:`~async_maps.outcomes.Failure` for each map that is refused. It can be iterated several times, and never has its
whole list in memory.
"""

from __future__ import annotations

from glob import has_magic
from os import PathLike, fspath
from os.path import abspath, isfile
from typing import TYPE_CHECKING, Protocol

from async_maps.errors import SourceError
from async_maps.filesystems.addresses import is_remote
from async_maps.filesystems.locators import place_at
from async_maps.sources import files
from async_maps.sources.formats.registry import is_columnar
from async_maps.sources.options import Scan, SourceOptions
from async_maps.tables import is_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_maps.filesystems.filesystem import Filesystems
    from async_maps.outcomes import Failure
    from async_maps.settings import S3Settings
    from async_maps.sources.activation_map import ActivationMap
    from async_maps.sources.coverage import Coverage
    from async_maps.sources.isolation import DecoderProcess
    from async_maps.sources.layouts import Questions
    from async_maps.sources.named import NamedFile
    from async_maps.sources.options import Known, PassOver
    from async_maps.sources.whole_objects import ReadAhead


STDIN_FILE = "/dev/stdin"


class Source(Protocol):
    """The maps of a source; iterate it in a thread."""

    def __iter__(self) -> Iterator[ActivationMap | Failure]:
        """Yield the maps, listed but not read."""


class FileSource(Source, Protocol):
    """A source at a place: its maps are in files."""

    def files(self, filesystems: Filesystems) -> Iterator[NamedFile | Failure]:
        """Yield the files, listed but not opened, with a failure for each that is refused."""


def is_stdin(place: object) -> bool:
    """Whether a source is standard input: ``-`` or ``/dev/stdin``."""
    return isinstance(place, str) and place in {"-", STDIN_FILE}


def place_of(source: object) -> str | None:
    """Return the absolute path or the address of a source; None if it can be read only once."""
    if not isinstance(source, str | PathLike) or is_stdin(source):
        return None
    place = place_at(str(fspath(source)))
    return place if is_remote(place) else abspath(place)


def open_source(  # noqa: PLR0913  # one argument a choice
    place: str | PathLike[str],
    *,
    s3: S3Settings | None = None,
    known: Known | None = None,
    pass_over: PassOver = lambda _: None,
    options: SourceOptions | None = None,
    questions: Questions | None = None,
    coverage: Coverage | None = None,
    decoder: DecoderProcess | None = None,
    filesystems: Filesystems | None = None,
    ahead: ReadAhead | None = None,
) -> FileSource:
    """Open the source at a path or address.

    Args:
        place: a file, a folder (recursive, sorted) or a glob (``maps/**/cam_*.npy``), each on a disk or in a bucket
            (``s3://bucket/prefix/``), or a listing (``.csv``, ``.parquet``, ``.jsonl``). A table with a column of
            arrays is no listing.
        s3: the time-outs and attempts of the client.
        known: decides which files are a single map and need not be opened.
        pass_over: called for each file or array that is no map, in the thread that iterates the source.
        options: which parts of the source are maps; the defaults if None.
        questions: asks about arrays that are probably other maps than their shape says; None to ask nothing.
        coverage: filled with what is read, while the source is iterated; None if nobody asks.
        decoder: the process that lists files that libraries decode; None to list them in this process.
        filesystems: as in :class:`~async_maps.sources.options.Scan`.
        ahead: as in :class:`~async_maps.sources.options.Scan`.

    Raises:
        SourceError: the place does not exist, or is not a file of a supported format; or it is standard input, which
            :func:`async_maps.sources.batches.list_maps` reads. For a bucket, iterating the source raises the error.
    """
    path = place_at(fspath(place))
    scan = Scan(known, pass_over, options or SourceOptions(), questions, coverage, decoder, filesystems, ahead)
    if is_stdin(path):
        raise SourceError("standard input can be read only once, by a run")
    # A folder may have the suffix of a listing; a glob of objects with arrays is none.
    is_file = not (is_columnar(path) and has_magic(path)) if is_remote(path) else isfile(path)
    if is_file and (is_table(path) or is_columnar(path)):
        # Imported late, because worker processes import this package too.
        from async_maps.sources.listing import Listing

        return Listing(path, s3, scan)
    if is_remote(path):
        from async_maps.sources.remote_objects import RemoteObjects

        return RemoteObjects(path, s3, scan)
    return files.open_files(path, scan)
