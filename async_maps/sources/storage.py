"""Where files lie: on a disk, or in S3. Readers see a file as a seekable stream of bytes, wherever it comes from."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from types import TracebackType
    from typing import BinaryIO

    from async_maps.settings import S3Settings
    from async_maps.sources.s3 import S3Storage


class Storage(Protocol):
    """What a reader asks of the place where its file lies. Safe to share between threads."""

    def open(self, path: str) -> BinaryIO:
        """The file, seekable, at its start.

        Raises:
            OSError: it cannot be opened.
            SourceError: the same, in a sentence.
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
    """The storage of each path; safe to share between threads.

    Args:
        s3: how patient the client of S3 is, if there is anything in S3.
    """

    def __init__(self, s3: S3Settings | None = None) -> None:
        self._disk = Disk()
        self._settings = s3
        self._making = Lock()
        self._s3: S3Storage | None = None
        self._closed = False

    def __enter__(self) -> Storages:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def of(self, path: str) -> Storage:
        """Where the file at that path lies."""
        return self.s3() if is_remote(path) else self._disk

    def s3(self) -> S3Storage:
        """S3, made when it is first asked for."""
        # Its client takes a while to import, and most sources lie on a disk.
        from async_maps.sources.s3 import S3Storage

        with self._making:
            if self._s3 is None:
                self._s3 = S3Storage(self._settings)
                if self._closed:
                    self._s3.close()
            return self._s3

    def close(self) -> None:
        """Close the connections, for good."""
        with self._making:
            self._closed = True
            if self._s3 is not None:
                self._s3.close()


def is_remote(path: str) -> bool:
    """Whether a file lies in S3: then threads of this process read it, many at once, instead of worker processes."""
    return path.startswith("s3://")
