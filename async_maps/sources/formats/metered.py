"""A file with a budget of bytes, for libraries that keep what they read in memory."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

from async_maps.errors import SourceError

if TYPE_CHECKING:
    from typing import IO, Any


class MeteredFile(io.BufferedIOBase):
    """A file of which only a number of bytes can be read. Closing it leaves the file open.

    Args:
        file: the file, at any position.
        budget: the number of bytes that may be read; see :meth:`allow`.
    """

    def __init__(self, file: IO[bytes], budget: int) -> None:
        self._file = file
        self._left = budget

    def allow(self, budget: int) -> None:
        """Set the number of bytes that may be read from now on."""
        self._left = budget

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int | None = -1, /) -> bytes:
        """Read ``size`` bytes, or less at the end of the file.

        Raises:
            SourceError: the budget is spent.
        """
        if size is None or size < 0:
            size = self._left + 1
        # A file allocates all that it is asked for, even if it is shorter.
        data = self._file.read(min(size, self._left + 1))
        self._spend(len(data))
        return data

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer, as :meth:`read`."""
        count: int = self._file.readinto(buffer)  # type: ignore[attr-defined]  # binary files have it
        self._spend(count)
        return count

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise SourceError("the file has more metadata than any such file needs, or more data than its size says")
