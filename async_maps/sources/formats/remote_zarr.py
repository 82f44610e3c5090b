"""A read-only store for the zarr library (extra ``zarr``): the objects in a remote folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyio import to_thread
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest

from async_maps.filesystems.addresses import Address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
    from typing import Any, NoReturn

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from async_maps.filesystems.remote import RemoteFilesystem

_ALL = 2**62


class RemoteZarrStore(Store):
    """The objects in a folder. Each request runs in a thread, because it blocks."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, filesystem: RemoteFilesystem, root: Address) -> None:
        super().__init__(read_only=True)
        self._filesystem = filesystem
        self._root = root._replace(key=f"{root.key.rstrip('/')}/" if root.key else "")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RemoteZarrStore):
            return False
        return self._filesystem is other._filesystem and self._root == other._root

    __hash__ = None  # type: ignore[assignment]  # as in zarr's own stores

    def __str__(self) -> str:
        return str(self._root)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        data = await to_thread.run_sync(self._get, key, byte_range)
        return None if data is None else prototype.buffer.from_bytes(bytes(data))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        return await to_thread.run_sync(self._filesystem.find, str(self._at(key))) is not None

    def list(self) -> AsyncIterator[str]:
        return self.list_prefix("")

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        objects = self._filesystem.objects(self._root.bucket, self._root.key + prefix)
        async for found in _in_threads(objects):
            yield found.key[len(self._root.key) :]

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        folder = self._root.key + (f"{prefix.rstrip('/')}/" if prefix else "")
        async for page in _in_threads(self._filesystem.pages(self._root.bucket, folder, by_folder=True)):
            for name in page.folders:
                yield name[len(folder) : -1]
            for found in page.objects:
                if found.key != folder:
                    yield found.key[len(folder) :]

    async def set(self, key: str, value: Buffer) -> NoReturn:
        raise NotImplementedError("the store is read-only")

    async def delete(self, key: str) -> NoReturn:
        raise NotImplementedError("the store is read-only")

    def _at(self, key: str) -> Address:
        return self._root._replace(key=self._root.key + key)

    def _get(self, key: str, wanted: ByteRequest | None) -> bytes | bytearray | None:
        address = self._at(key)
        try:
            if isinstance(wanted, RangeByteRequest):
                return self._filesystem.get(address, wanted.start, wanted.end - wanted.start).data
            if isinstance(wanted, OffsetByteRequest):
                return self._filesystem.get(address, wanted.offset, _ALL).data
            if isinstance(wanted, SuffixByteRequest):
                found = self._filesystem.find(str(address))
                if found is None:
                    return None
                return self._filesystem.get(address, max(0, found.size - wanted.suffix), _ALL).data
            return self._filesystem.get(address, 0, _ALL).data
        except FileNotFoundError:
            return None


async def _in_threads(items: Iterator[Any]) -> AsyncIterator[Any]:
    end = object()
    while (item := await to_thread.run_sync(next, items, end)) is not end:
        yield item
