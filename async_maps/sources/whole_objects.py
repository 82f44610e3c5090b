"""Reads small ``.npy`` objects of a listing whole and ahead, so that a map costs one request.

The read that shows whether an object is one map has its values already. For the thread that lists.
"""

from __future__ import annotations

from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from async_maps.concurrency.concurrency_limit import ConcurrencyLimit
from async_maps.errors import AsyncMapsError
from async_maps.filesystems.addresses import is_remote, parse_address
from async_maps.render.ranges import ValueRange
from async_maps.sources.formats.npy import array_in_bytes
from async_maps.sources.formats.registry import suffix_of
from async_maps.sources.layouts import map_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from numpy.typing import NDArray

    from async_maps.filesystems.answers import Range
    from async_maps.filesystems.filesystem import Filesystems
    from async_maps.sources.contents import ListedMap
    from async_maps.sources.named import NamedFile
    from async_maps.sources.options import SourceOptions

_ANY = ValueRange("dataset")
_PAUSE = 16
"""After an object that was no single map, this many are not read whole: others like it probably follow."""
_SPARE_BYTES = 64 * 2**10
"""The bytes beside a map's values that are kept with them rather than copy the values."""


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
        self._held = self._paused = 0
        self._are_maps = False

    def is_full(self, count: int) -> bool:
        """Whether no more than this number of files may be ahead: one, until it has shown that objects are maps."""
        if not self._are_maps:
            return self._limit.in_flight > 0
        return count >= self._limit.limit or self._held > self._ahead.max_bytes

    def takes(self, file: NamedFile) -> bool:
        """Whether a file is to be read whole: it is small, and may be one map."""
        from async_maps.filesystems.remote import WHOLE_BYTES

        if not (is_remote(file.path) and suffix_of(file.path) == ".npy" and 0 < file.size <= WHOLE_BYTES):
            return False
        self._paused = max(0, self._paused - 1)
        return not self._paused and (file.first, file.end) == (0, None)

    def begin(self, file: NamedFile, threads: ThreadPoolExecutor) -> Callable[[], Range]:
        """Begin to read a file; return a function that waits for it.

        It raises the errors of ``RemoteFilesystem.read``, which a thread calls if there is no plain answer.
        """
        from async_maps.filesystems.remote import WHOLE

        address, held = parse_address(file.path), file.size
        filesystem = self._filesystems.at(address)
        started, read = perf_counter(), partial(filesystem.read, address, WHOLE)
        whole: Future[Range] = Future()
        with self._lock:
            self._limit.in_flight += 1
            self._held += held

        def answered(begun: Future[Range | None]) -> None:
            if (content := begun.result()) is not None:
                succeeded(content)
                return
            try:
                threads.submit(by_sdk)
            except RuntimeError:  # no thread can be started, or the listing has ended
                whole.cancel()

        def succeeded(content: Range) -> None:
            nonlocal held
            now = perf_counter()
            with self._lock:
                self._limit.succeeded(now - started, now)
                # It may be larger than it was listed.
                self._held += len(content.data) - held
                held = len(content.data)
            whole.set_result(content)

        def by_sdk() -> None:
            if not whole.set_running_or_notify_cancel():
                return
            try:
                content = read()
            except BaseException as error:  # noqa: BLE001  # raised to the caller
                whole.set_exception(error)
            else:
                succeeded(content)

        def take() -> Range:
            try:
                return whole.result()
            except CancelledError:
                return read()
            finally:
                with self._lock:
                    # Not when it is answered: requests that began together are answered together.
                    self._limit.in_flight -= 1
                    self._held -= held

        filesystem.begin(address, WHOLE).add_done_callback(answered)
        return take

    def with_arrays(self, maps: Iterator[ListedMap], content: Range, options: SourceOptions) -> Iterator[ListedMap]:
        """Yield the maps of an object, with its values if the object is one map and all of it was read.

        A map that cannot be read, or is none, is left to the reader of the pipeline, which has the words for it.
        """
        self._are_maps = False
        for found in maps:
            read = self._with_array(found, content, options)
            self._are_maps = read.array is not None
            yield read
        if not self._are_maps:
            self._paused = _PAUSE

    def _with_array(self, found: ListedMap, content: Range, options: SourceOptions) -> ListedMap:
        if found.part is not None or found.problem or found.refusal or len(content.data) < content.size:
            return found
        try:
            array: NDArray[Any] = array_in_bytes(content.data, self._ahead.max_pixels)
            map_size(array, _ANY, options.channels)
        except AsyncMapsError:
            return found
        if len(content.data) > array.nbytes + _SPARE_BYTES:
            # Otherwise the map would hold bytes that nobody counts.
            array = array.copy(order="K")
        return found._replace(array=array)
