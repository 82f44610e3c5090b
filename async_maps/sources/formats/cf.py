"""The conventions of NetCDF: packed values, missing values, and variables that are coordinates."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from numpy.typing import NDArray

_REFERENCES = ("coordinates", "bounds", "climatology")
_PACKING = ("_FillValue", "missing_value", "scale_factor", "add_offset", "_Unsigned")
ATTRIBUTES = frozenset((*_REFERENCES, *_PACKING, "units", "standard_name"))
"""The attributes that this module uses."""
MAX_ATTRIBUTE = 2**16
"""In bytes; larger attributes are ignored."""

COORDINATES = "coordinates"

_PLACES = {"latitude", "longitude"}
_PLACE_UNITS = {f"degree{end}" for end in ("_north", "_east", "s_north", "s_east", "_N", "_E", "s_N", "s_E")}
_DEFAULT_FILL = np.float64(9.969209968386869e36)
"""The libraries of NetCDF write it where a variable of floats has no value."""


class Packing(NamedTuple):
    """How the values of a variable are stored.

    Attributes:
        stored: the dtype in the file, unsigned if the attributes say so.
        fills: the stored values that stand for a missing value.
        scale: the factor of packed values; None if they are not packed.
        offset: added to the scaled values; None if they are not packed.
        dtype: the dtype of the unpacked values.
    """

    stored: np.dtype[Any]
    fills: tuple[Any, ...]
    scale: Any
    offset: Any
    dtype: np.dtype[Any]

    def unpack(self, values: NDArray[Any]) -> NDArray[Any]:
        """Scale and shift stored values; missing ones become NaN."""
        values = values.view(self.stored)
        missing = np.zeros(values.shape if self.fills else (), bool)
        for fill in self.fills:
            missing |= values == fill
        with np.errstate(all="ignore"):
            if self.scale is not None or values.dtype != self.dtype:
                values = values.astype(self.dtype)
            if self.scale is not None:
                values *= self.scale
                values += self.offset
        return np.where(missing, np.nan, values) if missing.any() else values


def packing(attributes: Mapping[str, Any], dtype: np.dtype[Any]) -> Packing:
    """Return how a variable of numbers is stored; attributes of wrong types are ignored.

    Integers that may be missing become floats, as in xarray.
    """
    if dtype.kind == "i" and text_of(attributes.get("_Unsigned")).lower() == "true":
        dtype = np.dtype(f"{dtype.byteorder}u{dtype.itemsize}")
    fills = [number for name in ("_FillValue", "missing_value") for number in _numbers(attributes.get(name))]
    if dtype.kind == "f" and not fills:
        fills.append(_DEFAULT_FILL)
    stored_fills = tuple(stored for fill in fills for stored in _as_stored(fill, dtype))
    scale, offset = (next(_numbers(attributes.get(name)), None) for name in ("scale_factor", "add_offset"))
    packed = [number.dtype for number in (scale, offset) if number is not None]
    unpacked = dtype
    if packed or (dtype.kind in "iu" and stored_fills):
        base = dtype if dtype.kind == "f" else np.float32 if dtype.itemsize <= 2 else np.float64
        unpacked = np.result_type(base, *packed)
    if not packed:
        return Packing(dtype, stored_fills, None, None, unpacked)
    return Packing(dtype, stored_fills, 1 if scale is None else scale, 0 if offset is None else offset, unpacked)


def references(attributes: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the variables that are coordinates of a variable, or their bounds."""
    for name in _REFERENCES:
        yield from text_of(attributes.get(name)).split()


def is_place(attributes: Mapping[str, Any]) -> bool:
    """Whether the values of a variable are latitudes or longitudes."""
    return text_of(attributes.get("standard_name")) in _PLACES or text_of(attributes.get("units")) in _PLACE_UNITS


def text_of(value: object) -> str:
    """Return the text of an attribute; empty if it is no text."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").rstrip("\0")
    return value if isinstance(value, str) else ""


def _numbers(value: object) -> Iterator[np.number[Any]]:
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "iuf" and value.size <= 16:
        yield from np.asarray(value, value.dtype.newbyteorder("=")).ravel()


def _as_stored(fill: np.number[Any], dtype: np.dtype[Any]) -> Iterator[np.number[Any]]:
    """Yield a fill value in the dtype of its variable, unless no stored value can be equal to it."""
    if dtype.kind in "iu" and fill.dtype.kind in "iu":
        # The fill value of an unsigned variable may be written as signed.
        yield fill.astype(dtype.newbyteorder("="))
    elif dtype.kind in "iu" and float(fill).is_integer() and np.iinfo(dtype).min <= fill <= np.iinfo(dtype).max:
        yield dtype.newbyteorder("=").type(int(fill))
    elif dtype.kind == "f" and not np.isnan(fill):
        with np.errstate(all="ignore"):
            yield fill.astype(dtype.newbyteorder("="))
