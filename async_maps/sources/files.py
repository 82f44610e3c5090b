"""Local files as a source: one file, a folder or a glob. Runs in a thread."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from glob import has_magic
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from async_maps.errors import SourceError, shortage_of_files, translate_os_error
from async_maps.filesystems.filesystem import Filesystems
from async_maps.filesystems.locators import file_path
from async_maps.filesystems.spill import Spill
from async_maps.keys import printable
from async_maps.outcomes import Failure
from async_maps.sources.coverage import every
from async_maps.sources.formats.registry import (
    HIDDEN,
    is_hidden,
    is_one_source,
    not_read,
    shown_suffix,
    suffix_of,
    without_suffix,
)
from async_maps.sources.named import NamedFile, maps_in_named
from async_maps.sources.options import Scan
from async_maps.sources.pictures import OVERLAYS, Pictures

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Set
    from typing import TypeAlias

    from async_maps.sources.activation_map import ActivationMap
    from async_maps.sources.options import PassOver

    Patterns: TypeAlias = Set[tuple[str, ...]]
    """Globs relative to a folder, each split into parts. A path is selected if any of them matches."""

_SORT_IN_MEMORY = 10_000
"""Number of names; a longer listing is sorted by SQLite, on disk if necessary."""


def open_files(place: str | os.PathLike[str], scan: Scan) -> Files:
    """Return the maps at a path or a glob; raise SourceError if nothing is there, or the format is not supported."""
    path = os.fspath(place)
    if os.path.isdir(path):
        if is_one_source(path):
            folder = os.path.abspath(path)
            return Files(os.path.dirname(folder), lambda: [folder], scan, _only(folder))
        return Files(path, _Walk(path, None, scan).files, scan)
    if os.path.lexists(path):
        if suffix_of(path) is None:
            raise SourceError(not_read(path))
        return Files(os.path.dirname(path), lambda: [os.path.abspath(path)], scan, _only(os.path.abspath(path)))
    if has_magic(path):
        folder, pattern = _split_glob(path)
        if os.path.isdir(folder):
            skip = len(os.path.join(os.path.abspath(folder), ""))
            return Files(folder, _Walk(folder, pattern, scan).files, scan, lambda file: matches(pattern, file[skip:]))
        path = folder
    raise SourceError(f"no such file or folder: {printable(path)}")


class Files:
    """The maps in the files that ``find`` lists, named relative to a root folder.

    Each iteration calls ``find``, which returns absolute paths below the root, and failures. ``covers`` decides which
    files below the root ``find`` returns, if they exist.
    """

    def __init__(
        self,
        root: str,
        find: Callable[[], Iterable[str | Failure]],
        scan: Scan,
        covers: Callable[[str], bool] = every,
    ) -> None:
        self._root, self._covers = os.path.abspath(root), covers
        self._skip = len(os.path.join(self._root, ""))
        self._find = find
        self._scan = scan

    def __iter__(self) -> Iterator[ActivationMap | Failure]:
        filesystems = Filesystems()
        return maps_in_named(self.files(filesystems), filesystems, self._scan)

    def files(self, _: Filesystems) -> Iterator[NamedFile | Failure]:
        """Yield the files, as a :class:`~async_maps.sources.FileSource`."""
        self._scan.begin(self._root, self._covers)
        return map(self._named, self._find())

    def _named(self, path: str | Failure) -> NamedFile | Failure:
        return path if isinstance(path, Failure) else NamedFile(without_suffix(path[self._skip :]), path)


def _only(file: str) -> Callable[[str], bool]:
    return printable(file).__eq__


def _split_glob(path: str) -> tuple[str, tuple[str, ...]]:
    parts = Path(path).parts
    fixed = next(index for index, part in enumerate(parts) if has_magic(part))
    pattern = parts[fixed:]
    return str(Path(*parts[:fixed])), (*pattern, "*") if pattern[-1] == "**" else pattern


class _Walk:
    """The selected files below a folder; without a glob, all but hidden files.

    Symbolic links are followed, except loops. The folder of the destination is passed over.
    """

    def __init__(self, folder: str, glob: tuple[str, ...] | None, scan: Scan) -> None:
        self._folder = os.path.abspath(folder)
        self._glob = glob
        self._scan = scan
        self._destination = file_path(scan.options.destination) or ""

    def files(self) -> Iterator[str | Failure]:
        """Yield the absolute paths of the files that can be maps, sorted, one folder's listing at a time."""
        skip = len(os.path.join(self._folder, ""))
        pictures = Pictures(self._scan, self._names, self._named, _same_folder(self._folder, self._destination))
        for path in self._below(self._folder, self._patterns, self._scan.pass_over, _sort):
            if isinstance(path, Failure) or pictures.takes(path[skip:]):
                yield path

    @property
    def _patterns(self) -> Patterns | None:
        return None if self._glob is None else {self._glob}

    def _names(self, pass_over: PassOver) -> Generator[str, None, None]:
        skip = len(os.path.join(self._folder, ""))
        for path in self._below(self._folder, self._patterns, pass_over, iter):
            if not isinstance(path, Failure):
                yield path[skip:]

    def _named(self, file: str) -> bool:
        """Whether the glob names a file by its suffix."""
        return self._glob is not None and not matches(self._glob, without_suffix(file))

    def _below(
        self,
        folder: str,
        wanted: Patterns | None,
        pass_over: PassOver,
        sort: Callable[[Iterator[str]], Iterator[str]],
        above: tuple[tuple[int, int], ...] = (),
    ) -> Iterator[str | Failure]:
        """Yield the paths of the selected files below a folder; ``above`` identifies each folder above this one."""
        try:
            status = os.stat(folder)
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                yield _failure(folder, "a symbolic link points to a folder above it")
                return
            if above and _same_folder(folder, self._destination):
                pass_over(OVERLAYS)
                return
            for entry in sort(self._listing(folder, wanted, pass_over)):
                path = os.path.join(folder, entry)
                if entry.endswith("/"):
                    yield from self._below(path[:-1], _behind(wanted, entry[:-1]), pass_over, sort, (*above, identity))
                else:
                    yield path
        except OSError as error:
            if shortage := shortage_of_files(error):
                raise shortage from error
            self._scan.could_not_read(folder)
            yield _failure(folder, translate_os_error(error))

    def _listing(self, folder: str, wanted: Patterns | None, pass_over: PassOver) -> Iterator[str]:
        """Yield the selected names in a folder, unsorted; those of folders end in a slash."""
        with os.scandir(folder) as children:
            for entry in children:
                left = _behind(wanted, entry.name)
                if left is None and is_hidden(entry.name):
                    pass_over(HIDDEN)
                    continue
                if _is_folder(entry) and not is_one_source(entry.path):
                    if left is None or left - {()}:
                        yield f"{entry.name}/"
                    continue
                if (left is None or left) and entry.is_symlink() and not os.path.exists(entry.path):
                    # It may lead to a folder on a disk that is not mounted.
                    self._scan.could_not_read(entry.path)
                if left is None or () in left:
                    if suffix_of(entry.name) or _is_folder(entry):
                        yield entry.name
                    elif not is_list_of_names(entry.name):
                        pass_over(shown_suffix(entry.name))


def _same_folder(folder: str, other: str) -> bool:
    try:
        return bool(other) and os.path.samefile(folder, other)
    except OSError:
        return False


def is_list_of_names(path: str) -> bool:
    """Whether a file names the maps of a stack beside it."""
    return path.lower().endswith(".names.txt")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A broken link: the suffix decides; opening it will fail with the reason.
        return suffix_of(entry.name) is None


def _behind(patterns: Patterns | None, name: str) -> Patterns | None:
    """Return the rest of each pattern that matches a name; () if the name itself is selected."""
    if patterns is None:
        return None
    return {left for pattern in patterns for left in _left_of(pattern, name)}


def matches(pattern: tuple[str, ...], path: str) -> bool:
    """Whether a glob, split into parts, matches a path; both are relative to the same folder."""
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
    # As in a shell, a wildcard does not match a leading dot.
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


def _failure(folder: str, reason: str) -> Failure:
    return Failure(printable(folder), printable(folder), None, "source", reason)
