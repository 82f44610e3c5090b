"""PyTorch's ``torch.save``: every tensor of two or more dimensions is a map or a stack of maps.

PyTorch is not used. A file has a pickle that describes the tensors, and the bytes of their storages. The pickle is only
described too, see :mod:`async_maps.sources.formats.pickles`: no code of the file can run. Listing reads no values, and
reading a map reads the bytes of that map.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from async_maps.errors import SourceError
from async_maps.keys import printable
from async_maps.sources.activation_map import ArrayHeader
from async_maps.sources.formats.npy import values_at
from async_maps.sources.formats.pickles import MAX_PICKLE, Data, Described, Reference, Text, describe
from async_maps.sources.formats.registry import ListedArray, PassedOver, close_on_error, translate_format_errors
from async_maps.sources.formats.safetensors import widened
from async_maps.sources.formats.size import check_size
from async_maps.sources.formats.stacks import not_a_map, shape_at
from async_maps.sources.formats.torch_arrays import (
    array_of,
    contiguous,
    is_readable,
    itemsize,
    leaves,
    storage_of,
    texts_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import IO

    from numpy.typing import NDArray

    from async_maps.filesystems.filesystem import Filesystem
    from async_maps.sources.formats.torch_arrays import DescribedArray

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_ZIP = b"PK\x03\x04"
_ZIP_HEADER = 30
"""The bytes of a member's header in a zip archive, before its name."""
_MAX_BLOCK = 64 * 2**20
"""In bytes. The values of a map may be spread over this much of the file, if they are not side by side."""
_DAMAGE = (ArithmeticError, AttributeError, LookupError, StopIteration, TypeError, ValueError)
_NO_VALUES = "truncated or damaged: the file does not have the values of the tensor"


class _Place(NamedTuple):
    """The place of values in the file.

    Attributes:
        header: the position of the header before the values.
        check: what that header must have: the end of its name in a zip archive, or the number of values in an old file.
            None if there is no header, because the values of a NumPy array are in the pickle.
        text: the size of these values in UTF-8; 0 if they are bytes.
    """

    header: int
    check: str | int | None
    text: int = 0


class _Content(NamedTuple):
    """The description of a file.

    Attributes:
        root: the value of the pickle.
        place: returns the place of a storage and its size in bytes.
        pickle_start: the position of the pickle.
        is_big_endian: whether the storages are.
    """

    root: Any
    place: Callable[[str], tuple[_Place, int]]
    pickle_start: int = 0
    is_big_endian: bool = False


class TorchReader:
    """Reads the arrays in the order of the pickle. Their names are the keys and positions, joined by slashes.

    A part is the place of the values, and the dtype, shape, strides (None if contiguous) and offset of the array. So
    reading needs neither the pickle nor the directory. The part of an array with a problem is the problem. bfloat16 is
    read as float32, which has all of its values.
    """

    def __init__(self, path: str, filesystem: Filesystem) -> None:
        with close_on_error(filesystem.open(path)) as self._file:
            self._size = self._file.seek(0, os.SEEK_END)
        self._beside: dict[str, list[Any]] = {}
        self._place: _Place | None = None
        self._start = 0
        self._block: tuple[int, NDArray[np.uint8]] = (0, np.empty(0, np.uint8))

    def arrays(self) -> Iterator[ListedArray | PassedOver]:
        with translate_format_errors("expected a file of torch.save"):
            self._file.seek(0)
            is_zip = self._file.read(len(_ZIP)) == _ZIP
            content = _open_zip(self._file, self._size) if is_zip else _open_old(self._file, self._size)
        if not is_readable(content.root):
            raise SourceError(
                f"expected tensors, found {_shown(content.root)}: save tensors, alone or in a dict or a list, because "
                "no other Python object is read"
            )
        empty = True
        for name, value, beside in leaves(content.root):
            empty = False
            if isinstance(value, PassedOver):
                yield value
            else:
                if beside:
                    self._beside[name] = beside
                yield _listed(name, value, content)
        if empty:
            raise SourceError("the file contains no tensor")

    def names(self, array: ListedArray, length: int) -> list[str] | None:
        found = (texts_of(value, length) for value in self._beside.get(array.name, ()))
        return next((texts for texts in found if texts is not None), None)

    def read(self, part: list[Any] | str, index: int | None, max_pixels: int | None = None) -> NDArray[Any]:
        if isinstance(part, str):
            raise SourceError(part)
        header, check, text, kind, is_bfloat16, sizes, steps, offset = part
        place, dtype, shape = _Place(header, check, text), np.dtype(kind), tuple(sizes)
        strides = contiguous(shape) if steps is None else tuple(steps)
        found, wanted = shape, _extent(shape, strides, offset)
        if index is not None:
            found = shape_at("the tensor", shape, index)
            shape, offset, strides = shape[1:], offset + index * strides[0], strides[1:]
        check_size(found, dtype.itemsize, max_pixels)
        if strides == contiguous(shape) or wanted[1] - wanted[0] > _MAX_BLOCK // dtype.itemsize:
            # Else the maps of a stack have their values side by side, and all are read for the first one.
            wanted = _extent(shape, strides, offset)
        start, end = (limit * dtype.itemsize for limit in wanted)
        if end - start > max(math.prod(found) * dtype.itemsize, _MAX_BLOCK):
            raise SourceError(f"its values are spread over {end - start:,} bytes of the file: save tensor.contiguous()")
        block = self._bytes(place, start, end)
        in_bytes = tuple(step * dtype.itemsize for step in strides)
        array = np.ndarray(shape, dtype, block.data, offset * dtype.itemsize - start, in_bytes).reshape(found)
        return widened(array) if is_bfloat16 else array

    def close(self) -> None:
        self._file.close()

    def _bytes(self, place: _Place, start: int, end: int) -> NDArray[np.uint8]:
        """Return the bytes of a storage from ``start`` to ``end``; they are kept for the next map."""
        if place != self._place:
            self._start, self._place = _start_of(self._file, place), place
            self._block = (0, np.empty(0, np.uint8))
        first, block = self._block
        if not first <= start <= end <= first + block.size:
            # Free the old block before the next one is read, to save memory.
            del block
            self._block = (0, np.empty(0, np.uint8))
            first, block = self._block = (0, self._text(place)) if place.text else (start, self._read(start, end))
        return block[start - first : end - first]

    def _read(self, start: int, end: int) -> NDArray[np.uint8]:
        if self._start + end > self._size:
            raise SourceError(_NO_VALUES)
        return values_at(self._file, self._start + start, (end - start,), np.dtype(np.uint8))

    def _text(self, place: _Place) -> NDArray[np.uint8]:
        self._file.seek(self._start)
        with translate_format_errors("the pickle is damaged"):
            return np.frombuffer(self._file.read(place.text).decode().encode("latin-1"), np.uint8)


def _listed(name: str, value: Described, content: _Content) -> ListedArray:
    try:
        array = array_of(value)
        header = ArrayHeader(array.shape, np.dtype("<f4") if array.is_bfloat16 else array.dtype)
        if not_a_map(*header[:2]):
            return ListedArray(name, None, 0, header)
        if array.problem:
            raise SourceError(array.problem)
        return _with_place(name, array, header, content)
    except SourceError as error:
        problem = str(error)
    except _DAMAGE:
        problem = "the pickle is damaged at this array"
    return ListedArray(name, problem, 0, None, problem)


def _with_place(name: str, array: DescribedArray, header: ArrayHeader, content: _Content) -> ListedArray:
    dtype = array.dtype
    if isinstance(array.data, Data):
        place, size = _Place(content.pickle_start + array.data.start, None), array.data.size
    elif isinstance(array.data, Text) and array.data.start >= 0:
        text = len(array.data.encode(errors="surrogatepass"))
        place, size = _Place(content.pickle_start + array.data.start, None, text), len(array.data)
    else:
        place, size = content.place(storage_of(array.data).key)
        if content.is_big_endian:
            dtype = dtype.newbyteorder(">")
    if _extent(array.shape, array.strides, array.offset)[1] * dtype.itemsize > size:
        raise SourceError(_NO_VALUES)
    claimed = math.prod(array.shape) * dtype.itemsize
    if claimed > size:
        # A few bytes could claim any number of maps.
        raise SourceError("the tensor repeats its values (expand): save tensor.contiguous()")
    strides = None if array.strides == contiguous(array.shape) else array.strides
    part = [*place, dtype.str, array.is_bfloat16, array.shape, strides, array.offset]
    return ListedArray(name, part, claimed, header)


def _extent(shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> tuple[int, int]:
    """Return the position of the first value, and the one behind the last."""
    if 0 in shape:
        return offset, offset
    return offset, offset + 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))


def _start_of(file: IO[bytes], place: _Place) -> int:
    """Return the position of the first value; raise SourceError if the values are not there."""
    if place.check is None:
        return place.header
    file.seek(place.header)
    if isinstance(place.check, int):
        if int.from_bytes(file.read(8), "little") == place.check:
            return place.header + 8
    else:
        head = file.read(_ZIP_HEADER)
        name, extra = (int.from_bytes(head[at : at + 2], "little") for at in (26, 28))
        if head.startswith(_ZIP) and file.read(name).endswith(place.check.encode()):
            return place.header + _ZIP_HEADER + name + extra
    raise SourceError(_NO_VALUES)


def _open_zip(file: IO[bytes], size: int) -> _Content:
    def seek(info: zipfile.ZipInfo, check: str) -> int:
        _check_stored(info)
        return file.seek(_start_of(file, _Place(info.header_offset, check)))

    members = zipfile.ZipFile(file).NameToInfo
    folder = next(iter(members), "").partition("/")[0]
    pickle = members.get(f"{folder}/data.pkl")
    if pickle is None:
        raise SourceError("expected a file of torch.save, found another zip archive")
    if f"{folder}/constants.pkl" in members:
        raise SourceError("expected a file of torch.save, found a model that torch.jit.save wrote")
    # The zipfile module would refuse wrong checksums, which PyTorch can write (set_crc32_options), and never reads.
    start = seek(pickle, "/data.pkl")
    root = describe(io.BytesIO(file.read(min(pickle.file_size, MAX_PICKLE + 1))))
    order = members.get(f"{folder}/byteorder")
    is_big_endian = order is not None and seek(order, "/byteorder") >= 0 and file.read(3) == b"big"

    def place(key: str) -> tuple[_Place, int]:
        info = members.get(f"{folder}/data/{key}")
        if info is None or info.header_offset + info.file_size > size:
            raise SourceError(_NO_VALUES)
        _check_stored(info)
        return _Place(info.header_offset, f"/data/{key}"), info.file_size

    return _Content(root, place, start, is_big_endian)


def _check_stored(info: zipfile.ZipInfo) -> None:
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
        raise SourceError("its members are compressed or encrypted, which torch.save never does: save it again")


def _open_old(file: IO[bytes], size: int) -> _Content:
    """Describe a file as PyTorch wrote it before 1.6: five pickles, then the length and the values of each storage."""
    file.seek(0)
    if describe(file) != _MAGIC or describe(file) != _PROTOCOL:
        raise SourceError("expected a file of torch.save, found another pickle")
    describe(file)  # the system that wrote it
    references: list[Reference] = []
    root = describe(file, references)
    stored = (reference for reference in references if reference.identifier[0] == "storage")
    storages = {storage.key: storage for storage in map(storage_of, stored)}
    places: dict[str, tuple[_Place, int]] = {}
    keys = describe(file).elements
    position = file.tell()
    for key in keys:
        if not isinstance(key, str):
            raise TypeError("a key that is no text")
        storage = storages[key]
        count = storage.length * itemsize(storage.dtype)
        places[storage.key] = _Place(position, storage.length), count
        position += 8 + count

    def place(key: str) -> tuple[_Place, int]:
        found, count = places[key]
        if found.header + 8 + count > size:
            raise SourceError(_NO_VALUES)
        return found, count

    return _Content(root, place)


def _shown(value: Any) -> str:
    """Return what a value is, for messages."""
    if isinstance(value, Described):
        return f"an object of the class {printable(value.function[:100])}"
    return "text" if isinstance(value, str) else "a single value"
