"""Stacks: several maps in one array, ``(n, h, w)``, ``(n, 1, h, w)`` or ``(n, h, w, 1)``."""

from __future__ import annotations

_CHANNELS = {1, 2, 3, 4}


def stack_length(shape: tuple[int, ...]) -> int | None:
    """How many maps an array of that shape holds; None if it is no stack.

    ``(h, w, 1)`` is one map, as it is for Kolena, and what looks like an image with channels, ``(h, w, 3)``, is for
    colorize to refuse, not hundreds of maps that are three pixels wide.
    """
    stack = len(shape) == 3 and shape[2] not in _CHANNELS
    stack |= len(shape) == 4 and 1 in {shape[1], shape[3]}
    return shape[0] if stack and shape[0] else None


def plane_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one map of a stack of that shape: without the axes of the stack and of the single channel."""
    if len(shape) == 3:
        return shape[1:]
    return shape[2:] if shape[1] == 1 else shape[1:3]


def position_name(index: int) -> str:
    """What a map of a stack is called by its position, the first being ``000000``."""
    return f"{index:06}"
