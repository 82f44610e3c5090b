"""The maps in named files, on disk or in S3. Runs in a thread."""

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

from async_maps.errors import AsyncMapsError, InputValidationError, MissingExtraError, SourceError, translate_os_error
from async_maps.filesystems.filesystem import (
    InaccessibleError,
    LocalFilesystem,
    check_regular,
    file_fingerprint,
    folder_fingerprint,
    is_remote,
)
from async_maps.keys import check_name, printable
from async_maps.outcomes import Failure
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.contents import ListedMap, maps_in_reader
from async_maps.sources.formats.registry import HIDDEN, is_one_source, not_read, open_reader, suffix_of, without_suffix
from async_maps.sources.options import LEFT_OUT, Scan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import BinaryIO

    from async_maps.filesystems.filesystem import Filesystem, Filesystems
    from async_maps.filesystems.s3 import S3File, S3Filesystem
    from async_maps.sources.options import Known, SourceOptions

    Entry: TypeAlias = ActivationMap | Failure
_BATCH = 256
_AHEAD = 16
"""The number of objects that are opened concurrently, because each takes a round trip."""
_LOOK_BYTES = {".npy": 16 * 2**10, ".png": 16 * 2**10, ".jpg": 64 * 2**10, ".jpeg": 64 * 2**10}
"""The size of the first read, for formats whose header suffices to list the maps."""
_LOOK_BYTES_OTHERS = 2**20
_STARTS = {
    b"\x93NUMPY": (".npy",),
    b"PK\3\4": (".npz", ".pt", ".pth", ".pth.tar"),
    b"\x89HDF": (".h5", ".hdf5", ".nc", ".nc4", ".mat"),
    b"MATLAB 5": (".mat",),
    b"\x89PNG": (".png", ".jpg", ".jpeg"),
    b"\xff\xd8\xff": (".jpg", ".jpeg", ".png"),
    b"PAR1": (".parquet",),
    b"ARROW1": (".arrow", ".feather", ".ipc"),
}
"""The first bytes of formats, and the suffixes of files that may begin with them; the first one names the format."""
_APPLE_DOUBLE = bytes.fromhex("00051607")


class NamedFile(NamedTuple):
    """A file and its name.

    Attributes:
        name: the name of the file; the maps of a file with several are named below it.
        path: an absolute path, or ``s3://bucket/key``.
        row: the row that lists the file, for messages: ``list.csv, line 7``.
        fingerprint: the state of the file, if the listing has it; else None.
        size: the size in bytes, if the listing has it; else 0.
    """

    name: str
    path: str
    row: str = ""
    fingerprint: str | None = None
    size: int = 0

    @property
    def with_suffix(self) -> str:
        """The name with the suffix of the file."""
        return self.name + self.path[len(without_suffix(self.path)) :]


def maps_in_named(files: Iterable[NamedFile | Failure], filesystems: Filesystems, scan: Scan) -> Iterator[Entry]:
    """Yield the maps in files, in the order of the files; failures are passed on.

    Known files are not opened. Files in S3 are opened concurrently and ahead.
    """
    files = iter(files)
    pending: deque[tuple[bool, Iterator[Entry]]] = deque()
    with _Openers(filesystems, scan) as openers:
        # Batches are only for known().
        while batch := list(islice(files, _BATCH if scan.known else 1)):
            for file in _with_known(batch, scan.known, scan) if scan.known else batch:
                if not isinstance(file, NamedFile):
                    pending.append((False, iter((file,))))
                elif scan.options.leaves_out(file.name, file.with_suffix):
                    scan.pass_over(LEFT_OUT)
                elif is_remote(file.path):
                    pending.append((True, openers.maps_in(file)))
                else:
                    pending.append((False, _maps_in(file, partial(_open_on_disk, file.path), scan)))
                while pending and (len(pending) > _AHEAD or not pending[0][0]):
                    yield from pending.popleft()[1]
        for _, maps in pending:
            yield from maps


def _with_known(files: Sequence[NamedFile | Failure], known: Known, scan: Scan) -> Iterator[NamedFile | Entry]:
    """Replace each unchanged file that is a single map, according to an earlier run, by its map."""
    # A known map that include or exclude leaves out is counted as such below, like an unknown one.
    wholes = [
        _whole(file, scan.options)
        if isinstance(file, NamedFile) and scan.options.wants(file.name, file.with_suffix)
        else None
        for file in files
    ]
    maps = [whole for whole in wholes if isinstance(whole, ActivationMap)]
    sources = known(maps) if maps else ()
    for file, whole in zip(files, wholes, strict=True):
        is_known = isinstance(whole, ActivationMap) and whole.source in sources
        if is_known and isinstance(file, NamedFile):
            scan.has_read(file.path, file.with_suffix)
        yield whole if is_known and whole is not None else file


def _whole(file: NamedFile, options: SourceOptions) -> Entry | None:
    """Return the map of a file, assuming that it has only one; None if the file must be opened."""
    is_npy = file.path.lower().endswith(".npy")
    if is_remote(file.path):
        # Of other formats, the listing does not know the size of the array: no earlier run has a map with this part.
        whole = ListedMap(None, None if is_npy else 0, file.size)
        return _entry(file.name, file.path, whole, options.mark(file.fingerprint))
    if not is_npy:
        return None
    try:
        status = os.stat(file.path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    fingerprint = options.mark(file_fingerprint(status))
    return _entry(file.name, file.path, ListedMap(None, None, status.st_size), fingerprint)


def _entry(name: str, path: str, found: ListedMap, fingerprint: str | None) -> ActivationMap | Failure:
    """Return a map that was found in a file, or the failure of a map with an invalid name."""
    source = printable(path if found.name is None else f"{path}[{found.name}]")
    name = name if found.name is None else f"{name}/{found.name}"
    if found.refusal:
        index = found.part[1] if isinstance(found.part, list) else None
        where = source if index is None else f"{source}, map {index}"
        return Failure(printable(name), where, fingerprint, "source", found.refusal, printable(path))
    try:
        check_name(name)
    except InputValidationError as error:
        return Failure(printable(name), source, fingerprint, "source", str(error), printable(path))
    if fingerprint is not None and found.part is not None:
        # The list of names beside a file can change while the file does not.
        fingerprint = f"{fingerprint} {found.part}"
    return ActivationMap(
        name, source, fingerprint, found.max_bytes, path, found.part, header=found.header, problem=found.problem
    )


def _failed(file: NamedFile, reason: str) -> Failure:
    if file.row:
        reason = f"{reason} ({file.row})"
    return Failure(printable(file.name), printable(file.path), file.fingerprint, "source", reason)


def _with_row(found: Entry, file: NamedFile) -> Entry:
    return replace(found, reason=f"{found.reason} ({file.row})") if file.row and isinstance(found, Failure) else found


class _Openers:
    def __init__(self, filesystems: Filesystems, scan: Scan) -> None:
        self._filesystems = filesystems
        self._scan = scan
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> _Openers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._threads is None:
            return
        if kind is not None:
            # End the requests in flight, and do not wait for their threads: the event loop may be closing this.
            self._filesystems.close()
        self._threads.shutdown(wait=kind is None, cancel_futures=True)

    def maps_in(self, file: NamedFile) -> Iterator[Entry]:
        """Start to open an object; return an iterator of its maps."""
        suffix = suffix_of(file.path)
        if suffix is None and file.fingerprint is None:
            return iter([_failed(file, not_read(file.path))])
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_AHEAD, "async-maps-open")
        s3 = self._filesystems.s3()
        # A folder without a suffix is a Hugging Face dataset.
        if suffix is None or suffix == ".zarr":
            return _maps_in(file, self._threads.submit(_open_folder, file, s3).result, self._scan)
        return _maps_in(file, self._threads.submit(_open_object, file, s3, suffix).result, self._scan)


def _maps_in(file: NamedFile, open_file: Callable[[], tuple[Filesystem, str]], scan: Scan) -> Iterator[Entry]:
    """Yield the maps in a file; ``open_file`` returns its filesystem and its fingerprint."""
    is_read = True
    try:
        opened, fingerprint = open_file()
        with closing(open_reader(file.path, opened)) as reader:
            names = partial(_open_names, file.path, opened)
            for listed in maps_in_reader(reader, scan.options, scan.pass_over, names, partial(_is_named, scan, file)):
                found = listed
                if found.problem and found.name is None:
                    if _is_apple_double(file.path):
                        scan.pass_over(HIDDEN)
                        return
                    found = found._replace(problem=_with_format(file.path, found.problem))
                entry = _entry(file.name, file.path, found, scan.options.mark(fingerprint))
                members = [f"{file.name}/{found.picture}"] if found.picture else []
                if scan.options.wants(entry.name, file.with_suffix, *members):
                    if found.question is not None and scan.questions is not None:
                        scan.questions.ask(printable(file.path), found.question)
                    yield _with_row(entry, file)
                else:
                    scan.pass_over(LEFT_OUT)
    except _AppleDoubleError:
        scan.pass_over(HIDDEN)
    except (OSError, SourceError, MissingExtraError) as error:
        if _is_apple_double(file.path):
            scan.pass_over(HIDDEN)
            return
        is_short = isinstance(error.__cause__, MemoryError)
        is_read = not (is_short or isinstance(error, OSError | InaccessibleError | MissingExtraError))
        # A missing extra affects only files of its format.
        reason = translate_os_error(error)
        yield _failed(file, _with_format(file.path, reason) if isinstance(error, SourceError) else reason)
    except AsyncMapsError:
        raise
    except Exception as error:  # noqa: BLE001  # a malicious file can cause any error
        is_read = not isinstance(error, MemoryError)
        yield _failed(file, f"could not be listed: {printable(repr(error))[:200]}")
    scan.has_read(file.path, file.with_suffix, whole=is_read)


def _is_named(scan: Scan, file: NamedFile, picture: str) -> bool:
    """Whether ``include`` names a picture in an archive."""
    path = f"{file.name}/{picture}"
    return scan.options.names_file(without_suffix(path), path)


class _AppleDoubleError(Exception):
    """An object has what macOS keeps beside a file of another name: ``._x.npy`` beside ``x.npy``."""


def _is_apple_double(path: str) -> bool:
    """Whether a file on disk is such a file; looked up only if it cannot be read."""
    return _start_of(path).startswith(_APPLE_DOUBLE)


def _with_format(path: str, reason: str) -> str:
    """Return why a file on disk cannot be read, with the format of its first bytes if it is that of another suffix."""
    start = _start_of(path)
    suffixes = next((suffixes for magic, suffixes in _STARTS.items() if start.startswith(magic)), ())
    if not suffixes or (suffix_of(path) or "") in suffixes:
        return reason
    return f"{reason}; its first bytes are those of {suffixes[0]}: rename it"


def _start_of(path: str) -> bytes:
    """Return the first bytes of a file on disk; none if it cannot be read."""
    try:
        with LocalFilesystem().open(path) as file:
            return file.read(16)
    except (OSError, SourceError, ValueError):
        return b""


def _open_names(path: str, filesystem: Filesystem) -> BinaryIO | None:
    """Open the list of names beside a file; None if there is none."""
    try:
        return filesystem.open(f"{without_suffix(path)}.names.txt")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InaccessibleError(f"the list of names cannot be read: {error.strerror}") from error
    except InaccessibleError as error:
        raise InaccessibleError(f"the list of names cannot be read: {error}") from None
    except SourceError as error:
        raise SourceError(f"the list of names cannot be read: {error}") from None


def _open_on_disk(path: str) -> tuple[Filesystem, str]:
    if "\0" in path:
        raise SourceError("the path has a null byte")
    status, is_folder = os.stat(path), is_one_source(path)
    check_regular(status.st_mode, is_folder)
    return LocalFilesystem(), folder_fingerprint(path) if is_folder else file_fingerprint(status)


def _open_object(file: NamedFile, s3: S3Filesystem, suffix: str) -> tuple[Filesystem, str]:
    opened = s3.open_object(file.path, _LOOK_BYTES.get(suffix, _LOOK_BYTES_OTHERS))
    if opened.read(len(_APPLE_DOUBLE)) == _APPLE_DOUBLE:
        raise _AppleDoubleError
    opened.seek(0)
    return _Opened(s3, file.path, opened), opened.fingerprint


def _open_folder(file: NamedFile, s3: S3Filesystem) -> tuple[Filesystem, str]:
    fingerprint = file.fingerprint or s3.fingerprint_below(file.path)
    if fingerprint is None:
        raise SourceError("the folder is empty")
    return s3, fingerprint


class _Opened:
    def __init__(self, s3: S3Filesystem, path: str, file: S3File) -> None:
        self._s3 = s3
        self._path = path
        self._file: S3File | None = file

    def open(self, path: str) -> BinaryIO:
        """Return the open file at the first call; else open one."""
        if path != self._path or self._file is None:
            return self._s3.open(path)
        file, self._file = self._file, None
        return io.BufferedReader(file)
