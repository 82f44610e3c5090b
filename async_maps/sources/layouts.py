"""Recognizes arrays that are no maps, or probably other maps than their shape says, and names the remedy."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from async_maps.errors import InputValidationError
from async_maps.render.arrays import check_array, check_dtype
from async_maps.render.channels import FEW, channel_axis, keeps_values, reduced_dtype, without_channels
from async_maps.render.ranges import ValueRange

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from async_maps.render.channels import Channels

ONE_BY_ONE = "put each map with its own name (for name, cam in zip(names, cams))"

_logger = logging.getLogger("async_maps")

_ANY = ValueRange("dataset")
_REDUCES = '--channels sum (or norm, maxabs, mean; in Python channels="sum") reduces them'
_REDUCES_IN_MEMORY = 'settings=Settings(channels="sum") (or "norm", "maxabs", "mean") reduces them'
_GRIDS = (14, 24, 27, 28, 37)
"""The sides of the token grids of vision transformers. 16 and 32 are missing: many maps are 256 or 1024 wide."""
_SQUARES_WITH_CLASS = {14**2 + 1: 14, 24**2 + 1: 24}


class Question(NamedTuple):
    """A layout that may be another one: its kind, the text, and the array in its file, if there are several."""

    kind: str
    text: str
    array: str = ""


class Questions:
    """Asks one question of each kind, as a warning in the log."""

    def __init__(self) -> None:
        self._asked: set[str] = set()

    def ask(self, where: str, question: Question) -> None:
        """Ask about the array at a place, unless a question of its kind was asked before."""
        if question.kind not in self._asked:
            self._asked.add(question.kind)
            _logger.warning("%s: %s", f"{where}[{question.array}]" if question.array else where, question.text)


def map_size(array: NDArray[Any], value_range: ValueRange, channels: Channels = "none") -> tuple[int, int]:
    """Check an array like :func:`header_size`."""
    check_array(array)
    return header_size(array.shape, array.dtype, value_range, channels)


def header_size(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    value_range: ValueRange,
    channels: Channels = "none",
    *,
    in_memory_as: tuple[int, ...] | None = None,
) -> tuple[int, int]:
    """Check the shape and dtype of a map before its channels are reduced; return its height and width.

    Args:
        shape: the shape.
        dtype: the dtype.
        value_range: the range; one that is not ``unit`` allows all real numbers.
        channels: how channels are reduced.
        in_memory_as: the shape of an array in memory with the leading axes of length 1, for the message.

    Raises:
        InputValidationError: an array of this shape or dtype is no map; the message names the probable layout.
    """
    if 0 in shape:
        raise InputValidationError(f"the activation map is empty: its shape is {shape}")
    if dtype == np.uint8 and len(shape) > 2 and shape[-1] in {3, 4} and min(shape[-3:-1]) > 4:
        raise InputValidationError(
            f"the array is already a picture, not a map: its shape is {shape}, of uint8; save the values, (h, w), from "
            "before they were colored"
        )
    reduced = channels != "none"
    if len(shape) not in {2, 3} or (len(shape) == 3 and shape[2] != 1 and not reduced):
        expected = "(c, h, w), (h, w, c) or (h, w)" if reduced else "(h, w) or (h, w, 1)"
        if in_memory_as is not None:
            expected += ", or that with leading axes of length 1"
        hints = "; ".join(_hints(shape, reduced=reduced, in_memory=in_memory_as is not None))
        raise InputValidationError(
            f"an activation map must have the shape {expected}; found {in_memory_as or shape}"
            f"{f': {hints}' if hints else ''}"
        )
    check_dtype(dtype, _ANY)
    if reduced and len(shape) == 3:
        if not keeps_values(dtype, math.prod(shape) // math.prod(without_channels(shape)), channels):
            dtype = reduced_dtype(dtype)
        shape = without_channels(shape)
    check_dtype(dtype, value_range)
    return shape[0], shape[1]


def _hints(shape: tuple[int, ...], *, reduced: bool, in_memory: bool) -> list[str]:
    """Return what an array of a refused shape may be, with the remedy of each."""
    if len(shape) < 3:
        grid = _token_grid(*shape[:1]) if shape else None
        return [f"if these are tokens, {_from_tokens(shape, grid)}"] if grid else []
    hints = [ONE_BY_ONE] if in_memory else []
    channels = 0 if reduced else _channel_count(shape)
    if len(shape) == 4 and shape[2] == shape[3] and (side := _SQUARES_WITH_CLASS.get(shape[2])):
        hints.append(f"if this is the attention of tokens, take [:, :, 0, 1:].reshape(-1, {side}, {side})")
    elif channels:
        hints.append(f"if the {channels:,} are channels, {_REDUCES_IN_MEMORY if in_memory else _REDUCES}")
    if in_memory:
        if len(shape) == 3 and _is_matlab(shape):
            hints.append(f"if these are {shape[2]:,} maps, use np.moveaxis(cams, -1, 0)")
    elif len(shape) == 3 and shape[1] <= 16:
        hints.append(f"if these are {shape[0]:,} maps of {shape[1]} x {shape[2]}, save cams[:, None]")
    elif len(shape) > 3 and shape[-1] not in FEW:
        count, plane = math.prod(shape[:-2]), f"{shape[-2]}, {shape[-1]}"
        hints.append(
            f"if these are {count:,} maps, save cams.reshape(-1, {plane})"
            if count > 1
            else f"if this is one map, save cams.reshape({plane})"
        )
    return hints


def _channel_count(shape: tuple[int, ...]) -> int:
    """Return the length of the axis that may hold channels, in a shape of three or four axes; 0 if there is none."""
    if len(shape) > 4:
        return 0
    first, height, width = shape[-3:]
    if width in FEW and first not in FEW:
        return width if min(first, height) > 4 else 0
    return first if min(height, width) > 4 and first > 1 and (len(shape) == 4 or first in FEW) else 0


def question(
    shape: tuple[int, ...], dtype: np.dtype[Any], channels: Channels = "none", *, is_last_first: bool = False
) -> Question | None:
    """Ask about an array that is accepted as a map or a stack, but probably is something else; usually None.

    Args:
        shape: the shape of the whole array.
        dtype: its dtype.
        channels: how channels are reduced.
        is_last_first: as in :class:`~async_maps.sources.formats.registry.ListedArray`.
    """
    if 0 in shape:
        return None
    if channels != "none":
        return _stack_question(shape, channels)
    stack, height, width = shape if len(shape) == 3 and shape[2] != 1 else (0, 0, 0)
    asked = (_matlab_question(shape, is_last_first) if stack else None) or _token_question(shape)
    if asked:
        return asked
    if stack in FEW and min(height, width) > 4 and dtype.kind == "f":
        text = f"so it is a stack of {stack} maps: if these are the channels of one map, {_REDUCES}"
        return Question("channels", f"its shape is {shape}, {text}")
    return None


def _stack_question(shape: tuple[int, ...], channels: Channels) -> Question | None:
    # The feature maps of a layer have as many channels, but are smaller.
    if channel_axis(shape) != 0 or shape[0] in {1, *FEW} or min(shape[1:]) < 128:
        return None
    text = f"its shape is {shape}, so --channels {channels} makes one map of {shape[0]:,} channels"
    return Question("stack", f"{text}: if these are {shape[0]:,} maps, save cams[:, None]")


def _matlab_question(shape: tuple[int, ...], is_last_first: bool) -> Question | None:
    stack, height, width = shape
    saved = (height, width, stack) if is_last_first else shape
    count, plane = (height, (width, stack)) if is_last_first else (width, (stack, height))
    if not _is_matlab((*plane, count)):
        return None
    text = f"its shape is {saved}, so it is a stack of {stack:,} maps of {height:,} x {width:,}"
    axes = "0, -1" if is_last_first else "-1, 0"
    remedy = f"if these are {count:,} maps of {plane[0]:,} x {plane[1]:,}, save np.moveaxis(cams, {axes})"
    return Question("matlab", f"{text}: {remedy}")


def _token_question(shape: tuple[int, ...]) -> Question | None:
    if len(shape) > 4 or (len(shape) == 4 and 1 not in {shape[1], shape[3]}):
        return None
    height, width = (shape[-3], shape[-2]) if len(shape) > 2 and shape[-1] == 1 else shape[-2:]
    grid = _token_grid(width)
    text = ""
    if height == width and height in _SQUARES_WITH_CLASS:
        side = _SQUARES_WITH_CLASS[height]
        taken = f"[0, 1:].reshape({side}, {side})"
        if len(shape) > 2:
            taken = f".reshape(-1, {height}, {height})[:, 0, 1:].reshape(-1, {side}, {side})"
        text = f"if this is the attention of tokens, the map of the class token is attention{taken}"
    elif grid and (height <= width // 4 or height >= 4 * width):
        text = f"if its rows are the tokens of {height:,} maps, {_from_tokens(shape, grid)}"
    return Question("tokens", f"one map of {height:,} x {width:,}: {text}") if text else None


def _is_matlab(shape: tuple[int, ...]) -> bool:
    """Whether (a, b, c) is probably (h, w, n): a square, or far longer in a and b than in c."""
    height, width, count = shape
    square = height == width != count and height >= 7
    return count not in FEW and count > 1 and (square or min(height, width) >= max(8 * count, 64))


def _token_grid(tokens: int) -> tuple[int, int] | None:
    """Return the side of the grid of tokens, and the number of class tokens before it."""
    return next(((side, tokens - side**2) for side in _GRIDS if tokens in {side**2, side**2 + 1}), None)


def _from_tokens(shape: tuple[int, ...], grid: tuple[int, int]) -> str:
    """Return how to make the maps of tokens, the last axis of an array."""
    side, class_tokens = grid
    rows, leading = {1: ("", ""), 2: (":, ", f"{shape[0]}, ")}.get(len(shape), ("..., ", "-1, "))
    taken = f"[{rows}{class_tokens}:]" if class_tokens else ""
    return f"take cams{taken}.reshape({leading}{side}, {side}){', without the class token' if class_tokens else ''}"
