"""Masks: what Kolena stores for one overlay. Light, for any thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from async_maps.errors import SettingsError
from async_maps.filesystems.locators import bitmap_mask_fields

if TYPE_CHECKING:
    from collections.abc import Callable

Mask: TypeAlias = Any
"""Kolena's own ``BitmapMask`` if its client is installed, else the dict that the same mask is in JSON.

To type checkers it is ``Any``, as it depends on the environment which of the two it is.
"""


def mask_maker(fields: dict[str, Any]) -> Callable[..., Mask]:
    """Find out what a mask is here, and make masks with these fields beside the locator, and more for each mask.

    The maker refuses a locator that Kolena cannot read.

    Raises:
        SettingsError: a field would hide the mask's own.
    """
    if hidden := fields.keys() & {"locator", "data_type"}:
        raise SettingsError(f"a mask's {min(hidden)} is its own: no field may have that name")
    try:
        from kolena.annotation import BitmapMask
    except ImportError:
        return lambda locator, **more: bitmap_mask_fields(locator, **{**more, **fields})

    def make(locator: str, **more: Any) -> Mask:
        bitmap_mask_fields(locator)  # BitmapMask takes any text
        return BitmapMask(locator, **{**more, **fields})

    return make


def provenance_fields(name: str, low: float | None, high: float | None) -> dict[str, Any]:
    """What a mask tells of the map it was made of: its name, and the values that its colors span."""
    return {"map_name": name, "range_low": low, "range_high": high}
