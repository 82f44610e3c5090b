"""Checks the arrays of activation maps: their type, shape, dtype and values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from async_maps.errors import InputValidationError
from async_maps.render.ranges import UNIT

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from async_maps.render.ranges import ValueRange


def map_shape(activation_map: NDArray[Any], value_range: ValueRange = UNIT) -> tuple[int, int]:
    """Check the shape and dtype of an activation map, not its values; return its height and width.

    Raises:
        InputValidationError: it is not an array, is empty, does not have the shape (h, w) or (h, w, 1), or is not
            uint8 or float. Other ranges than ``unit`` also allow bool and all integers.
    """
    check_array(activation_map)
    shape = activation_map.shape
    if 0 in shape:
        raise InputValidationError(f"the activation map is empty: its shape is {shape}")
    if len(shape) not in {2, 3} or (len(shape) == 3 and shape[2] != 1):
        raise InputValidationError(f"an activation map must have the shape (h, w) or (h, w, 1); found {shape}")
    check_dtype(activation_map.dtype, value_range)
    return shape[0], shape[1]


def check_array(activation_map: NDArray[Any]) -> None:
    """Raise InputValidationError if an activation map is not a plain NumPy array."""
    if not isinstance(activation_map, np.ndarray):
        raise InputValidationError(f"an activation map must be a NumPy array; found {type(activation_map).__name__}")
    if isinstance(activation_map, np.ma.MaskedArray):
        raise InputValidationError(
            "an activation map must be a plain array; found a masked array: call its method filled() first"
        )


def check_dtype(dtype: np.dtype[Any], value_range: ValueRange) -> None:
    """Refuse an array that is no activation map by its dtype."""
    if dtype.kind not in "fiub" or dtype.type.__module__ == "ml_dtypes":
        raise InputValidationError(
            f"the values of an activation map must be real numbers; found {dtype}{_remedy(dtype)}"
        )
    if value_range.kind == "unit" and dtype.kind != "f" and dtype != np.uint8:
        first = "0,65535 (all 16-bit values), per-map" if dtype == np.uint16 else "per-map, symmetric"
        raise InputValidationError(
            f"an activation map must be uint8, or float with values in [0, 1]; found {dtype}: for other values, set "
            f"range to {first} or LO,HI"
        )


def _remedy(dtype: np.dtype[Any]) -> str:
    """Return what to do with an array of a refused dtype."""
    if dtype.type.__module__ == "ml_dtypes" or dtype.kind == "O":
        return ': convert it with .astype("float32")'
    if dtype.kind == "V" and dtype.itemsize <= 2 and dtype.names is None:
        what = "bfloat16" if dtype.itemsize == 2 else "float8"
        return f', as NumPy saves {what}, whose dtype is lost in the file: save array.astype("float32") instead'
    return ": take np.abs(array) or its real part" if dtype.kind == "c" else ""


def outside_unit(flat: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which values are NaN, or outside [0, 1]."""
    with np.errstate(invalid="ignore"):
        outside: NDArray[np.bool_] = ~((flat >= 0) & (flat <= 1))
    return outside


def describe_bad_value(
    activation_map: NDArray[Any],
    flat: NDArray[Any],
    value_range: ValueRange,
    counted: NDArray[np.bool_] | None = None,
) -> str:
    """Describe the first bad value of ``flat``, the map's values; ``counted`` limits the values that can be bad."""
    unit = value_range.kind == "unit"
    bad = outside_unit(flat) if unit else ~np.isfinite(flat)
    if counted is not None:
        bad &= counted
    array = np.asarray(activation_map)
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), array.shape))
    value = array[index]
    found = "NaN" if np.isnan(value) else f"{value!s}"
    if np.isfinite(value):
        advice = "for other values, set range to per-map, symmetric or LO,HI"
    else:
        advice = "to accept NaN and infinity, set invalid to transparent or zero"
    return (
        f"every value must {'lie in [0, 1]' if unit else 'be finite'}; found {found} at index {index} "
        f"(NaN or {'out of range' if unit else 'infinite'}: {int(np.count_nonzero(bad)):,} of {bad.size:,} values); "
        f"{advice}"
    )
