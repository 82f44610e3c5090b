"""Reads small ``.npy`` objects of a listing whole and ahead, so that a map costs one request.

The read that shows whether an object is one map has its values already. For the thread that lists.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from async_maps.concurrency.concurrency_limit import ConcurrencyLimit
from async_maps.errors import AsyncMapsError
from async_maps.filesystems.filesystem import is_remote
from async_maps.filesystems.locators import parse_s3_address
from async_maps.render.ranges import ValueRange
from async_maps.sources.formats.npy import array_in_bytes
from async_maps.sources.formats.registry import suffix_of
from async_maps.sources.layouts import map_size

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from numpy.typing import NDArray

    from async_maps.filesystems.answers import Range
    from async_maps.filesystems.filesystem import Filesystems
    from async_maps.sources.contents import ListedMap
    from async_maps.sources.named import NamedFile
    from async_maps.sources.options import SourceOptions

_ANY = ValueRange("dataset")


class ReadAhead(NamedTuple):
    """How much is read ahead.

    Attributes:
        first: the number of concurrent requests at the start.
        most: the most to which it may grow.
        max_bytes: the bytes of the objects that were requested and not taken yet; a larger one is read alone.
        max_pixels: maps with more are not read.
    """

    first: int
    most: int
    max_bytes: int
    max_pixels: int | None


class WholeObjects:
    """Reads objects ahead: requests run until the listing has taken what they have read."""

    def __init__(self, filesystems: Filesystems, ahead: ReadAhead) -> None:
        self._filesystems = filesystems
        self._ahead = ahead
        self._limit = ConcurrencyLimit(ahead.first, ahead.most)
        self._lock = Lock()
        self._held = 0

    def is_full(self, count: int) -> bool:
        """Whether no more than this number of files may be ahead."""
        return count >= self._limit.limit or self._held > self._ahead.max_bytes

    def takes(self, file: NamedFile) -> bool:
        """Whether a file is to be read whole."""
        from async_maps.filesystems.s3 import WHOLE_BYTES

        return is_remote(file.path) and suffix_of(file.path) == ".npy" and 0 < file.size <= WHOLE_BYTES

    def begin(self, file: NamedFile, threads: ThreadPoolExecutor) -> Callable[[], Range]:
        """Begin to read a file; return a function that waits for it, and raises the errors of ``S3Filesystem.read``.

        The SDK reads it in a thread if there is no plain answer.
        """
        from async_maps.filesystems.s3 import WHOLE

        s3, address, size = self._filesystems.s3(), parse_s3_address(file.path), file.size
        started, read = perf_counter(), partial(s3.read, address, WHOLE)
        whole: Future[Range] = Future()
        with self._lock:
            self._limit.in_flight += 1
            self._held += size

        def answered(begun: Future[Range | None]) -> None:
            if (content := begun.result()) is not None:
                self._succeeded(started)
                whole.set_result(content)
                return
            try:
                threads.submit(by_sdk)
            except RuntimeError:  # the listing has ended
                whole.cancel()

        def by_sdk() -> None:
            try:
                content = read()
            except BaseException as error:  # noqa: BLE001  # raised to the caller
                whole.set_exception(error)
            else:
                self._succeeded(started)
                whole.set_result(content)

        def take() -> Range:
            try:
                return whole.result()
            finally:
                with self._lock:
                    # Not when it is answered: requests that began together are answered together.
                    self._limit.in_flight -= 1
                    self._held -= size

        s3.begin(address, WHOLE).add_done_callback(answered)
        return take

    def _succeeded(self, started: float) -> None:
        now = perf_counter()
        with self._lock:
            self._limit.succeeded(now - started, now)

    def with_array(self, found: ListedMap, content: Range, options: SourceOptions) -> ListedMap:
        """Return a map with its values, if the object is this one map and all of it was read; else unchanged.

        A map that cannot be read, or is none, is left to the reader of the pipeline, which has the words for it.
        """
        if found.part is not None or found.problem or found.refusal or len(content.data) < content.size:
            return found
        try:
            array: NDArray[Any] = array_in_bytes(content.data, self._ahead.max_pixels)
            map_size(array, _ANY, options.channels)
        except AsyncMapsError:
            return found
        return found._replace(array=array)
