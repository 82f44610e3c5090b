"""Every object of a comparison is read, and held against what was sent. On the event loop; what blocks, in threads."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from anyio import CapacityLimiter, to_thread

from async_maps.concurrency.fan_out import fan_out
from async_maps.errors import SourceError, StoreError, translate_os_error
from async_maps.verify.comparison import Comparison, Difference, Expected
from async_maps.verify.examine import examine

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from async_maps.filesystems.objects import Content, Objects
    from async_maps.settings import Settings
    from async_maps.verify.verification import Verification

_MOST_PIXEL_BYTES, _BESIDE_PIXELS = 10, 2**20
"""No PNG has more bytes a pixel (of 16 bits a channel, one pixel a scanline, not compressed), and besides."""


class Reading:
    """Reads what a comparison of complete lists has found to be right so far; it gets what differs after all."""

    def __init__(
        self, comparison: Comparison, objects: Objects, settings: Settings, verification: Verification
    ) -> None:
        self._comparison = comparison
        self._objects = objects
        self._settings = settings
        self._verification = verification
        self._unreached = 0

    async def read(self, since: str) -> None:
        """Read what was stored then or later.

        Raises StoreError if S3 cannot be reached any more: more reads in a row failed than run concurrently.
        """
        self._verification.doing = "reading every object"
        settings = self._settings
        # Waiting for the store takes no core; decoding does.
        threads = CapacityLimiter(settings.concurrency), CapacityLimiter(settings.encode_thread_count)
        workers = [partial(self._examine, threads)] * settings.concurrency
        await fan_out(self._to_read(since), workers, size=lambda row: row.size or 0, limit=settings.queue_bytes)

    async def _to_read(self, since: str) -> AsyncGenerator[Expected, None]:
        after = ""
        while rows := await to_thread.run_sync(self._comparison.to_read, after, since):
            for row in rows:
                yield row
            after = rows[-1].locator

    async def _examine(self, threads: tuple[CapacityLimiter, CapacityLimiter], row: Expected) -> None:
        content = await to_thread.run_sync(self._read, row, limiter=threads[0])
        if isinstance(content, Difference):
            differences = [content]
        else:
            self._verification.read += 1
            self._verification.read_bytes += len(content.data)
            differences = await to_thread.run_sync(examine, row, content, self._settings.max_pixels, limiter=threads[1])
        if differences:
            await to_thread.run_sync(self._comparison.note_read, differences)

    def _read(self, row: Expected) -> Content | Difference:
        what = "an overlay" if row.size is None else f"{row.size:,} bytes"
        max_pixels = self._settings.max_pixels
        if (row.size or 0) > _MOST_PIXEL_BYTES * max_pixels + _BESIDE_PIXELS:
            found = f"{row.size:,} bytes, more than a PNG of max_pixels = {max_pixels:,} has"
            return Difference("unreadable", row.locator, row.name, "an overlay", found)
        try:
            content = self._objects.read(row.locator)
        except StoreError as error:
            self._unreached += 1
            if self._unreached > self._settings.concurrency:
                # Else each of a million would be waited for.
                raise
            return Difference("unreadable", row.locator, row.name, what, str(error))
        except FileNotFoundError:
            return Difference("missing", row.locator, row.name, what, "nothing any more")
        except (SourceError, OSError) as error:
            return Difference("unreadable", row.locator, row.name, what, translate_os_error(error))
        self._unreached = 0
        return content
