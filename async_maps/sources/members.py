"""Opens a file, on disk or in a bucket, and lists its maps. Runs in the process that may decode the file."""

from __future__ import annotations

import io
import os
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from async_maps.errors import SourceError
from async_maps.filesystems.addresses import is_remote, parse_address
from async_maps.filesystems.filesystem import (
    InaccessibleError,
    LocalFilesystem,
    check_regular,
    file_fingerprint,
    folder_fingerprint,
)
from async_maps.sources.contents import maps_in_reader
from async_maps.sources.formats.registry import is_one_source, open_reader, suffix_of, without_suffix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from async_maps.filesystems.answers import Range
    from async_maps.filesystems.filesystem import Filesystem, Filesystems
    from async_maps.filesystems.remote import RemoteFilesystem
    from async_maps.filesystems.remote_file import RemoteFile
    from async_maps.sources.contents import ListedMap
    from async_maps.sources.options import PassOver, SourceOptions

APPLE_DOUBLE = bytes.fromhex("00051607")
"""The first bytes of what macOS keeps beside a file of another name: ``._x.npy`` beside ``x.npy``."""

_LOOK_BYTES = {".npy": 16 * 2**10, ".png": 16 * 2**10, ".jpg": 64 * 2**10, ".jpeg": 64 * 2**10}
"""The size of the first read, for formats whose header suffices to list the maps."""
_LOOK_BYTES_OTHERS = 2**20


class AppleDoubleError(Exception):
    """An object starts with :data:`APPLE_DOUBLE`."""


class OpenedFile(NamedTuple):
    """A file whose maps can be listed.

    Attributes:
        filesystem: opens it, and the list of names beside it.
        fingerprint: its state.
    """

    filesystem: Filesystem
    fingerprint: str


class Columns(NamedTuple):
    """The columns of a table.

    Attributes:
        arrays: the names of those with maps.
        names: the names of all.
        advice: why a table without arrays has no maps; empty if it has some.
    """

    arrays: list[str]
    names: list[str]
    advice: str


def open_file(path: str, fingerprint: str | None, filesystems: Filesystems) -> OpenedFile:
    """Open a file; ``fingerprint`` is that of its listing, if it has one.

    Raises:
        OSError: the file cannot be opened.
        SourceError: the file cannot be opened, with a reason of this package.
        AppleDoubleError: an object is not what its name says.
    """
    if not is_remote(path):
        return _open_on_disk(path)
    suffix = suffix_of(path)
    # A folder without a suffix is a Hugging Face dataset.
    opening = _open_folder if suffix is None or suffix == ".zarr" else _open_object
    return opening(path, fingerprint, filesystems.remote(path))


def maps_in_file(
    path: str,
    filesystem: Filesystem,
    options: SourceOptions,
    pass_over: PassOver,
    is_named: Callable[[str], bool] = lambda _: False,
) -> Iterator[ListedMap]:
    """Yield the maps in a file, as :func:`~async_maps.sources.contents.maps_in_reader`; close it at the end."""
    with closing(open_reader(path, filesystem)) as reader:
        yield from maps_in_reader(reader, options, pass_over, partial(_open_names, path, filesystem), is_named)


def columns_of(path: str, filesystems: Filesystems) -> Columns:
    """Return the columns of a table; raise the errors of a :class:`~async_maps.sources.formats.registry.Reader`."""
    from async_maps.sources.formats.columns import Table, without_arrays

    with closing(open_reader(path, filesystems.of(path))) as reader:
        assert isinstance(reader, Table)  # noqa: S101  # is_columnar()
        arrays = [column.name for column in reader.columns()]
        return Columns(arrays, reader.schema.names, "" if arrays else without_arrays(reader.schema))


def _open_names(path: str, filesystem: Filesystem) -> BinaryIO | None:
    """Open the list of names beside a file; None if there is none."""
    try:
        return filesystem.open(f"{without_suffix(path)}.names.txt")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InaccessibleError(f"the list of names cannot be read: {error.strerror}") from error
    except InaccessibleError as error:
        reason = f"the list of names cannot be read: {error}"
        if error.verdict is None:
            raise InaccessibleError(reason) from None
        raise InaccessibleError.of(error.verdict._replace(reason=reason)) from None
    except SourceError as error:
        raise SourceError(f"the list of names cannot be read: {error}") from None


def _open_on_disk(path: str) -> OpenedFile:
    if "\0" in path:
        raise SourceError("the path has a null byte")
    status, is_folder = os.stat(path), is_one_source(path)
    check_regular(status.st_mode, is_folder)
    return OpenedFile(LocalFilesystem(), folder_fingerprint(path) if is_folder else file_fingerprint(status))


def _open_object(path: str, _: str | None, remote: RemoteFilesystem) -> OpenedFile:
    return _opened(path, remote.open_object(path, _LOOK_BYTES.get(suffix_of(path) or "", _LOOK_BYTES_OTHERS)), remote)


def opened_object(path: str, content: Range, remote: RemoteFilesystem) -> OpenedFile:
    """Return an object whose start was read, as :func:`open_file`."""
    from async_maps.filesystems.remote_file import RemoteFile

    return _opened(path, RemoteFile(remote, parse_address(path), content), remote)


def _opened(path: str, opened: RemoteFile, remote: RemoteFilesystem) -> OpenedFile:
    if opened.read(len(APPLE_DOUBLE)) == APPLE_DOUBLE:
        raise AppleDoubleError
    opened.seek(0)
    return OpenedFile(_Opened(remote, path, opened), opened.fingerprint)


def _open_folder(path: str, fingerprint: str | None, remote: RemoteFilesystem) -> OpenedFile:
    fingerprint = fingerprint or remote.fingerprint_below(path)
    if fingerprint is None:
        raise SourceError("the folder is empty")
    return OpenedFile(remote, fingerprint)


class _Opened:
    def __init__(self, remote: RemoteFilesystem, path: str, file: RemoteFile) -> None:
        self._remote = remote
        self._path = path
        self._file: RemoteFile | None = file

    def open(self, path: str) -> BinaryIO:
        """Return the open file at the first call; else open one."""
        if path != self._path or self._file is None:
            return self._remote.open(path)
        file, self._file = self._file, None
        return io.BufferedReader(file)
