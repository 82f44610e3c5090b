"""Files on a disk: one, a folder of them, or a glob. Runs in a thread."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from contextlib import closing
from fnmatch import fnmatchcase
from functools import partial
from glob import has_magic
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from async_maps.errors import InputValidationError, SourceError
from async_maps.names import check_name, printable
from async_maps.records import ActivationMap, Failure
from async_maps.sources import npy, npz

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Set
    from typing import TypeAlias

    Patterns: TypeAlias = Set[tuple[str, ...]]
    """Globs relative to a folder, each as its parts: a path below it is wanted if any of them matches."""

SUFFIXES = (".npy", ".npz")

_SORT_IN_MEMORY = 10_000
"""So many names are sorted as a list; a longer listing is sorted by SQLite, on disk where it must be."""


def open_files(place: str | os.PathLike[str]) -> Files:
    """The maps at a path or a glob.

    Raises:
        SourceError: nothing is there, or a file of a kind that is not read.
    """
    path = os.fspath(place)
    if os.path.isdir(path):
        return Files(path, partial(_walk, os.path.abspath(path), None))
    if os.path.lexists(path):
        if not path.lower().endswith(SUFFIXES):
            raise SourceError(
                f"{printable(path)} is not read as activation maps; expected a file ending in {' or '.join(SUFFIXES)}"
            )
        return Files(os.path.dirname(path), lambda: [os.path.abspath(path)])
    if has_magic(path):
        folder, pattern = _split_glob(path)
        if os.path.isdir(folder):
            return Files(folder, partial(_walk, os.path.abspath(folder), {pattern}))
        path = folder
    raise SourceError(f"no such file or folder: {printable(path)}")


class Files:
    """The maps in a listing of paths, named relative to a root.

    Args:
        root: the folder that names are relative to.
        find: lists the files anew, absolute; a failure is passed on.
    """

    def __init__(self, root: str, find: Callable[[], Iterable[str | Failure]]) -> None:
        self._root = os.path.abspath(root)
        self._find = find

    def __iter__(self) -> Iterator[ActivationMap | Failure]:
        """The maps, in the order of their paths."""
        for path in self._find():
            if isinstance(path, Failure):
                yield path
            else:
                yield from self._maps_in(path)

    def _maps_in(self, path: str) -> Iterator[ActivationMap | Failure]:
        name = os.path.relpath(path, self._root)[: -len(".npy")]  # no suffix is longer or shorter
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                yield _failure(name, path, f"expected a regular file, found {_kind(status.st_mode)}")
                return
            fingerprint = f"{status.st_size}-{status.st_mtime_ns}"
            if npy.matches(path):
                yield _entry(name, path, None, (fingerprint, status.st_size))
            else:
                for member, size in npz.members(path):
                    yield _entry(f"{name}/{member}", path, member, (fingerprint, size))
        except (OSError, SourceError) as error:
            yield _failure(name, path, explain(error))


def explain(error: Exception) -> str:
    """One sentence for an error of a file, without its path."""
    if isinstance(error, FileNotFoundError):
        return "the file is not there: it was moved or deleted, or a symbolic link leads nowhere"
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "a symbolic link that leads back to itself"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return str(error)


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
        yield _failure(folder, folder, explain(error))


def _listing(folder: str, wanted: Patterns | None) -> Iterator[str]:
    """The names in a folder, as they come; those of folders end in a slash."""
    with os.scandir(folder) as entries:
        for entry in entries:
            left = _behind(wanted, entry.name)
            if _is_folder(entry):
                if left is None or left - {()}:
                    yield f"{entry.name}/"
            elif entry.name.lower().endswith(SUFFIXES) and (left is None or () in left):
                yield entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link to what cannot be looked at: going on as with what its name says tells the reason.
        return not entry.name.lower().endswith(SUFFIXES)


def _behind(patterns: Patterns | None, name: str) -> Patterns | None:
    """What is left of the patterns behind a name: an empty one if the name itself is wanted."""
    if patterns is None:
        return None
    return {left for pattern in patterns for left in _left_of(pattern, name)}


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
    # "" is a private database that SQLite spills to a file of its own and deletes.
    with closing(sqlite3.connect("", check_same_thread=False)) as database:
        database.execute("CREATE TABLE names (name BLOB PRIMARY KEY) WITHOUT ROWID")
        for batch in (first, names):
            database.executemany("INSERT INTO names VALUES (?)", ((os.fsencode(name),) for name in batch))
        for (name,) in database.execute("SELECT name FROM names ORDER BY name"):
            yield os.fsdecode(name)


def _entry(name: str, path: str, member: str | None, state: tuple[str, int]) -> ActivationMap | Failure:
    fingerprint, size = state
    source = printable(path if member is None else f"{path}[{member}]")
    try:
        check_name(name)
    except InputValidationError as error:
        return Failure(printable(name), source, fingerprint, "source", str(error))
    return ActivationMap(name, source, fingerprint, size, path, member)


def _failure(name: str, path: str, reason: str) -> Failure:
    return Failure(printable(name), printable(path), None, "source", reason)


def _kind(mode: int) -> str:
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((name for test, name in kinds.items() if test(mode)), "a device")
