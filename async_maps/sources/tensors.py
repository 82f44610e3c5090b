"""PyTorch tensors: they are quantized on their device, so that one byte per pixel is copied instead of a float."""

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
    """Copy a tensor into a NumPy array: its intensities, with their statistics, or its values.

    The values are copied if there is no known range, or if a value is invalid or out of range; then they are handled
    like any other array. bfloat16 becomes float32, because NumPy does not support it. The shape is (h, w) or (h, w, 1).
    """
    import torch

    check_shape(shape)
    values = tensor.detach().reshape(shape)
    if values.dtype == torch.bfloat16:
        values = values.float()
    signed = values.dtype in {torch.int8, torch.int16, torch.int32, torch.int64}
    if value_range is not None and (values.dtype.is_floating_point or (signed and value_range.kind != "unit")):
        # If the device does not support an operation, the values are copied.
        with torch.no_grad(), suppress(RuntimeError):
            found = _quantized(values.reshape(shape[:2]), value_range)
            if found is not None:
                return found[0].cpu().numpy(), found[1]
    return values.cpu().numpy(), None


def _quantized(values: Any, value_range: ValueRange) -> tuple[Any, Measured] | None:
    """Return the intensities on the device; None if a value is not finite or out of range, or there is no float64.

    The operations are the same as in :func:`async_maps.render.quantize.quantize`.
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
    # One synchronization with the device. Adding 0.0 turns -0.0 into 0.0, as for arrays.
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
