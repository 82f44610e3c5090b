"""The numba kernels. They run in worker processes, or in threads if there are none, and release the interpreter lock.

Every kernel has exactly one signature and is compiled, or read from numba's cache on disk, when this module is
imported: importing it *is* the warm-up. One signature a function also makes the cache safe to share. numba's index
file is read, changed and written without a lock, so of two processes that compile different signatures at once one
can end up with the other's code; with a single signature both write the same thing.

The arguments are flat, C-contiguous, aligned and in native byte order; :mod:`async_maps.colorize` sees to that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numba
import numpy as np
from numba import types

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

P = ParamSpec("P")
R = TypeVar("R")


def _kernel(signature: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile for one signature, cached on disk where that works and without a cache where it does not.

    A signature given ahead makes numba do all its cache work inside this call. So whatever is wrong with the cache (no
    folder that can be written, a full disk, a torn file) ends here, in a compilation that needs no cache; and whatever
    is wrong with the kernel itself is raised by that second compilation.
    """

    def compile_(function: Callable[P, R]) -> Callable[P, R]:
        try:
            compiled: Callable[P, R] = numba.njit(signature, nogil=True, cache=True)(function)
        except Exception:  # noqa: BLE001  # numba raises whatever its cache files make pickle or the file system raise
            compiled = numba.njit(signature, nogil=True)(function)
        return compiled

    return compile_


def _input(item: Any) -> Any:
    return types.Array(item, 1, "C", readonly=True)


_PLANE = types.Array(types.uint8, 1, "C")


@_kernel(types.boolean(_input(types.float32), _PLANE))
def quantise_float32(values: NDArray[np.float32], plane: NDArray[np.uint8]) -> bool:
    """Write ``rint(value * 255)``, computed in float32, and say whether every value lies in [0, 1] (NaN does not).

    Where it does not, the plane's content is undefined.
    """
    bad = False
    for i in range(values.size):
        value = values[i]
        bad |= not ((value >= 0) & (value <= 1))
        plane[i] = np.uint8(np.rint(value * np.float32(255)))
    return not bad


@_kernel(types.boolean(_input(types.float64), _PLANE))
def quantise_float64(values: NDArray[np.float64], plane: NDArray[np.uint8]) -> bool:
    """As :func:`quantise_float32`, computed in float64."""
    bad = False
    for i in range(values.size):
        value = values[i]
        bad |= not ((value >= 0) & (value <= 1))
        plane[i] = np.uint8(np.rint(value * np.float64(255)))
    return not bad


@_kernel(types.boolean(_input(types.uint16), _input(types.uint16), _PLANE))
def quantise_float16(bits: NDArray[np.uint16], table: NDArray[np.uint16], plane: NDArray[np.uint8]) -> bool:
    """As :func:`quantise_float32` for float16, which numba does not have on the CPU: by its 65,536 bit patterns.

    Args:
        bits: the values, viewed as uint16.
        table: (65536,) what each bit pattern becomes: 0 to 255, or 256 for a value outside [0, 1].
        plane: receives the bytes.
    """
    seen = np.uint16(0)
    for i in range(bits.size):
        byte = table[bits[i]]
        seen |= byte
        plane[i] = np.uint8(byte)
    return bool(seen < 256)


@_kernel(types.void(_input(types.uint8), _input(types.uint32), types.Array(types.uint32, 1, "C")))
def look_up(plane: NDArray[np.uint8], table: NDArray[np.uint32], pixels: NDArray[np.uint32]) -> None:
    """Write each intensity's RGBA colour, four bytes moved as one word.

    Args:
        plane: the intensities.
        table: (256,) the 256x4 uint8 colour table, viewed as uint32.
        pixels: receives the colours; viewed as uint8 they are R, G, B, A in memory order on any machine.
    """
    for i in range(plane.size):
        pixels[i] = table[plane[i]]
