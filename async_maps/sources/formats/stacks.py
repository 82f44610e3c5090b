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
    """How many maps an array of that shape holds; None if it is no stack.

    ``(h, w, 1)`` is one map, as it is for Kolena, and what looks like an image with channels, ``(h, w, 3)``, is for
    colorize to refuse, not hundreds of maps that are three pixels wide.
    """
    stack = len(shape) == 3 and shape[2] not in _CHANNELS
    stack |= len(shape) == 4 and 1 in {shape[1], shape[3]}
    # Of maps without a pixel there may be any number in a file of no bytes: one failure says it all.
    return shape[0] if stack and 0 not in shape else None


def maps_in_array(path: str, header: ArrayHeader, size: int) -> Iterator[ListedMap]:
    """The map that an array of ``size`` bytes is, or those of the stack; their parts are its path and a position.

    The path is empty if the file is the array.
    """
    length = stack_length(header.shape)
    if length is None:
        yield ListedMap(path or None, [path, None], size, header)
        return
    header = header._replace(shape=shape_at("the stack", header.shape, 0))
    for index, name in enumerate(position_names(length)):
        yield ListedMap(f"{path}/{name}" if path else name, [path, index], size // length, header)


def shape_at(what: str, shape: tuple[int, ...], index: int) -> tuple[int, ...]:
    """The shape of one map of a stack: without the axes of the stack and of the single channel.

    Refuses an index beyond the stack, which may have changed since it was listed; ``what`` names it in the message.
    """
    length = stack_length(shape)
    if length is None or index >= length:
        raise SourceError(f"{what} holds no map {index} any more: its shape is {shape}")
    if len(shape) == 3:
        return shape[1:]
    return shape[2:] if shape[1] == 1 else shape[1:3]


_MAX_LINE = 4096
"""Characters; a key in S3 has 1,024 bytes at most."""


def position_names(length: int) -> Iterator[str]:
    """What the maps of a stack are called by their positions: ``000000``, ``000001``, ..."""
    return (f"{index:06}" for index in range(length))


def read_names(file: IO[bytes], length: int) -> Iterator[str]:
    """The names of a stack's maps from a list of them, one a line, held one at a time; two may be equal.

    Raises:
        SourceError: the list is not UTF-8, has an empty line, or not as many lines as the stack has maps (``length``).
    """
    file.seek(0)
    # Editors begin a file with a byte order mark and end lines in CR LF; neither is part of a name.
    text = io.TextIOWrapper(file, "utf-8-sig")
    count = 0
    try:
        while line := text.readline(_MAX_LINE):
            count += 1
            name = line.removesuffix("\n")
            if not name:
                raise SourceError(f"line {count:,} of its list of names is empty")
            if len(line) == _MAX_LINE:
                raise SourceError(f"line {count:,} of its list of names is {_MAX_LINE:,} characters long or more")
            if count <= length:
                yield name
    except UnicodeDecodeError:
        raise SourceError(f"its list of names is not UTF-8 after line {count:,}") from None
    finally:
        text.detach()
    if count != length:
        raise SourceError(f"its list of names has {count:,} lines, the stack has {length:,} maps")
