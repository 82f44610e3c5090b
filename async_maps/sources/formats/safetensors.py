"""Safetensors: every tensor of two or more dimensions is a map or a stack of maps.

The library ``safetensors`` is not used. For NumPy it does not support bfloat16, in which many models run; it reads only
from paths; and it maps the file into memory, so that a truncation during a read kills the process. The format is a
length, a JSON header and the bytes of the tensors.
"""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from async_maps.errors import SourceError
from async_maps.sources.activation_map import ArrayHeader
from async_maps.sources.formats.names import NAMES, decode_names
from async_maps.sources.formats.npy import values_at
from async_maps.sources.formats.registry import ListedArray, close_on_error
from async_maps.sources.formats.size import MAX_DIMENSIONS, check_size
from async_maps.sources.formats.stacks import shape_at

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, Any

    from numpy.typing import NDArray

    from async_maps.filesystems.filesystem import Filesystem

_DTYPES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "BF16": "<u2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
    "C64": "<c8",
}
"""The NumPy dtype of each dtype; bfloat16 is read as its bits."""

_MAX_HEADER = 100_000_000
"""The limit of the library ``safetensors``, in bytes."""


class _Tensor(NamedTuple):
    """A tensor in the header; ``start`` and ``end`` are byte offsets from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsReader:
    """Reads the tensors in the order of the header; a part is the name of a tensor.

    bfloat16 is read as float32, which has all of its values.
    """

    def __init__(self, path: str, filesystem: Filesystem) -> None:
        with close_on_error(filesystem.open(path)) as self._file:
            self._size = self._file.seek(0, os.SEEK_END)
            self._header, self._data = _read_header(self._file, self._size)
            self._metadata = self._header.pop("__metadata__", {})

    def arrays(self) -> Iterator[ListedArray]:
        if not self._header:
            raise SourceError("the file contains no tensor")
        for name in self._header:
            try:
                tensor = self._tensor(name)
            except SourceError as error:
                yield ListedArray(name, name, 0, None, str(error))
                continue
            dtype = np.dtype("<f4" if tensor.dtype == "BF16" else _DTYPES.get(tensor.dtype, "u1"))
            header: ArrayHeader | None = ArrayHeader(tensor.shape, dtype)
            problem = ""
            if tensor.dtype not in _DTYPES and len(tensor.shape) >= 2:
                # One failure, not one per map.
                header, problem = None, _no_dtype(tensor)
            yield ListedArray(name, name, tensor.end - tensor.start, header, problem)

    def names(self, array: ListedArray, length: int) -> Iterator[str] | None:
        """Return the first list of :data:`NAMES` in the metadata, as JSON, if it has the right length."""
        for name in NAMES:
            try:
                names = json.loads(self._metadata[name])
            except (LookupError, TypeError, ValueError, RecursionError):
                continue
            if isinstance(names, list) and len(names) == length:
                return decode_names(name, names)
        return None

    def read(self, part: str, index: int | None, max_pixels: int | None = None) -> NDArray[Any]:
        tensor = self._tensor(part)
        if tensor.dtype not in _DTYPES:
            raise SourceError(_no_dtype(tensor))
        shape, start, dtype = tensor.shape, tensor.start, np.dtype(_DTYPES[tensor.dtype])
        if index is not None:
            shape = shape_at(f"the tensor {part!r}", shape, index)
            start += index * math.prod(shape) * dtype.itemsize
        check_size(shape, dtype.itemsize, max_pixels)
        array = values_at(self._file, self._data + start, shape, dtype)
        return widened(array) if tensor.dtype == "BF16" else array

    def close(self) -> None:
        self._file.close()

    def _tensor(self, name: str) -> _Tensor:
        entry = self._header.get(name)
        if entry is None:
            raise SourceError(f"the file has no tensor {name!r} anymore")
        try:
            dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            # A malicious header can have millions of dimensions: do not multiply them.
            sound = isinstance(dtype, str) and len(shape) <= MAX_DIMENSIONS
            sound = sound and all(type(number) is int and number >= 0 for number in (*shape, start))
            size = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize if sound and dtype in _DTYPES else end - start
            sound = sound and type(end) is int and start <= end and end - start == size
        except (LookupError, TypeError, ValueError):
            sound = False
        if not sound:
            raise SourceError(f"the header is damaged at the tensor {name!r}")
        if end > self._size - self._data:
            raise SourceError(
                f"truncated: tensor {name!r} ends at byte {self._data + end:,}, but the file at byte {self._size:,}"
            )
        return _Tensor(dtype, tuple(shape), start, end)


def widened(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the values of bfloat16 numbers, given as their bits: a bfloat16 is the upper half of a float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _no_dtype(tensor: _Tensor) -> str:
    return f"NumPy has no dtype {tensor.dtype}: save the tensor as float16, bfloat16 or float32"


def _read_header(file: IO[bytes], size: int) -> tuple[dict[str, Any], int]:
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, _MAX_HEADER):
        raise SourceError(f"expected a safetensors file: no header of {length:,} bytes fits into {size:,}")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise SourceError("expected a safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise SourceError("expected a safetensors file: its header is not a JSON object")
    return header, 8 + length
