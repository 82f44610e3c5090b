"""How the decoder process lists a file: it answers each request with the next items."""

from __future__ import annotations

import json
import os
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING

from async_maps.errors import SourceError
from async_maps.sources.formats.registry import PassedOver
from async_maps.sources.members import columns_of, maps_in_file, open_file
from async_maps.sources.options import SourceOptions
from async_maps.sources.wire import pack_error, pack_found, pack_row
from async_maps.tables import read_table

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from typing import Any

    from async_maps.filesystems.filesystem import Filesystems
    from async_maps.render.channels import Channels
    from async_maps.sources.memory_limit import MemoryLimit

_BATCH = 256
_BATCH_BYTES = 256 * 2**10
_BATCH_S = 0.02
_MAX_ITEM = 16 * 2**20


class Listing:
    """The listing of one connection, one file after another."""

    def __init__(self, filesystems: Filesystems, limit: MemoryLimit) -> None:
        self._filesystems = filesystems
        self._limit = limit
        self._size = 0
        self._items: Generator[Any, None, None] = self._rows("", [])
        self._is_end = False
        self._error: Exception | None = None
        self._memory = ""

    def answer(self, kind: str, arguments: list[Any]) -> bytes:
        """Start to list a file, or go on if the kind is ``more``.

        The last argument of other kinds is the number of items that were received before.

        Returns:
            The next items, whether they are the last, the error that ended them, and what it has to do with memory.
        """
        skip = 0
        if kind != "more":
            *arguments, skip = arguments
            self._items.close()
            # A large file may need more memory than a small one.
            self._size = _size_of(arguments[0])
            self._is_end, self._error, self._memory = False, None, ""
            starts: dict[str, Callable[..., Generator[Any, None, None]]]
            starts = {"maps": self._maps, "columns": self._columns, "rows": self._rows}
            self._items = starts[kind](*arguments)
        items = self._batch(skip) if self._error is None else []
        end: list[Any] = [self._is_end, None, ""]
        if self._error is not None and not items:
            scarce = f"{self._error}{self._memory}" if self._memory else ""
            end = [True, pack_error(self._error), scarce]
        return f"[[{','.join(items)}], {json.dumps(end)[1:]}".encode()

    def _batch(self, skip: int) -> list[str]:
        """Return the next items in JSON; keep the error that ended them."""
        batch: list[str] = []
        size, until = 0, monotonic() + _BATCH_S
        try:
            with self._limit.reading(self._size):
                for item in islice(self._items, skip, skip + _BATCH):
                    text = json.dumps(item)
                    size += len(text)
                    if len(text) > _MAX_ITEM:
                        raise SourceError("the file is damaged: a name in it is too long for any map")
                    batch.append(text)
                    if size > _BATCH_BYTES or monotonic() > until:
                        break
                else:
                    self._is_end = len(batch) < _BATCH
        except Exception as error:  # noqa: BLE001  # a malicious file can cause any error
            self._error = error
        # The memory may have been taken in an earlier batch than the error is seen in.
        self._memory = self._limit.explain(self._error) or self._memory
        return batch

    def _maps(
        self, path: str, fingerprint: str | None, channels: Channels, column: str | None, span: tuple[int, int | None]
    ) -> Generator[Any, None, None]:
        opened = open_file(path, fingerprint, self._filesystems)
        yield opened.fingerprint
        passed: list[str] = []
        options = SourceOptions(channels, column=column, span=span)
        try:
            for found in maps_in_file(path, opened.filesystem, options, passed.append):
                yield from _taken(passed)
                yield pack_found(found)
        except Exception:
            yield from _taken(passed)
            raise
        yield from _taken(passed)

    def _columns(self, path: str) -> Generator[Any, None, None]:
        yield columns_of(path, self._filesystems)

    def _rows(self, path: str, columns: list[str]) -> Generator[Any, None, None]:
        yield from map(pack_row, read_table(path, self._filesystems.of(path).open, columns))


def _taken(passed: list[str]) -> Iterator[Any]:
    while passed:
        yield pack_found(PassedOver(passed.pop(0)))


def _size_of(path: str) -> int:
    """Return the size of a file on disk; 0 for a folder or an object."""
    return os.path.getsize(path) if os.path.isfile(path) else 0
