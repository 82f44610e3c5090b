"""Files as ``torch.save`` writes them, without PyTorch, which not every environment of the tests has."""

from __future__ import annotations

import io
import struct
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STORAGES = {"f4": "FloatStorage", "f8": "DoubleStorage", "f2": "HalfStorage", "u1": "ByteStorage", "i8": "LongStorage"}
_MAGIC = 0x1950A86A20F9469CFC6C


def torch_file(value: Any, *, old: bool = False) -> bytes:
    """Return the file of a value: dicts, lists, texts and integers, with arrays as tensors; ``old`` as before 1.6."""
    arrays: list[NDArray[Any]] = []
    body = _pickled(value, arrays, b"N" if old else b"")
    if not old:
        return torch_zip(_complete(body), {str(key): array.ravel("K").tobytes() for key, array in enumerate(arrays)})
    magic = b"\x8a\x0a" + _MAGIC.to_bytes(10, "little")
    heads = (magic, _pickled(1001, arrays), _pickled({"little_endian": 1}, arrays), body)
    keys = _pickled([str(key) for key in range(len(arrays))], arrays)
    storages = (struct.pack("<q", array.size) + array.ravel("K").tobytes() for array in arrays)
    return b"".join([*map(_complete, heads), _complete(keys), *storages])


def torch_zip(pickle: bytes, storages: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return a file with this pickle and these storages."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/byteorder", "little")
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key}", content)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def _complete(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def claimed_tensor(shape: tuple[int, ...], strides: tuple[int, ...], length: int, offset: int = 0) -> bytes:
    """Return the pickle of a float32 tensor that claims this storage, named 0, and this place in it."""
    return _complete(_tensor("FloatStorage", [0, length, offset, shape, strides], b""))


def _pickled(value: Any, arrays: list[NDArray[Any]], view: bytes = b"") -> bytes:
    """Return the operations that push a value; its arrays are appended to ``arrays``."""
    match value:
        case dict():
            items = (_pickled(key, arrays, view) + _pickled(item, arrays, view) for key, item in value.items())
            return b"}(" + b"".join(items) + b"u"
        case list():
            return b"](" + b"".join(_pickled(item, arrays, view) for item in value) + b"e"
        case tuple():
            return b"(" + b"".join(_pickled(item, arrays, view) for item in value) + b"t"
        case str():
            text = value.encode()
            return b"X" + struct.pack("<I", len(text)) + text
        case int():
            number = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(number)]) + number
    assert isinstance(value, np.ndarray)
    strides = tuple(stride // value.itemsize for stride in value.strides)
    arrays.append(value)
    return _tensor(_STORAGES[value.dtype.str[1:]], [len(arrays) - 1, value.size, 0, value.shape, strides], view)


def _tensor(storage: str, numbers: list[Any], view: bytes) -> bytes:
    key, *rest = numbers
    length, *place = (_pickled(number, []) for number in rest)
    names = _pickled("storage", []), f"ctorch\n{storage}\n".encode(), _pickled(str(key), []), _pickled("cpu", [])
    reference = b"(" + b"".join(names) + length + view + b"tQ"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + b"".join(place) + b"\x89ccollections\nOrderedDict\n)RtR"
    )
