"""Where a plan lies: a folder or a prefix in a bucket, whose objects are written once and never replaced."""

from __future__ import annotations

import asyncio
import os
import re
from contextlib import asynccontextmanager
from time import monotonic
from typing import TYPE_CHECKING

from anyio import CapacityLimiter, to_thread

from async_maps.errors import ExistsError, ObjectError, PlanError, SettingsError, SourceError, TransientError
from async_maps.filesystems.addresses import SCHEMES, is_remote
from async_maps.filesystems.locators import file_path
from async_maps.filesystems.objects import Objects
from async_maps.stores import open_store
from async_maps.stores.promises import OVERWRITE, BrokenPromiseError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from os import PathLike

    from async_maps.settings import Settings
    from async_maps.stores import AddressedStore

DOCUMENT = "plan.json"
_ONE_SLASH = tuple(f"{scheme}:/" for scheme in (*SCHEMES, "file"))
_WAITS_S = (0.2, 0.4, 0.8, 1.6, 3.2)
_OF_OVERLAYS = ("cache_control", "metadata", "tagging", "storage_class")
"""The settings of objects that are for overlays only."""
_OTHER_PLACE = "put the plan in another store, or use run without one"
_THREADS = 16


def is_plan(place: str | PathLike[str]) -> bool:
    """Whether a place is the address of a plan, a folder or a prefix in a bucket; else it is a manifest's file."""
    address = os.fspath(place)
    # pathlib.Path removes a slash, which is named when the address is parsed.
    return "://" in address or address.startswith(_ONE_SLASH) or os.path.isdir(address)


class PlanObjects:
    """The objects of a plan, by their names below its address. Blocks; thread-safe.

    Attributes:
        address: the address of the plan, without a slash at its end.

    Raises:
        StoreError: all methods raise it if the store refuses a request or cannot be reached.
    """

    def __init__(self, address: str, objects: Objects) -> None:
        self.address = address
        self._objects = objects

    def read(self, name: str, start: int = 0) -> bytes | None:
        """Return the bytes of an object from an offset on; None if there is none."""
        try:
            return bytes(self._objects.read(self.locator(name), start).data)
        except FileNotFoundError:
            return None
        except SourceError as error:
            raise ObjectError(f"{self.locator(name)}: {error}") from error
        except OSError as error:
            raise PlanError(f"{self.locator(name)}: cannot be read: {error.strerror or error}") from error

    def has(self, name: str) -> bool:
        """Return whether there is an object with this name."""
        return self._objects.find(self.locator(name)) is not None

    def sizes(self, below: str) -> dict[str, int]:
        """Return the names of the objects below a name, in their order, with their bytes; empty if there are none."""
        start = self.locator("")
        self._check_readable(below)
        listed = self._objects.below(f"{self.locator(below)}/")
        return dict(sorted((found.locator.removeprefix(start), found.size) for found in listed))

    def _check_readable(self, below: str) -> None:
        """Raise PlanError if a folder cannot be listed: it would seem to be empty."""
        folder = file_path(self.locator(below))
        try:
            if folder is not None:
                os.scandir(folder).close()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise PlanError(f"{self.locator(below)}: cannot be listed: {error.strerror or error}") from error

    def locator(self, name: str) -> str:
        """Return the URL of an object."""
        return f"{self.address}/{name}"


class Place:
    """The objects of a plan, by their names below its address.

    Attributes:
        address: the address of the plan, without a slash at its end.
        objects: the same, for threads.

    Raises:
        StoreError: all methods raise it if the store refuses a request or cannot be reached.
    """

    def __init__(self, store: AddressedStore, objects: Objects, give_up_s: float) -> None:
        self.address = store.destination
        self.objects = PlanObjects(store.destination, objects)
        self._store = store
        self._give_up_s = give_up_s
        self._threads = CapacityLimiter(_THREADS)

    async def create(self, name: str, data: bytes) -> bool:
        """Store an object, if there is none with this name.

        Returns:
            Whether these bytes are stored under the name now; False if another object has it, which is left alone.
        """
        key = f"{self._store.prefix}/{name}" if self._store.prefix else name
        until, waits = monotonic() + self._give_up_s, iter(_WAITS_S)
        while True:
            try:
                await self._store.put(key, data)
            except ExistsError as error:
                # An attempt whose answer was lost may have stored it.
                return error.same
            except BrokenPromiseError as error:
                raise BrokenPromiseError(str(error).replace(OVERWRITE, _OTHER_PLACE)) from error
            except TransientError:
                if monotonic() > until:
                    raise
            else:
                return True
            await asyncio.sleep(next(waits, _WAITS_S[-1]))

    async def read(self, name: str, start: int = 0) -> bytes | None:
        """Return the bytes of an object from an offset on; None if there is none."""
        return await to_thread.run_sync(self.objects.read, name, start, limiter=self._threads)

    async def has(self, name: str) -> bool:
        """Return whether there is an object with this name."""
        return await to_thread.run_sync(self.objects.has, name, limiter=self._threads)

    async def sizes(self, below: str) -> dict[str, int]:
        """Return the names of the objects below a name, in their order, with their bytes; empty if there are none."""
        return await to_thread.run_sync(self.objects.sizes, below, limiter=self._threads)

    async def numbers(self, below: str, start: str = "", end: str = "") -> set[int]:
        """Return the numbers in the names of the objects below a name; others, as of a file manager, are left out.

        Args:
            below: the name that the objects lie below.
            start: what is before the number.
            end: what is after it.
        """
        pattern = re.compile(rf"{re.escape(f'{below}/{start}')}(\d+){re.escape(end)}", re.ASCII)
        return {int(found[1]) for found in map(pattern.fullmatch, await self.sizes(below)) if found}

    def locator(self, name: str) -> str:
        """Return the URL of an object."""
        return self.objects.locator(name)


@asynccontextmanager
async def opened_place(address: str, settings: Settings, *, is_written: bool = True) -> AsyncIterator[Place]:
    """Open the place of a plan.

    Args:
        address: the path of a folder, or the address of a prefix in a bucket.
        settings: the time limits, the encryption and the owner of its objects.
        is_written: whether objects are created; else a folder may be read-only.

    Raises:
        SettingsError: the address is not valid, or a file.
        StoreError: the bucket does not exist, or cannot be reached; or the folder cannot be written.
    """
    if await to_thread.run_sync(os.path.isfile, address):
        raise SettingsError(f"{address} is a file, but a plan is a folder or a prefix in a bucket: name its address")
    s3 = settings.s3.model_copy(update=dict.fromkeys(_OF_OVERLAYS, None) | {"metadata": {}, "tagging": {}})
    settings = settings.model_copy(update={"if_exists": "error", "s3": s3})
    async with open_store(address, settings, content_type="application/octet-stream") as store:
        if is_written or is_remote(store.destination):
            await store.check()
        with Objects(settings.s3) as objects:
            yield Place(store, objects, settings.s3.give_up_s)
