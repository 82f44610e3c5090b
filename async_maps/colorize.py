"""From an activation map to intensities and colours. Runs where it is called: a worker process, a thread, a script."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from async_maps.colormap import ColormapJet, SupportsColorize, color_table
from async_maps.errors import InputValidationError

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

_JET = ColormapJet()


def colorize_activation_map(activation_map: NDArray[Any], colormap: SupportsColorize = _JET) -> NDArray[np.uint8]:
    """Apply a colormap to an activation map: a drop-in for ``kolena.workflow.visualization.colorize_activation_map``.

    The result is byte-equal to Kolena's, over a thousand times sooner.

    Args:
        activation_map: (h, w) or (h, w, 1), uint8 or any float dtype with every value in [0, 1]. Floats are quantised
            in their own dtype, as ``rint(value * 255)``.
        colormap: ours, Kolena's or a subclass of either.

    Returns:
        (h, w, 4) uint8, RGBA.

    Raises:
        InputValidationError: the array is empty, of another shape or dtype, or holds NaN or a value outside [0, 1].
    """
    height, width = map_shape(activation_map)
    plane = np.empty((height, width), np.uint8)
    quantise(activation_map, plane)
    pixels = np.empty((height, width, 4), np.uint8)
    look_up(plane, color_table(colormap), pixels)
    return pixels


def map_shape(activation_map: NDArray[Any]) -> tuple[int, int]:
    """The height and width of what can be colorized, by its shape and dtype alone.

    Raises:
        InputValidationError: it is no array, empty, or of another shape or dtype than (h, w) or (h, w, 1) and uint8 or
            float.
    """
    if not isinstance(activation_map, np.ndarray):
        raise InputValidationError(f"an activation map must be a NumPy array; found {type(activation_map).__name__}")
    if isinstance(activation_map, np.ma.MaskedArray):
        raise InputValidationError(
            "an activation map must have a value everywhere; found a masked array: fill it first"
        )
    check_shape(activation_map.shape, activation_map.dtype)
    return activation_map.shape[0], activation_map.shape[1]


def check_shape(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuse what is no activation map by its shape and dtype alone.

    Raises:
        InputValidationError: as :func:`map_shape`.
    """
    if 0 in shape:
        raise InputValidationError(f"the activation map is empty: its shape is {shape}")
    if dtype != np.uint8 and not np.issubdtype(dtype, np.floating):
        raise InputValidationError(f"an activation map must be uint8, or float with values in [0, 1]; found {dtype}")
    if len(shape) not in {2, 3} or (len(shape) == 3 and shape[2] != 1):
        raise InputValidationError(f"an activation map must have the shape (h, w) or (h, w, 1); found {shape}")


def quantise(activation_map: NDArray[Any], plane: NDArray[np.uint8]) -> None:
    """Validate the values and write each as a byte, in one pass.

    Args:
        activation_map: an array that passed :func:`map_shape`; any layout and byte order, and it may be read-only.
        plane: (h, w) uint8, C-contiguous; receives ``rint(value * 255)`` of floats, and uint8 as it is.

    Raises:
        InputValidationError: a value is NaN, infinite or outside [0, 1]; ``plane`` then holds nothing of use.
    """
    values = np.asarray(activation_map).reshape(plane.shape)
    if values.dtype == np.uint8:
        np.copyto(plane, values)
        return
    flat = np.require(values, values.dtype.newbyteorder("="), ["C", "A"]).reshape(-1)
    if not _quantise_floats(flat, plane.reshape(-1)):
        raise InputValidationError(_describe_bad_value(np.asarray(activation_map)))


def look_up(plane: NDArray[np.uint8], table: NDArray[np.uint8], pixels: NDArray[np.uint8]) -> None:
    """Write the colour of each intensity.

    Args:
        plane: (h, w) uint8, C-contiguous.
        table: (256, 4) uint8.
        pixels: (h, w, 4) uint8, C-contiguous and aligned to 4 bytes; receives the colours.
    """
    from async_maps import kernels

    kernels.look_up(plane.reshape(-1), table.view(np.uint32).reshape(-1), pixels.reshape(-1).view(np.uint32))


def _quantise_floats(values: NDArray[Any], plane: NDArray[np.uint8]) -> bool:
    """Quantise floats of whatever width in their own dtype; say whether every value lies in [0, 1]."""
    # numba takes most of a second to import: only those who colorize pay for it.
    from async_maps import kernels

    if values.dtype == np.float32:
        return kernels.quantise_float32(values, plane)
    if values.dtype == np.float64:
        return kernels.quantise_float64(values, plane)
    if values.dtype == np.float16:
        return kernels.quantise_float16(values.view(np.uint16), _float16_table(), plane)
    with np.errstate(invalid="ignore"):
        good = bool(((values >= 0) & (values <= 1)).all())
        if good:
            plane[:] = np.rint(values * 255).astype(np.uint8)
    return good


@cache
def _float16_table() -> NDArray[np.uint16]:
    """What each of the 65,536 float16 bit patterns becomes: 0 to 255, or 256 outside [0, 1]; computed in float16."""
    values = np.arange(65_536, dtype=np.uint16).view(np.float16)
    with np.errstate(all="ignore"):
        return np.where((values >= 0) & (values <= 1), np.rint(values * 255), 256).astype(np.uint16)


def _describe_bad_value(activation_map: NDArray[Any]) -> str:
    with np.errstate(invalid="ignore"):
        good = (activation_map >= 0) & (activation_map <= 1)
    index = tuple(int(i) for i in np.unravel_index(int(np.argmin(good)), good.shape))
    value = activation_map[index]
    found = "NaN" if np.isnan(value) else f"{value!s}"
    bad = good.size - int(np.count_nonzero(good))
    return (
        f"every value must lie in [0, 1]; found {found} at index {index} "
        f"({bad:,} of {good.size:,} values are NaN or out of range)"
    )
