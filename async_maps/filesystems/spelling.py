"""Disks that take two spellings of a name as one file: they ignore case (exFAT, macOS, SMB) or the Unicode form."""

from __future__ import annotations

import os
import unicodedata
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from async_maps.filesystems.locators import file_path
from async_maps.filesystems.temporary import temporary_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self


class Spelling(NamedTuple):
    """How a disk compares names.

    Attributes:
        folder: a folder of the disk that can be written.
        ignores_case: whether ``A`` and ``a`` are one file.
        ignores_form: whether the Unicode forms NFC and NFD of a name are one file.
    """

    folder: str
    ignores_case: bool
    ignores_form: bool

    @classmethod
    def of(cls, folder: str) -> Self | None:
        """Try out the disk of an existing folder; None if it distinguishes all names, or cannot be written.

        A temporary folder is made there and deleted.
        """
        # Some disks ignore only the case of ASCII letters.
        name = "aé"
        # ValueError: the names of this system have no such letter, as with LC_ALL=C.
        with suppress(OSError, ValueError), _file(folder, name) as place:
            found = cls(folder, _has(place, name.replace("a", "A")), _has(place, unicodedata.normalize("NFD", name)))
            if found.ignores_case or found.ignores_form:
                return found
        return None

    def fold(self, locator: str) -> str:
        """Return a text that is equal for all locators that may be one file, and perhaps for some others."""
        path = file_path(locator) or locator
        return unicodedata.normalize("NFC", path.casefold() if self.ignores_case else path)

    def are_one(self, locator: str, other: str) -> bool:
        """Ask the disk whether two locators with one fold are one file; True if it does not answer."""
        parts = zip(*(Path(file_path(each) or each).parts for each in (locator, other)), strict=False)
        return all(one == two or self._is_one(one, two) for one, two in parts)

    def _is_one(self, name: str, other: str) -> bool:
        with suppress(OSError), _file(self.folder, name) as place:
            return _has(place, other)
        return True


def _has(folder: str, name: str) -> bool:
    return os.path.lexists(os.path.join(folder, name))


@contextmanager
def _file(folder: str, name: str) -> Iterator[str]:
    """Make a temporary folder with a file of this name, and yield its path."""
    place = os.path.join(folder, temporary_name())
    os.mkdir(place, 0o700)
    try:
        Path(place, name).touch()
        yield place
        os.unlink(os.path.join(place, name))
    finally:
        os.rmdir(place)
