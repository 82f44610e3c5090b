"""Reduces the channels of a map to one value for each pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

Channels: TypeAlias = Literal["none", "sum", "norm", "maxabs", "mean"]
"""How channels are reduced; see :attr:`async_maps.Settings.channels`."""

FEW = range(2, 5)
"""The lengths of an axis that probably holds the channels of a picture."""

_BUFFER = 32 * 1024
"""Values per block that is copied for the kernel, so that the copy stays in the second-level cache."""


def channel_axis(shape: tuple[int, ...]) -> int | None:
    """Return the axis of the channels in the shape of a map; None if it has two axes only.

    It is the last one if its length is 1, or if its length is 2 to 4 and that of the first axis is not; else the first.
    """
    if len(shape) != 3:
        return None
    return 2 if shape[2] == 1 or (shape[2] in FEW and shape[0] not in FEW) else 0


def without_channels(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a map without the axis of the channels."""
    axis = channel_axis(shape)
    return shape if axis is None else shape[:axis] + shape[axis + 1 :]


def reduced_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype after the reduction: float32 for float16 and float32, float64 for all others."""
    return np.dtype(np.float32 if dtype.kind == "f" and dtype.itemsize <= 4 else np.float64)


def keeps_values(dtype: np.dtype[Any], channels: int, by: Channels) -> bool:
    """Whether the reduction of that number of channels changes no value: then the dtype stays, too."""
    return channels == 1 and (by in {"sum", "mean"} or dtype.kind in "ub")


def reduce_channels(activation_map: NDArray[Any], by: Channels) -> NDArray[Any]:
    """Reduce the channels of a map, computed in float64.

    ``sum`` and ``mean`` are those of the values, ``norm`` is the square root of the sum of their squares, ``maxabs``
    the largest magnitude. NaN and infinity in a channel give NaN or infinity. An array (h, w) is returned unchanged.

    Args:
        activation_map: (c, h, w) or (h, w, c), see :func:`channel_axis`, or (h, w); real numbers, in any layout.
        by: the reduction.

    Returns:
        (h, w), of the dtype :func:`reduced_dtype`.
    """
    axis = channel_axis(activation_map.shape)
    if axis is None or by == "none":
        return activation_map
    shape, channels = without_channels(activation_map.shape), activation_map.shape[axis]
    if keeps_values(activation_map.dtype, channels, by):
        return activation_map.reshape(shape)
    # Imported late, because numba takes most of a second.
    from async_maps.render import channel_kernels as kernels

    dtype, how = reduced_dtype(activation_map.dtype), getattr(kernels, by.upper())
    reduce = kernels.reduce_float32 if dtype == np.float32 else kernels.reduce_float64
    out = np.empty(shape, dtype)
    flat = out.reshape(-1)
    if axis == 0 and activation_map.dtype == dtype and activation_map.flags.carray:
        reduce(activation_map.reshape(-1), channels, how, flat)
        return out
    planes = activation_map.reshape(channels, -1) if axis == 0 else activation_map.reshape(-1, channels).T
    step = max(_BUFFER // channels, 16)
    buffer = np.empty(channels * step, dtype)
    for start in range(0, flat.size, step):
        part = planes[:, start : start + step]
        block = buffer[: part.size]
        with np.errstate(over="ignore"):  # a longdouble beyond float64 becomes infinite
            np.copyto(block.reshape(part.shape), part, casting="unsafe")
        reduce(block, channels, how, flat[start : start + step])
    return out
