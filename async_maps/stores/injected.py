"""A store from the caller, with defaults for its optional attributes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from async_maps.concurrency.tasks import raise_if_cancelled
from async_maps.errors import InputValidationError, ObjectError, SettingsError, StoreError
from async_maps.keys import check_name, printable

if TYPE_CHECKING:
    from async_maps.stores import Store


class InjectedStore:
    """Adds the defaults of the optional attributes (see :class:`~async_maps.stores.Store`).

    An unexpected exception of ``check`` becomes a StoreError, one of ``put`` an ObjectError.

    Raises:
        SettingsError: the store has no ``put`` or no ``check``, or an attribute is invalid.
    """

    def __init__(self, store: Store) -> None:
        self._name = type(store).__name__
        if missing := [method for method in ("put", "check") if not callable(getattr(store, method, None))]:
            raise SettingsError(
                f"the destination is a {self._name} without {' and '.join(missing)}; expected a string, a path, or a "
                "store with the coroutines put(key, data) and check()"
            )
        self._store = store
        self.destination = self._text("destination", f"store://{self._name}")
        self.identity = self._text("identity", self.destination)
        self.prefix = self._text("prefix", "")
        if self.prefix:
            try:
                check_name(self.prefix)
            except InputValidationError as error:
                raise SettingsError(f"the prefix of the store {self._name} is not valid: {error}") from error

    def _text(self, capability: str, default: str) -> str:
        value = getattr(self._store, capability, default)
        if not isinstance(value, str):
            raise SettingsError(f"{capability} of the store {self._name} must be text; found {type(value).__name__}")
        return value

    def locator(self, key: str) -> str:
        """Return the store's URL of an object, or the destination and the key."""
        locate = getattr(self._store, "locator", None)
        if locate is None:
            return f"{self.destination.rstrip('/')}/{key}"
        try:
            found = locate(key)
        except Exception as error:
            raise ObjectError(f"the store {self._name} has no locator for {printable(key)}: {error!r}") from error
        if not isinstance(found, str):
            raise ObjectError(f"a locator of the store {self._name} must be text; found {type(found).__name__}")
        return found

    async def check(self) -> None:
        """Check the store."""
        try:
            await self._store.check()
        except StoreError:
            raise
        except (Exception, asyncio.CancelledError) as error:
            raise_if_cancelled(error)
            raise StoreError(f"the store {self._name} cannot be used: {error!r}") from error

    async def put(self, key: str, data: bytes) -> str | None:
        """Store an object."""
        try:
            tag = await self._store.put(key, data)
        except StoreError:
            raise
        except (Exception, asyncio.CancelledError) as error:
            raise_if_cancelled(error)
            raise ObjectError(f"the store {self._name} failed: {error!r}") from error
        if tag is not None and not isinstance(tag, str):
            raise ObjectError(f"a tag of the store {self._name} must be text or None; found {type(tag).__name__}")
        return tag
