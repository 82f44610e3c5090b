"""Turns activation maps into colors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from async_maps.render.arrays import map_shape
from async_maps.render.colormap import ColormapJet, SupportsColorize, color_table
from async_maps.render.quantize import quantize

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

_JET = ColormapJet()


def colorize_activation_map(activation_map: NDArray[Any], colormap: SupportsColorize = _JET) -> NDArray[np.uint8]:
    """Apply a colormap to an activation map, like ``kolena.workflow.visualization.colorize_activation_map``.

    The result is byte-equal to that of kolena 1.69.0, and computed more than 1,000x faster.

    Args:
        activation_map: (h, w) or (h, w, 1), uint8 or any float dtype with every value in [0, 1]. Floats are quantized
            in their own dtype, as ``rint(value * 255)``; uint8 values are intensities already.
        colormap: our :class:`~async_maps.Colormap`, Kolena's, a subclass of either, or any object with a method
            ``colorize(intensity)``.

    Returns:
        (h, w, 4) uint8, RGBA.

    Raises:
        InputValidationError: the array is empty, has another shape or dtype, or contains NaN or a value outside [0, 1];
            or ``colormap`` has no method ``colorize`` that returns 4 values.
    """
    height, width = map_shape(activation_map)
    plane = np.empty((height, width), np.uint8)
    quantize(activation_map, plane)
    pixels = np.empty((height, width, 4), np.uint8)
    look_up(plane, color_table(colormap), pixels)
    return pixels


def look_up(plane: NDArray[np.uint8], table: NDArray[np.uint8], pixels: NDArray[np.uint8]) -> None:
    """Write the color of each intensity of a plane, (h, w) uint8, into the pixels, (h, w, 4) uint8.

    The table has RGBA colors, (256, 4) uint8. All arrays are C-contiguous, and the pixels aligned to 4 bytes.
    """
    from async_maps.render import kernels

    kernels.look_up(plane.reshape(-1), table.view(np.uint32).reshape(-1), pixels.reshape(-1).view(np.uint32))


def replace(plane: NDArray[np.uint8], table: NDArray[np.uint8]) -> None:
    """Replace each intensity of a plane, (h, w) uint8 and C-contiguous, by its entry in a table, (256,) uint8."""
    from async_maps.render import kernels

    kernels.replace(table, plane.reshape(-1))
