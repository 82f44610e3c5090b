"""What a worker does with a chunk of maps: read, quantize, colorize. Runs in a worker process, or in a thread.

The process speaks JSON over its standard input and output, each message after its length in four bytes; pixels never
pass there, they stay in the arena. It ends itself when its input ends, which it does when the parent dies, however.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np

from async_maps.errors import InputValidationError, MissingExtraError, SourceError, translate_os_error
from async_maps.outcomes import MapStatistics
from async_maps.render.colorize import look_up, replace
from async_maps.render.quantize import Invalid, Measured, map_shape, quantize, summarize
from async_maps.render.ranges import ValueRange
from async_maps.render.scanlines import scanline_bytes, write_scanlines
from async_maps.sources.formats.registry import Readers
from async_maps.workers.arena import map_memory

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from async_maps.outcomes import Stage
    from async_maps.render.ranges import RangeKind
    from async_maps.settings import PngKind
    from async_maps.sources.activation_map import Part

_ALIGNMENT = 64


class Request(NamedTuple):
    """A map to colorize: in a file (``path``, ``part``), or in the block (``offset``, ``shape``, ``dtype``).

    The range is a known one, as its kind, low and high. ``measured`` is None unless the values are intensities already.
    """

    path: str | None
    part: Part
    offset: int
    shape: tuple[int, ...]
    dtype: str
    value_range: tuple[RangeKind, float, float] = ("unit", 0.0, 1.0)
    measured: Measured | None = None


class Result(NamedTuple):
    """A map that was colorized: its scanlines begin at the offset in the block; without ``rgba`` they are intensities.

    ``transparent`` is an intensity that is transparent in this map, other than the table says.
    """

    offset: int
    height: int
    width: int
    rgba: bool
    transparent: int | None
    statistics: MapStatistics


class Failed(NamedTuple):
    """A map that was not colorized: the stage in which it failed, and why."""

    stage: Stage
    reason: str

    @classmethod
    def by(cls, error: Exception) -> Failed:
        """Say where and why a map failed that could not be read or colorized."""
        if isinstance(error, InputValidationError):
            return cls("colorize", str(error))
        if isinstance(error, SourceError | OSError | MissingExtraError):
            return cls("read", translate_os_error(error))
        return cls("read", f"could not be read: {error!r}")


class Reply(NamedTuple):
    """The results of a chunk, in the order of its requests: fewer if the block was full.

    Then ``wanted`` is the number of bytes that the first map without a result needs; else it is 0.
    """

    results: list[Result | Failed]
    wanted: int


@dataclass(frozen=True, eq=False)
class Recipe:
    """How pixels are made from the colors, (256, 4) uint8.

    ``rgba`` writes colors; other PNGs hold intensities, whose colors are the palette, or which have none (``gray``).
    ``compact`` replaces every fully transparent intensity by the first one. Maps in files are refused beyond
    ``max_pixels``.
    """

    table: NDArray[np.uint8]
    png: PngKind = "palette"
    invalid: Invalid = "error"
    max_pixels: int | None = None

    @property
    def channels(self) -> int:
        """Bytes of a pixel."""
        return 4 if self.png == "rgba" else 1

    @cached_property
    def transparent(self) -> int | None:
        """The first intensity that is fully transparent, if there is one."""
        return next(iter(np.flatnonzero(self.table[:, 3] == 0).tolist()), None)

    @cached_property
    def collapse(self) -> NDArray[np.uint8]:
        """What each intensity becomes under ``compact``: (256,) uint8."""
        intensities = np.arange(256, dtype=np.uint8)
        return np.where(self.table[:, 3] == 0, self.transparent or 0, intensities).astype(np.uint8)


def aligned(offset: int) -> int:
    """The next offset at which any array may start."""
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def colorize_chunk(block: NDArray[np.uint8], free_from: int, requests: list[Request], recipe: Recipe) -> Reply:
    """Colorize maps into a block, as many as fit behind the arrays, which lie before ``free_from``."""
    with Readers(max_pixels=recipe.max_pixels) as readers:
        return _colorize_chunk(block, free_from, requests, recipe, readers)


def _colorize_chunk(
    block: NDArray[np.uint8], free_from: int, requests: list[Request], recipe: Recipe, readers: Readers
) -> Reply:
    results: list[Result | Failed] = []
    offset = free_from
    for request in requests:
        try:
            array = _get(block, request, readers)
            result = _colorize(array, block[offset:], request, recipe)
            if isinstance(result, int):
                return Reply(results, result)
            results.append(result._replace(offset=offset))
            offset = aligned(offset + scanline_bytes(result.height, result.width, 4 if result.rgba else 1))
        except Exception as error:  # noqa: BLE001  # one map's failure is data, and a hostile file provokes anything
            results.append(Failed.by(error))
    return Reply(results, 0)


def _get(block: NDArray[np.uint8], request: Request, readers: Readers) -> NDArray[Any]:
    if request.path is not None:
        return readers.read(request.path, request.part)
    return np.ndarray(request.shape, request.dtype, block.data, request.offset)


def _colorize(array: NDArray[Any], room: NDArray[np.uint8], request: Request, recipe: Recipe) -> Result | int:
    """Write a map's scanlines at the beginning of the room; if it is too small, say how many bytes are needed."""
    value_range = ValueRange(*request.value_range)
    shape = map_shape(array, value_range)
    needed = scanline_bytes(*shape, recipe.channels)
    if needed > room.size:
        return needed
    plane = np.empty(shape, np.uint8)
    if request.measured is None:
        measured = quantize(array, plane, value_range, recipe.invalid)
    else:
        np.copyto(plane, array.reshape(shape))
        measured = Measured(*request.measured)
    statistics, histogram = summarize(plane, measured)
    hidden = None if measured is None else measured.hidden
    rgba, transparent = recipe.png == "rgba", None
    if hidden is not None and not rgba:
        transparent = recipe.transparent
        if transparent is None:
            # An intensity that this map does not use will do; if it uses all 256, a palette has no room for one more.
            transparent = next(iter(np.flatnonzero(histogram == 0).tolist()), None)
        rgba = transparent is None
        needed = scanline_bytes(*shape, 4 if rgba else 1)
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
    write_scanlines(pixels, room[:needed])
    return Result(0, *shape, rgba, transparent, statistics)


def send_message(file: IO[bytes], message: object) -> None:
    """Write a message and its length."""
    file.write(frame(message))
    file.flush()


def frame(message: object) -> bytes:
    """A message as it is sent: four bytes of length, then JSON."""
    body = json.dumps(message).encode()
    return len(body).to_bytes(4, "big") + body


def _receive(file: IO[bytes]) -> Any:
    """The next message; None when no whole one comes any more, as its sender has stopped or died meanwhile."""
    head = file.read(4)
    size = int.from_bytes(head, "big")
    body = file.read(size) if len(head) == 4 else b""
    return json.loads(body) if body and len(body) == size else None


def main() -> None:
    """Serve one parent until it closes our input. First message: the recipe and the arena; then chunks."""
    # Ctrl-C, and a service manager's SIGTERM, reach every process of a group: when to stop is the parent's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    requests = sys.stdin.buffer
    try:
        os.fstat(2)
    except OSError:  # closed, as daemons have it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    # What a library prints must not end up between the messages.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    hello = _receive(requests)
    if hello is None:
        return
    table = np.frombuffer(bytes.fromhex(hello["table"]), np.uint8).reshape(256, 4)
    recipe = Recipe(table, hello["png"], hello["invalid"], hello["max_pixels"])
    memory = map_memory(hello["descriptor"], hello["size"])
    # Importing the kernels compiles them or reads them from numba's cache: the warm-up.
    from async_maps.render import kernels  # noqa: F401

    try:
        send_message(replies, "ready")
        while (chunk := _receive(requests)) is not None:
            start, size, free_from, maps = chunk
            # A block beyond the arena is the one for which its file has grown.
            whole = memory if start + size <= memory.size else map_memory(hello["descriptor"], start + size)
            reply = colorize_chunk(whole[start : start + size], free_from, [Request(*map_) for map_ in maps], recipe)
            del whole
            send_message(replies, reply)
    except ConnectionError:
        # The parent is gone; nobody waits for the reply.
        os._exit(1)
