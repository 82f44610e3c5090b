"""Stacks: several maps in one array, ``(n, h, w)``, ``(n, 1, h, w)`` or ``(n, h, w, 1)``."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from async_maps.errors import SourceError
from async_maps.sources.activation_map import ArrayHeader
from async_maps.sources.formats.registry import ListedMap

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

_CHANNELS = {1, 2, 3, 4}


def stack_length(shape: tuple[int, ...]) -> int | None:
    """Return the number of maps in an array of this shape; None if it is not a stack.

    ``(h, w, 1)`` is one map, as in Kolena. ``(h, w, 3)`` is probably an image with channels, not a stack of maps that
    are three pixels wide; the colorize stage refuses it.
    """
    stack = len(shape) == 3 and shape[2] not in _CHANNELS
    stack |= len(shape) == 4 and 1 in {shape[1], shape[3]}
    # A file without data can claim any number of empty maps: list it as one failure.
    return shape[0] if stack and 0 not in shape else None


def maps_in_array(path: str, header: ArrayHeader, size: int) -> Iterator[ListedMap]:
    """Yield the map, or the maps of the stack, in an array of ``size`` bytes; each part is the path and the index.

    The path is empty if the array is the whole file.
    """
    length = stack_length(header.shape)
    if length is None:
        yield ListedMap(path or None, [path, None], size, header)
        return
    header = header._replace(shape=shape_at("the stack", header.shape, 0))
    for index, name in enumerate(position_names(length)):
        yield ListedMap(f"{path}/{name}" if path else name, [path, index], size // length, header)


def shape_at(what: str, shape: tuple[int, ...], index: int) -> tuple[int, ...]:
    """Return the shape of one map of a stack, without the axes of the stack and of the single channel.

    Raises SourceError if the index is too large, because the stack, ``what`` in the message, has changed.
    """
    length = stack_length(shape)
    if length is None or index >= length:
        raise SourceError(f"{what} has no map {index} anymore: its shape is {shape}")
    if len(shape) == 3:
        return shape[1:]
    return shape[2:] if shape[1] == 1 else shape[1:3]


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
