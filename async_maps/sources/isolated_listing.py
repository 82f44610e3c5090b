"""Lists files that native libraries decode in the child process, where a malicious file costs nothing but itself."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from async_maps.filesystems.addresses import is_remote
from async_maps.filesystems.filesystem import InaccessibleError
from async_maps.sources.formats.registry import FORMATS, decodes_natively, is_one_source, suffix_of
from async_maps.sources.isolation import Line, NoProcessError, SuspectError
from async_maps.sources.members import Columns
from async_maps.sources.wire import unpack_error, unpack_found, unpack_row

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from async_maps.sources.contents import ListedMap
    from async_maps.sources.formats.registry import PassedOver
    from async_maps.sources.isolation import DecoderProcess
    from async_maps.sources.options import SourceOptions
    from async_maps.tables import Row

_MAX_BATCH = 64 * 2**20
"""The bytes of a batch: more than the child sends."""


def is_isolated(path: str) -> bool:
    """Whether a file is listed in the child process: a library may decode its values for that.

    The header of a picture is read in Python, in bounded memory, and a folder may have a million of them.
    """
    if FORMATS.get(suffix_of(path) or "") == "picture":
        return False
    has_format = suffix_of(path) is not None or is_remote(path) or is_one_source(path)
    return has_format and decodes_natively(path)


class IsolatedListing:
    """Lists files in the child process. Thread-safe; each iterator belongs to one thread at a time.

    Raises:
        NoProcessError: the child cannot be started; raised before anything is listed.
        InaccessibleError: the child died, or had no memory left, also when it listed nothing but this file.
        OSError: the file cannot be read.
        AppleDoubleError: an object is not what its name says.
        AsyncMapsError: as for a listing in this process.
    """

    def __init__(self, process: DecoderProcess) -> None:
        self._process = process
        self._idle: list[Line] = []

    def maps(
        self, path: str, fingerprint: str | None, options: SourceOptions
    ) -> tuple[str, Iterator[ListedMap | PassedOver]]:
        """Return the fingerprint of a file, and an iterator of its maps and of what is passed over in it."""
        items = self._items(["maps", path, fingerprint, options.channels, options.column, options.span])
        return str(next(items)), map(unpack_found, items)

    def columns(self, path: str) -> Columns:
        """Return the columns of a table."""
        (found,) = self._items(["columns", path])
        return Columns(*found)

    def rows(self, path: str, columns: Sequence[str]) -> Iterator[Row]:
        """Yield the rows of a table, as :func:`~async_maps.tables.read_table`."""
        return map(unpack_row, self._items(["rows", path, columns]))

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def _items(self, request: list[Any]) -> Iterator[Any]:
        """Yield the items of the child's answers. A new child lists the file again, from the first missing item on."""
        line, seen, is_end = self._take(), 0, False
        is_kept = False
        try:
            while not is_end:
                try:
                    items, is_end, error = self._process.blame(partial(self._batch, line, request, seen))
                except SuspectError as suspect:
                    raise InaccessibleError(str(suspect)) from None
                except NoProcessError as missing:
                    if not seen:
                        self._process.warn("listed", missing)
                        raise
                    raise InaccessibleError(f"no process can be started to list the rest: {missing}") from missing
                yield from items
                seen += len(items)
                if error is not None:
                    is_kept = True
                    raise unpack_error(error)
            is_kept = True
        finally:
            if is_kept:
                self._idle.append(line)
            else:
                line.close()

    def _take(self) -> Line:
        try:
            return self._idle.pop()
        except IndexError:
            return Line(self._process)

    def _batch(self, line: Line, request: list[Any], seen: int) -> tuple[list[Any], bool, list[Any] | None]:
        # The same child is in the middle of this file, unless this is the first request.
        items, is_end, error, scarce = line.ask([*request, seen], _MAX_BATCH, ["more"] if seen else None)
        if scarce:
            self._process.is_suspect = True
            raise SuspectError(str(scarce))
        return items, is_end, error
