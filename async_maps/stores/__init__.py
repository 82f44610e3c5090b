"""Where overlays go: what a store is, and how the one at a destination is opened."""

from __future__ import annotations

import os
import re
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, TypeAlias

from anyio import to_thread

from async_maps.errors import SettingsError
from async_maps.filesystems.locators import file_path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from async_maps.settings import Settings

    Destination: TypeAlias = str | os.PathLike[str] | "Store"


_EXPECTED = "s3://bucket/prefix, file:///folder or a path"
_MISTYPED = re.compile(r"(s3|file|memory):(?!//)")


class Store(Protocol):
    """Where overlays go: implement ``put`` and ``check``, and give an instance to ``Pipeline`` as its destination.

    The caller opens and closes a store that it passes in. Both methods run on the pipeline's event loop and must not
    block it. ``tests/stores/contract.py`` holds the tests that every store passes.

    Optional capabilities, used where a store has them:

    - ``destination: str``, the URL that locators start with; by default ``store://`` and the name of the class.
    - ``prefix: str``, the beginning of every key, without a slash at its end; by default empty.
    - ``locator(key: str) -> str``, the URL of an object; by default ``destination``, a slash, and the key.
    - ``identity: str``, the destination told apart from one of the same name elsewhere, to which a manifest is bound;
      by default ``destination``.
    """

    async def check(self) -> None:
        """Check, without writing, that the store can be used.

        Raises:
            StoreError: it cannot.
        """

    async def put(self, key: str, data: bytes) -> str | None:
        """Store an object: whole or not at all.

        A pipeline may put the same bytes under the same key more than once. Where an object of that key must not be
        replaced, the store raises ExistsError.

        Args:
            key: the prefix, if there is one, and the object's name: relative, with slashes, at most 1,024 bytes in
                UTF-8, without empty, ``.`` or ``..`` parts.
            data: the PNG.

        Returns:
            The store's tag of the object (an ETag, without quotes), or None.

        Raises:
            TransientError: the store cannot take this object now; the pipeline tries again.
            ExistsError: there is an object of that key, and it is left.
            ObjectError: the store refuses this object: this map fails. Any other exception counts as one.
            StoreError: the store refuses all objects: the run ends.
        """


class AddressedStore(Store, Protocol):
    """A store with every capability: what the pipeline works with."""

    destination: str
    prefix: str
    identity: str

    def locator(self, key: str) -> str:
        """The URL of an object."""


@asynccontextmanager
async def open_store(destination: Destination, settings: Settings) -> AsyncIterator[AddressedStore]:
    """Open the store at a destination; a store that the caller has passed in is used as it is.

    Raises:
        SettingsError: the destination is of no kind we know, or incomplete.
        StoreError: it cannot be used.
    """
    # Stores come with heavy clients: only the one that is used is imported.
    if not isinstance(destination, str | os.PathLike):
        from async_maps.stores.injected import InjectedStore

        yield InjectedStore(destination)
        return
    place = os.fspath(destination)
    scheme = place.partition("://")[0] if "://" in place else ""
    replace = settings.if_exists == "overwrite"
    if scheme == "s3":
        # Half a second, which the worker processes use to start.
        s3_module = await to_thread.run_sync(import_module, "async_maps.stores.s3")
        async with s3_module.open_s3(place, settings) as s3:
            yield s3
    elif scheme in {"", "file"}:
        from async_maps.stores.files import FileStore

        if not place:
            raise SettingsError(f"the destination is empty; expected {_EXPECTED}")
        if _MISTYPED.match(place):
            raise SettingsError(f"{place!r} lacks a slash, as pathlib leaves it; expected {_EXPECTED}")
        folder = file_path(place) if scheme else place
        if folder is None:
            raise SettingsError(f"{place!r} names a host or no folder; expected file:///folder")
        yield FileStore(folder, replace=replace, fsync=settings.files.fsync, concurrency=settings.concurrency)
    elif scheme == "memory":
        from async_maps.stores.memory import MemoryStore

        yield MemoryStore(place.removeprefix("memory://").strip("/"), replace=replace)
    else:
        raise SettingsError(f"unknown destination {place!r}; expected {_EXPECTED}")
