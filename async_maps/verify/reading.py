"""Reads the objects of a comparison, and compares them with the uploads. Runs on the event loop, and in threads."""

from __future__ import annotations

from functools import partial
from threading import Lock
from typing import TYPE_CHECKING

from anyio import CapacityLimiter, to_thread

from async_maps.concurrency.fan_out import fan_out
from async_maps.errors import ObjectError, SourceError, StoreError, translate_os_error
from async_maps.filesystems.locators import file_path
from async_maps.filesystems.objects import checksum
from async_maps.verify.comparison import Comparison, Difference, Expected
from async_maps.verify.examine import examine

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from async_maps.filesystems.objects import Content, Objects
    from async_maps.settings import Settings
    from async_maps.verify.verification import Verification

_MOST_PIXEL_BYTES, _BESIDE_PIXELS = 10, 2**20
"""The maximum bytes of a PNG per pixel (16-bit RGBA, one pixel per scanline, uncompressed), and for the rest."""

_BATCH_FILES = 32
"""The number of files that a thread compares in one call."""


class Reading:
    """Reads the objects that do not differ in the listings, and adds their differences to the comparison."""

    def __init__(
        self, comparison: Comparison, objects: Objects, settings: Settings, verification: Verification
    ) -> None:
        self._comparison = comparison
        self._objects = objects
        self._settings = settings
        self._verification = verification
        self._unreached = 0
        self._counting = Lock()

    async def read(self, since: str) -> None:
        """Read the objects that were stored at or after ``since``.

        Raises StoreError if more reads fail in a row than run concurrently, so the store cannot be reached anymore.
        """
        self._verification.doing = "reading every object"
        settings = self._settings
        # Threads that wait for the store use no core; those that decode do.
        threads = CapacityLimiter(settings.first_concurrency), CapacityLimiter(settings.encode_thread_count)
        workers = [partial(self._examine, threads)] * settings.first_concurrency
        await fan_out(self._to_read(since), workers, size=lambda row: row.size or 0, limit=settings.queue_size)

    async def read_files(self, since: str) -> None:
        """Compare the CRC32 of each file that was stored at or after ``since``.

        Files have no ETag, and another file may have the same size.
        """
        self._verification.doing = "reading files"
        threads = CapacityLimiter(self._settings.first_concurrency)

        async def compare(rows: Sequence[Expected]) -> None:
            await to_thread.run_sync(self._compare_files, rows, limiter=threads)

        # A thread holds only a piece of a file, so the number of threads bounds the memory.
        await fan_out(self._files(since), [compare] * self._settings.first_concurrency, size=lambda _: 0, limit=1)

    async def _files(self, since: str) -> AsyncGenerator[Sequence[Expected], None]:
        after = "file://"
        while rows := await to_thread.run_sync(self._comparison.to_read, after, since):
            files = [row for row in rows if file_path(row.locator) is not None]
            # They are sorted: what follows is in buckets.
            for start in range(0, len(files), _BATCH_FILES):
                yield files[start : start + _BATCH_FILES]
            if len(files) < len(rows):
                return
            after = rows[-1].locator

    def _compare_files(self, rows: Sequence[Expected]) -> None:
        differences, modified = [], {}
        count = size = 0
        for row in rows:
            if row.crc32 is None:
                continue
            try:
                found = checksum(row.locator)
            except FileNotFoundError:
                differences.append(Difference("missing", row.locator, row.name, _what(row), "nothing anymore"))
            except ObjectError as error:
                differences.append(Difference("unreadable", row.locator, row.name, _what(row), str(error)))
            else:
                count, size = count + 1, size + found.size
                if found.crc32 != row.crc32:
                    crc32s = f"CRC32 {row.crc32}", f"CRC32 {found.crc32}"
                    differences.append(Difference("digest", row.locator, row.name, *crc32s))
                    modified[row.locator] = found.modified
        with self._counting:
            self._verification.read += count
            self._verification.read_bytes += size
        if differences:
            self._comparison.note_read(differences, modified)

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
            modified = {} if isinstance(content, Difference) else {row.locator: content.modified}
            await to_thread.run_sync(self._comparison.note_read, differences, modified)

    def _read(self, row: Expected) -> Content | Difference:
        what = _what(row)
        max_pixels = self._settings.max_pixels
        if (row.size or 0) > _MOST_PIXEL_BYTES * max_pixels + _BESIDE_PIXELS:
            found = f"{row.size:,} bytes, more than a PNG of max_pixels = {max_pixels:,} can have"
            return Difference("unreadable", row.locator, row.name, "an overlay", found)
        try:
            content = self._objects.read(row.locator)
        except StoreError as error:
            self._unreached += 1
            if self._unreached > self._settings.first_concurrency:
                # Do not wait for a time-out of each of a million objects.
                raise
            return Difference("unreadable", row.locator, row.name, what, str(error))
        except FileNotFoundError:
            return Difference("missing", row.locator, row.name, what, "nothing anymore")
        except (SourceError, OSError) as error:
            return Difference("unreadable", row.locator, row.name, what, translate_os_error(error))
        self._unreached = 0
        return content


def _what(row: Expected) -> str:
    return "an overlay" if row.size is None else f"{row.size:,} bytes"
