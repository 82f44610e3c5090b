"""The numba kernels, which release the interpreter lock.

Importing this module compiles every kernel, or loads it from the cache (:mod:`.kernel_cache`). Each kernel has exactly
one signature.

All array arguments are flat, C-contiguous, aligned and in native byte order; the callers in this package ensure that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numba import types

from async_maps.render.kernel_compiler import kernel, readonly

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_PLANE = types.Array(types.uint8, 1, "C")
_KEYS = types.Array(types.int64, 1, "C")
_COUNTS = types.Array(types.int64, 1, "C")
_SUMS = types.Array(types.uint32, 1, "C")
_ANY_ORDER: dict[str, Any] = {"fastmath": {"reassoc"}}
"""Allow any order of additions, which vector instructions need; no other floating-point rule is relaxed."""
BLOCK = 4096
"""Values per block. Two simple loops over a block in the first-level cache take two thirds of the time of one loop that
does everything, because each loop has vectors of one width."""

Quantize: TypeAlias = "Callable[[NDArray[Any], NDArray[Any], NDArray[np.uint8], NDArray[np.int64], float], float]"
Scale: TypeAlias = "Callable[[NDArray[Any], float, float, float, NDArray[np.uint8]], None]"


def _kernels_for(real: Any, integer: Any) -> tuple[Quantize, Scale]:
    """Compile the kernels for one dtype of values; ``integer`` has the same width as ``real``."""
    dtype = np.dtype(real).name
    most, sign_bit, full = integer(np.iinfo(integer).max), integer(np.iinfo(integer).bits - 1), real(255)

    @kernel(
        types.float64(readonly(real), readonly(integer), _PLANE, _KEYS, types.float64),
        name=f"quantize_{dtype}",
        **_ANY_ORDER,
    )
    def quantize(
        values: NDArray[Any], bits: NDArray[Any], plane: NDArray[np.uint8], keys: NDArray[np.int64], total: float
    ) -> float:
        """Write ``rint(value * 255)``, computed in the values' dtype, and find sum and extremes in the same pass.

        The key of a value is an integer with the same order: the bits of the value, where negative values have all bits
        but the sign inverted. Comparing integers takes a quarter of the time of comparing floats, and detects NaN,
        whose key is beyond that of infinity. Only maps with negative values need a second pass over the keys.

        Args:
            values: (n,), n >= 1.
            bits: (n,) the same values, viewed as integers.
            plane: (n,) uint8, the output, valid only if all values are in [0, 1]; if empty, nothing is written.
            keys: (2,) output: the smallest and the largest key.
            total: the sum of the values before these.

        Returns:
            The sum of all values, in float64: for pieces of whole blocks the same as for all values in one call.
        """
        low = high = bits[0]
        writes = plane.size > 0
        for start in range(0, values.size, BLOCK):
            part, ints = values[start : start + BLOCK], bits[start : start + BLOCK]
            intensities = plane[start : start + BLOCK]
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

    @kernel(types.void(readonly(real), types.float64, types.float64, types.float64, _PLANE), name=f"scale_{dtype}")
    def scale(values: NDArray[Any], unit: float, low: float, factor: float, plane: NDArray[np.uint8]) -> None:
        """Write ``rint((value * unit - low) * factor)``, clipped to 0 and 255, computed in float64.

        Args:
            values: (n,) finite.
            unit: a power of two, see :func:`async_maps.render.quantize.scale_unit`.
            low: the value that becomes 0, times ``unit``.
            factor: 255 divided by the width of the range times ``unit``.
            plane: (n,) uint8, the output.
        """
        for i in range(values.size):
            intensity = (np.float64(values[i]) * unit - low) * factor
            plane[i] = np.uint8(np.int32(np.rint(min(max(intensity, 0.0), 255.0))))

    return quantize, scale


quantize_float32, scale_float32 = _kernels_for(np.float32, np.int32)
quantize_float64, scale_float64 = _kernels_for(np.float64, np.int64)


@kernel(types.float64(readonly(np.int16), readonly(np.uint8), readonly(np.float32), _PLANE, _KEYS), **_ANY_ORDER)
def quantize_float16(
    bits: NDArray[np.int16],
    intensities: NDArray[np.uint8],
    values: NDArray[np.float32],
    plane: NDArray[np.uint8],
    keys: NDArray[np.int64],
) -> float:
    """Do the same as :func:`quantize_float32` for float16, by tables, because numba does not support float16.

    Args:
        bits: (n,) the values, viewed as int16.
        intensities: (65536,) the intensity of each bit pattern, as uint16.
        values: (65536,) the value of each bit pattern.
        plane: (n,) uint8, the output.
        keys: (2,) output: the smallest and the largest key.
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


@kernel(types.void(readonly(np.uint8), _COUNTS, _SUMS, _SUMS))
def count(
    plane: NDArray[np.uint8], histogram: NDArray[np.int64], columns: NDArray[np.uint32], rows: NDArray[np.uint32]
) -> None:
    """Count each intensity, and sum the intensities of each column and of each row.

    Args:
        plane: (h * w,) the intensities. The sums overflow if h or w is more than 16 million.
        histogram: (256,) output, added to.
        columns: (w,) output, added to.
        rows: (h,) output: the sum of each row.
    """
    # Neighbors are often equal: four tables avoid that each increment waits for the one before.
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


@kernel(types.void(_KEYS, _SUMS, _SUMS, readonly(np.uint8), types.Array(types.float64, 1, "C")))
def describe(
    histogram: NDArray[np.int64],
    columns: NDArray[np.uint32],
    rows: NDArray[np.uint32],
    opacities: NDArray[np.uint8],
    found: NDArray[np.float64],
) -> None:
    """Compute statistics from the results of :func:`count`.

    Args:
        histogram: (256,) the number of pixels with each intensity.
        columns: (w,) the sum of each column.
        rows: (h,) the sum of each row.
        opacities: (256,) the alpha of each intensity.
        found: (6,) output: the number of pixels; the number of those with intensity 128 or more; the entropy in bits;
            the center of mass x and y in pixels, NaN if all intensities are 0; the highest alpha, 0 without pixels.
    """
    valid, high = np.int64(0), np.int64(0)
    for intensity in range(256):
        valid += histogram[intensity]
        if intensity >= 128:
            high += histogram[intensity]
    entropy, highest = 0.0, np.uint8(0)
    for intensity in range(256):
        if histogram[intensity]:
            highest = max(highest, opacities[intensity])
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
    found[5] = highest


@kernel(types.void(readonly(np.int64), types.int64, _COUNTS))
def sketch(bits: NDArray[np.int64], shift: int, counts: NDArray[np.int64]) -> None:
    """Count finite float64 values by the leading bits of their keys (:func:`quantize_float32`).

    Args:
        bits: (n,) the values, viewed as int64.
        shift: the number of trailing bits of a key that are ignored.
        counts: (2**(64 - shift),) output, added to; key 0 is in the middle.
    """
    middle = counts.size // 2
    for i in range(bits.size):
        key = bits[i] ^ ((bits[i] >> np.int64(63)) & np.int64(0x7FFFFFFFFFFFFFFF))
        counts[(key >> shift) + middle] += 1


@kernel(types.void(readonly(np.uint8), _PLANE))
def replace(table: NDArray[np.uint8], plane: NDArray[np.uint8]) -> None:
    """Replace each intensity by its entry in the table, (256,)."""
    for i in range(plane.size):
        plane[i] = table[plane[i]]


@kernel(types.void(readonly(np.uint8), readonly(np.uint32), types.Array(types.uint32, 1, "C")))
def look_up(plane: NDArray[np.uint8], table: NDArray[np.uint32], pixels: NDArray[np.uint32]) -> None:
    """Write each intensity's RGBA color, as one 32-bit word.

    Args:
        plane: (n,) the intensities.
        table: (256,) the (256, 4) uint8 color table, viewed as uint32.
        pixels: (n,) output; viewed as uint8, the colors are R, G, B, A on any machine.
    """
    for i in range(plane.size):
        pixels[i] = table[plane[i]]
