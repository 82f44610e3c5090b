"""Where PNGs go. A store is an async context; one function picks it."""

from __future__ import annotations

import os
import re
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from anyio import to_thread

from async_maps.errors import SettingsError
from async_maps.filesystems.locators import file_path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from async_maps.settings import Settings


_EXPECTED = "s3://bucket/prefix, file:///folder or a path"
_MISTYPED = re.compile(r"(s3|file|memory):(?!//)")


class Store(Protocol):
    """What the pipeline asks of a store. One contract, the same tests for each."""

    @property
    def destination(self) -> str:
        """The bucket and prefix, or folder, as a URL: what every locator starts with."""

    @property
    def identity(self) -> str:
        """The destination, told apart from one of the same name elsewhere: what a manifest is bound to."""

    @property
    def prefix(self) -> str:
        """What every key starts with, without a slash at its end; empty for none."""

    def locator(self, key: str) -> str:
        """Where an object of that key lies."""

    async def check(self) -> None:
        """Ask, without writing, whether the store is there.

        Raises:
            StoreError: it is not.
        """

    async def put(self, key: str, data: bytes) -> str | None:
        """Store the object, once, whole or not at all, over whatever had that key unless that is to be left.

        Returns:
            the store's tag of the object (ETag, without quotes), or None.

        Raises:
            TransientError: the store cannot take this object now.
            ExistsError: there is an object of that key, and it is left.
            ObjectError: the store refuses this object.
            StoreError: the store refuses all of them.
        """


@asynccontextmanager
async def open_store(destination: str | os.PathLike[str], settings: Settings) -> AsyncIterator[Store]:
    """The store at ``s3://bucket/prefix``, ``file:///folder``, a plain path, or ``memory://prefix``.

    Raises:
        SettingsError: the destination is of no kind we know, or incomplete.
        StoreError: it cannot be used.
    """
    # Stores come with heavy clients: only the one that is used is imported.
    place = os.fspath(destination)
    scheme = place.partition("://")[0] if "://" in place else ""
    replace = settings.if_exists == "overwrite"
    if scheme == "s3":
        # Half a second, which the worker processes use to start.
        s3_module = await to_thread.run_sync(import_module, "async_maps.stores.s3")
        bucket, _, prefix = place.removeprefix("s3://").partition("/")
        async with s3_module.open_s3(bucket, prefix.strip("/"), settings) as s3:
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
        yield FileStore(
            folder,
            replace=replace,
            fsync=settings.files.fsync,
            concurrency=settings.concurrency,
        )
    elif scheme == "memory":
        from async_maps.stores.memory import MemoryStore

        yield MemoryStore(place.removeprefix("memory://").strip("/"), replace=replace)
    else:
        raise SettingsError(f"unknown destination {place!r}; expected {_EXPECTED}")
