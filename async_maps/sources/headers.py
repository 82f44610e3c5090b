"""Checks of maps by their headers, for dry runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from async_maps.errors import InputValidationError, SourceError
from async_maps.outcomes import Failure
from async_maps.sources.formats.size import check_chunk, check_size
from async_maps.sources.layouts import header_size, map_size

if TYPE_CHECKING:
    from async_maps.outcomes import Stage
    from async_maps.render.channels import Channels
    from async_maps.render.ranges import ValueRange
    from async_maps.sources.activation_map import ActivationMap


def known_failure(
    map_: ActivationMap, value_range: ValueRange, max_pixels: int | None, channels: Channels = "none"
) -> Failure | None:
    """Return the failure of a map that its header, or its array's shape and dtype, shows; None if there is none."""
    try:
        if map_.problem:
            raise SourceError(map_.problem)
        if map_.array is not None:
            map_size(map_.array, value_range, channels)
        elif map_.header is not None:
            shape, dtype, chunks = map_.header
            check_size(shape, dtype.itemsize, max_pixels)
            check_chunk(chunks, dtype.itemsize, max_pixels)
            header_size(shape, dtype, value_range, channels)
    except SourceError as error:
        return map_.failure("read", str(error))
    except InputValidationError as error:
        stage: Stage = "source" if map_.array is not None else "colorize"
        return map_.failure(stage, str(error))
    return None
