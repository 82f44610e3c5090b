"""PyTorch tensors: they are quantized on their device, so that one byte per pixel is copied instead of a float."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from async_maps.errors import InputValidationError
from async_maps.render.channels import channel_axis, keeps_values, reduced_dtype
from async_maps.render.quantize import percentiles, scale_unit
from async_maps.render.ranges import ValueRange
from async_maps.render.statistics import Measured
from async_maps.sources.layouts import header_size

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from async_maps.render.channels import Channels

_ANY = ValueRange("dataset")


def check_layout(tensor: Any) -> None:
    """Raise InputValidationError if a tensor has no plain values, with the method that makes them."""
    import torch

    found, remedy = "", ""
    if tensor.is_nested:
        found, remedy = "a nested tensor", "put each of its tensors with its own name (tensor.unbind())"
    elif tensor.layout != torch.strided:
        found, remedy = f"a sparse tensor ({tensor.layout})", "pass tensor.to_dense()"
    elif tensor.is_quantized:
        found, remedy = f"a quantized tensor ({tensor.dtype})", "pass tensor.dequantize()"
    elif tensor.device.type == "meta":
        found, remedy = "a tensor on the device meta", "it has a shape, but no values"
    elif "float8" in str(tensor.dtype) or "float4" in str(tensor.dtype):
        found, remedy = f"a tensor of {tensor.dtype}", "pass tensor.float()"
    if found:
        raise InputValidationError(f"an activation map must have plain values; found {found}: {remedy}")


def take(
    tensor: Any,
    shape: tuple[int, ...],
    value_range: ValueRange | None,
    channels: Channels = "none",
    found: tuple[int, ...] | None = None,
) -> tuple[NDArray[Any], Measured | None]:
    """Copy a tensor into a NumPy array: its intensities, with their statistics, or its values.

    The values are copied if there is no known range, or if a value is invalid or out of range; then they are handled
    like any other array. bfloat16 becomes float32, because NumPy does not support it. Channels are reduced on the
    device, if it supports that. The shape is that of the tensor without leading axes of length 1; ``found`` has them.
    """
    import torch

    name = str(tensor.dtype).removeprefix("torch.").replace("bfloat16", "float32")
    dtype = np.dtype(name)
    header_size(shape, dtype, value_range or _ANY, channels, in_memory_as=found or shape)
    values = tensor.detach().reshape(shape)
    if values.dtype == torch.bfloat16:
        values = values.float()
    # If the device does not support an operation, the values are copied.
    with torch.no_grad(), suppress(RuntimeError):
        values = _reduced(values, dtype, channels)
        if len(values.shape) == 3 and channels != "none":
            return values.cpu().numpy(), None
        signed = values.dtype in {torch.int8, torch.int16, torch.int32, torch.int64}
        if value_range is not None and (values.dtype.is_floating_point or (signed and value_range.kind != "unit")):
            quantized = _quantized(values.reshape(values.shape[:2]), value_range)
            if quantized is not None:
                return quantized[0].cpu().numpy(), quantized[1]
    return values.cpu().numpy(), None


def _reduced(values: Any, dtype: np.dtype[Any], channels: Channels) -> Any:
    """Reduce the channels on the device, as :func:`async_maps.render.channels.reduce_channels` does."""
    import torch

    axis = channel_axis(values.shape)
    if channels == "none" or axis is None or values.device.type == "mps":  # it has no float64
        return values
    if keeps_values(dtype, values.shape[axis], channels):
        return values.squeeze(axis)
    if not values.dtype.is_floating_point:
        values = values.double()
    if channels == "norm":
        reduced = torch.linalg.vector_norm(values, dim=axis, dtype=torch.float64)
    elif channels == "maxabs":
        reduced = values.abs().amax(axis)
    else:
        reduced = (torch.sum if channels == "sum" else torch.mean)(values, axis, dtype=torch.float64)
    return reduced.to(torch.float32 if reduced_dtype(dtype) == np.float32 else torch.float64)


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
