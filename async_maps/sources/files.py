"""Files on a disk: one, a folder of them, or a glob. Runs in a thread."""

from __future__ import annotations

import os
import stat
from contextlib import closing
from fnmatch import fnmatchcase
from functools import partial
from glob import has_magic
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from async_maps.errors import InputValidationError, MissingExtraError, SourceError, translate_os_error
from async_maps.filesystems.filesystem import LocalFilesystem, check_regular
from async_maps.filesystems.spill import Spill
from async_maps.keys import check_name, printable
from async_maps.outcomes import Failure
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.formats.registry import (
    FORMATS,
    ListedMap,
    is_one_source,
    open_reader,
    suffix_of,
    without_suffix,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
    from typing import TypeAlias

    Patterns: TypeAlias = Set[tuple[str, ...]]
    """Globs relative to a folder, each as its parts: a path below it is wanted if any of them matches."""

    Known: TypeAlias = Callable[[Sequence[ActivationMap]], Collection[str]]
    """Says the names of those maps that are known, from an earlier run, to be all there is in their unchanged file."""

T = TypeVar("T")

_ASK_AT_ONCE = 256
_SORT_IN_MEMORY = 10_000
"""So many names are sorted as a list; a longer listing is sorted by SQLite, on disk where it must be."""


def open_files(place: str | os.PathLike[str], known: Known | None = None) -> Files:
    """The maps at a path or a glob.

    Args:
        place: the path or the glob.
        known: what need not be looked into.

    Raises:
        SourceError: nothing is there, or a file of a kind that is not read.
    """
    path = os.fspath(place)
    if os.path.isdir(path):
        if is_one_source(path):
            folder = os.path.abspath(path)
            return Files(os.path.dirname(folder), lambda: [folder], known)
        return Files(path, partial(_walk, os.path.abspath(path), None), known)
    if os.path.lexists(path):
        if suffix_of(path) is None:
            raise SourceError(
                f"{printable(path)} is not read as activation maps; expected a file ending in {', '.join(FORMATS)}"
            )
        return Files(os.path.dirname(path), lambda: [os.path.abspath(path)], known)
    if has_magic(path):
        folder, pattern = _split_glob(path)
        if os.path.isdir(folder):
            return Files(folder, partial(_walk, os.path.abspath(folder), {pattern}), known)
        path = folder
    raise SourceError(f"no such file or folder: {printable(path)}")


class Files:
    """The maps in a listing of paths, named relative to a root.

    Args:
        root: the folder that names are relative to.
        find: lists the files anew, absolute and below the root; a failure is passed on.
        known: what need not be looked into.
    """

    def __init__(self, root: str, find: Callable[[], Iterable[str | Failure]], known: Known | None = None) -> None:
        self._skip = len(os.path.join(os.path.abspath(root), ""))
        self._find = find
        self._known = known

    def __iter__(self) -> Iterator[ActivationMap | Failure]:
        """The maps, in the order of their paths."""
        paths = iter(self._find())
        # Without anyone to ask, none waits for others.
        while batch := list(islice(paths, _ASK_AT_ONCE if self._known else 1)):
            names = {path: self._name(path) for path in batch if not isinstance(path, Failure)}
            single = {}
            if self._known is not None:
                single = known_maps({path: whole_file(name, path) for path, name in names.items()}, self._known)
            for path in batch:
                if isinstance(path, Failure):
                    yield path
                elif path in single:
                    yield single[path]
                else:
                    yield from maps_in_file(names[path], path)

    def _name(self, path: str) -> str:
        return without_suffix(path[self._skip :])


def known_maps(single: Mapping[T, ActivationMap | Failure | None], known: Known) -> dict[T, ActivationMap]:
    """Those of these maps that are known, from an earlier run, to be all there is in their unchanged file.

    Args:
        single: for each file the map that it is, if it is one map.
        known: says which are known.
    """
    maps = {file: map_ for file, map_ in single.items() if isinstance(map_, ActivationMap)}
    names = known(list(maps.values())) if maps else ()
    return {file: map_ for file, map_ in maps.items() if map_.name in names}


def whole_file(name: str, path: str) -> ActivationMap | Failure | None:
    """The map that a file on a disk is if it is one map; None if it is of another kind. The file is not opened."""
    if not path.endswith(".npy"):
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return entry(name, path, ListedMap(None, None, status.st_size), _file_state(status))


def maps_in_file(name: str, path: str) -> Iterator[ActivationMap | Failure]:
    """The maps in a file on a disk.

    Args:
        name: the file's own; what it holds more than one map of is named below it.
        path: absolute.
    """
    try:
        status = os.stat(path)
        folder = is_one_source(path)
        check_regular(status.st_mode, folder)
        fingerprint = _folder_state(path) if folder else _file_state(status)
        with closing(open_reader(path, LocalFilesystem())) as reader:
            for found in reader.maps():
                yield entry(name, path, found, fingerprint)
    except (OSError, SourceError, MissingExtraError) as error:
        # A file whose extra is missing, perhaps no map's at all, does not keep the others from their run.
        yield _failure(name, path, translate_os_error(error))


def entry(name: str, path: str, found: ListedMap, fingerprint: str | None) -> ActivationMap | Failure:
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


def _split_glob(path: str) -> tuple[str, tuple[str, ...]]:
    """The folder above the first wildcard, and the rest as parts."""
    parts = Path(path).parts
    fixed = next(index for index, part in enumerate(parts) if has_magic(part))
    pattern = parts[fixed:]
    return str(Path(*parts[:fixed])), (*pattern, "*") if pattern[-1] == "**" else pattern


def _walk(folder: str, wanted: Patterns | None, above: tuple[tuple[int, int], ...] = ()) -> Iterator[str | Failure]:
    """Every wanted file below a folder, sorted, one folder's listing at a time.

    Symbolic links are followed, loops are not.

    Args:
        folder: absolute.
        wanted: None for everything, hidden files and folders too.
        above: the folders that led here.
    """
    try:
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            yield _failure(folder, folder, "a symbolic link that leads back to a folder above it")
            return
        for entry in _sort(_listing(folder, wanted)):
            path = os.path.join(folder, entry)
            if entry.endswith("/"):
                yield from _walk(path[:-1], _behind(wanted, entry[:-1]), (*above, identity))
            else:
                yield path
    except OSError as error:
        yield _failure(folder, folder, translate_os_error(error))


def _listing(folder: str, wanted: Patterns | None) -> Iterator[str]:
    """The names in a folder, as they come; those of folders end in a slash."""
    with os.scandir(folder) as children:
        for entry in children:
            left = _behind(wanted, entry.name)
            if _is_folder(entry) and not is_one_source(entry.path):
                if left is None or left - {()}:
                    yield f"{entry.name}/"
            elif (left is None or () in left) and (suffix_of(entry.name) or _is_folder(entry)):
                yield entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link to what cannot be looked at: going on as with what its name says tells the reason.
        return suffix_of(entry.name) is None


def _behind(patterns: Patterns | None, name: str) -> Patterns | None:
    """What is left of the patterns behind a name: an empty one if the name itself is wanted."""
    if patterns is None:
        return None
    return {left for pattern in patterns for left in _left_of(pattern, name)}


def matches(pattern: tuple[str, ...], path: str) -> bool:
    """Whether a glob matches a path with slashes, as it would in a walk; both relative to the same folder."""
    left: Patterns | None = {pattern}
    for part in path.split("/"):
        left = _behind(left, part)
    return left is not None and () in left


def _left_of(pattern: tuple[str, ...], name: str) -> Iterator[tuple[str, ...]]:
    if not pattern:
        return
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        yield from _left_of(rest, name)
    # As in a shell, a wildcard does not match a dot at the start.
    if fnmatchcase(name, first) and (first.startswith(".") or not name.startswith(".")):
        yield pattern if first == "**" else rest


def _sort(names: Iterator[str]) -> Iterator[str]:
    first = list(islice(names, _SORT_IN_MEMORY))
    if len(first) < _SORT_IN_MEMORY:
        yield from sorted(first, key=os.fsencode)
        return
    schema = "CREATE TABLE names (name BLOB PRIMARY KEY) WITHOUT ROWID"
    with Spill("the names in a folder", schema, SourceError) as spill, spill.transaction() as database:
        for batch in (first, names):
            database.executemany("INSERT INTO names VALUES (?)", ((os.fsencode(name),) for name in batch))
        for (name,) in database.execute("SELECT name FROM names ORDER BY name"):
            yield os.fsdecode(name)


def _file_state(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def _folder_state(folder: str) -> str:
    """What changes when any file in a folder does: a digest over their paths, sizes and times.

    Raises:
        SourceError: a symbolic link in it leads back to a folder above, or what lies in it is no plain file.
        OSError: it cannot be read.
    """
    # A sum does not depend on the order in which files come, and so none has to be remembered to be sorted.
    total = 0
    for line in _states(folder):
        total += int.from_bytes(blake2b(line, digest_size=16).digest(), "big")
    return f"{total % 2**128:032x}"


def _states(folder: str) -> Iterator[bytes]:
    """Path, size and time of every file below a folder, in no particular order."""
    left: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while left:
        path, above = left.pop()
        status = os.stat(os.path.join(folder, path))
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            raise SourceError("a symbolic link in it leads back to a folder above")
        with os.scandir(os.path.join(folder, path)) as children:
            for child in children:
                below = os.path.join(path, child.name)
                if child.is_dir():
                    left.append((below, (*above, identity)))
                else:
                    status = child.stat()
                    try:
                        check_regular(status.st_mode)
                    except SourceError as error:
                        raise SourceError(f"at {printable(below)}: {error}") from None
                    yield os.fsencode(f"{below}\0{status.st_size}-{status.st_mtime_ns}")


def _failure(name: str, path: str, reason: str) -> Failure:
    return Failure(printable(name), printable(path), None, "source", reason)
