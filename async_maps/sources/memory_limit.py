"""A limit on this process's memory while it decodes an untrusted file."""

from __future__ import annotations

import mmap
import re
import resource
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from async_maps.errors import SourceError
from async_maps.sources.formats.registry import Readers, decodes_natively

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from numpy.typing import NDArray

    from async_maps.sources.activation_map import Part

_HEADROOM = 2**30
"""The bytes that a process may take beyond those of its maps: for chunks, metadata and libraries."""
_SCARCE = _HEADROOM // 4
_COPIES = 4
"""A reader may hold a map several times: as chunks, in another type, in another order."""


class MemoryLimit:
    """Limits the memory of this process during reads, so that a chunk that unpacks to gigabytes fails. Thread-safe.

    Only Linux has this limit (``RLIMIT_DATA``); elsewhere nothing is limited.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._reads = self._bytes = self._base = 0
        self._most = _most_bytes()

    def explain(self, error: Exception | None) -> str:
        """Return what the memory has to do with the failure of a read, if it failed; empty if probably nothing."""
        grown = _most_bytes() - self._most
        if grown < _SCARCE and not isinstance(error, MemoryError):
            return ""
        return (
            f"; decoding took {grown / 2**20:,.0f} MiB of memory: a chunk may unpack to far more than its header says"
        )

    @contextmanager
    def reading(self, max_bytes: int) -> Iterator[None]:
        """Limit the memory while a map of at most ``max_bytes`` is read; concurrent reads share the limit."""
        self._change(1, max_bytes)
        try:
            yield
        finally:
            self._change(-1, -max_bytes)

    def _change(self, reads: int, max_bytes: int) -> None:
        with self._lock:
            if not self._reads:
                self._base = _data_bytes()
                with suppress(OSError):
                    # Start to measure the largest size anew (proc_pid_clear_refs(5)).
                    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
                self._most = _most_bytes()
            self._reads += reads
            self._bytes += max_bytes
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            soft = hard
            if self._reads and self._base:
                soft = self._base + _HEADROOM + _COPIES * self._bytes
                soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


class LimitedReaders(Readers):
    """Readers in a process of one reading thread, which limit its memory while a native library decodes a file."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._limit = MemoryLimit()

    def read(self, path: str, part: Part, max_bytes: int = 0) -> NDArray[Any]:
        """Read one listed map; for the errors see :class:`Readers`."""
        if not decodes_natively(path):
            return super().read(path, part)
        try:
            with self._limit.reading(max_bytes):
                return super().read(path, part)
        except SourceError as error:
            raise SourceError(f"{error}{self._limit.explain(error)}") from error


def _data_bytes() -> int:
    """Return the private writable memory of this process; 0 if the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5]) * mmap.PAGESIZE
    except OSError:
        return 0


def _most_bytes() -> int:
    """Return the largest resident size of this process so far; 0 if the system does not say.

    Not by ``getrusage``, which counts the memory of the parent process, too.
    """
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
