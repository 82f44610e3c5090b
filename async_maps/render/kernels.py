"""The numba kernels. They run in worker processes, or in threads if there are none, and release the interpreter lock.

Every kernel has exactly one signature and is compiled, or read from numba's cache on disk, when this module is
imported: importing it *is* the warm-up. One signature a function also makes the cache safe to share. numba's index
file is read, changed and written without a lock, so of two processes that compile different signatures at the same time
one can end up with the other's code; with a single signature both write the same thing.

The arguments are flat, C-contiguous, aligned and in native byte order; :mod:`async_maps.render.colorize` sees to that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

import numba
import numpy as np
from numba import types

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

P = ParamSpec("P")
R = TypeVar("R")


def _kernel(signature: Any, *, name: str = "", **options: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile for one signature, cached on disk where that works and without a cache where it does not.

    A signature given ahead makes numba do all its cache work inside this call. So every fault of the cache (no folder
    that can be written, a full disk, a torn file) ends here, in a compilation that needs no cache; and a fault of the
    kernel itself is raised by that second compilation. ``name`` replaces the function's own name, also in the cache.
    """

    def compile_(function: Callable[P, R]) -> Callable[P, R]:
        function.__name__ = function.__qualname__ = name or function.__name__
        try:
            compiled: Callable[P, R] = numba.njit(signature, nogil=True, cache=True, **options)(function)
        except Exception:  # noqa: BLE001  # pickle and the file system raise anything over a damaged cache
            compiled = numba.njit(signature, nogil=True, **options)(function)
        return compiled

    return compile_


def _input(dtype: Any) -> Any:
    return types.Array(numba.from_dtype(np.dtype(dtype)), 1, "C", readonly=True)


_PLANE = types.Array(types.uint8, 1, "C")
_KEYS = types.Array(types.int64, 1, "C")
_COUNTS = types.Array(types.int64, 1, "C")
_SUMS = types.Array(types.uint32, 1, "C")
_ANY_ORDER: dict[str, Any] = {"fastmath": {"reassoc"}}
"""A sum may be taken in any order, which is what lets it use vector instructions. Nothing else is relaxed."""
_BLOCK = 4096
"""Values in a block. Each loop goes over a block while it lies in the fastest cache, and has vectors of one width: all
of them together take two thirds of the time of one loop for everything."""

Quantize: TypeAlias = "Callable[[NDArray[Any], NDArray[Any], NDArray[np.uint8], NDArray[np.int64]], float]"
Scale: TypeAlias = "Callable[[NDArray[Any], float, float, float, NDArray[np.uint8]], None]"


def _kernels_for(real: Any, integer: Any) -> tuple[Quantize, Scale]:
    """Compile the kernels that differ only in the dtype of their values; ``integer`` has the same width."""
    dtype = np.dtype(real).name
    most, sign_bit, full = integer(np.iinfo(integer).max), integer(np.iinfo(integer).bits - 1), real(255)

    @_kernel(types.float64(_input(real), _input(integer), _PLANE, _KEYS), name=f"quantize_{dtype}", **_ANY_ORDER)
    def quantize(values: NDArray[Any], bits: NDArray[Any], plane: NDArray[np.uint8], keys: NDArray[np.int64]) -> float:
        """Write ``rint(value * 255)``, computed in the values' dtype, and measure the values in the same pass.

        A value's key is an integer of the same order: negative values have all bits but the sign inverted. Compared as
        integers, extremes cost a quarter of what they cost as floats, and NaN shows: it lies beyond infinity. Where no
        value is negative the keys are the bits themselves; only maps with negative values are gone over once more.

        Args:
            values: (n,), one at least.
            bits: (n,) the same, viewed as integers.
            plane: (n,) receives the intensities; undefined unless the keys say that every value lies in [0, 1]. If it
                is empty, the values are only measured.
            keys: (2,) receives the smallest and the largest key.

        Returns:
            the sum of the values, in float64.
        """
        low = high = bits[0]
        total = 0.0
        writes = plane.size > 0
        for start in range(0, values.size, _BLOCK):
            part, ints = values[start : start + _BLOCK], bits[start : start + _BLOCK]
            intensities = plane[start : start + _BLOCK]
            for i in range(part.size):
                low = min(low, ints[i])
                high = max(high, ints[i])
                if writes:
                    intensities[i] = np.uint8(np.int32(np.rint(part[i] * full)))
            subtotal = 0.0
            for i in range(part.size):
                subtotal += np.float64(part[i])
            total += subtotal
        if low < 0:
            low = high = integer(low ^ most)
            for i in range(bits.size):
                key = integer(bits[i] ^ ((bits[i] >> sign_bit) & most))
                low = min(low, key)
                high = max(high, key)
        keys[0], keys[1] = low, high
        return total

    @_kernel(types.void(_input(real), types.float64, types.float64, types.float64, _PLANE), name=f"scale_{dtype}")
    def scale(values: NDArray[Any], unit: float, low: float, factor: float, plane: NDArray[np.uint8]) -> None:
        """Write ``rint((value * unit - low) * factor)``, clipped to 0 and 255, computed in float64.

        Args:
            values: finite.
            unit: a power of two, 1 unless the range is so wide or narrow that its factor would be none.
            low: the value that becomes 0, times the unit.
            factor: 255 divided by the width of the range, which is times the unit too.
            plane: receives the intensities.
        """
        for i in range(values.size):
            intensity = (np.float64(values[i]) * unit - low) * factor
            plane[i] = np.uint8(np.int32(np.rint(min(max(intensity, 0.0), 255.0))))

    return quantize, scale


quantize_float32, scale_float32 = _kernels_for(np.float32, np.int32)
quantize_float64, scale_float64 = _kernels_for(np.float64, np.int64)


@_kernel(types.float64(_input(np.int16), _input(np.uint8), _input(np.float32), _PLANE, _KEYS), **_ANY_ORDER)
def quantize_float16(
    bits: NDArray[np.int16],
    intensities: NDArray[np.uint8],
    values: NDArray[np.float32],
    plane: NDArray[np.uint8],
    keys: NDArray[np.int64],
) -> float:
    """As :func:`quantize_float32` for float16, which numba does not have: by its 65,536 bit patterns.

    Args:
        bits: the values, viewed as int16.
        intensities: (65536,) the intensity of each bit pattern, taken as uint16.
        values: (65536,) its value.
        plane: receives the intensities.
        keys: (2,) receives the smallest and the largest key.
    """
    low, high, total = np.int16(0x7FFF), np.int16(-0x8000), np.float64(0)
    for i in range(bits.size):
        key = np.int16(bits[i] ^ ((bits[i] >> np.int16(15)) & np.int16(0x7FFF)))
        low = min(low, key)
        high = max(high, key)
        pattern = np.uint16(bits[i])
        total += np.float64(values[pattern])
        plane[i] = intensities[pattern]
    keys[0], keys[1] = low, high
    return total


@_kernel(types.void(_input(np.uint8), _COUNTS, _SUMS, _SUMS))
def count(
    plane: NDArray[np.uint8], histogram: NDArray[np.int64], columns: NDArray[np.uint32], rows: NDArray[np.uint32]
) -> None:
    """Count each intensity, and add up those of each column and of each row.

    Args:
        plane: the intensities, row by row; no side is longer than 16 million pixels, or its sums overflow.
        histogram: (256,) added to.
        columns: (w,) added to.
        rows: (h,) receives the sum of each row.
    """
    # Of neighbours, which are often equal, each counts in a table of its own: none waits for the one before.
    tables = np.zeros((4, 256), np.uint32)
    width = columns.size
    whole = width - width % 4
    for y in range(rows.size):
        row = plane[y * width : (y + 1) * width]
        total = np.uint32(0)
        for x in range(width):
            pixel = np.uint32(row[x])
            columns[x] += pixel
            total += pixel
        rows[y] = total
        for x in range(0, whole, 4):
            tables[0, row[x]] += np.uint32(1)
            tables[1, row[x + 1]] += np.uint32(1)
            tables[2, row[x + 2]] += np.uint32(1)
            tables[3, row[x + 3]] += np.uint32(1)
        for x in range(whole, width):
            tables[0, row[x]] += np.uint32(1)
    for intensity in range(256):
        for lane in range(4):
            histogram[intensity] += tables[lane, intensity]


@_kernel(types.void(_KEYS, _SUMS, _SUMS, types.Array(types.float64, 1, "C")))
def describe(
    histogram: NDArray[np.int64], columns: NDArray[np.uint32], rows: NDArray[np.uint32], found: NDArray[np.float64]
) -> None:
    """Compute statistics of a histogram, (256,), and of the sums of columns, (w,), and rows, (h,), of a plane.

    ``found``, (5,), receives the number of pixels in the histogram, the number of them with intensity 128 or more, the
    entropy in bits, and the center of mass in pixels, x and y; it is NaN if all intensities are 0.
    """
    valid, high = np.int64(0), np.int64(0)
    for intensity in range(256):
        valid += histogram[intensity]
        if intensity >= 128:
            high += histogram[intensity]
    entropy = 0.0
    for intensity in range(256):
        if histogram[intensity]:
            share = histogram[intensity] / valid
            entropy -= share * np.log2(share)
    total, moment_x, moment_y = 0.0, 0.0, 0.0
    for x in range(columns.size):
        total += np.float64(columns[x])
        moment_x += np.float64(columns[x]) * x
    for y in range(rows.size):
        moment_y += np.float64(rows[y]) * y
    found[0], found[1], found[2] = valid, high, entropy
    found[3] = moment_x / total if total else np.nan
    found[4] = moment_y / total if total else np.nan


@_kernel(types.void(_input(np.int64), types.int64, _COUNTS))
def sketch(bits: NDArray[np.int64], shift: int, counts: NDArray[np.int64]) -> None:
    """Count finite float64 values by the leading bits of their keys (:func:`quantize_float32`).

    Args:
        bits: the values, viewed as int64.
        shift: how many bits of a key are left out.
        counts: (2**(64 - shift),) added to; its middle is the key 0.
    """
    middle = counts.size // 2
    for i in range(bits.size):
        key = bits[i] ^ ((bits[i] >> np.int64(63)) & np.int64(0x7FFFFFFFFFFFFFFF))
        counts[(key >> shift) + middle] += 1


@_kernel(types.void(_input(np.uint8), _PLANE))
def replace(table: NDArray[np.uint8], plane: NDArray[np.uint8]) -> None:
    """Replace each intensity by its entry in the table, (256,)."""
    for i in range(plane.size):
        plane[i] = table[plane[i]]


@_kernel(types.void(_input(np.uint8), _input(np.uint32), types.Array(types.uint32, 1, "C")))
def look_up(plane: NDArray[np.uint8], table: NDArray[np.uint32], pixels: NDArray[np.uint32]) -> None:
    """Write each intensity's RGBA color, four bytes moved as one word.

    Args:
        plane: the intensities.
        table: (256,) the 256x4 uint8 color table, viewed as uint32.
        pixels: receives the colors; viewed as uint8 they are R, G, B, A in memory order on any machine.
    """
    for i in range(plane.size):
        pixels[i] = table[plane[i]]


@_kernel(types.void(_input(np.uint8), types.int64, _PLANE))
def filter_rows(rows: NDArray[np.uint8], row_bytes: int, scanlines: NDArray[np.uint8]) -> None:
    """Write PNG scanlines, all with filter 2 (up), or all with 0 (none) if a sample of them has less entropy with it.

    Args:
        rows: the image's bytes, row by row.
        row_bytes: of one row.
        scanlines: (rows.size + number of rows,) receives each row after the number of its filter.
    """
    height = rows.size // row_bytes
    # The sum of n log2 n, negative, orders the two as their entropies do; in 16 rows at most.
    step = max(height // 16, 1)
    counts = np.zeros((2, 256), np.int64)
    for y in range(step, height, step):
        row, above = rows[y * row_bytes : (y + 1) * row_bytes], rows[(y - 1) * row_bytes : y * row_bytes]
        for x in range(row_bytes):
            counts[0, row[x]] += 1
            counts[1, np.uint8(row[x] - above[x])] += 1
    bits = np.zeros(2)
    for which in range(2):
        for value in range(256):
            if counts[which, value]:
                bits[which] -= counts[which, value] * np.log2(counts[which, value])
    up = bits[0] >= bits[1]
    for y in range(height):
        line = scanlines[y * (row_bytes + 1) : (y + 1) * (row_bytes + 1)]
        row = rows[y * row_bytes : (y + 1) * row_bytes]
        line[0] = 2 if up else 0
        if up and y:
            above = rows[(y - 1) * row_bytes : y * row_bytes]
            for x in range(row_bytes):
                line[1 + x] = np.uint8(row[x] - above[x])
        else:
            for x in range(row_bytes):
                line[1 + x] = row[x]
