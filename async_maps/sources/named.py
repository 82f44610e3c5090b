"""Files with a name of their own, wherever they were found, and the maps in them. Runs in a thread."""

from __future__ import annotations

import io
import os
import stat
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from async_maps.errors import InputValidationError, MissingExtraError, SourceError, translate_os_error
from async_maps.filesystems.filesystem import (
    LocalFilesystem,
    check_regular,
    file_fingerprint,
    folder_fingerprint,
    is_remote,
)
from async_maps.keys import check_name, printable
from async_maps.outcomes import Failure
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.formats.registry import ListedMap, is_one_source, open_reader, suffix_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from typing import BinaryIO

    from async_maps.filesystems.filesystem import Filesystem, Filesystems
    from async_maps.filesystems.s3 import S3File, S3Filesystem

    Entry: TypeAlias = ActivationMap | Failure
    Known: TypeAlias = Callable[[Sequence[ActivationMap]], Collection[str]]
    """Says the names of those maps that are known, from an earlier run, to be all there is in their unchanged file."""

_BATCH = 256
_AHEAD = 16
"""So many objects are looked into at once: each takes a round trip."""
_LOOK_BYTES = {".npy": 16 * 2**10}
"""Of a format whose head tells all, no more is read to look into it."""
_LOOK_BYTES_OTHERS = 2**20


class NamedFile(NamedTuple):
    """A file and its name.

    Attributes:
        name: the file's own; what it holds more than one map of is named below it.
        path: absolute, or ``s3://bucket/key``.
        row: where it was named, for people: ``list.csv, line 7``.
        fingerprint: its state, if that is known already.
        size: bytes, if that is known already.
    """

    name: str
    path: str
    row: str = ""
    fingerprint: str | None = None
    size: int = 0


def maps_in_named(
    files: Iterable[NamedFile | Failure], filesystems: Filesystems, known: Known | None = None
) -> Iterator[Entry]:
    """The maps in files, in the order of the files. Those in S3 are looked into several at a time, a little ahead.

    Args:
        files: a failure is passed on.
        filesystems: where they lie.
        known: what need not be looked into.
    """
    files = iter(files)
    pending: deque[tuple[bool, Iterator[Entry]]] = deque()
    with _Lookers(filesystems) as lookers:
        # Without anyone to ask, none waits for others.
        while batch := list(islice(files, _BATCH if known else 1)):
            single = _known_maps(batch, known) if known else {}
            for file in batch:
                if isinstance(file, Failure):
                    pending.append((False, iter([file])))
                elif file in single:
                    pending.append((False, iter([single[file]])))
                elif is_remote(file.path):
                    pending.append((True, lookers.look(file)))
                else:
                    pending.append((False, _maps_in(file, partial(_open_on_disk, file.path))))
                while pending and (len(pending) > _AHEAD or not pending[0][0]):
                    yield from pending.popleft()[1]
        for _, maps in pending:
            yield from maps


def _known_maps(files: Iterable[NamedFile | Failure], known: Known) -> dict[NamedFile, ActivationMap]:
    """Those files that are known, from an earlier run, to be one map each, and are unchanged."""
    maps: dict[NamedFile, ActivationMap] = {}
    for file in files:
        if isinstance(file, NamedFile) and isinstance(map_ := _whole(file), ActivationMap):
            maps[file] = map_
    names = known(list(maps.values())) if maps else ()
    return {file: map_ for file, map_ in maps.items() if map_.name in names}


def _whole(file: NamedFile) -> Entry | None:
    """The map that a file is if it is one map; None if that cannot be told without opening it."""
    if is_remote(file.path):
        return _entry(file.name, file.path, ListedMap(None, None, file.size), file.fingerprint)
    if not file.path.endswith(".npy"):
        return None
    try:
        status = os.stat(file.path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return _entry(file.name, file.path, ListedMap(None, None, status.st_size), file_fingerprint(status))


def _entry(name: str, path: str, found: ListedMap, fingerprint: str | None) -> ActivationMap | Failure:
    """A map that was found in a file, or why it cannot enter."""
    source = printable(path if found.name is None else f"{path}[{found.name}]")
    name = name if found.name is None else f"{name}/{found.name}"
    try:
        check_name(name)
    except InputValidationError as error:
        return Failure(printable(name), source, fingerprint, "source", str(error))
    if fingerprint is not None and found.part is not None:
        # Names can move from one map of a file to another, by a list beside it, without the file's being touched.
        fingerprint = f"{fingerprint} {found.part}"
    return ActivationMap(name, source, fingerprint, found.max_bytes, path, found.part)


def _failed(file: NamedFile, reason: str) -> Failure:
    """The failure of a whole file; it says where the file was named."""
    if file.row:
        reason = f"{reason} ({file.row})"
    return Failure(printable(file.name), printable(file.path), file.fingerprint, "source", reason)


def _with_row(found: Entry, file: NamedFile) -> Entry:
    return replace(found, reason=f"{found.reason} ({file.row})") if file.row and isinstance(found, Failure) else found


class _Lookers:
    """Threads that open objects in S3 ahead of whoever goes through the maps in them."""

    def __init__(self, filesystems: Filesystems) -> None:
        self._filesystems = filesystems
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> _Lookers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def look(self, file: NamedFile) -> Iterator[Entry]:
        """The maps in an object, which is being opened from now on."""
        suffix = suffix_of(file.path)
        if suffix is None:
            return iter([_failed(file, f"nothing here reads {printable(file.path)}")])
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_AHEAD, "async-maps-look")
        s3 = self._filesystems.s3()
        if suffix == ".zarr":
            return _maps_in(file, self._threads.submit(_open_folder, file, s3).result)
        return _maps_in(file, self._threads.submit(_open_object, file, s3, suffix).result)


def _maps_in(file: NamedFile, look: Callable[[], tuple[Filesystem, str]]) -> Iterator[Entry]:
    """The maps in a file.

    Args:
        file: its name is the map's, or what the names of the maps in it begin with.
        look: gives the file's filesystem and its fingerprint.
    """
    try:
        filesystem, fingerprint = look()
        with closing(open_reader(file.path, filesystem)) as reader:
            for found in reader.maps():
                yield _with_row(_entry(file.name, file.path, found, fingerprint), file)
    except (OSError, SourceError, MissingExtraError) as error:
        # A file whose extra is missing, perhaps no map's at all, does not keep the others from their run.
        yield _failed(file, translate_os_error(error))


def _open_on_disk(path: str) -> tuple[Filesystem, str]:
    if "\0" in path:
        raise SourceError("the path has a null byte")
    status, is_folder = os.stat(path), is_one_source(path)
    check_regular(status.st_mode, is_folder)
    return LocalFilesystem(), folder_fingerprint(path) if is_folder else file_fingerprint(status)


def _open_object(file: NamedFile, s3: S3Filesystem, suffix: str) -> tuple[Filesystem, str]:
    opened = s3.open_object(file.path, _LOOK_BYTES.get(suffix, _LOOK_BYTES_OTHERS))
    return _Opened(s3, file.path, opened), opened.fingerprint


def _open_folder(file: NamedFile, s3: S3Filesystem) -> tuple[Filesystem, str]:
    fingerprint = file.fingerprint or s3.fingerprint_below(file.path)
    if fingerprint is None:
        raise SourceError("there is nothing in that folder")
    return s3, fingerprint


class _Opened:
    """S3, where one file is open already."""

    def __init__(self, s3: S3Filesystem, path: str, file: S3File) -> None:
        self._s3 = s3
        self._path = path
        self._file = file

    def open(self, path: str) -> BinaryIO:
        """That file, or another one beside it."""
        return io.BufferedReader(self._file) if path == self._path else self._s3.open(path)
