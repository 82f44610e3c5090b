"""Turns values into intensities: value ranges, and invalid values."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np

from async_maps.errors import InputValidationError
from async_maps.render.arrays import describe_bad_value, outside_unit
from async_maps.render.ranges import UNIT
from async_maps.render.statistics import Measured, interpolate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from numpy.typing import NDArray

    from async_maps.render.ranges import ValueRange

Invalid: TypeAlias = Literal["error", "transparent", "zero"]
"""How NaN and infinity are treated: the map fails, the pixel is transparent, or the value is 0."""

PIECE = 2**16
"""Values that are read and quantized while they are in the second-level cache. It is a multiple of the kernels' block,
so that pieces give the same sum as the whole."""
_WIDE = 2.0**900
_NOWHERE = np.empty(0, np.uint8)


class Stored(Protocol):
    """An array in C order whose values are not in memory yet."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype, in any byte order."""

    def pieces(self, count: int) -> Iterator[NDArray[Any]]:
        """Read the values in order, ``count`` at a time, (count,); the last piece may be shorter.

        Each piece is valid until the next one is read.
        """

    def whole(self) -> NDArray[Any]:
        """Read all values."""


class _Extent(NamedTuple):
    minimum: float
    maximum: float
    mean: float

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.minimum) and math.isfinite(self.maximum)


def quantize(
    activation_map: NDArray[Any] | Stored,
    plane: NDArray[np.uint8],
    value_range: ValueRange = UNIT,
    invalid: Invalid = "error",
) -> Measured | None:
    """Validate the values, and write their intensities.

    With the range ``unit``, an intensity is ``rint(value * 255)`` in the map's dtype, as Kolena computes it. With other
    ranges it is ``rint(clip((value - low) * (255 / (high - low)), 0, 255))`` in float64. If ``low`` equals ``high`` (a
    constant map), values above it become 255 and all others 0. A map of zeros becomes 128 with ``symmetric``.

    Args:
        activation_map: an array whose shape and dtype passed :func:`map_shape`, in any layout and byte order; it may be
            read-only. Stored values are read in pieces if the range does not depend on them and all are allowed.
        plane: (h, w) uint8, C-contiguous; the output. Hidden pixels become 0.
        value_range: a known range (``ValueRange.is_known``).
        invalid: how NaN and infinity are treated.

    Returns:
        The statistics; None for uint8 values with ``unit``, which are intensities already.

    Raises:
        InputValidationError: a value is NaN or infinite, or outside [0, 1] with ``unit``. The content of ``plane`` is
            then undefined.
    """
    values = np.asarray(activation_map) if isinstance(activation_map, np.ndarray) else activation_map
    intensities, unit = plane.reshape(-1), value_range.kind == "unit"
    if unit and values.dtype == np.uint8:
        start = 0
        for piece in _pieces(values, PIECE):
            intensities[start : start + piece.size] = piece
            start += piece.size
        return None
    if (measured := _quantize_pieces(values, intensities, value_range)) is not None:
        return measured
    if not isinstance(values, np.ndarray):
        values = values.whole()
    flat = _as_floats(values, value_range)
    extent = _write_unit(flat, intensities) if unit else _measure(flat)
    if not extent.is_finite:
        if invalid == "error":
            raise InputValidationError(describe_bad_value(values, flat, value_range))
        if unit and bool((outside_unit(flat) & np.isfinite(flat)).any()):
            raise InputValidationError(describe_bad_value(values, flat, value_range, np.isfinite(flat)))
        return _quantize_rest(flat, plane, value_range, invalid)
    if unit:
        if extent.minimum < 0 or extent.maximum > 1:
            raise InputValidationError(describe_bad_value(values, flat, value_range))
        return Measured(*extent, 0.0, 1.0)
    low, high = _limits(flat, extent, value_range)
    _write_scaled(flat, intensities, low, high)
    return Measured(*extent, low, high)


def _pieces(values: NDArray[Any] | Stored, count: int) -> Iterator[NDArray[Any]]:
    if not isinstance(values, np.ndarray):
        return values.pieces(count)
    flat = values.reshape(-1)
    return (flat[start : start + count] for start in range(0, flat.size, count))


def _quantize_pieces(
    values: NDArray[Any] | Stored, intensities: NDArray[np.uint8], value_range: ValueRange
) -> Measured | None:
    """Quantize in one pass over pieces; return None if the whole map is needed.

    That is for a range that depends on the map, a value that is not allowed, a sum that overflows, and rare dtypes.
    """
    unit, dtype = value_range.kind == "unit", _float_dtype(values.dtype, value_range)
    if value_range.is_relative or dtype.itemsize not in {4, 8}:
        return None
    least, most = _allowed_keys(dtype, unit)
    # One pass over an array in memory needs no pieces.
    count = intensities.size if unit and isinstance(values, np.ndarray) else PIECE
    keys, extremes, start, total = np.empty(2, np.int64), [], 0, 0.0
    for piece in _pieces(values, count):
        flat = _as_floats(piece, value_range)
        part = intensities[start : start + flat.size]
        start += flat.size
        total = _add(flat, part if unit else _NOWHERE, keys, total)
        low, high = keys.tolist()
        if low < least or high > most:
            return None
        extremes += [low, high]
        if not unit:
            _write_scaled(flat, part, value_range.low, value_range.high)
    if not math.isfinite(total):
        return None
    minimum, maximum = _values_of([min(extremes), max(extremes)], dtype)
    return Measured(minimum, maximum, total / intensities.size, value_range.low, value_range.high)


@cache
def _allowed_keys(dtype: np.dtype[Any], unit: bool) -> tuple[int, int]:
    """Return the keys of the smallest and the largest allowed value, see ``kernels.quantize_float32``."""
    high = 1.0 if unit else np.finfo(dtype).max
    most = int(np.array(high, dtype).view(f"i{dtype.itemsize}"))
    # The key of -x is -1 minus the key of x; -0.0 is allowed.
    return (-1 if unit else -1 - most), most


def _quantize_rest(flat: NDArray[Any], plane: NDArray[np.uint8], value_range: ValueRange, invalid: Invalid) -> Measured:
    bad = ~np.isfinite(flat)
    count = int(np.count_nonzero(bad))
    zeroed = np.where(bad, flat.dtype.type(0), flat)
    if invalid == "zero":
        measured = quantize(zeroed.reshape(plane.shape), plane, value_range)
        assert measured is not None  # noqa: S101  # floats
        return measured._replace(invalid=count)
    hidden = bad.reshape(plane.shape)
    valid = flat[~bad]
    if not valid.size:
        plane[:] = 0
        return Measured(None, None, None, None, None, count, hidden)
    # Only the valid values determine the range; then the whole map is quantized with it.
    measured = quantize(valid.reshape(1, -1), np.empty((1, valid.size), np.uint8), value_range)
    assert measured is not None  # noqa: S101  # floats
    if value_range.kind == "unit":
        quantize(zeroed.reshape(plane.shape), plane, value_range)
    else:
        assert measured.low is not None  # noqa: S101  # there are valid values
        assert measured.high is not None  # noqa: S101  # there are valid values
        _write_scaled(zeroed, plane.reshape(-1), measured.low, measured.high)
    plane[hidden] = 0
    return measured._replace(invalid=count, hidden=hidden)


def _as_floats(values: NDArray[Any], value_range: ValueRange) -> NDArray[Any]:
    """Return the values flat, contiguous and in native byte order, see :func:`_float_dtype`."""
    dtype = _float_dtype(values.dtype, value_range)
    if values.dtype == dtype and values.dtype.isnative and values.flags.carray:
        return values.reshape(-1)
    with np.errstate(over="ignore"):  # a longdouble beyond float64 becomes infinite
        return np.require(values, dtype, ["C", "A"]).reshape(-1)


def _float_dtype(dtype: np.dtype[Any], value_range: ValueRange) -> np.dtype[Any]:
    """Return the dtype in which values are quantized: with ``unit`` their own, else float32 or float64."""
    if value_range.kind == "unit":
        return dtype.newbyteorder("=")
    return np.dtype(np.float32 if np.can_cast(dtype, np.float32) else np.float64)


def _write_unit(flat: NDArray[Any], plane: NDArray[np.uint8]) -> _Extent:
    """Quantize floats in [0, 1] of any width, in their own dtype."""
    if flat.dtype == np.float16:
        # Imported late, because numba takes most of a second.
        from async_maps.render import kernels

        keys = np.empty(2, np.int64)
        return _extent(flat, keys, kernels.quantize_float16(flat.view(np.int16), *_float16_tables(), plane, keys))
    if flat.itemsize <= 8:
        return _measure(flat, plane)
    # longdouble: move values slightly outside [0, 1] further out, so that rounding to float64 does not hide them.
    with np.errstate(invalid="ignore", over="ignore"):
        plane[:] = np.rint(flat * 255).astype(np.uint8)
        narrow = flat.astype(np.float64)
        narrow[flat > 1] += 1e-9
        narrow[flat < 0] -= 1e-9
    return _measure(narrow)


def _measure(flat: NDArray[Any], plane: NDArray[np.uint8] = _NOWHERE) -> _Extent:
    """Return the extent of float32 or float64 values; quantize them into ``plane``, if it is given."""
    keys = np.empty(2, np.int64)
    return _extent(flat, keys, _add(flat, plane, keys, 0.0))


def _add(flat: NDArray[Any], plane: NDArray[np.uint8], keys: NDArray[np.int64], total: float) -> float:
    """Call the kernel for float32 or float64 values; it adds them to the total, and may quantize them."""
    from async_maps.render import kernels

    if flat.dtype == np.float32:
        return kernels.quantize_float32(flat, flat.view(np.int32), plane, keys, total)
    return kernels.quantize_float64(flat, flat.view(np.int64), plane, keys, total)


def _extent(flat: NDArray[Any], keys: NDArray[np.int64], total: float) -> _Extent:
    minimum, maximum = _values_of(keys.tolist(), flat.dtype)
    mean = total / flat.size
    if math.isfinite(minimum) and math.isfinite(maximum) and not math.isfinite(mean):
        # The sum overflowed, but the mean does not.
        mean = float((flat * 2.0**-64).sum()) / flat.size * 2.0**64
    return _Extent(minimum, maximum, mean)


def _values_of(keys: list[int], dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return the values of two keys; 0.0 for -0.0."""
    bits = [key if key >= 0 else key ^ np.iinfo(f"i{dtype.itemsize}").max for key in keys]
    minimum, maximum = np.array(bits, f"i{dtype.itemsize}").view(dtype).tolist()
    return minimum + 0.0, maximum + 0.0


def _limits(flat: NDArray[Any], extent: _Extent, value_range: ValueRange) -> tuple[float, float]:
    if value_range.kind == "percentile":

        def pick(places: list[int]) -> list[float]:
            found: list[float] = np.partition(flat, places)[places].tolist()
            return found

        return percentiles(flat.size, value_range.low, value_range.high, pick)
    return value_range.span(extent.minimum, extent.maximum)


def percentiles(size: int, low: float, high: float, pick: Callable[[list[int]], list[float]]) -> tuple[float, float]:
    """Return two exact percentiles of ``size`` values, interpolated linearly like ``numpy.percentile`` in float64.

    ``pick`` returns the values at the given indices of the sorted values.
    """
    ranks = [percentile / 100 * (size - 1) for percentile in (low, high)]
    found = pick([place for rank in ranks for place in (int(rank), min(int(rank) + 1, size - 1))])
    shares = [rank - int(rank) for rank in ranks]
    return interpolate(found[0], found[1], shares[0]), interpolate(found[2], found[3], shares[1])


def _write_scaled(flat: NDArray[Any], plane: NDArray[np.uint8], low: float, high: float) -> None:
    from async_maps.render import kernels

    if not low < high:
        plane[:] = np.where(flat > high, 255, 0)
        return
    unit = scale_unit(low, high)
    scale = kernels.scale_float32 if flat.dtype == np.float32 else kernels.scale_float64
    scale(flat, unit, low * unit, 255 / (high * unit - low * unit), plane)


def scale_unit(low: float, high: float) -> float:
    """Return the power of two by which to multiply values and range before scaling.

    It is 1, except for ranges so wide that their width overflows, or so narrow that the inverse of the width does.
    """
    if 1 / _WIDE < high - low < _WIDE:
        return 1.0
    return 1 / _WIDE if high - low > 1 else _WIDE


@cache
def _float16_tables() -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the intensity of each float16 bit pattern (0 outside [0, 1]), and its value; both (65536,)."""
    values = np.arange(65_536, dtype=np.uint16).view(np.float16)
    with np.errstate(all="ignore"):
        intensities = np.where((values >= 0) & (values <= 1), np.rint(values * 255), 0)
    return intensities.astype(np.uint8), values.astype(np.float32)
