"""Where overlays go: the protocol of stores, and opening the store at a destination."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, TypeAlias

from anyio import to_thread

from async_maps.errors import SettingsError
from async_maps.filesystems.addresses import is_in_s3, is_remote
from async_maps.filesystems.locators import place_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from async_maps.settings import Settings

    Destination: TypeAlias = str | os.PathLike[str] | "Store"


class Store(Protocol):
    """The protocol of a destination for ``Pipeline``; implement ``put`` and ``check``.

    The caller opens and closes the store. Both methods run on the pipeline's event loop and must not block it.
    ``tests/stores/contract.py`` has the tests that every store must pass.

    Optional attributes:

    - ``destination: str``, the start of all locators; by default ``store://`` and the name of the class.
    - ``prefix: str``, the start of all keys, without a slash at its end; by default empty.
    - ``locator(key: str) -> str``, the URL of an object; by default ``destination``, a slash, and the key.
    - ``identity: str``, the destination that a manifest is bound to, distinct from equally named ones on other
      servers; by default ``destination``.
    """

    async def check(self) -> None:
        """Check, without writing, that the store can be used.

        Raises:
            StoreError: the store cannot be used.
        """

    async def put(self, key: str, data: bytes) -> str | None:
        """Store an object, atomically.

        A pipeline may put the same bytes under the same key several times.

        Args:
            key: the prefix, if there is one, and the object's name: a relative path with slashes, at most 1,024 bytes
                in UTF-8, without empty, ``.`` or ``..`` parts.
            data: the PNG.

        Returns:
            The store's tag of the object (an ETag, without quotes), or None.

        Raises:
            TransientError: the store cannot accept this object now; the pipeline retries.
            ExistsError: an object with that key exists and must not be replaced.
            ObjectError: the store refuses this object, so its map fails. Any other exception has the same effect.
            StoreError: the store refuses all objects, so the run ends.
        """


class AddressedStore(Store, Protocol):
    """A store with all optional attributes, as the pipeline uses it."""

    destination: str
    prefix: str
    identity: str

    def locator(self, key: str) -> str:
        """Return the URL of an object."""


def sent_bytes(store: object) -> int:
    """Return the bytes that the other side of a store's connections has received so far; 0 if that is not known."""
    count = getattr(store, "sent_bytes", None)
    return count() if callable(count) else 0


@asynccontextmanager
async def open_store(
    destination: Destination, settings: Settings, *, content_type: str = "image/png"
) -> AsyncIterator[AddressedStore]:
    """Open the store at a destination; a store from the caller is neither opened nor closed.

    Raises:
        SettingsError: the destination is unknown or incomplete.
        StoreError: the store cannot be used.
    """
    # Import only the store that is used, because the clients are large.
    if not isinstance(destination, str | os.PathLike):
        from async_maps.stores.injected import InjectedStore

        yield InjectedStore(destination)
        return
    place = os.fspath(destination)
    if not place.startswith("memory://"):
        place = place_at(place, SettingsError)
    replace = settings.if_exists == "overwrite"
    if is_remote(place):
        # In a thread: the import takes half a second, in which the worker processes start.
        if is_in_s3(place):
            s3_module = await to_thread.run_sync(import_module, "async_maps.stores.s3")
            opening = s3_module.open_s3
        else:
            service_module = await to_thread.run_sync(import_module, "async_maps.stores.service")
            opening = service_module.open_service_store
        async with opening(place, settings, content_type) as remote:
            yield remote
    elif place.startswith("memory://"):
        from async_maps.stores.memory import MemoryStore

        yield MemoryStore(place.removeprefix("memory://").strip("/"), replace=replace)
    else:
        from async_maps.stores.files import FileStore

        yield FileStore(place, replace=replace, fsync=settings.files.fsync, concurrency=settings.first_concurrency)
