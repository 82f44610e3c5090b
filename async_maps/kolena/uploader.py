"""Overlays for Kolena, one map at a time, as in its tutorial."""

from __future__ import annotations

from contextlib import contextmanager
from os import fspath
from typing import TYPE_CHECKING, Any, Protocol

from async_maps.blocking import blocking
from async_maps.concurrency.loop import open_portal
from async_maps.errors import InputValidationError, MapFailedError
from async_maps.filesystems.locators import bitmap_mask_fields
from async_maps.filesystems.services import canonical
from async_maps.kolena.masks import Mask, mask_maker, provenance_fields
from async_maps.outcomes import Failure, Receipt
from async_maps.pipeline import Pipeline
from async_maps.settings import Settings, given_or_default

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike


class _CreateAndUpload(Protocol):
    def __call__(self, filename: str, activation_map: Any, **fields: Any) -> Mask: ...


@contextmanager
def bitmap_uploader(
    destination: str | PathLike[str], *, settings: Settings | None = None
) -> Iterator[_CreateAndUpload]:
    """Open a destination for the tutorial's ``create_and_upload_bitmap(filename, activation_map)``.

    Use it in synchronous code that has one map after the other, such as the ``infer`` of a model: connections stay open
    between maps. It works in notebooks, because its event loop runs in another thread. For a whole set of maps,
    :func:`async_maps.run` is faster. In asynchronous code use :class:`~async_maps.Pipeline` and :func:`bitmap_mask`.

    Args:
        destination: ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``.
        settings: the settings; the defaults if None. ``workers`` is ignored: single maps cannot keep processes busy.

    Yields:
        The function :func:`create_and_upload_bitmap` without its arguments ``destination`` and ``settings``. Any
        thread may call it.

    Raises:
        AsyncMapsError: as for :class:`~async_maps.Pipeline`.
    """
    with open_portal() as portal, portal.wrap_async_context_manager(_pipeline(destination, settings)) as pipeline:

        def create_and_upload_bitmap(filename: str, activation_map: Any, **fields: Any) -> Mask:
            mask_maker(fields)  # raises for invalid fields before the upload
            return bitmap_mask(portal.call(pipeline.put, filename, activation_map), **fields)

        yield create_and_upload_bitmap


async def acreate_and_upload_bitmap(
    filename: str,
    activation_map: Any,
    *,
    destination: str | PathLike[str],
    settings: Settings | None = None,
    **fields: Any,
) -> Mask:
    """Colorize, encode and upload one map, like the function in step 2 of Kolena's tutorial.

    Each call opens new connections, which takes about 0.2 s. Use :func:`bitmap_uploader` for more than a few maps.

    Args:
        filename: the name of the map. The overlay goes to ``{destination}/{filename}.png``.
        activation_map: (h, w) or (h, w, 1), uint8 or float with values in [0, 1], as for ``Pipeline.put``.
        destination: as for :func:`bitmap_uploader`; a constant in the tutorial.
        settings: the settings; the defaults if None. ``workers`` is ignored.
        fields: further fields of the mask, such as ``layer="layer4"``.

    Returns:
        The mask, after the store has confirmed exactly these bytes.

    Raises:
        MapFailedError: this map failed.
        AsyncMapsError: as for :class:`~async_maps.Pipeline` and :func:`bitmap_mask`.
    """
    mask_maker(fields)  # raises for invalid fields before the upload
    async with _pipeline(destination, settings) as pipeline:
        return bitmap_mask(await pipeline.put(filename, activation_map), **fields)


create_and_upload_bitmap = blocking(acreate_and_upload_bitmap)
"""Colorize, encode and upload one map, like the function in step 2 of Kolena's tutorial."""


def bitmap_mask(receipt: Receipt | Failure, *, provenance: bool = False, **fields: Any) -> Mask:
    """Make the mask of an overlay that the store has confirmed.

    Args:
        receipt: an outcome of ``Pipeline.put`` or ``Pipeline.stream``.
        provenance: whether the mask has the fields ``map_name``, ``range_low`` and ``range_high``: the name of the map,
            and its value range (None if no value is valid).
        fields: further fields of the mask, such as ``layer="layer4"``.

    Returns:
        The mask.

    Raises:
        MapFailedError: the outcome is a failure, which has no overlay.
        InputValidationError: ``receipt`` is not an outcome, or Kolena cannot read its locator.
        SettingsError: a field is called ``locator`` or ``data_type``, which every mask has.
    """
    if isinstance(receipt, Failure):
        raise MapFailedError(receipt)
    if not isinstance(receipt, Receipt):
        raise InputValidationError(
            f"expected a Receipt, which proves that the overlay exists; found {type(receipt).__name__}"
        )
    if provenance:
        counted = receipt.statistics
        fields = {**provenance_fields(receipt.name, counted.range_low, counted.range_high), **fields}
    return mask_maker(fields)(receipt.locator)


def _pipeline(destination: str | PathLike[str], settings: Settings | None) -> Pipeline:
    bitmap_mask_fields(f"{canonical(fspath(destination))}/name.png")  # raises if Kolena cannot read it
    return Pipeline(destination, settings=given_or_default(settings).model_copy(update={"workers": 0}))
