"""What a listing has read of its source. The rows of a manifest whose map is gone are found by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from async_maps.keys import printable

if TYPE_CHECKING:
    from collections.abc import Callable


class ReadFile(NamedTuple):
    """A file whose maps were all listed."""

    file: str
    """As in messages."""
    path: str
    """The name of the file below the source, with its suffix, as in messages."""


class Coverage:
    """Filled by a source while a thread lists it.

    Attributes:
        root: the place that the names of the maps are relative to; empty for maps in memory.
        covers: whether a complete listing of the source has listed each map of a file below the root.
        unread: the number of files and folders that could not be read, for instance for lack of permission.
        first_unread: the first of them.
        read: the files whose maps were all listed since the last call of :meth:`take_read`.
    """

    def __init__(self) -> None:
        self.root = ""
        self.covers: Callable[[str], bool] = none
        self.unread = 0
        self.first_unread = ""
        self._read: list[ReadFile] = []

    def begin(self, root: str, covers: Callable[[str], bool]) -> None:
        """Set the root, and the files below it that the source consists of."""
        self.root, self.covers = printable(root), covers

    def is_covered(self, file: str) -> bool:
        """Whether the source, as far as it is listed now, consists of this file among others."""
        return self.covers(file)

    def has_read(self, file: str, path: str) -> None:
        """Record that all maps of a file were listed."""
        self._read.append(ReadFile(printable(file), printable(path)))

    def could_not_read(self, place: str) -> None:
        """Record that a file or folder could not be read, which says nothing about its content."""
        self.unread += 1
        self.first_unread = self.first_unread or printable(place)

    def take_read(self) -> list[ReadFile]:
        """Return the files that were read since the last call."""
        # Another thread may append meanwhile.
        read = self._read[:]
        del self._read[: len(read)]
        return read


def every(_: str) -> bool:
    """Return True: a source has all files below its root."""
    return True


def none(_: str) -> bool:
    """Return False: a source does not know which files it does not have."""
    return False
