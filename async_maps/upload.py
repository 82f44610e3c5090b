"""The upload stage: so many requests at once, each turning a PNG into a receipt. Runs on the event loop."""

from __future__ import annotations

from datetime import UTC, datetime
from time import perf_counter
from typing import TYPE_CHECKING

from async_maps.errors import ObjectError, StoreError
from async_maps.records import Receipt
from async_maps.streams import receive

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream

    from async_maps.meters import Meter
    from async_maps.names import KeyTemplate
    from async_maps.records import Png
    from async_maps.stores import Store


async def upload_stage(pngs: MemoryObjectReceiveStream[Png], store: Store, template: KeyTemplate, meter: Meter) -> None:
    """One of the uploads that run side by side: takes a PNG, stores it, settles its job.

    Cancelled in mid-request, the object may or may not be there; its map has no receipt either way.

    Args:
        pngs: ends the stage when it ends.
        store: open.
        template: what keys are made by.
        meter: the stage's.
    """
    async with pngs:
        while (png := await receive(pngs)) is not None:
            started = perf_counter()
            await _settle(png, store, template)
            # While it waits for the next one, it must not keep bytes that nobody counts any more.
            del png
            meter.worked(perf_counter() - started, 1)


async def _settle(png: Png, store: Store, template: KeyTemplate) -> None:
    try:
        receipt = await _upload(png, store, template)
    except ObjectError as error:
        png.job.fail("upload", str(error))
    except StoreError as error:
        png.job.settle(error)
    else:
        png.job.settle(receipt)
    finally:
        png.loan.release()


async def _upload(png: Png, store: Store, template: KeyTemplate) -> Receipt:
    map_ = png.job.map
    key = template.key(store.prefix, map_.name, map_.index, png.digest)
    etag = await store.put(key, png.data)
    return Receipt(
        name=map_.name,
        locator=store.locator(key),
        source=map_.source,
        fingerprint=map_.fingerprint,
        size=len(png.data),
        width=png.width,
        height=png.height,
        etag=etag,
        stored_at=datetime.now(UTC),
        statistics=png.statistics,
    )
