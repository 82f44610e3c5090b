"""Maps from named arrays in memory, of NumPy, PyTorch or any library that NumPy can convert."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from async_maps.errors import InputValidationError
from async_maps.keys import check_name, printable
from async_maps.outcomes import Failure
from async_maps.render.arrays import check_array
from async_maps.render.ranges import ValueRange
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.formats.size import check_size
from async_maps.sources.layouts import ONE_BY_ONE, header_size, question

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from async_maps.render.channels import Channels
    from async_maps.render.statistics import Measured
    from async_maps.sources.layouts import Questions

_ANY = ValueRange("dataset")


def array_map(  # noqa: PLR0913  # one argument a choice
    name: str,
    array: Any,
    value_range: ValueRange | None = None,
    max_pixels: int | None = None,
    *,
    channels: Channels = "none",
    questions: Questions | None = None,
) -> ActivationMap | Failure:
    """Return a map in memory, or the failure of an array that is not a map.

    Converting another array than NumPy's may take long: then call this in a thread.

    Args:
        name: the name of the map.
        array: a NumPy array, a ``torch.Tensor`` on any device, an object with ``__array__`` or ``__dlpack__``, or a
            list with one of them; the shape is (h, w) or (h, w, 1), with leading axes of length 1.
        value_range: a known range: tensors are quantized on their device, and one byte per pixel is copied. If None,
            their values are copied.
        max_pixels: an array with more pixels is refused before it is copied.
        channels: how channels are reduced: then (c, h, w) and (h, w, c) are maps, too. Those of a tensor are reduced on
            its device, those of an array later.
        questions: asks about arrays that are probably other maps than their shape says; None to ask nothing.
    """
    measured = None
    try:
        check_name(name)
        if isinstance(array, list | tuple):
            array = _only_one(array)
        check_size(_shape_of(array), 1, max_pixels, InputValidationError)
        if not isinstance(array, np.ndarray):
            array, measured = _converted(array, value_range, channels)
        if array.dtype.name == "bfloat16":  # of ml_dtypes; float32 has all of its values
            array = array.astype(np.float32)
        shape = array.shape
        if array.ndim > 2:
            array = array.reshape(_map_shape(shape, channels))
        check_array(array)
        header_size(array.shape, array.dtype, value_range or _ANY, channels, in_memory_as=shape)
        asked = None if questions is None else question(array.shape, array.dtype, channels)
        if questions is not None and asked is not None:
            questions.ask(name, asked)
    except InputValidationError as error:
        shown = printable(str(name))
        return Failure(shown, shown, None, "source", str(error))
    return ActivationMap(name, name, None, array.nbytes, array=array, measured=measured)


def _only_one(arrays: list[Any] | tuple[Any, ...]) -> Any:
    """Return the only array of a list: CAM libraries return a list with an array per layer."""
    if not arrays or not (hasattr(arrays[0], "__array__") or hasattr(arrays[0], "__dlpack__")):
        return arrays  # for instance numbers; refused later
    if len(arrays) > 1:
        raise InputValidationError(
            f"expected one activation map, found a {type(arrays).__name__} of {len(arrays):,}: {ONE_BY_ONE}"
        )
    return arrays[0]


def _map_shape(shape: tuple[int, ...], channels: Channels) -> tuple[int, ...]:
    """Return the shape without leading axes of length 1, such as those of a batch or a channel.

    (1, h, w) and (1, 1, h, w) become (h, w), and (1, h, w, 1) becomes (h, w, 1). (h, w, 1) is not changed, even if h is
    1, because its last axis is the channel, as in Kolena. If channels are reduced, three axes stay.
    """
    most = 2 if channels == "none" and (len(shape) != 3 or shape[2] != 1) else 3
    while len(shape) > most and shape[0] == 1:
        shape = shape[1:]
    return shape


def size_of(array: Any) -> int:
    """Return the ``nbytes`` of an array of any library, or of the only one in a list; 0 if it has none."""
    if isinstance(array, list | tuple) and len(array) == 1:
        array = array[0]
    size = _attribute(array, "nbytes")
    return size if isinstance(size, int) else 0


def _shape_of(array: Any) -> tuple[int, ...]:
    """Return the ``shape``, or () if it is not a tuple of integers; then the object is refused later."""
    shape = _attribute(array, "shape")
    return shape if isinstance(shape, tuple) and all(isinstance(size, int) for size in shape) else ()


def _attribute(array: Any, name: str) -> Any:
    """Return an attribute; None if it is missing or raises, as in PyTorch's sparse and nested tensors."""
    try:
        return getattr(array, name, None)
    except Exception:  # noqa: BLE001  # another library may raise anything
        return None


def _converted(array: Any, value_range: ValueRange | None, channels: Channels) -> tuple[NDArray[Any], Measured | None]:
    try:
        if _is_of(array, "torch", "Tensor"):
            from async_maps.sources import tensors

            tensors.check_layout(array)
            found = tuple(array.shape)
            return tensors.take(array, _map_shape(found, channels), value_range, channels, found)
        if hasattr(array, "__array__"):
            return np.asarray(array), None
        if hasattr(array, "__dlpack__"):
            return np.from_dlpack(array), None
    except InputValidationError:
        raise
    except Exception as error:  # another library may raise anything
        raise InputValidationError(
            f"the {type(array).__name__} cannot be converted to a NumPy array: {error}; if it is on another device, "
            "copy it to the CPU first"
        ) from error
    raise InputValidationError(
        f"an activation map must be a NumPy array or a tensor; found {type(array).__name__}{_remedy(array)}"
    )


def _remedy(found: Any) -> str:
    """Return what to do with an object that is no array, but has one."""
    if _is_of(found, "PIL.Image", "Image"):
        if found.mode in {"1", "L", "F"} or found.mode.startswith("I"):
            return ": pass np.asarray(image)"
        return f' of mode {found.mode}: a picture is no map; if it is gray, pass np.asarray(image.convert("L"))'
    if isinstance(found, Mapping):
        return ": put each of its arrays with its own name"
    if isinstance(found, list | tuple):
        return ": if it holds the numbers of one map, pass np.asarray(rows)"
    if isinstance(found, str | os.PathLike):
        return ": to read files, pass the path as the source, without a name"
    return ": pass its .toarray()" if hasattr(found, "toarray") else ""


def _is_of(found: Any, module: str, name: str) -> bool:
    """Whether an object is of a class, without importing its module."""
    return any(base.__module__ == module and base.__name__ == name for base in type(found).__mro__)
