"""What a worker does with a chunk of maps: read, quantise, colorize. Runs in a worker process, or in a thread.

The process speaks JSON over its standard input and output, each message after its length in four bytes; pixels never
pass there, they stay in the arena. It ends itself when its input ends, which it does when the parent dies, however.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np

from async_maps.arena import map_memory
from async_maps.colorize import look_up, map_shape, quantise
from async_maps.errors import InputValidationError, SourceError
from async_maps.sources.files import explain
from async_maps.sources.formats import Readers

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from async_maps.records import Stage
    from async_maps.sources.formats import Part

_ALIGNMENT = 64


class Request(NamedTuple):
    """A map to colorize: in a file (``path``, ``part``), or in the block (``offset``, ``shape``, ``dtype``)."""

    path: str | None
    part: Part
    offset: int
    shape: tuple[int, ...]
    dtype: str


class Result(NamedTuple):
    """What became of a map: where its pixels lie in the block and how large it is, or why it failed."""

    offset: int
    height: int
    width: int
    failure: tuple[Stage, str] | None


class Reply(NamedTuple):
    """What became of a chunk.

    Attributes:
        results: in the order of the requests; shorter when the block was full.
        wanted: bytes that the first map without a result needs; 0 when all have one.
    """

    results: list[Result]
    wanted: int


class Recipe(NamedTuple):
    """How pixels are made.

    Attributes:
        table: (256, 4) uint8, the colours.
        rgba: write (h, w, 4) colours; otherwise (h, w) intensities, whose colours are the PNG's palette.
    """

    table: NDArray[np.uint8]
    rgba: bool

    def pixel_bytes(self) -> int:
        """Bytes of a pixel."""
        return 4 if self.rgba else 1


def aligned(offset: int) -> int:
    """The next offset at which any array may start."""
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def colorize_chunk(block: NDArray[np.uint8], free_from: int, requests: list[Request], recipe: Recipe) -> Reply:
    """Colorize maps into a block, as many as fit.

    Args:
        block: (size,) uint8, shared memory.
        free_from: where the pixels may begin; maps handed over in the block lie before.
        requests: the maps.
        recipe: how.
    """
    with Readers() as readers:
        return _colorize_chunk(block, free_from, requests, recipe, readers)


def _colorize_chunk(
    block: NDArray[np.uint8], free_from: int, requests: list[Request], recipe: Recipe, readers: Readers
) -> Reply:
    results: list[Result] = []
    offset = free_from
    for request in requests:
        try:
            array = _get(block, request, readers)
            height, width = map_shape(array)
            size = height * width * recipe.pixel_bytes()
            if offset + size > block.size:
                return Reply(results, size)
            _colorize(array, block[offset : offset + size], (height, width), recipe)
            results.append(Result(offset, height, width, None))
            offset = aligned(offset + size)
        except InputValidationError as error:
            results.append(Result(0, 0, 0, ("colorize", str(error))))
        except (SourceError, OSError) as error:
            results.append(Result(0, 0, 0, ("read", explain(error))))
        except Exception as error:  # noqa: BLE001  # one map's failure is data, whatever a hostile file provokes
            results.append(Result(0, 0, 0, ("read", f"could not be read: {error!r}")))
    return Reply(results, 0)


def _get(block: NDArray[np.uint8], request: Request, readers: Readers) -> NDArray[Any]:
    if request.path is not None:
        return readers.read(request.path, request.part)
    return np.ndarray(request.shape, request.dtype, block.data, request.offset)


def _colorize(array: NDArray[Any], out: NDArray[np.uint8], shape: tuple[int, int], recipe: Recipe) -> None:
    if recipe.rgba:
        plane = np.empty(shape, np.uint8)
        quantise(array, plane)
        look_up(plane, recipe.table, out.reshape(*shape, 4))
    else:
        quantise(array, out.reshape(shape))


def send_message(file: IO[bytes], message: object) -> None:
    """Write a message and its length."""
    file.write(frame(message))
    file.flush()


def frame(message: object) -> bytes:
    """A message as it is sent: four bytes of length, then JSON."""
    body = json.dumps(message).encode()
    return len(body).to_bytes(4, "big") + body


def _receive(file: IO[bytes]) -> Any:
    head = file.read(4)
    if len(head) < 4:
        return None
    return json.loads(file.read(int.from_bytes(head, "big")))


def main() -> None:
    """Serve one parent until it closes our input. First message: the recipe and the arena; then chunks."""
    # Ctrl-C, and a service manager's SIGTERM, reach every process of a group: when to stop is the parent's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    requests = sys.stdin.buffer
    # Whatever a library prints must not end up between the messages.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    hello = _receive(requests)
    recipe = Recipe(np.frombuffer(bytes.fromhex(hello["table"]), np.uint8).reshape(256, 4), hello["rgba"])
    memory = map_memory(hello["descriptor"], hello["size"])
    # Importing the kernels compiles them or reads them from numba's cache: the warm-up.
    from async_maps import kernels  # noqa: F401

    try:
        send_message(replies, "ready")
        while (chunk := _receive(requests)) is not None:
            start, size, free_from, maps = chunk
            # A block beyond the arena is the one for which its file has grown.
            whole = memory if start + size <= memory.size else map_memory(hello["descriptor"], start + size)
            reply = colorize_chunk(whole[start : start + size], free_from, [Request(*map_) for map_ in maps], recipe)
            del whole
            send_message(replies, reply)
    except BrokenPipeError:
        # The parent is gone; nobody waits for the reply.
        os._exit(1)
