"""The first pass of ``range = "dataset"``: reads every map, in threads, to find the value range of the whole set."""

from __future__ import annotations

import logging
from contextlib import ExitStack, aclosing
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from anyio import CapacityLimiter, to_thread

from async_maps.concurrency.fan_out import fan_out
from async_maps.concurrency.tasks import in_thread
from async_maps.errors import InputValidationError, SettingsError
from async_maps.filesystems.addresses import is_remote
from async_maps.filesystems.filesystem import Filesystems, UnavailableError, verdict_of
from async_maps.manifest.manifest import Manifest
from async_maps.render.channels import reduce_channels
from async_maps.render.ranges import ValueRange
from async_maps.render.sketch import QuantileSketch
from async_maps.settings import counted_values
from async_maps.sources import is_stdin
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.formats.registry import shares_reads
from async_maps.sources.hearing import Hearing
from async_maps.sources.isolation import DecoderProcess, IsolatedReaders
from async_maps.sources.layouts import map_size

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from numpy.typing import NDArray

    from async_maps.manifest.manifest import RepairMode, Select
    from async_maps.manifest.recorder import Recorder
    from async_maps.report import Report
    from async_maps.settings import Settings
    from async_maps.sources.batches import Entry
    from async_maps.sources.formats.registry import Readers

_BATCH_MAPS = 16

_logger = logging.getLogger("async_maps")


async def known_range(settings: Settings, recorder: Recorder | None, mode: Select | RepairMode) -> ValueRange:
    """Return the value range if it is known without reading the maps; else the ``dataset`` range unchanged.

    Raises ManifestError if the manifest of ``from:MANIFEST`` cannot be read, or has no range.
    """
    wanted = settings.value_range
    if wanted.kind == "from":
        return await to_thread.run_sync(_range_of, wanted.manifest)
    if wanted.kind == "dataset" and recorder is not None and mode != "all":
        # A later run of the remaining or added maps uses the same colors; select="all" surveys again.
        sketch = await recorder.sketch(counted_values(settings))
        if sketch is not None:
            return await range_of_all(sketch, wanted)
    return wanted


async def range_of_all(sketch: QuantileSketch, wanted: ValueRange) -> ValueRange:
    """Return the fixed value range of a ``dataset`` range, from the sketch of all values."""
    if not sketch.count:
        # No map can be colorized: each one fails with its own reason.
        return ValueRange("fixed")
    # In a thread: this sums millions of counts.
    low = await to_thread.run_sync(sketch.percentile, wanted.low)
    high = await to_thread.run_sync(sketch.percentile, wanted.high)
    if low == high:
        _logger.warning(
            "range %s is the single value %g: all values above it get the same color; set a wider range", wanted, low
        )
    return ValueRange("fixed", low, high)


class Survey(NamedTuple):
    """What a survey has found.

    Attributes:
        sketch: the values of all maps that could be read.
        readable_later: the number of maps that could not be read for a reason that may pass.
    """

    sketch: QuantileSketch
    readable_later: int


async def survey(listing: AsyncGenerator[list[Entry], None], settings: Settings, report: Report) -> Survey:
    """Read every map and count its values; keep the report's ``surveyed`` and ``unsurveyed`` up to date.

    Maps that cannot be colorized are left out; the run that follows reports them.
    """
    with Filesystems(settings.s3) as filesystems, ExitStack() as stack:
        process = stack.enter_context(DecoderProcess(settings.s3, settings.max_pixels, settings.channels))
        shared = stack.enter_context(IsolatedReaders(process, filesystems))

        def interrupt() -> None:
            filesystems.close()
            process.stop()

        surveyors = _Surveyors(settings, report, shared, interrupt, Hearing(filesystems))
        readers = [IsolatedReaders(process, filesystems) for _ in range(surveyors.count)]
        workers = [partial(surveyors.read, stack.enter_context(own)) for own in readers]
        await fan_out(_pieces(listing), workers, size=_held_bytes, limit=settings.queue_size)
    return Survey(surveyors.sketch, surveyors.readable_later)


async def _pieces(listing: AsyncGenerator[list[Entry], None]) -> AsyncGenerator[Sequence[ActivationMap], None]:
    """Batches of maps. A thread reads one batch before it can be cancelled."""
    async with aclosing(listing):
        async for batch in listing:
            maps = [entry for entry in batch if isinstance(entry, ActivationMap)]
            count = 1 if any(_is_remote(map_) for map_ in maps) else _BATCH_MAPS
            for start in range(0, len(maps), count):
                yield maps[start : start + count]


def _held_bytes(maps: Sequence[ActivationMap]) -> int:
    return sum(map_.max_bytes for map_ in maps if map_.array is not None or _is_remote(map_))


def _is_remote(map_: ActivationMap) -> bool:
    return map_.path is not None and is_remote(map_.path)


class _Surveyors:
    def __init__(
        self, settings: Settings, report: Report, shared: Readers, interrupt: Callable[[], object], hearing: Hearing
    ) -> None:
        self.sketch = QuantileSketch()
        self.readable_later = 0
        self._invalid = settings.invalid
        self._channels = settings.channels
        self._report = report
        self._shared = shared
        self._interrupt = interrupt
        self._hearing = hearing
        self._is_over = False
        self._lock = Lock()
        self._local = CapacityLimiter(settings.worker_count + settings.encode_thread_count)
        # Threads that wait for a service use no core.
        self._remote = CapacityLimiter(settings.first_prefetch)

    @property
    def count(self) -> int:
        """The number of tasks that keeps all threads busy."""
        return int(self._local.total_tokens + self._remote.total_tokens)

    async def read(self, readers: Readers, maps: Sequence[ActivationMap]) -> None:
        limiter = self._remote if _is_remote(maps[0]) else self._local
        await in_thread(partial(self._count, maps, readers), limiter=limiter, interrupt=self._end)

    def _end(self) -> None:
        self._is_over = True
        self._interrupt()

    def _count(self, maps: Sequence[ActivationMap], readers: Readers) -> None:
        for map_ in maps:
            unread = may_pass = False
            values = None
            try:
                values = self._judged(map_, readers)
            except InputValidationError:
                pass
            except UnavailableError:
                raise
            except Exception as error:  # noqa: BLE001  # as in the worker; the run that follows reports the error
                unread = not self._is_over
                may_pass = unread and _may_pass(error)
            with self._lock:
                self._report.surveyed += 1
                self._report.unsurveyed += unread
                self.readable_later += may_pass
                if values is not None:
                    self.sketch.add(values)

    def _judged(self, map_: ActivationMap, readers: Readers) -> NDArray[np.float64] | None:
        """Read a map as often as it takes to find out whether it is to blame.

        Raises:
            UnavailableError: the store of the source is to blame.
        """
        path, tries = map_.path or "", 0
        while True:
            try:
                values = self._values(map_, readers)
            except Exception as error:
                verdict, tries = verdict_of(error), tries + 1
                if verdict is not None and verdict.retry and self._hearing.control is None and _is_remote(map_):
                    # The listing could read it.
                    self._hearing.could_read(path)
                if verdict is None or not self._hearing.may_pass(path, verdict, tries):
                    raise
            else:
                if _is_remote(map_):
                    self._hearing.could_read(path)
                return values

    def _values(self, map_: ActivationMap, readers: Readers) -> NDArray[np.float64] | None:
        array = map_.array
        if array is None and map_.path is not None:
            array = (self._shared if shares_reads(map_) else readers).read(map_.path, map_.part, map_.max_bytes)
        assert array is not None  # noqa: S101  # a map has a path or an array
        map_size(array, ValueRange("dataset"), self._channels)
        array = reduce_channels(array, self._channels)
        with np.errstate(over="ignore"):
            values = np.asarray(array, np.float64).reshape(-1)
        valid = np.isfinite(values)
        if valid.all():
            return np.ascontiguousarray(values)
        if self._invalid == "error":
            return None
        return np.where(valid, values, 0.0) if self._invalid == "zero" else values[valid]


def _may_pass(error: BaseException) -> bool:
    """Whether the store, the disk or the memory is to blame, not the map."""
    if (verdict := verdict_of(error)) is not None:
        return verdict.may_pass
    # Libraries of formats raise OSErrors without a number.
    is_of_disk = isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError)
    return is_of_disk or isinstance(error, MemoryError)


def refuse_one_shot(source: object) -> None:
    """Raise SettingsError if a source can be read only once (an iterator, standard input): ``dataset`` reads twice."""
    if is_stdin(source) or hasattr(source, "__anext__") or hasattr(source, "__next__"):
        raise SettingsError(
            "range dataset reads all maps before it colorizes the first: pass a source that can be read twice, such "
            "as a path or a list, not an iterator or standard input"
        )


def _range_of(manifest: str) -> ValueRange:
    with Manifest(manifest, read_only=True) as opened:
        return opened.value_range()
