"""Arrays already in memory, each with a name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from async_maps.colorize import map_shape
from async_maps.errors import InputValidationError
from async_maps.names import check_name, printable
from async_maps.records import ActivationMap, Failure

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray


def array_map(name: str, array: NDArray[Any]) -> ActivationMap | Failure:
    """A map that lies in memory, or why it cannot enter."""
    try:
        check_name(name)
        map_shape(array)
    except InputValidationError as error:
        return Failure(printable(name), printable(name), None, "source", str(error))
    return ActivationMap(name, name, None, array.nbytes, array=array)
