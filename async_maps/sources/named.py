"""The maps in named files, on disk or in buckets. Runs in a thread."""

from __future__ import annotations

import os
import stat
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from async_maps.errors import (
    AsyncMapsError,
    InputValidationError,
    MissingExtraError,
    SourceError,
    shortage_of_files,
    translate_os_error,
)
from async_maps.filesystems.addresses import is_remote
from async_maps.filesystems.filesystem import InaccessibleError, LocalFilesystem, file_fingerprint, verdict_of
from async_maps.filesystems.verdict import Scope
from async_maps.keys import check_name, printable
from async_maps.outcomes import Failure
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.contents import ListedMap
from async_maps.sources.formats.registry import HIDDEN, PassedOver, not_read, suffix_of, without_suffix
from async_maps.sources.hearing import Hearing
from async_maps.sources.isolated_listing import IsolatedListing, is_isolated
from async_maps.sources.isolation import NoProcessError
from async_maps.sources.members import APPLE_DOUBLE, AppleDoubleError, maps_in_file, open_file, opened_object
from async_maps.sources.options import LEFT_OUT, Scan
from async_maps.sources.whole_objects import WholeObjects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from async_maps.filesystems.answers import Range
    from async_maps.filesystems.filesystem import Filesystems
    from async_maps.filesystems.verdict import Verdict
    from async_maps.sources.options import Known, SourceOptions

    Entry: TypeAlias = ActivationMap | Failure
    _Begun: TypeAlias = tuple[str, Iterator[ListedMap]]
_BATCH = 256
_AHEAD = 16
"""The number of objects that are opened concurrently, because each takes a round trip."""
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


class NamedFile(NamedTuple):
    """A file and its name.

    Attributes:
        name: the name of the file; the maps of a file with several are named below it.
        path: an absolute path, or the address of an object.
        row: the row that lists the file, for messages: ``list.csv, line 7``.
        fingerprint: the state of the file, if the listing has it; else None.
        size: the size in bytes, if the listing has it; else 0.
        expected: the state that the file must be in; None for any.
        first: the index of the first map to list, if the file is a stack.
        end: the index after the last one; None for all.
    """

    name: str
    path: str
    row: str = ""
    fingerprint: str | None = None
    size: int = 0
    expected: str | None = None
    first: int = 0
    end: int | None = None

    @property
    def with_suffix(self) -> str:
        """The name with the suffix of the file."""
        return self.name + self.path[len(without_suffix(self.path)) :]


def maps_in_named(
    files: Iterable[NamedFile | Failure], filesystems: Filesystems, scan: Scan, hearing: Hearing | None = None
) -> Iterator[Entry]:
    """Yield the maps in files, in the order of the files; failures are passed on.

    Known files are not opened. Files in buckets are opened concurrently and ahead. Calls for the parts of one listing
    share a ``hearing``, which the caller ends.
    """
    files = iter(files)
    pending: deque[tuple[bool, Iterator[Entry]]] = deque()
    with _Openers(filesystems, scan, hearing or Hearing(filesystems)) as openers:
        # Batches are only for known().
        while batch := list(islice(files, _BATCH if scan.known else 1)):
            for file in _with_known(batch, scan.known, scan) if scan.known else batch:
                if isinstance(file, ActivationMap) and file.path is not None and is_remote(file.path):
                    openers.hearing.could_read(file.path)
                if not isinstance(file, NamedFile):
                    pending.append((False, iter((file,))))
                elif scan.options.leaves_out(file.name, file.with_suffix):
                    scan.pass_over(LEFT_OUT)
                else:
                    pending.append((is_remote(file.path), openers.maps_in(file)))
                while pending and (openers.is_full(len(pending)) or not pending[0][0]):
                    yield from pending.popleft()[1]
        for _, maps in pending:
            yield from maps
        yield from openers.hearing.released()
        if hearing is None:
            openers.hearing.end()


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
        name, source, fingerprint, found.max_bytes, path, found.part, found.array, header=found.header,
        problem=found.problem,
    )  # fmt: skip


def _failed(file: NamedFile, reason: str) -> Failure:
    if file.row:
        reason = f"{reason} ({file.row})"
    return Failure(printable(file.name), printable(file.path), file.fingerprint, "source", reason)


def _with_row(found: Entry, file: NamedFile) -> Entry:
    return replace(found, reason=f"{found.reason} ({file.row})") if file.row and isinstance(found, Failure) else found


class _Openers:
    def __init__(self, filesystems: Filesystems, scan: Scan, hearing: Hearing) -> None:
        self._filesystems = filesystems
        self._scan = scan
        self._isolated = None if scan.decoder is None else IsolatedListing(scan.decoder)
        self._threads: ThreadPoolExecutor | None = None
        self._opening = 0
        self._whole = None if scan.ahead is None else WholeObjects(filesystems, scan.ahead)
        self.hearing = hearing

    def __enter__(self) -> _Openers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            # End the requests in flight, and do not wait for their threads: the event loop may be closing this.
            self._filesystems.close()
            if self._scan.decoder is not None:
                self._scan.decoder.stop()
        if self._threads is not None:
            self._threads.shutdown(wait=kind is None, cancel_futures=True)
        if self._isolated is not None:
            self._isolated.close()

    def is_full(self, count: int) -> bool:
        """Whether no more than this number of files may be ahead."""
        return self._opening > _AHEAD or (count > _AHEAD if self._whole is None else self._whole.is_full(count))

    def maps_in(self, file: NamedFile) -> Iterator[Entry]:
        """Return an iterator of the maps of a file; start to open it if it is in a bucket."""
        begin = partial(self._begin, file)
        if self._isolated is not None and is_isolated(file.path):
            begin = partial(self._begin_isolated, file, self._isolated)
        if not is_remote(file.path):
            return _maps_in(file, begin, self._scan)
        if suffix_of(file.path) is None and file.fingerprint is None:
            return iter([_failed(file, not_read(file.path))])
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_AHEAD, "async-maps-open")
        if (whole := self._whole) is not None and whole.takes(file):
            read = whole.begin(file, self._threads)
            return self._judged(file, lambda: self._begin_whole(file, whole, read()), begin)
        self._opening += 1
        return self._judged(file, partial(self._opened, self._threads.submit(begin)), begin)

    def _opened(self, opening: Future[_Begun]) -> _Begun:
        try:
            return opening.result()
        finally:
            self._opening -= 1

    def _judged(
        self, file: NamedFile, begun: Callable[[], _Begun], begin: Callable[[], _Begun], tries: int = 1
    ) -> Iterator[Entry]:
        """Yield the maps in an object; if it cannot be read, find out whose fault that is."""
        hearing, count = self.hearing, 0
        unread: list[Verdict] = []
        for entry in _maps_in(file, begun, self._scan, unread):
            count += 1
            yield entry
        if not unread:
            hearing.could_read(file.path)
            yield from hearing.released()
        elif hearing.may_pass(file.path, unread[0], tries) and not count:
            yield from self._judged(file, begin, begin, tries + 1)
        else:
            self._scan.could_not_read(file.path)
            yield from hearing.hold(_failed(file, unread[0].reason), unread[0])

    def _begin(self, file: NamedFile) -> tuple[str, Iterator[ListedMap]]:
        opened = open_file(file.path, file.fingerprint, self._filesystems)
        is_named = partial(_is_named, self._scan, file)
        maps = maps_in_file(file.path, opened.filesystem, self._options(file), self._scan.pass_over, is_named)
        return opened.fingerprint, maps

    def _begin_whole(self, file: NamedFile, whole: WholeObjects, content: Range) -> _Begun:
        opened = opened_object(file.path, content, self._filesystems.remote(file.path))
        options = self._options(file)
        maps = maps_in_file(file.path, opened.filesystem, options, self._scan.pass_over)
        return opened.fingerprint, whole.with_arrays(maps, content, options)

    def _options(self, file: NamedFile) -> SourceOptions:
        return replace(self._scan.options, span=(file.first, file.end))

    def _begin_isolated(self, file: NamedFile, isolated: IsolatedListing) -> tuple[str, Iterator[ListedMap]]:
        try:
            fingerprint, found = isolated.maps(file.path, file.fingerprint, self._options(file))
        except NoProcessError:
            return self._begin(file)
        return fingerprint, self._without_passed(found)

    def _without_passed(self, found: Iterator[ListedMap | PassedOver]) -> Iterator[ListedMap]:
        for map_ in found:
            if isinstance(map_, PassedOver):
                self._scan.pass_over(map_.what)
            else:
                yield map_


def _maps_in(  # noqa: PLR0912  # a branch a kind of error
    file: NamedFile, begin: Callable[[], _Begun], scan: Scan, unread: list[Verdict] | None = None
) -> Iterator[Entry]:
    """Yield the maps in a file; ``begin`` opens it, and returns its fingerprint and an iterator of its maps.

    If a request failed, and not by the fault of the file, the verdict is appended to ``unread``.
    """
    is_read = True
    try:
        fingerprint, maps = begin()
        if file.expected not in {None, fingerprint}:
            raise SourceError(
                f"changed since it was planned: expected {file.expected}, found {fingerprint}; make another plan with "
                "--since"
            )
        for listed in maps:
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
    except AppleDoubleError:
        scan.pass_over(HIDDEN)
    except (OSError, SourceError, MissingExtraError) as error:
        if shortage := shortage_of_files(error):
            raise shortage from error
        verdict = verdict_of(error)
        if unread is not None and verdict is not None and verdict.scope is not Scope.KEY:
            unread.append(verdict)
            return
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


def _is_apple_double(path: str) -> bool:
    """Whether a file on disk is such a file; looked up only if it cannot be read."""
    return _start_of(path).startswith(APPLE_DOUBLE)


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
