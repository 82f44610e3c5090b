"""NumPy's ``.npz``: a zip archive of ``.npy`` files, one map a member."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

from async_maps.errors import SourceError
from async_maps.sources import npy

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    from numpy.typing import NDArray


def matches(path: str) -> bool:
    """Whether the file's name says it is one."""
    return path.lower().endswith(".npz")


def members(path: str) -> list[tuple[str, int]]:
    """The arrays in an archive: each one's key and its size in bytes, in the archive's order.

    Raises:
        SourceError: it is no ``.npz`` archive, or holds no array.
        OSError: it cannot be read.
    """
    with _open(path) as archive:
        arrays = [
            (info.filename.removesuffix(".npy"), info.file_size)
            for info in archive.infolist()
            if info.filename.endswith(".npy")
        ]
    if not arrays:
        raise SourceError("the archive holds no arrays (.npy)")
    return arrays


class Archives:
    """Reads arrays, and keeps the last archive open: its next array costs no second look at its directory."""

    def __init__(self) -> None:
        self._path = ""
        self._archive: zipfile.ZipFile | None = None

    def __enter__(self) -> Archives:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def read(self, path: str, member: str) -> NDArray[Any]:
        """Read one array; never unpickles.

        Raises:
            SourceError: no such archive or member, or the member is no ``.npy`` file.
            OSError: it cannot be read.
        """
        if self._archive is None or path != self._path:
            self._close()
            self._path, self._archive = path, _open(path)
        try:
            info = self._archive.getinfo(f"{member}.npy")
        except KeyError:
            raise SourceError(f"the archive holds no array {member!r} any more") from None
        try:
            with self._archive.open(info) as file:
                return npy.read_stream(file, info.file_size)
        except (SourceError, OSError):
            raise
        except Exception as error:  # what a damaged archive ends in differs from one compression to the next
            raise SourceError(f"the archive is damaged at {member!r}: {error}") from error

    def _close(self) -> None:
        if self._archive is not None:
            self._archive.close()


def _open(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except OSError:
        raise
    except Exception as error:  # as above; not one damaged archive may end the listing of the others
        raise SourceError(f"expected an .npz archive (a zip file): {error}") from error
