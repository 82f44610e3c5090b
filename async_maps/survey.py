"""The first pass over a whole set, for the range that its colours span: every map is read, in threads, and counted."""

from __future__ import annotations

from contextlib import aclosing
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from anyio import CapacityLimiter, create_memory_object_stream, create_task_group, to_thread

from async_maps.errors import InputValidationError, MissingExtraError, SettingsError, SourceError
from async_maps.manifest import Manifest
from async_maps.quantise import map_shape
from async_maps.ranges import ValueRange
from async_maps.records import ActivationMap
from async_maps.sketch import Sketch
from async_maps.sources import is_stdin
from async_maps.sources.formats import Readers
from async_maps.sources.storage import Storages, is_remote

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from typing import Any

    from anyio.streams.memory import MemoryObjectReceiveStream
    from numpy.typing import NDArray

    from async_maps.manifest import Redo
    from async_maps.quantise import Invalid
    from async_maps.recorder import Recorder
    from async_maps.report import Report
    from async_maps.settings import Settings
    from async_maps.sources.listing import Entry

_AT_ONCE = 16


async def known_range(settings: Settings, recorder: Recorder | None, redo: Redo) -> ValueRange:
    """The range, as far as can be told without looking at the maps: still a ``dataset`` if they must be.

    Raises:
        ManifestError: the other run's manifest cannot be read or has no range.
    """
    wanted = settings.value_range
    if wanted.kind == "from":
        return await to_thread.run_sync(_range_of, wanted.manifest)
    if wanted.kind == "dataset" and recorder is not None and redo != "all":
        # Unless all is done anew: who runs again, for the rest or with maps that were added, gets the same colours.
        sketch = await recorder.sketch(settings.invalid)
        if sketch is not None:
            return range_of_all(sketch, wanted)
    return wanted


def range_of_all(sketch: Sketch, wanted: ValueRange) -> ValueRange:
    """What a ``dataset`` range comes to."""
    if not sketch.count:
        # Not one map can be colorized, and each will say why.
        return ValueRange("fixed")
    return ValueRange("fixed", sketch.percentile(wanted.low), sketch.percentile(wanted.high))


async def survey(listing: AsyncGenerator[list[Entry], None], settings: Settings, report: Report) -> Sketch:
    """Read every map and count its values. A map that will fail counts for nothing; the run will say why it does.

    Args:
        listing: the maps, with arrays as they are.
        settings: how invalid values are taken, and how much is read at once.
        report: its ``surveyed`` is kept up to date.
    """
    counted = _Counted(settings.invalid, report)
    local = CapacityLimiter(settings.worker_count + settings.encode_thread_count)
    # Who waits for S3 takes no core.
    remote = CapacityLimiter(settings.prefetch)
    sending, receiving = create_memory_object_stream[list["Entry"]](1)
    with Storages(settings.s3) as storages:
        async with create_task_group() as tasks, sending, aclosing(listing):
            for _ in range(int(local.total_tokens + remote.total_tokens)):
                tasks.start_soon(_count_maps, receiving.clone(), counted, Readers(storages), (local, remote))
            receiving.close()
            async for batch in listing:
                # A piece is as many maps as a thread reads between two looks at whether it is still wanted.
                size = 1 if any(_is_remote(entry) for entry in batch) else _AT_ONCE
                for start in range(0, len(batch), size):
                    await sending.send(batch[start : start + size])
    return counted.sketch


async def _count_maps(
    pieces: MemoryObjectReceiveStream[list[Entry]],
    counted: _Counted,
    readers: Readers,
    limiters: tuple[CapacityLimiter, CapacityLimiter],
) -> None:
    with readers:
        async with pieces:
            async for piece in pieces:
                limiter = limiters[_is_remote(piece[0])]
                await to_thread.run_sync(counted.add, piece, readers, limiter=limiter)


def _is_remote(entry: Entry) -> bool:
    return isinstance(entry, ActivationMap) and entry.path is not None and is_remote(entry.path)


class _Counted:
    """The sketch that all threads add to, in turn."""

    def __init__(self, invalid: Invalid, report: Report) -> None:
        self.sketch = Sketch()
        self._invalid = invalid
        self._report = report
        self._turn = Lock()

    def add(self, batch: Sequence[Entry], readers: Readers) -> None:
        for entry in batch:
            values = self._values(entry, readers) if isinstance(entry, ActivationMap) else None
            with self._turn:
                self._report.surveyed += 1
                if values is not None:
                    self.sketch.add(values)

    def _values(self, map_: ActivationMap, readers: Readers) -> NDArray[np.float64] | None:
        try:
            array: NDArray[Any] = readers.read(map_.path, map_.part) if map_.path is not None else map_.array  # type: ignore[assignment]  # one of them
            map_shape(array, ValueRange("dataset"))
        except (InputValidationError, SourceError, OSError, MissingExtraError):
            return None
        except Exception:  # noqa: BLE001  # as in the worker: whatever a hostile file provokes, its own run will say
            return None
        with np.errstate(over="ignore"):
            values = np.asarray(array, np.float64).reshape(-1)
        valid = np.isfinite(values)
        if valid.all():
            return np.ascontiguousarray(values)
        if self._invalid == "error":
            return None
        return np.where(valid, values, 0.0) if self._invalid == "zero" else values[valid]


def refuse_one_shot(source: object) -> None:
    """Refuse a source that can be read once only, where the range asks for two passes.

    Raises:
        SettingsError: it is an iterator, or standard input.
    """
    if is_stdin(source) or hasattr(source, "__anext__") or hasattr(source, "__next__"):
        raise SettingsError(
            "range dataset reads all maps before it colours the first, so their source must be one that can be read "
            "twice: a place or a list, no iterator and no standard input"
        )


def _range_of(manifest: str) -> ValueRange:
    with Manifest(manifest, read_only=True) as opened:
        return opened.value_range()
