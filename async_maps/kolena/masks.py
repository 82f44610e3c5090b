"""Masks: the objects that Kolena stores for overlays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from async_maps.errors import SettingsError
from async_maps.filesystems.locators import bitmap_mask_fields

if TYPE_CHECKING:
    from collections.abc import Callable

Mask: TypeAlias = Any
"""Kolena's ``BitmapMask`` if its client is installed, else the same mask as a dict for JSON.

For type checkers it is ``Any``, because the type depends on the environment.
"""


def mask_maker(fields: dict[str, Any]) -> Callable[..., Mask]:
    """Return a function that makes a mask from a locator and more fields, all with the given fields.

    The function raises InputValidationError for a locator that Kolena cannot read. Raises SettingsError if a field has
    the name of an attribute of the mask.
    """
    if hidden := fields.keys() & {"locator", "data_type"}:
        raise SettingsError(f"a field cannot be called {min(hidden)!r}, which is an attribute of every mask: rename it")
    try:
        from kolena.annotation import BitmapMask
    except ImportError:
        return lambda locator, **more: bitmap_mask_fields(locator, **{**more, **fields})

    def make(locator: str, **more: Any) -> Mask:
        bitmap_mask_fields(locator)  # BitmapMask accepts any text
        return BitmapMask(locator, **{**more, **fields})

    return make


def provenance_fields(name: str, low: float | None, high: float | None) -> dict[str, Any]:
    """Return fields for the name of the map and its value range."""
    return {"map_name": name, "range_low": low, "range_high": high}
