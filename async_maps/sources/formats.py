"""The file formats that hold maps: a module for each, picked by the file's suffix."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from async_maps.errors import SourceError
from async_maps.names import printable
from async_maps.sources.storage import Storages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from numpy.typing import NDArray

    from async_maps.sources.storage import Storage

Part: TypeAlias = Any
"""Where in a file a map lies: whatever the format's reader makes of it, as long as JSON can carry it."""

FORMATS = {
    ".npy": "npy",
    ".npz": "npz",
}
"""The module of each suffix. It has a function ``open_reader(path, storage)`` that gives a :class:`Reader`."""


class Found(NamedTuple):
    """A map in a file, listed but not read.

    Attributes:
        name: what is added to the file's name; None if the file is the map.
        part: where in the file it lies.
        max_bytes: at most so many bytes it has as a plain array, in its own dtype.
    """

    name: str | None
    part: Part
    max_bytes: int


class Reader(Protocol):
    """One open file."""

    def maps(self) -> Iterator[Found]:
        """The maps in it, in a stable order, never the whole list at once where it can be long.

        Raises:
            SourceError: the file is not what its name says, or holds no map.
            OSError: it cannot be read.
        """

    def read(self, part: Part) -> NDArray[Any]:
        """Read one of them: any array; whether it is an activation map is for colorize to say.

        Raises:
            SourceError: the file is not what its name says; the message says what was expected and what was found.
            OSError: it cannot be read.
        """

    def close(self) -> None:
        """Close the file."""


def suffix_of(path: str) -> str | None:
    """The suffix by which a file is read, as :data:`FORMATS` has it; None if nothing here reads it."""
    lower = path.lower()
    return next((suffix for suffix in FORMATS if lower.endswith(suffix)), None)


def open_reader(path: str, storage: Storage) -> Reader:
    """The reader of a file.

    Raises:
        SourceError: nothing here reads such a file, or it is not what its name says.
        MissingExtraError: its format needs an extra.
        OSError: it cannot be opened.
    """
    suffix = suffix_of(path)
    if suffix is None:
        raise SourceError(f"nothing here reads {printable(path)}")
    reader: Reader = import_module(f"async_maps.sources.{FORMATS[suffix]}").open_reader(path, storage)
    return reader


class Readers:
    """Reads maps wherever they lie, and keeps the last file open: its next map costs no second look at its directory.

    For one thread at a time.
    """

    def __init__(self, storages: Storages | None = None) -> None:
        self._storages = storages or Storages()
        self._path = ""
        self._reader: Reader | None = None

    def __enter__(self) -> Readers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, path: str, part: Part) -> NDArray[Any]:
        """Read one listed map.

        Raises:
            SourceError: the file is not what its name says; the message says what was expected and what was found.
            OSError: it cannot be read.
        """
        if self._reader is None or path != self._path:
            self.close()
            self._path, self._reader = path, open_reader(path, self._storages.of(path))
        try:
            return self._reader.read(part)
        except BaseException:
            # What a damaged file has done to its reader is not for the next map to suffer.
            self.close()
            raise

    def close(self) -> None:
        """Close what is open."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()
