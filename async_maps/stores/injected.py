"""A store that the caller has passed in, with defaults for the capabilities that it lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from async_maps.errors import AsyncMapsError, ObjectError, SettingsError, StoreError

if TYPE_CHECKING:
    from async_maps.stores import Store


class InjectedStore:
    """Completes a store (see :class:`~async_maps.stores.Store` for its capabilities and their defaults).

    An exception of no kind that the contract knows is a StoreError of ``check``, and fails the object of ``put``.

    Raises:
        SettingsError: it has no ``put`` or no ``check``.
    """

    def __init__(self, store: Store) -> None:
        self._name = type(store).__name__
        if missing := [method for method in ("put", "check") if not callable(getattr(store, method, None))]:
            raise SettingsError(
                f"the destination is a {self._name} without {' and '.join(missing)}; expected a string, a path, or a "
                "store with the coroutines put(key, data) and check()"
            )
        self._store = store
        self.destination = str(getattr(store, "destination", f"store://{self._name}"))
        self.identity = str(getattr(store, "identity", self.destination))
        self.prefix = str(getattr(store, "prefix", ""))

    def locator(self, key: str) -> str:
        """The URL of an object: the store's own, or the destination and the key."""
        locate = getattr(self._store, "locator", None)
        return str(locate(key)) if locate is not None else f"{self.destination.rstrip('/')}/{key}"

    async def check(self) -> None:
        """Ask the store."""
        try:
            await self._store.check()
        except AsyncMapsError:
            raise
        except Exception as error:
            raise StoreError(f"the store {self._name} cannot be used: {error!r}") from error

    async def put(self, key: str, data: bytes) -> str | None:
        """Store an object."""
        try:
            return await self._store.put(key, data)
        except AsyncMapsError:
            raise
        except Exception as error:
            raise ObjectError(f"the store {self._name} failed: {error!r}") from error
