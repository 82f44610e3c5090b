"""The work on a chunk of maps: read, quantize, colorize. Runs in a worker process, or in a thread.

The process exchanges messages (:mod:`async_maps.concurrency.messages`) over its standard input and output. Pixels stay
in the arena. The process ends when its input does, so also when the parent is killed.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from async_maps.concurrency.launch import ignore_signals, resume_collection
from async_maps.concurrency.messages import frame, read_message
from async_maps.errors import (
    InputValidationError,
    MissingExtraError,
    ShortageError,
    SourceError,
    shortage_of_files,
    translate_os_error,
)
from async_maps.outcomes import MapStatistics
from async_maps.render.arrays import check_array
from async_maps.render.channels import Channels, reduce_channels
from async_maps.render.colorize import look_up, replace
from async_maps.render.kernel_cache import Loaded, loaded, sharing
from async_maps.render.quantize import Invalid, quantize
from async_maps.render.ranges import ValueRange
from async_maps.render.scanlines import room_bytes, scanline_bytes, write_scanlines
from async_maps.render.statistics import Measured, summarize
from async_maps.sources.layouts import header_size
from async_maps.sources.memory_limit import LimitedReaders
from async_maps.workers.arena import map_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import IO, Any

    from numpy.typing import NDArray

    from async_maps.outcomes import Stage
    from async_maps.render.quantize import Stored
    from async_maps.render.ranges import RangeKind
    from async_maps.settings import PngKind, Settings
    from async_maps.sources.activation_map import Part
    from async_maps.sources.formats.registry import Readers

T = TypeVar("T")

_ALIGNMENT = 64
_KERNELS = ("async_maps.render.kernels", "async_maps.render.deflate_kernels")
"""The kernels that every recipe needs."""
_WAITS_S = (0.1, 0.3, 1.0)
"""The waits until a file can be opened again."""


class Request(NamedTuple):
    """A map to colorize: in a file (``path``, ``part``), or in the block (``offset``, ``shape``, ``dtype``).

    ``value_range`` has the fields of a ValueRange. ``measured`` has those of a Measured, or is None unless the values
    are intensities already. A map in a file has at most ``max_bytes``. All are plain values, for messages.
    """

    path: str | None
    part: Part
    offset: int
    shape: tuple[int, ...]
    dtype: str
    value_range: tuple[RangeKind, float, float] = ("unit", 0.0, 1.0)
    measured: tuple[Any, ...] | None = None
    max_bytes: int = 0


class Result(NamedTuple):
    """A colorized map. Its scanlines start at ``offset`` in the block; they are RGBA colors or intensities.

    ``stream`` is the number of bytes of their zlib stream; 0 if they are not compressed yet. ``transparent`` is the
    intensity that is transparent in this map only, despite the table; or None.
    """

    offset: int
    height: int
    width: int
    rgba: bool
    stream: int
    transparent: int | None
    statistics: MapStatistics

    @property
    def size(self) -> int:
        """The number of bytes in the block."""
        return self.stream or scanline_bytes(self.height, self.width, 4 if self.rgba else 1)


class Failed(NamedTuple):
    """A map that was not colorized: the stage that failed, and the reason.

    A shortage of the machine is not the fault of the map, and ends the run.
    """

    stage: Stage
    reason: str
    is_shortage: bool = False

    def raise_shortage(self) -> None:
        """Raise ShortageError if a shortage is the reason."""
        if self.is_shortage:
            raise ShortageError(self.reason)

    @classmethod
    def by(cls, error: Exception) -> Failed:
        """Return the stage and the reason for an error of reading or colorizing."""
        if shortage := shortage_of_files(error):
            return cls("read", str(shortage), is_shortage=True)
        if isinstance(error, InputValidationError):
            return cls("colorize", str(error))
        if isinstance(error, SourceError | OSError | MissingExtraError):
            return cls("read", translate_os_error(error))
        return cls("read", f"could not be read: {error!r}")


class Reply(NamedTuple):
    """The results of a chunk, in the order of its requests; fewer if the block was full.

    ``wanted`` is the number of bytes that the first map without a result needs; 0 if all have a result.
    """

    results: list[Result | Failed]
    wanted: int

    def packed(self) -> tuple[Any, ...]:
        """Return the reply as plain values, for a message."""
        return [
            (*result[:-1], *result.statistics) if isinstance(result, Result) else tuple(result)
            for result in self.results
        ], self.wanted

    @classmethod
    def unpacked(cls, results: list[tuple[Any, ...]], wanted: int) -> Reply:
        """Return the reply that was packed."""
        own, failed = len(Result._fields) - 1, len(Failed._fields)

        def restored(values: tuple[Any, ...]) -> Result | Failed:
            if len(values) == failed:
                return Failed(*values)
            return Result._make((*values[:own], MapStatistics._make(values[own:])))

        return cls(list(map(restored, results)), wanted)


@dataclass(frozen=True, eq=False)
class Recipe:
    """How to colorize maps; ``table`` has the RGBA colors of the intensities, (256, 4) uint8.

    ``rgba`` writes colors, other kinds of PNG write intensities. ``compact`` replaces each fully transparent intensity
    by the first one. Maps in files with more than ``max_pixels`` are refused. Channels become one as ``reduce`` says.
    ``level`` is that of compression, 0 to 3.
    """

    table: NDArray[np.uint8]
    png: PngKind = "palette"
    invalid: Invalid = "error"
    max_pixels: int | None = None
    reduce: Channels = "none"
    level: int = 1

    @classmethod
    def of(cls, settings: Settings) -> Recipe:
        """Return the recipe of a pipeline with these settings."""
        return cls(
            settings.table(), settings.png, settings.invalid, settings.max_pixels, settings.channels, settings.png_level
        )

    @property
    def channels(self) -> int:
        """The bytes of a pixel."""
        return 4 if self.png == "rgba" else 1

    @cached_property
    def opacities(self) -> NDArray[np.uint8]:
        """The alpha of each intensity, (256,) uint8."""
        return np.full(256, 255, np.uint8) if self.png == "gray" else np.ascontiguousarray(self.table[:, 3])

    @cached_property
    def transparent(self) -> int | None:
        """The first fully transparent intensity; None if there is none."""
        return next(iter(np.flatnonzero(self.table[:, 3] == 0).tolist()), None)

    @cached_property
    def collapse(self) -> NDArray[np.uint8]:
        """The intensity that replaces each intensity under ``compact``, (256,) uint8."""
        intensities = np.arange(256, dtype=np.uint8)
        return np.where(self.table[:, 3] == 0, self.transparent or 0, intensities).astype(np.uint8)


def aligned(offset: int) -> int:
    """Round an offset up to the alignment of arrays."""
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def colorize_chunk(
    block: NDArray[np.uint8],
    free_from: int,
    requests: list[Request],
    recipe: Recipe,
    readers: Readers,
) -> Reply:
    """Colorize maps into a block, until it is full, from the offset ``free_from`` on; the arrays are before it.

    ``readers`` are those of the worker, which may keep a file for the next chunk.
    """
    try:
        return _colorize_chunk(block, free_from, requests, recipe, readers)
    finally:
        readers.rest()


def _colorize_chunk(
    block: NDArray[np.uint8], free_from: int, requests: list[Request], recipe: Recipe, readers: Readers
) -> Reply:
    results: list[Result | Failed] = []
    offset = free_from
    for request in requests:
        try:
            values = _get(block, request, readers)
            result = _colorize(values, block, offset, request, recipe)
            if isinstance(result, int):
                return Reply(results, result)
            results.append(result)
            offset = aligned(offset + result.size)
        except Exception as error:  # noqa: BLE001  # one map's failure is data; a malicious file can cause any error
            results.append(Failed.by(error))
    return Reply(results, 0)


def _get(block: NDArray[np.uint8], request: Request, readers: Readers) -> NDArray[Any] | Stored:
    if request.path is not None:
        return read_patiently(readers.find, request.path, request.part, request.max_bytes)
    return np.ndarray(request.shape, request.dtype, block.data, request.offset)


def read_patiently(read: Callable[[str, Part, int], T], path: str, part: Part, max_bytes: int) -> T:
    """Read a map from a file; wait and try again if no file can be opened, because others may be closed soon."""
    for wait_s in _WAITS_S:
        try:
            return read(path, part, max_bytes)
        except Exception as error:
            if shortage_of_files(error) is None:
                raise
        time.sleep(wait_s)
    return read(path, part, max_bytes)


def _colorize(
    values: NDArray[Any] | Stored, block: NDArray[np.uint8], offset: int, request: Request, recipe: Recipe
) -> Result | int:
    """Write a map's scanlines into the block at ``offset``; if there is no room, return the number of bytes needed."""
    room, value_range = block[offset:], ValueRange(*request.value_range)
    if isinstance(values, np.ndarray):
        check_array(values)
    shape = header_size(values.shape, values.dtype, value_range, recipe.reduce)
    needed = room_bytes(*shape, recipe.channels)
    if needed > room.size:
        return needed
    plane = np.empty(shape, np.uint8)
    if isinstance(values, np.ndarray):
        values = reduce_channels(values, recipe.reduce)
    if request.measured is None:
        measured = quantize(values, plane, value_range, recipe.invalid)
    else:
        quantize(values, plane)  # intensities are copied
        measured = Measured(*request.measured)
    statistics, histogram = summarize(plane, measured, recipe.opacities)
    hidden = None if measured is None else measured.hidden
    rgba, transparent = recipe.png == "rgba", None
    if hidden is not None and not rgba:
        transparent = recipe.transparent
        if transparent is None:
            # Use an intensity that this map does not have; if it has all 256, write RGBA instead of a palette.
            transparent = next(iter(np.flatnonzero(histogram == 0).tolist()), None)
        rgba = transparent is None
        needed = room_bytes(*shape, 4 if rgba else 1)
        if needed > room.size:
            return needed
        plane[hidden] = transparent or 0
    pixels = plane
    if rgba:
        pixels = np.empty((*shape, 4), np.uint8)
        look_up(plane, recipe.table, pixels)
        if hidden is not None:
            pixels[hidden] = 0
    elif recipe.png == "compact":
        replace(plane, recipe.collapse)
    stream = write_scanlines(pixels, room[:needed], compress=recipe.level == 1)
    return Result(offset, *shape, rgba, stream, transparent, statistics)


def _kernels_of(recipe: Recipe) -> list[str]:
    """Return the modules with the kernels that a recipe needs."""
    return [*_KERNELS, *(["async_maps.render.channel_kernels"] if recipe.reduce != "none" else [])]


def load_kernels(recipe: Recipe) -> Loaded:
    """Compile the kernels that a recipe needs, or load them from the cache; a problem is returned the first time."""
    names = _kernels_of(recipe)
    is_first = any(name not in sys.modules for name in names)
    found = loaded([import_module(name) for name in names])
    return found if is_first else found._replace(problem="")


def main() -> None:
    """Run a worker process until its input is closed.

    Its second argument is the file through which workers share kernels, if there is one. Its input is the arena, then
    the recipe, then chunks; all kernels that every recipe needs are loaded before.
    """
    ignore_signals()
    try:
        os.fstat(2)
    except OSError:  # closed, as in daemons
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    # Libraries that print must not write between the messages: send their output to standard error.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    with sharing(int(sys.argv[2]) if sys.argv[2:] else None):
        for name in _KERNELS:
            import_module(name)
        with socket.socket(fileno=os.dup(0)) as parent:
            _, descriptors, _, _ = socket.recv_fds(parent, 1, 1)
        requests = _messages(sys.stdin.buffer)
        hello = next(requests, None)
        if hello is None:
            return
        table, *options, arena_size = hello
        recipe = Recipe(np.frombuffer(table, np.uint8).reshape(256, 4), *options)
        kernels = loaded([import_module(name) for name in _kernels_of(recipe)])
    resume_collection()
    (descriptor,) = descriptors
    memory = map_memory(descriptor, arena_size)

    def reply(message: tuple[Any, ...]) -> None:
        replies.write(frame(message))
        replies.flush()

    readers = LimitedReaders(max_pixels=recipe.max_pixels, channels=recipe.reduce)
    try:
        reply(tuple(kernels))
        for start, size, free_from, chunk in requests:
            if start + size > memory.size:  # the file has grown
                memory = map_memory(descriptor, start + size)
            block = memory[start : start + size]
            done = colorize_chunk(block, free_from, [Request(*values) for values in chunk], recipe, readers)
            reply(done.packed())
    except ConnectionError:
        # The parent has died.
        os._exit(1)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # closed
            stream.flush()
    # The system frees what this process holds, which takes numba 0.2 s of CPU.
    os._exit(0)


def _messages(file: IO[bytes]) -> Iterator[Any]:
    """Yield messages until the file ends, even inside a message: then the parent has died."""
    with suppress(EOFError):
        while True:
            yield read_message(file)
