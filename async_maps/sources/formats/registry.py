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
    from async_maps.sources.activation_map import ActivationMap, ArrayHeader, Part

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
"""Listed although nothing reads them, so that a folder of them fails with the reason, not as empty."""

_ZARR_MARKS = ("zarr.json", ".zgroup", ".zarray")
_CHUNKED = {"zarr", "hdf5", "npz"}
_BLOCK_BYTES = 512 * 2**10
"""Smaller maps come with their neighbors in one request."""


class ListedMap(NamedTuple):
    """A map in a file, listed but not read.

    Attributes:
        name: added to the file's name; None if the file is the map.
        part: its place in the file.
        max_bytes: the most bytes that it can have as a plain array, in its own dtype.
        header: as :class:`~async_maps.sources.activation_map.ActivationMap` has it.
        problem: as :class:`~async_maps.sources.activation_map.ActivationMap` has it.
    """

    name: str | None
    part: Part
    max_bytes: int
    header: ArrayHeader | None = None
    problem: str = ""


class Reader(Protocol):
    """One open file.

    Raises:
        SourceError: the file is not what its name says, holds no map, or one that is too large; the message says what
            was expected and what was found. The methods raise it, too.
        OSError: it cannot be read; the methods raise it, too.
    """

    def __init__(self, path: str, filesystem: Filesystem) -> None: ...

    def maps(self) -> Iterator[ListedMap]:
        """The maps in it, in a stable order; where the list can be long, it is never held as a whole."""

    def read(self, part: Part, max_pixels: int | None = None) -> NDArray[Any]:
        """Read one of them, without unpickling: any array, colorize checks whether it is an activation map.

        A map of more than ``max_pixels`` is refused before any memory is taken for it.
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
    """The reader of a file; raises as :class:`Reader`, and a MissingExtraError if the format needs an extra."""
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


class translate_format_errors:  # noqa: N801  # a context manager, in lower case as contextlib's
    """Turn any error that a format's library raises over a damaged file into a SourceError of one line.

    An OSError of the system passes as it is; some libraries raise OSErrors of their own, which have no number. A class,
    because every read of a member enters one, and a generator takes three times as long.

    Args:
        what: the start of the message; the library's reason follows.
    """

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, SourceError):
            return
        if isinstance(error, OSError) and error.errno is not None:
            return
        # The text of a KeyError is the repr of its key.
        text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        reason = text.partition("\n")[0][:200] or type(error).__name__
        raise SourceError(f"{self._what}: {printable(reason)}") from error


class Readers:
    """Reads maps on a disk or in S3, and keeps the last file open: its next map costs no second look at its directory.

    Any number of threads may share it; they take turns. Without ``filesystems`` it reads from disks only.
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
        """Read one listed map; raises as :class:`Reader`."""
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
        """Close the file."""
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
