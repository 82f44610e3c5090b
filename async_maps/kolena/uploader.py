"""Overlays for Kolena, one map at a time, as its tutorial goes."""

from __future__ import annotations

from contextlib import contextmanager
from os import fspath
from typing import TYPE_CHECKING, Any, Protocol

from async_maps.blocking import blocking
from async_maps.concurrency.loop import open_portal
from async_maps.errors import InputValidationError, MapFailedError
from async_maps.filesystems.locators import bitmap_mask_fields
from async_maps.kolena.masks import Mask, mask_maker, provenance_fields
from async_maps.outcomes import Failure, Receipt
from async_maps.pipeline import Pipeline
from async_maps.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike


class _CreateAndUpload(Protocol):
    def __call__(self, filename: str, activation_map: Any, **fields: Any) -> Mask: ...


@contextmanager
def bitmap_uploader(
    destination: str | PathLike[str], *, settings: Settings | None = None
) -> Iterator[_CreateAndUpload]:
    """The tutorial's ``create_and_upload_bitmap(filename, activation_map)``, for as long as the context lasts.

    For synchronous code that has one map after the other, such as a model's ``infer``: connections stay open between
    maps. It works in a notebook too, as its event loop runs in a thread of its own. A whole set is sooner done by
    :func:`async_maps.run`; asynchronous code has :class:`~async_maps.Pipeline` and :func:`bitmap_mask`.

    Args:
        destination: ``s3://bucket/prefix``.
        settings: the defaults if None; in any case without worker processes, which single maps cannot keep busy.

    Yields:
        ``create_and_upload_bitmap(filename, activation_map, **fields)``, as the function of that name, with its
        destination known; any thread may call it.

    Raises:
        AsyncMapsError: as ``Pipeline``.
    """
    with (
        open_portal() as portal,
        portal.wrap_async_context_manager(_pipeline(destination, settings)) as pipeline,
    ):
        # One name for one thing: this is the function below, bound to its destination.
        def create_and_upload_bitmap(filename: str, activation_map: Any, **fields: Any) -> Mask:
            mask_maker(fields)  # refuses them before anything is uploaded
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
    """Colorize, encode and upload one map: the function that step 2 of Kolena's tutorial writes.

    Each call connects anew, which takes a fifth of a second; for more than a few maps use :func:`bitmap_uploader`.

    Args:
        filename: becomes ``{destination}/{filename}.png``.
        activation_map: (h, w) or (h, w, 1), as for ``Pipeline.put``.
        destination: ``s3://bucket/prefix``, which the tutorial has in a constant.
        settings: the defaults if None; in any case without worker processes.
        fields: whatever else the mask is to tell, such as ``layer="layer4"``.

    Returns:
        the mask, once the store has answered for exactly these bytes.

    Raises:
        MapFailedError: this map failed.
        AsyncMapsError: as ``Pipeline`` and :func:`bitmap_mask`.
    """
    mask_maker(fields)  # likewise
    async with _pipeline(destination, settings) as pipeline:
        return bitmap_mask(await pipeline.put(filename, activation_map), **fields)


create_and_upload_bitmap = blocking(
    acreate_and_upload_bitmap,
    "Colorize, encode and upload one map: the function that step 2 of Kolena's tutorial writes.",
)


def bitmap_mask(receipt: Receipt | Failure, *, provenance: bool = False, **fields: Any) -> Mask:
    """The mask of an overlay that the store has answered for.

    Args:
        receipt: of ``Pipeline.put`` or ``Pipeline.stream``.
        provenance: also tell ``map_name``, ``range_low`` and ``range_high``: which map it is, and the values that its
            colors span (None where nothing was counted). A receipt knows no more of how its overlay was made.
        fields: whatever else the mask is to tell, such as ``layer="layer4"``.

    Raises:
        MapFailedError: the outcome is a failure, which has no overlay.
        InputValidationError: it is no outcome at all, or its overlay lies where Kolena cannot read it.
        SettingsError: a field would hide the mask's own.
    """
    if isinstance(receipt, Failure):
        raise MapFailedError(receipt)
    if not isinstance(receipt, Receipt):
        raise InputValidationError(
            f"a mask is made of a Receipt, which proves that its overlay is there; found {type(receipt).__name__}"
        )
    if provenance:
        counted = receipt.statistics
        span = (None, None) if counted is None else (counted.range_low, counted.range_high)
        fields = {**provenance_fields(receipt.name, *span), **fields}
    return mask_maker(fields)(receipt.locator)


def _pipeline(destination: str | PathLike[str], settings: Settings | None) -> Pipeline:
    bitmap_mask_fields(f"{fspath(destination)}/name.png")  # refuses what Kolena cannot read before anything is there
    return Pipeline(destination, settings=(settings or Settings()).model_copy(update={"workers": 0}))
