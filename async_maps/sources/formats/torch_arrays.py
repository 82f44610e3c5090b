"""The arrays in the pickle of ``torch.save``, by what the pickle describes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from async_maps.errors import SourceError
from async_maps.keys import printable
from async_maps.sources.formats.names import NAMES
from async_maps.sources.formats.pickles import Data, Described, Name, Reference
from async_maps.sources.formats.registry import PassedOver
from async_maps.sources.formats.size import MAX_DIMENSIONS
from async_maps.sources.formats.stacks import position_names

if TYPE_CHECKING:
    from collections.abc import Iterator

WEIGHTS = "weights of a model (state_dict)"
OPTIMIZER = "state of an optimizer"
OBJECTS = "Python objects"

_MAX_PATH = 4096
"""In characters; a key in S3 has at most 1,024 bytes."""

_MAX_WRAPPERS = 10
_MAX_CODE = 16
"""In characters, of the dtype of a NumPy array, such as ``f4``."""

_DTYPES = {
    "bool": "?",
    "uint8": "u1",
    "int8": "i1",
    "uint16": "<u2",
    "int16": "<i2",
    "uint32": "<u4",
    "int32": "<i4",
    "uint64": "<u8",
    "int64": "<i8",
    "float16": "<f2",
    "bfloat16": "<u2",
    "float32": "<f4",
    "float64": "<f8",
    "complex64": "<c8",
    "complex128": "<c16",
}
"""The NumPy dtype of each dtype; bfloat16 is read as its bits."""

_STORAGES = {
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QUInt8Storage": "uint8",
    "QInt8Storage": "int8",
    "QInt32Storage": "int32",
    "QUInt4x2Storage": "uint8",
    "QUInt2x4Storage": "uint8",
    "UntypedStorage": "uint8",
}
"""The dtype of the values in each class of storages."""

_REBUILD = "torch._utils._rebuild_"
_WRAPPERS = {
    f"{_REBUILD}parameter",
    f"{_REBUILD}parameter_with_state",
    f"{_REBUILD}device_tensor_from_cpu_tensor",
    f"{_REBUILD}device_tensor_from_numpy",
}
"""Functions of an array that return one with the same values."""
_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
_NUMPY = {f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")}
_NUMPY_BUFFERS = {f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")}
_ARRAYS = {_FROM_TYPE} | _NUMPY | _NUMPY_BUFFERS


class DescribedArray(NamedTuple):
    """A tensor or a NumPy array in a pickle.

    Attributes:
        shape: the shape.
        problem: the reason why it cannot be read; then only the shape is known. Else empty.
        data: the reference to a tensor's storage, or the bytes of a NumPy array in the pickle.
        dtype: the dtype of the values; for bfloat16 that of its bits.
        is_bfloat16: whether the values are bfloat16.
        strides: the distances of neighbors along each axis, counted in values.
        offset: the position of the first value, counted in values.
    """

    shape: tuple[int, ...]
    problem: str = ""
    data: Any = None
    dtype: np.dtype[Any] = np.dtype("u1")
    is_bfloat16: bool = False
    strides: tuple[int, ...] = ()
    offset: int = 0


class Storage(NamedTuple):
    """What a pickle says about a storage: its key, and the dtype and number of its values."""

    key: str
    dtype: str
    length: int


class Leaf(NamedTuple):
    """An array or another object in a pickle.

    Attributes:
        path: the keys and positions that lead to it, joined by slashes.
        value: the call that describes an array, or what is passed over.
        beside: the values beside it that can name the maps of a stack, the preferred one first.
    """

    path: str
    value: Described | PassedOver
    beside: list[Any]


def leaves(root: Any) -> Iterator[Leaf]:
    """Yield what is in dicts, lists and tuples, at any depth; one that is in several others is entered once.

    Raises:
        SourceError: a path is too long.
    """
    # The root keeps all values alive, so their ids stay unique.
    left: list[tuple[str, list[Any], Iterator[tuple[Any, Any]]]] = [("", [], iter([("", root)]))]
    seen = set()
    # Not recursive, because a file can nest containers to any depth.
    while left:
        above, beside, children = left[-1]
        for key, value in children:
            path = f"{above}/{_part(key)}" if above else _part(key)
            if len(path) > _MAX_PATH:
                raise SourceError(
                    f"the dicts and lists are nested too deep, or a key has over {_MAX_PATH:,} characters"
                )
            below = children_of(value)
            if _is_array(value):
                yield Leaf(path, value, beside)
            elif below is None:
                if isinstance(value, Described):
                    yield Leaf(path, PassedOver(OBJECTS), beside)
            elif id(value) not in seen:
                seen.add(id(value))
                if what := _no_maps(value):
                    yield from (Leaf(path, PassedOver(what), beside) for _ in below)
                else:
                    left.append((path, _named_in(value), below))
                    break
        else:
            left.pop()


def is_readable(root: Any) -> bool:
    """Whether the value of a pickle is an array, or contains other values."""
    return _is_array(root) or children_of(root) is not None


def children_of(value: Any) -> Iterator[tuple[Any, Any]] | None:
    """Return the keys and values of a dict, list or tuple of any class; None for another value."""
    if isinstance(value, tuple) and not isinstance(value, Name | Data | Reference):
        return zip(position_names(len(value)), value, strict=False)
    if not isinstance(value, Described) or _is_array(value):
        return None
    if value.items or value.function in {"dict", "collections.OrderedDict"}:
        return iter(value.items)
    if value.elements or value.function in {"list", "set"}:
        return zip(position_names(len(value.elements)), value.elements, strict=False)
    return None


def storage_of(reference: Any) -> Storage:
    """Return the storage that a tensor refers to; any error means that the pickle is damaged."""
    kind, storage, key, _, length, *view = reference.identifier
    if kind != "storage" or not isinstance(key, str) or type(length) is not int or length < 0 or any(view):
        raise ValueError("a reference that is no storage")
    return Storage(str(key), _STORAGES[storage.text.rpartition(".")[2]], length)


def itemsize(dtype: str) -> int:
    """Return the bytes of a value of a storage."""
    return np.dtype(_DTYPES[dtype]).itemsize


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of an array whose values are in C order, without gaps."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def array_of(value: Described) -> DescribedArray:
    """Return the array that a call describes; any error means that the pickle is damaged."""
    value = _unwrapped(value)
    if value.function in _NUMPY | _NUMPY_BUFFERS:
        return _numpy_array(value)
    kind, arguments = value.function.removeprefix(_REBUILD), value.arguments
    if kind in {"tensor", "tensor_v2"}:
        return _tensor(arguments[:4], storage_of(arguments[0]).dtype, arguments[6:])
    if kind == "tensor_v3":
        return _tensor(arguments[:4], arguments[6].text.removeprefix("torch."), arguments[7:])
    shape: Any = (0, 0)
    match kind:
        case "qtensor":
            shape, problem = arguments[2], "the tensor is quantized: save tensor.dequantize()"
        case "sparse_tensor":
            # The shape is behind two or three tensors.
            shape = next(part for part in arguments[1] if not _is_array(part))
            problem = "the tensor is sparse: save tensor.to_dense()"
        case "nested_tensor":
            problem = "the tensor is nested: save the list tensor.unbind()"
        case "meta_tensor_no_storage":
            shape, problem = arguments[1], "the tensor was on the device meta, which keeps no values"
        case _:
            problem = f"tensors of this kind are not read ({printable(value.function[:100])})"
    return DescribedArray(_sizes(shape), problem)


def _unwrapped(value: Described) -> Described:
    for _ in range(_MAX_WRAPPERS):
        if value.function in _WRAPPERS:
            value = value.arguments[0]
        elif value.function == _FROM_TYPE:
            value = Described(value.arguments[0].text, value.arguments[2])
        else:
            return value
    raise ValueError("too many wrappers")


def _tensor(arguments: Any, dtype: str, metadata: Any) -> DescribedArray:
    data, offset, shape, strides = arguments
    shape, strides = _sizes(shape), _sizes(strides)
    if dtype not in _DTYPES:
        return DescribedArray(shape, f"NumPy has no dtype {printable(dtype)}: save tensor.float()")
    flags = metadata[0] if metadata else None
    if isinstance(flags, Described) and (flags.get("neg") or flags.get("conj")):
        return DescribedArray(shape, "its values are not computed yet: save tensor.resolve_neg().resolve_conj()")
    if type(offset) is not int or offset < 0 or len(strides) != len(shape):
        raise ValueError("an invalid position")
    return DescribedArray(shape, "", data, np.dtype(_DTYPES[dtype]), dtype == "bfloat16", strides, offset)


def _numpy_array(value: Described) -> DescribedArray:
    if value.function in _NUMPY:
        _, shape, dtype, is_fortran, data = value.state
    else:
        data, dtype, shape, order = value.arguments
        is_fortran = order == "F"
    shape, byte_order, code = _sizes(shape), dtype.state[1], dtype.arguments[0]
    # Formatting or hashing a nested tuple can take any time.
    if not (isinstance(byte_order, str) and isinstance(code, str) and code.isalnum() and len(code) <= _MAX_CODE):
        raise ValueError("an invalid dtype")
    found = np.dtype(f"{byte_order if byte_order in {'<', '>'} else '|'}{code}")
    if isinstance(data, Described) and data.function == "_codecs.encode":
        data = data.arguments[0]
    strides = contiguous(shape[::-1])[::-1] if is_fortran else contiguous(shape)
    return DescribedArray(shape, "", data, found, False, strides)


def _is_array(value: Any) -> bool:
    return isinstance(value, Described) and (value.function.startswith(_REBUILD) or value.function in _ARRAYS)


def _sizes(value: Any) -> tuple[int, ...]:
    """Return a shape or strides; raise an error if it is none."""
    if isinstance(value, Described) and value.function == "torch.Size":
        value = value.arguments[0]
    # A malicious file can claim millions of dimensions: do not multiply them.
    if not isinstance(value, tuple) or len(value) > MAX_DIMENSIONS:
        raise ValueError("an invalid shape")
    if not all(type(size) is int and 0 <= size < 2**63 for size in value):
        raise ValueError("an invalid shape")
    return value


def texts_of(value: Any, length: int) -> list[str] | None:
    """Return the texts in a list or a tuple of this length; None for another value."""
    if children_of(value) is None:
        return None
    values = value if isinstance(value, tuple) else value.elements
    return list(values) if len(values) == length and all(isinstance(text, str) for text in values) else None


def _part(key: Any) -> str:
    """Return the key of a dict as a part of a name; of a huge key only more than is allowed."""
    parts = key[: _MAX_PATH + 2] if isinstance(key, tuple) else [key]
    texts = [_key_text(part) for part in parts if isinstance(part, str | int | float)]
    return "-".join(texts) if texts or isinstance(key, tuple) else "key"


def _key_text(part: str | float) -> str:
    if isinstance(part, str):
        return part[: _MAX_PATH + 1]
    # Python refuses to show long integers in decimal.
    return hex(part) if isinstance(part, int) and part.bit_length() > _MAX_PATH else str(part)


def _named_in(value: Any) -> list[Any]:
    """Return the values in a dict that can name the maps of stacks, the preferred one first."""
    items = value.items if isinstance(value, Described) else ()
    found = {str(key): child for key, child in items if isinstance(key, str) and key in NAMES}
    return [found[key] for key in NAMES if key in found]


def _no_maps(value: Any) -> str:
    """Return what a dict is if its tensors are those of a model or an optimizer; else empty."""
    if isinstance(value, Described):
        if isinstance(value.state, Described) and value.state.get("_metadata") is not None:
            return WEIGHTS
        if value.get("state") is not None and value.get("param_groups") is not None:
            return OPTIMIZER
    return ""
