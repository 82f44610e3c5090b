"""PyTorch tensors: quantized where they lie, so that a byte a pixel leaves the device instead of a float."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING

from async_maps.render.quantize import Measured, check_shape, percentiles, scale_unit

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from async_maps.render.ranges import ValueRange


def take(tensor: Any, shape: tuple[int, ...], value_range: ValueRange | None) -> tuple[NDArray[Any], Measured | None]:
    """A tensor as a NumPy array of a shape, (h, w) or (h, w, 1): its intensities and statistics, or its values.

    The values are copied where there is no known range to quantize by, and where a value is invalid or out of range, to
    be handled as in any other array. bfloat16, which NumPy lacks, becomes float32.
    """
    import torch

    check_shape(shape)
    values = tensor.detach().reshape(shape)
    if values.dtype == torch.bfloat16:
        values = values.float()
    signed = values.dtype in {torch.int8, torch.int16, torch.int32, torch.int64}
    if value_range is not None and (values.dtype.is_floating_point or (signed and value_range.kind != "unit")):
        # What the device cannot compute is computed from the copied values.
        with torch.no_grad(), suppress(RuntimeError):
            found = _quantized(values.reshape(shape[:2]), value_range)
            if found is not None:
                return found[0].cpu().numpy(), found[1]
    return values.cpu().numpy(), None


def _quantized(values: Any, value_range: ValueRange) -> tuple[Any, Measured] | None:
    """The intensities, on the device; None if a value is not finite or out of range, or the device lacks float64.

    Operation for operation what :func:`async_maps.render.quantize.quantize` does.
    """
    import torch

    if value_range.kind == "unit":
        wide = values
    elif values.device.type == "mps":  # it has no float64
        return None
    else:
        wide = values.double()
    smallest, largest = torch.aminmax(values)
    mean = values.mean(dtype=torch.float32 if values.device.type == "mps" else torch.float64)
    # One wait for the device. Zeros are made positive, as they are for arrays.
    minimum, maximum, average = (torch.stack([smallest.to(mean.dtype), largest.to(mean.dtype), mean]) + 0.0).tolist()
    if not (math.isfinite(minimum) and math.isfinite(maximum) and math.isfinite(average)):
        return None
    if value_range.kind == "unit":
        if minimum < 0 or maximum > 1:
            return None
        return torch.round(wide * 255).to(torch.uint8), Measured(minimum, maximum, average, 0.0, 1.0)
    if value_range.kind == "percentile":
        order = wide.reshape(-1).sort().values
        low, high = percentiles(order.numel(), value_range.low, value_range.high, lambda places: order[places].tolist())
    else:
        low, high = value_range.span(minimum, maximum)
    if not low < high:
        return (wide > high).to(torch.uint8) * 255, Measured(minimum, maximum, average, low, high)
    unit = scale_unit(low, high)
    scaled = (wide * unit - low * unit) * (255 / (high * unit - low * unit))
    plane = torch.round(scaled.clamp(0, 255)).to(torch.uint8)
    return plane, Measured(minimum, maximum, average, low, high)
