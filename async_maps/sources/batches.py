"""Lists any source in batches of maps, without blocking the event loop."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import partial
from itertools import count, islice
from os import PathLike, fspath
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from anyio import CancelScope, CapacityLimiter, to_thread

from async_maps.errors import InputValidationError, SettingsError, SourceError
from async_maps.filesystems.filesystem import Filesystems
from async_maps.filesystems.locators import file_path
from async_maps.outcomes import Failure
from async_maps.settings import Settings
from async_maps.sources import Source, is_stdin, open_source
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.arrays import array_map
from async_maps.sources.formats.others import advice_for
from async_maps.sources.formats.registry import FORMATS, suffix_of
from async_maps.sources.given import GivenFiles
from async_maps.sources.hearing import Hearing
from async_maps.sources.isolation import DecoderProcess
from async_maps.sources.options import LEFT_OUT, Scan, SourceOptions, shown_passed_over
from async_maps.sources.stdin import maps_in_lines, stdin_lines
from async_maps.sources.whole_objects import ReadAhead

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
    from typing import Any

    from async_maps.keys import KeyTemplate
    from async_maps.render.ranges import ValueRange
    from async_maps.sources.coverage import Coverage
    from async_maps.sources.layouts import Questions
    from async_maps.sources.options import LEFT_OUT, Known, PassOver

    Named: TypeAlias = tuple[str, Any]
    """A name and an array of any library."""
    AnySource: TypeAlias = str | PathLike[str] | GivenFiles | Source | Iterable[Named] | AsyncIterable[Named]
    Entry: TypeAlias = ActivationMap | Failure

_NO_PAIRS = "a source in memory must yield pairs (name, array)"
_BATCH = 256
_BATCH_BYTES = 16 * 2**20
_BATCH_S = 0.02


async def list_maps(  # noqa: PLR0913  # one argument a choice
    source: AnySource,
    value_range: ValueRange | None = None,
    *,
    settings: Settings | None = None,
    known: Known | None = None,
    limit: int | None = None,
    pass_over: PassOver = lambda _: None,
    destination: str = "",
    questions: Questions | None = None,
    coverage: Coverage | None = None,
    reads: bool = False,
) -> AsyncGenerator[list[Entry], None]:
    """Yield the maps of a source, in batches of those that are available.

    An iterator of the source is closed at the end, if it has a method ``close`` or ``aclose``: immediately, or when its
    thread returns from it.

    Args:
        source: a place for :func:`open_source`, ``-`` for the paths on standard input, a :class:`Source`, or an
            iterable or async iterable of ``(name, array)``. Iterables that are not async are advanced in a thread.
        value_range: as for :func:`~async_maps.sources.arrays.array_map`.
        settings: those of the pipeline. An array in memory with more than ``max_pixels`` is a failure; one in a file is
            refused when it is read.
        known: as for :func:`open_source`.
        limit: the maximum number of maps; no further item is taken from an iterable. None for all.
        pass_over: as for :func:`open_source`.
        destination: the start of the locators of overlays, which are no maps of the source.
        questions: as for :func:`open_source`, and for arrays in memory.
        coverage: as for :func:`open_source`.
        reads: whether small maps in buckets are read, too, so that each costs one request; they have their arrays then.

    Raises:
        SourceError: the place does not exist, or contains no map.
    """
    settings = settings or Settings()
    options, passed_over = SourceOptions.of(settings, destination), Counter[str]()

    def count(what: str) -> None:
        passed_over[what] += 1
        pass_over(what)

    take = taker(settings, value_range, questions)
    found = False
    async with _decoder_for(settings) as decoder:
        with Filesystems(settings.s3) as filesystems:
            ahead = _read_ahead(settings) if reads else None
            scan = Scan(known, count, options, questions, coverage, decoder, filesystems, ahead)
            async with aclosing(await _batches(source, settings, scan, take, limit)) as batches:
                async for batch in batches:
                    found = True
                    yield batch
    if not found and not isinstance(source, GivenFiles):
        place = "the source"
        if isinstance(source, str | PathLike):
            place = "standard input" if is_stdin(source) else fspath(source)
        if left_out := passed_over[LEFT_OUT]:
            raise SourceError(
                f"include and exclude leave no map of {place}: {left_out:,} {'is' if left_out == 1 else 'are'} left out"
            )
        seen = f"; {shown_passed_over(passed_over)}" if passed_over else ""
        advice = next(filter(None, (advice_for(what) for what, _ in passed_over.most_common())), "")
        # The formats do not help if the file was read, or if nothing but its arrays was passed over.
        is_read = suffix_of(place) is not None or place.lower().endswith((".csv", ".jsonl"))
        is_read |= bool(passed_over) and all(" " in what for what in passed_over)
        formats = "" if is_read or advice or place == "the source" else f" ({', '.join(FORMATS)})"
        raise SourceError(f"{place} contains no activation maps{formats}{seen}{'. ' if advice else ''}{advice}")


def _read_ahead(settings: Settings) -> ReadAhead:
    return ReadAhead(settings.first_prefetch, settings.most_ahead, settings.queue_size, settings.max_pixels)


async def _batches(
    source: AnySource, settings: Settings, scan: Scan, take: Callable[[str, Any], Entry], limit: int | None
) -> AsyncGenerator[list[Entry], None]:
    wanted = scan.options.filter(scan.pass_over)
    if isinstance(source, AsyncIterable):
        return _of_pairs(aiter(source), wanted, take, limit)
    if is_stdin(source):
        return _of_stdin(scan, limit)
    if isinstance(source, Mapping):
        key = type(next(iter(source), "")).__name__
        raise SourceError(f"{_NO_PAIRS}; found {key}, the keys of a {type(source).__name__}: pass its .items()")
    if isinstance(source, GivenFiles):
        return _in_thread(source.maps(scan), take, limit)
    if isinstance(source, str | PathLike):
        opening = partial(open_source, s3=settings.s3, **scan._asdict())
        return _in_thread(iter(await to_thread.run_sync(opening, source)), take, limit)
    if not isinstance(source, Iterable):
        raise SourceError(f"a source is a path or an iterable of pairs (name, array); found {source!r}")
    return _in_thread(_wanted(iter(source), wanted), take, limit)


@asynccontextmanager
async def _decoder_for(settings: Settings) -> AsyncIterator[DecoderProcess]:
    """Open a decoder process; a thread that waits for it when the block is left does not wait any longer."""
    decoder = DecoderProcess(settings.s3, settings.max_pixels, settings.channels)
    try:
        yield decoder
    finally:
        decoder.stop()
        if decoder.is_started:
            with CancelScope(shield=True):
                # Not on the event loop, because it waits for the end of the process.
                await to_thread.run_sync(decoder.close, limiter=CapacityLimiter(1))


async def _of_pairs(
    pairs: AsyncIterator[Any],
    wanted: Callable[[str], bool] | None,
    take: Callable[[str, Any], Entry],
    limit: int | None,
) -> AsyncGenerator[list[Entry], None]:
    given = 0
    try:
        async for pair in pairs:
            name, array = _pair(pair)
            if wanted is not None and not wanted(str(name)):
                continue
            yield [await take_array(name, array, take)]
            del pair, array
            given += 1
            if given == limit:
                return
    finally:
        if hasattr(pairs, "aclose"):
            await pairs.aclose()


async def _of_stdin(scan: Scan, limit: int | None) -> AsyncGenerator[list[Entry], None]:
    given = 0
    with scan.opened(None) as filesystems:
        hearing = Hearing(filesystems)
        async with aclosing(stdin_lines()) as blocks:
            async for lines in blocks:
                maps = maps_in_lines(lines, filesystems, scan, hearing)
                left = None if limit is None else limit - given
                async with aclosing(_in_thread(maps, array_map, left)) as batches:
                    async for batch in batches:
                        given += len(batch)
                        yield batch
                if given == limit:
                    return
        hearing.end()


def _wanted(entries: Iterator[Any], wanted: Callable[[str], bool] | None) -> Iterator[Any]:
    """Leave out pairs whose names are not wanted."""
    if wanted is None:
        return entries

    def filtered() -> Iterator[Any]:
        try:
            for entry in entries:
                if isinstance(entry, ActivationMap | Failure) or wanted(str(_pair(entry)[0])):
                    yield entry
        finally:
            if hasattr(entries, "close"):
                entries.close()

    return filtered()


def check_limit(limit: object) -> None:
    """Raise SettingsError if a limit is not a positive integer."""
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise SettingsError(f"limit: expected 1 or more maps, found {limit!r}")


def taker(
    settings: Settings, value_range: ValueRange | None, questions: Questions | None
) -> Callable[[str, Any], Entry]:
    """Return :func:`~async_maps.sources.arrays.array_map` with the options of a pipeline."""
    return partial(
        array_map,
        value_range=value_range,
        max_pixels=settings.max_pixels,
        channels=settings.channels,
        questions=questions,
    )


async def take_array(name: str, array: Any, take: Callable[[str, Any], Entry]) -> Entry:
    """Call ``take`` (:func:`taker`) without blocking the event loop."""
    if isinstance(array, np.ndarray) and array.dtype.kind != "V":  # bfloat16 is converted
        return take(name, array)
    return await to_thread.run_sync(take, name, array)


def _pair(item: Any) -> tuple[str, Any]:
    if not isinstance(item, tuple | list) or len(item) != 2:
        found = type(item).__name__
        if isinstance(item, tuple | list):
            found += f" of {len(item):,}"
        elif hasattr(item, "shape"):
            found += ": pass zip(names, arrays)"
        raise SourceError(f"{_NO_PAIRS}; found {found}")
    return item[0], item[1]


async def _in_thread(
    entries: Iterator[Any], take_array: Callable[[str, Any], Entry], limit: int | None
) -> AsyncGenerator[list[Entry], None]:
    turn, thread, given = Lock(), CapacityLimiter(1), 0
    left = False

    def close_if_idle() -> None:
        # After a cancellation the thread may still be in the iterator; then the thread closes it. The lock stays held,
        # so that it is closed only once.
        if turn.acquire(blocking=False) and hasattr(entries, "close"):
            entries.close()

    def take() -> tuple[list[Entry], Exception | None]:
        try:
            with turn:
                return _take(entries, take_array, _BATCH if limit is None else min(_BATCH, limit - given))
        finally:
            if left:
                close_if_idle()

    try:
        while True:
            # Do not wait for the thread on cancellation: the iterable may block forever.
            batch, error = await to_thread.run_sync(take, abandon_on_cancel=True, limiter=thread)
            given += len(batch)
            if batch:
                yield batch
            if error is not None:
                raise error
            if not batch or given == limit:
                return
    finally:
        left = True
        close_if_idle()


def _take(
    entries: Iterator[Any], take_array: Callable[[str, Any], Entry], most: int
) -> tuple[list[Entry], Exception | None]:
    """Return a batch, and the error that ended it. A batch is bounded in items, bytes of arrays, and time."""
    batch: list[Entry] = []
    size, until = 0, monotonic() + _BATCH_S
    try:
        for entry in islice(entries, most):
            batch.append(entry if isinstance(entry, ActivationMap | Failure) else take_array(*_pair(entry)))
            if isinstance(batch[-1], ActivationMap) and batch[-1].array is not None:
                size += batch[-1].max_bytes
            if size >= _BATCH_BYTES or monotonic() >= until:
                break
    except asyncio.CancelledError:
        # Raised on the event loop, it would look like a cancellation of this task.
        return batch, SourceError("the source raised CancelledError: one of its tasks or scopes was cancelled")
    except (KeyboardInterrupt, SystemExit, GeneratorExit) as error:
        # Raised on the event loop, it would end the loop with a traceback, and the caller would get a CancelledError.
        ended = SourceError(f"the source raised {error!r}")
        ended.__cause__ = error
        return batch, ended
    except Exception as error:  # noqa: BLE001  # raised to the caller after this batch
        return batch, error
    return batch, None


async def numbered(listing: AsyncGenerator[list[Entry], None]) -> AsyncGenerator[list[Entry], None]:
    """Set the ``index`` of each map to its position in the listing."""
    positions = count()
    async with aclosing(listing):
        async for batch in listing:
            for entry, position in zip(batch, positions, strict=False):
                if isinstance(entry, ActivationMap):
                    entry.index = position
            yield batch


def with_key(entry: Entry, prefix: str, template: KeyTemplate, locator: Callable[[str], str] | None = None) -> Entry:
    """Return the map, with its key, if that is valid and its overlay does not replace its file; else its failure."""
    if isinstance(entry, ActivationMap):
        try:
            key = template.key(prefix, entry.name, entry.index)
        except InputValidationError as error:
            return entry.failure("source", str(error))
        if locator is not None and entry.path is not None and _replaces(entry.path, key, locator):
            reason = "its overlay would replace it: choose another destination, or another key"
            return entry.failure("source", reason)
        if not template.needs_digest:
            entry.key = key
    return entry


def _replaces(path: str, key: str, locator: Callable[[str], str]) -> bool:
    # Most maps have another suffix than their overlays.
    if path[-4:] != key[-4:]:
        return False
    place = locator(key)
    local = file_path(place)
    if local is None:
        return place == path
    # Most overlays do not exist yet, and resolving links takes ten times as long.
    return os.path.lexists(local) and os.path.realpath(local) == os.path.realpath(path)
