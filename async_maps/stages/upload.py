"""The upload stage: uploads PNGs concurrently, with retries, and creates their receipts. Runs on the event loop."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from async_maps.concurrency.streams import receive
from async_maps.errors import ExistsError, ObjectError, StoreError, TransientError
from async_maps.filesystems.verdict import UnjudgedError
from async_maps.outcomes import Receipt
from async_maps.stages.judge import Case

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream

    from async_maps.keys import KeyTemplate
    from async_maps.settings import IfExists
    from async_maps.stages.control import Control
    from async_maps.stages.items import Png
    from async_maps.stages.judge import Judge
    from async_maps.stages.meters import Meter
    from async_maps.stages.rate_limiter import RateLimiter
    from async_maps.stores import AddressedStore

_logger = logging.getLogger("async_maps")


class Uploading(NamedTuple):
    """The parameters that all uploads share."""

    store: AddressedStore
    template: KeyTemplate
    rate_limiter: RateLimiter
    judge: Judge
    control: Control
    if_exists: IfExists


async def upload_stage(pngs: MemoryObjectReceiveStream[Png], uploading: Uploading, meter: Meter) -> None:
    """Run one of the concurrent uploads: store each PNG and settle its job, until the end of the PNGs.

    If a request is cancelled, the object may or may not be stored; its map has no receipt in either case.
    """
    async with pngs:
        while (png := await receive(pngs)) is not None:
            started = perf_counter()
            is_judged = await _settle(png, uploading)
            # The lease is released: do not keep the PNG in memory while waiting for the next one.
            del png
            # A store that is down settles maps, too, but that is no progress.
            meter.worked(perf_counter() - started, int(is_judged))


async def _settle(png: Png, uploading: Uploading) -> bool:
    """Settle a job; return whether its map was stored or failed, and not the store."""
    try:
        receipt = await _upload(png, uploading)
    except ObjectError as error:
        # The store may have the object of an attempt whose answer did not arrive.
        png.job.fail("upload", str(error), maybe_stored=not isinstance(error, ExistsError))
    except StoreError as error:
        png.job.settle(error)
        return False
    else:
        png.job.settle(receipt)
    finally:
        png.lease.release()
    return True


async def _upload(png: Png, uploading: Uploading) -> Receipt:
    map_, store = png.job.map, uploading.store
    key = map_.key or uploading.template.key(store.prefix, map_.name, map_.index, png.digest)
    locator = store.locator(key)
    etag = await _put(key, png.data, uploading, maybe_ours=map_.maybe_at in {"", locator})
    return Receipt(
        name=map_.name,
        locator=locator,
        source=map_.source,
        fingerprint=map_.fingerprint,
        file=map_.file,
        size=len(png.data),
        width=png.result.width,
        height=png.result.height,
        etag=etag,
        stored_at=datetime.now(UTC),
        statistics=png.result.statistics,
        crc32=png.crc32,
    )


async def _put(key: str, data: bytes, uploading: Uploading, *, maybe_ours: bool) -> str | None:
    judge, control, case = uploading.judge, uploading.control, Case()
    try:
        async with control.making_way(key):
            while True:
                try:
                    async with uploading.rate_limiter.turn(len(data)):
                        judge.begin(case)
                        etag = await uploading.store.put(key, data)
                    break
                except ExistsError as error:
                    # An earlier attempt of this or another run with the manifest may have stored the object.
                    if not error.same or (uploading.if_exists == "error" and case.attempts == 1 and not maybe_ours):
                        judge.accepted(case)
                        raise
                    etag = error.etag
                    break
                except TransientError as error:
                    await control.rule(case, error)
                    wait_s = uploading.rate_limiter.failed(error, case.attempts, case.began_at)
                    _logger.debug(
                        "%s: attempt %d failed, the next follows in %.1f s: %s", key, case.attempts, wait_s, str(error)
                    )
                    await asyncio.sleep(wait_s)
                    if judge.needs_control(case):
                        await control.ask(case)
                except UnjudgedError as error:
                    judge.refused(case, error.verdict)
                    await control.hear(case, error)
        judge.accepted(case)
        uploading.rate_limiter.taken(case.began_at)
        control.keep(key, data)
        return etag
    finally:
        judge.close(case)
