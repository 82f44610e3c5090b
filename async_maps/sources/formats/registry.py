"""The file formats that hold maps: a module for each, picked by the file's suffix."""

from __future__ import annotations

import os
from contextlib import contextmanager
from importlib import import_module
from threading import RLock
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from async_maps.errors import SourceError
from async_maps.filesystems.filesystem import Filesystems
from async_maps.keys import printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

    from numpy.typing import NDArray

    from async_maps.filesystems.filesystem import Filesystem
    from async_maps.sources.activation_map import ActivationMap, Part

FORMATS = {
    ".npy": "npy",
    ".npz": "npz",
    ".tar": "tar",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".zarr": "zarr",
    ".safetensors": "safetensors",
}
"""The module of each suffix. Its class, ``NpyReader(path, filesystem)`` in ``npy``, is a :class:`Reader`."""

COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
"""Listed although nothing reads them: who has a folder of them is told why, not that there is nothing in it."""

_ZARR_MARKS = ("zarr.json", ".zgroup", ".zarray")
_CHUNKED = {"zarr", "hdf5", "npz"}
_BLOCK_BYTES = 512 * 2**10
"""What is smaller comes with its neighbors in one request."""


class ListedMap(NamedTuple):
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

    def __init__(self, path: str, filesystem: Filesystem) -> None:
        """Open the file.

        Raises:
            SourceError: the file is not what its name says.
            OSError: it cannot be opened.
        """

    def maps(self) -> Iterator[ListedMap]:
        """The maps in it, in a stable order, never the whole list at once where it can be long.

        Raises:
            SourceError: the file is not what its name says, or holds no map.
            OSError: it cannot be read.
        """

    def read(self, part: Part, max_pixels: int | None = None) -> NDArray[Any]:
        """Read one of them: any array; whether it is an activation map is for colorize to say.

        Args:
            part: which.
            max_pixels: refuse one that has more, before any memory is taken for it.

        Raises:
            SourceError: the file is not what its name says; the message says what was expected and what was found. Or
                the map is too large.
            OSError: it cannot be read.
        """

    def close(self) -> None:
        """Close the file."""


def suffix_of(path: str) -> str | None:
    """The suffix by which a file is read or refused, as :data:`FORMATS` has it; None if nothing here knows it."""
    suffix = path[path.rfind(".") :].lower()
    if suffix in FORMATS:
        return suffix
    lower = path.lower()
    return next((suffix for suffix in COMPRESSED_TARS if lower.endswith(suffix)), None)


def without_suffix(path: str) -> str:
    """The path without the suffix that :func:`suffix_of` knows it by."""
    return path[: len(path) - len(suffix_of(path) or "")]


def is_one_source(folder: str) -> bool:
    """Whether a folder on a disk is one source in many files, not a folder of sources: a Zarr hierarchy."""
    suffix = suffix_of(folder)
    if suffix is None:
        return any(os.path.lexists(os.path.join(folder, mark)) for mark in _ZARR_MARKS)
    return FORMATS.get(suffix) == "zarr"


def open_reader(path: str, filesystem: Filesystem) -> Reader:
    """The reader of a file.

    Raises:
        SourceError: nothing here reads such a file, or it is not what its name says.
        MissingExtraError: its format needs an extra.
        OSError: it cannot be opened.
    """
    suffix = suffix_of(path)
    if suffix in COMPRESSED_TARS:
        raise SourceError("no map in a compressed tar can be read without unpacking all before it: decompress it first")
    if suffix is None and not is_one_source(path):
        raise SourceError(f"nothing here reads {printable(path)}")
    module = "zarr" if suffix is None else FORMATS[suffix]
    reader: type[Reader] = getattr(
        import_module(f"async_maps.sources.formats.{module}"), f"{module.capitalize()}Reader"
    )
    return reader(path, filesystem)


@contextmanager
def close_on_error(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """Lend a file that is closed if the ``with`` block fails, and only then."""
    try:
        yield file
    except BaseException:
        file.close()
        raise


@contextmanager
def translate_format_errors(what: str) -> Iterator[None]:
    """Turn whatever a format's library ends in over a damaged file into a SourceError of one line.

    An OSError of the system passes as it is; some libraries raise OSErrors of their own, which have no number.

    Args:
        what: what is wrong, in our words; the library's reason follows.
    """
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        # The text of a KeyError is the repr of its key.
        text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        reason = text.partition("\n")[0][:200] or type(error).__name__
        raise SourceError(f"{what}: {printable(reason)}") from error


class Readers:
    """Reads maps wherever they lie, and keeps the last file open: its next map costs no second look at its directory.

    Any number of threads may share it; they take turns.

    Args:
        filesystems: where files lie; a disk only if None.
        max_pixels: refuse maps that have more; None for none.
    """

    def __init__(self, filesystems: Filesystems | None = None, max_pixels: int | None = None) -> None:
        self._filesystems = filesystems or Filesystems()
        self._max_pixels = max_pixels
        self._turn = RLock()
        self._path = ""
        self._reader: Reader | None = None

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, path: str, part: Part) -> NDArray[Any]:
        """Read one listed map.

        Raises:
            SourceError: the file is not what its name says, or the map is too large; the message says what was expected
                and what was found.
            OSError: it cannot be read.
        """
        with self._turn:
            if self._reader is None or path != self._path:
                self.close()
                self._path, self._reader = path, open_reader(path, self._filesystems.of(path))
            try:
                return self._reader.read(part, self._max_pixels)
            except BaseException:
                # A damaged file may have left its reader in a state that would spoil the next map.
                self.close()
                raise

    def close(self) -> None:
        """Close what is open."""
        with self._turn:
            reader, self._reader = self._reader, None
            if reader is not None:
                reader.close()


def shares_reads(map_: ActivationMap) -> bool:
    """Whether reading the map also reads others of its file, so that one ``Readers`` should read them, in turn.

    Maps may be chunks of one Zarr array, or lie side by side in one small block of a tar: each ``Readers`` keeps the
    file that it has read last, and sixteen of them would fetch the same bytes sixteen times.
    """
    if map_.path is None or map_.part is None:
        return False
    return map_.max_bytes < _BLOCK_BYTES or FORMATS.get(suffix_of(map_.path) or "", "zarr") in _CHUNKED
