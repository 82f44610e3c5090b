"""Checks of maps by their headers, for dry runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from async_maps.errors import InputValidationError, SourceError
from async_maps.outcomes import Failure
from async_maps.render.quantize import check_dtype, check_shape, map_shape
from async_maps.sources.formats.size import check_chunk, check_size

if TYPE_CHECKING:
    from async_maps.outcomes import Stage
    from async_maps.render.ranges import ValueRange
    from async_maps.sources.activation_map import ActivationMap


def known_failure(map_: ActivationMap, value_range: ValueRange, max_pixels: int | None) -> Failure | None:
    """Return the failure of a map that its header, or its array's shape and dtype, shows; None if there is none."""
    try:
        if map_.problem:
            raise SourceError(map_.problem)
        if map_.array is not None:
            map_shape(map_.array, value_range)
        elif map_.header is not None:
            shape, dtype, chunks = map_.header
            check_size(shape, dtype.itemsize, max_pixels)
            check_chunk(chunks, dtype.itemsize, max_pixels)
            check_shape(shape)
            check_dtype(dtype, value_range)
    except SourceError as error:
        return Failure(map_.name, map_.source, map_.fingerprint, "read", str(error))
    except InputValidationError as error:
        stage: Stage = "source" if map_.array is not None else "colorize"
        return Failure(map_.name, map_.source, map_.fingerprint, stage, str(error))
    return None
