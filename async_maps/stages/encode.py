"""The encode stage: writes bitmaps as PNGs, in threads. Runs on the event loop."""

from __future__ import annotations

import hashlib
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from anyio import to_thread
from isal import isal_zlib

from async_maps.concurrency.streams import receive, send
from async_maps.render.png import deflate, write_gray, write_palette, write_rgba
from async_maps.stages.items import Png

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from anyio import CapacityLimiter
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
    from numpy.typing import NDArray

    from async_maps.concurrency.streams import ByteBudget
    from async_maps.stages.items import Bitmap, Job
    from async_maps.stages.meters import Meter


def encode_bitmap(bitmap: Bitmap, table: NDArray[np.uint8] | None, level: int) -> bytes:
    """Encode a bitmap as a PNG: RGBA from colors; from intensities indexed, or grayscale if there is no table.

    The table has RGBA colors, (256, 4) uint8; the level is ISA-L's, 0 to 3, for scanlines that are not compressed yet.
    """
    result = bitmap.result
    shape = (result.height, result.width)
    stream = (bitmap.data.data,) if result.stream else deflate(bitmap.data, level)
    if result.rgba:
        return write_rgba(stream, shape)
    if table is None:
        return write_gray(stream, shape)
    if result.transparent is not None:
        table = table.copy()
        table[result.transparent, 3] = 0
    return write_palette(stream, shape, table)


class Encoding(NamedTuple):
    """How to encode bitmaps, and whether to compute the SHA-256 of each PNG."""

    encode: Callable[[Bitmap], bytes]
    digest: bool = False


def _encode_batch(batch: Sequence[Bitmap], encoding: Encoding) -> list[Png | str]:
    encoded: list[Png | str] = []
    for bitmap in batch:
        try:
            data = encoding.encode(bitmap)
            digest = hashlib.sha256(data).hexdigest() if encoding.digest else ""
            crc32 = f"{isal_zlib.crc32(data):08x}"
            encoded.append(Png(bitmap.job, data, digest, crc32, bitmap.result))
        except Exception as error:  # noqa: BLE001  # one map's failure is data
            encoded.append(f"could not be encoded: {error!r}")
    return encoded


async def encode_stage(
    bitmaps: MemoryObjectReceiveStream[list[Bitmap]],
    pngs: MemoryObjectSendStream[Png],
    encoding: Encoding,
    bounds: tuple[CapacityLimiter, ByteBudget],
    meter: Meter,
) -> None:
    """Run one encoder until the end of the bitmaps: encode each batch in a thread, and send the PNGs on.

    ``bounds`` has the threads, and the budget for the bytes of PNGs until they are uploaded. On cancellation the task
    waits for its thread (milliseconds), because the thread reads a shared block.
    """
    threads, budget = bounds
    async with bitmaps, pngs:
        while (batch := await receive(bitmaps)) is not None:
            started = perf_counter()
            jobs = [bitmap.job for bitmap in batch]
            try:
                encoded = await to_thread.run_sync(_encode_batch, batch, encoding, limiter=threads)
            finally:
                # A view of the block must not exist after the block's release.
                while batch:
                    batch.pop().release()
            meter.worked(perf_counter() - started, len(jobs))
            # Remove each PNG from the list as it is sent: the next stage counts and frees it.
            encoded.reverse()
            for job in jobs:
                await _send(job, encoded.pop(), pngs, budget)
            del jobs, job


async def _send(job: Job, png: Png | str, pngs: MemoryObjectSendStream[Png], budget: ByteBudget) -> None:
    if isinstance(png, str):
        job.fail("encode", png)
    else:
        png.lease = await budget.acquire(len(png.data))
        await send(pngs, png)
