"""Files that come one by one with a name: rows of a listing, lines of standard input, objects in S3. In a thread."""

from __future__ import annotations

import io
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from async_maps.errors import MissingExtraError, SourceError, translate_os_error
from async_maps.filesystems.filesystem import is_remote
from async_maps.keys import printable
from async_maps.outcomes import Failure
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.files import entry, known_maps, maps_in_file, whole_file
from async_maps.sources.formats.registry import ListedMap, open_reader, suffix_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from concurrent.futures import Future
    from typing import BinaryIO

    from async_maps.filesystems.filesystem import Filesystem, Filesystems
    from async_maps.filesystems.s3 import S3File, S3Filesystem
    from async_maps.sources.files import Known

    Entry: TypeAlias = ActivationMap | Failure

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
    pending: deque[Iterator[Entry]] = deque()
    with _Lookers(filesystems) as lookers:
        while batch := list(islice(files, _BATCH)):
            single = {}
            if known is not None:
                single = known_maps({file: _whole(file) for file in batch if isinstance(file, NamedFile)}, known)
            for file in batch:
                if isinstance(file, Failure):
                    pending.append(iter([file]))
                elif file in single:
                    pending.append(iter([single[file]]))
                elif not is_remote(file.path):
                    pending.append(_maps_on_disk(file))
                else:
                    pending.append(lookers.look(file))
                if len(pending) > _AHEAD:
                    yield from pending.popleft()
        while pending:
            yield from pending.popleft()


def _whole(file: NamedFile) -> Entry | None:
    """The map that a file is if it is one map; None if that cannot be told."""
    if is_remote(file.path):
        return entry(file.name, file.path, ListedMap(None, None, file.size), file.fingerprint)
    return None if "\0" in file.path else whole_file(file.name, file.path)


def _maps_on_disk(file: NamedFile) -> Iterator[Entry]:
    if "\0" in file.path:
        yield failed(file, "the path has a null byte")
        return
    for found in maps_in_file(file.name, file.path):
        yield _with_row(found, file)


def failed(file: NamedFile, reason: str) -> Failure:
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
            return iter([failed(file, f"nothing here reads {printable(file.path)}")])
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_AHEAD, "async-maps-look")
        s3 = self._filesystems.s3()
        if suffix == ".zarr":
            return _maps_in(file, self._threads.submit(_open_folder, file, s3))
        return _maps_in(file, self._threads.submit(_open_object, file, s3, suffix))


def _maps_in(file: NamedFile, opening: Future[tuple[Filesystem, str]]) -> Iterator[Entry]:
    try:
        filesystem, fingerprint = opening.result()
        with closing(open_reader(file.path, filesystem)) as reader:
            for found in reader.maps():
                yield _with_row(entry(file.name, file.path, found, fingerprint), file)
    except (OSError, SourceError, MissingExtraError) as error:
        yield failed(file, translate_os_error(error))


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
