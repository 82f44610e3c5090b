"""Where files lie: a disk. Readers see a file as a seekable stream of bytes, wherever it comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from typing import BinaryIO


class Storage(Protocol):
    """What a reader asks of the place where its file lies. Safe to share between threads."""

    def open(self, path: str) -> BinaryIO:
        """The file, seekable, at its start.

        Raises:
            OSError: it cannot be opened.
        """

    def zarr_store(self, path: str) -> Any:
        """The folder of a Zarr hierarchy, as what ``zarr.open`` takes."""


class Disk:
    """Files on a disk of this machine."""

    def open(self, path: str) -> BinaryIO:
        """The file, open."""
        return open(path, "rb")

    def zarr_store(self, path: str) -> Any:
        """The folder's path."""
        return path


class Storages:
    """The storage of each path."""

    def __init__(self) -> None:
        self._disk = Disk()

    def of(self, path: str) -> Storage:
        """Where the file at that path lies."""
        return self._disk
