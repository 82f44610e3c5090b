"""An object as a file that reads ranges. Blocking; one thread at a time."""

from __future__ import annotations

import errno
import io
import os
from collections import OrderedDict
from typing import TYPE_CHECKING

from async_maps.filesystems.answers import Object
from async_maps.filesystems.filesystem import InaccessibleError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from async_maps.filesystems.addresses import Address
    from async_maps.filesystems.answers import Range
    from async_maps.filesystems.remote import RemoteFilesystem

_BLOCK_BYTES = 512 * 2**10
_MAX_BLOCK_BYTES = 4 * 2**20
_CACHE_BYTES = 8 * 2**20


class RemoteFile(io.RawIOBase):
    """An object as a seekable file. It reads ranges of one version of the object and caches the last ones.

    A large read is one request. Small reads are served from cached blocks, whose size grows while the reads are
    sequential. ``head`` is the start of the object.
    """

    def __init__(self, filesystem: RemoteFilesystem, address: Address, head: Range) -> None:
        super().__init__()
        self._filesystem = filesystem
        self._address = address
        self._head = head
        self._blocks: OrderedDict[int, bytes | bytearray] = OrderedDict()
        self._position = 0
        self._read_until = len(head.data)
        self._step = _BLOCK_BYTES

    @property
    def fingerprint(self) -> str:
        """The same fingerprint as in a listing."""
        return Object(self._address.key, self._head.size, self._head.etag.strip('"'), self._head.modified).fingerprint

    def readable(self) -> bool:  # noqa: D102  # inherited, as the next four
        return True

    def seekable(self) -> bool:  # noqa: D102  # as in io.RawIOBase
        return True

    def tell(self) -> int:  # noqa: D102  # as in io.RawIOBase
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:  # noqa: D102  # as in io.RawIOBase
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._head.size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Buffer, /) -> int:  # noqa: D102  # as in io.RawIOBase
        view = memoryview(buffer).cast("B")
        view = view[: max(0, self._head.size - self._position)]
        filled = 0
        while filled < len(view):
            data = self._at(self._position + filled, len(view) - filled)
            view[filled : filled + len(data)] = data
            filled += len(data)
        self._position += filled
        return filled

    def _at(self, position: int, wanted: int) -> memoryview:
        for start, data in ((0, self._head.data), *self._blocks.items()):
            if start <= position < start + len(data):
                if start in self._blocks:
                    self._blocks.move_to_end(start)
                return memoryview(data)[position - start : position - start + wanted]
        forward = self._read_until <= position <= self._read_until + self._step
        self._step = min(2 * self._step, _MAX_BLOCK_BYTES) if forward else _BLOCK_BYTES
        start, length = position, max(wanted, self._step)
        if wanted < self._step and not forward:
            # Readers of archives jump to the directory at the end, and then read backwards from there.
            start = max(0, min(position, self._head.size - length))
        length = min(length, self._head.size - start)
        found = self._filesystem.get(self._address, start, length, self._head.etag)
        data = found.data
        if found.size != self._head.size or start + len(data) <= position:
            # Without ETags, the size shows it.
            raise InaccessibleError("the object was replaced while it was read")
        self._read_until = start + length
        if wanted < self._step:
            self._blocks[start] = data
            while sum(map(len, self._blocks.values())) > _CACHE_BYTES:
                self._blocks.popitem(last=False)
        return memoryview(data)[position - start : position - start + wanted]
