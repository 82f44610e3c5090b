"""Stacks: several maps in one array, ``(n, h, w)``, ``(n, 1, h, w)`` or ``(n, h, w, 1)``."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from async_maps.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, Any

    import numpy as np

    from async_maps.render.channels import Channels

_CHANNELS = {1, 2, 3, 4}

BELOW_TWO_DIMENSIONS = "arrays below two dimensions"
TEXT = "arrays of text"
OBJECTS = "arrays of objects"
NO_NUMBERS = "arrays that are not numbers"


def not_a_map(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    """Return what an array is that is never a map, such as labels, for the counts of the report; else empty."""
    if dtype.kind in "SUT":
        return TEXT
    if dtype.hasobject:
        return OBJECTS
    if dtype.kind in "mM" or dtype.names is not None:
        return NO_NUMBERS
    return BELOW_TWO_DIMENSIONS if len(shape) < 2 else ""


def stack_length(shape: tuple[int, ...], channels: Channels = "none") -> int | None:
    """Return the number of maps in an array of this shape; None if it is not a stack.

    ``(h, w, 1)`` is one map, as in Kolena. ``(h, w, 3)`` is probably an image with channels, not a stack of maps that
    are three pixels wide; the colorize stage refuses it. If the channels are reduced, ``(c, h, w)`` and ``(h, w, c)``
    are one map, and ``(n, c, h, w)`` and ``(n, h, w, c)`` are stacks.
    """
    if channels == "none":
        stack = len(shape) == 3 and shape[2] not in _CHANNELS
        stack |= len(shape) == 4 and 1 in {shape[1], shape[3]}
    else:
        stack = len(shape) == 4
    # A file without data can claim any number of empty maps: list it as one failure.
    return shape[0] if stack and 0 not in shape else None


def shape_at(what: str, shape: tuple[int, ...], index: int) -> tuple[int, ...]:
    """Return the shape of one map of a stack, without the axis of the stack.

    Raises SourceError if the index is too large, because the stack, ``what`` in the message, has changed.
    """
    if len(shape) not in {3, 4} or index >= shape[0]:
        raise SourceError(f"{what} has no map {index} anymore: its shape is {shape}")
    return shape[1:]


def plane_of(shape: tuple[int, ...], channels: Channels) -> tuple[int, ...]:
    """Return the shape of one map of a stack without the axis of its only channel, unless channels are reduced."""
    if channels != "none" or len(shape) != 3 or 1 not in {shape[0], shape[2]}:
        return shape
    return shape[1:] if shape[0] == 1 else shape[:2]


_MAX_LINE = 4096
"""In characters; a key in S3 has at most 1,024 bytes."""


def position_names(length: int) -> Iterator[str]:
    """Return the default names of the maps of a stack: ``000000``, ``000001``, ..."""
    return (f"{index:06}" for index in range(length))


def read_names(file: IO[bytes], length: int) -> Iterator[str]:
    """Yield the names of the maps of a stack from a file with one name per line; duplicates are not checked.

    Raises:
        SourceError: the file is not UTF-8, has an empty or too long line, or does not have ``length`` lines.
    """
    file.seek(0)
    # Some editors write a byte order mark and CR LF; neither is part of a name.
    text = io.TextIOWrapper(file, "utf-8-sig")
    count = 0
    try:
        while line := text.readline(_MAX_LINE):
            count += 1
            name = line.removesuffix("\n")
            if not name:
                raise SourceError(f"line {count:,} of the list of names is empty")
            if len(line) == _MAX_LINE:
                raise SourceError(f"line {count:,} of the list of names has {_MAX_LINE:,} or more characters")
            if count <= length:
                yield name
    except UnicodeDecodeError:
        raise SourceError(f"the list of names is not UTF-8 after line {count:,}") from None
    finally:
        text.detach()
    if count != length:
        lines, maps = ("line" if count == 1 else "lines"), ("map" if length == 1 else "maps")
        raise SourceError(f"the list of names has {count:,} {lines}, but the stack has {length:,} {maps}")
