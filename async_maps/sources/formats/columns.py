"""Columns of tables that hold arrays, and their rows as NumPy arrays, for Parquet and Arrow (extra ``parquet``)."""

from __future__ import annotations

import io
import json
import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from async_maps.errors import SourceError, require_extra
from async_maps.keys import printable
from async_maps.sources.activation_map import ArrayHeader
from async_maps.sources.formats import npy
from async_maps.sources.formats.registry import ListedArray, PassedOver, translate_format_errors
from async_maps.sources.formats.size import check_size
from async_maps.sources.formats.stacks import BELOW_TWO_DIMENSIONS

with require_extra("reading Parquet and Arrow", "parquet"):
    import pyarrow as pa
    from pyarrow import types

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from numpy.typing import NDArray

NO_ARRAYS = "tables without a column of arrays"
DAMAGED = "the file is damaged"
ROWS_PER_BYTE = 8
"""The most rows of arrays in a byte: a row takes a bit or more."""
COMPRESSION = 1000
"""Compressed arrays are not smaller than this part."""
_NAMES = 1024
"""The number of names that are read together."""
_NPY_MAGIC = b"\x93NUMPY"
_SHAPED = ("datasets.features.features.Array", "ray.data.arrow_tensor")
"""How the names of the extension types of Hugging Face and Ray begin that have a shape in their metadata."""
_SHOWN_COLUMNS = 20


class Column(NamedTuple):
    """A column whose rows are arrays of numbers.

    Attributes:
        name: the name of the column.
        layout: nested lists; lists of all values of a tensor whose shape is in the type, or in the row; or the bytes of
            an ``.npy`` file.
        dtype: the dtype of the values; None for ``npy``.
        shape: the shape of each array, as it is stored; None if the rows may differ.
        order: the order of the stored axes in the array, as for ``numpy.transpose``; None if it is the same.
    """

    name: str
    layout: Literal["lists", "tensor", "variable", "npy"]
    dtype: np.dtype[Any] | None = None
    shape: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None

    @property
    def problem(self) -> str:
        """The reason why no row can be read; else empty."""
        # pyarrow writes the inverse of the order that the format defines, and cannot read it.
        if self.order is None or all(self.order[axis] == index for index, axis in enumerate(self.order)):
            return ""
        return f"the order {self.order} of the axes of its tensors is ambiguous: save np.ascontiguousarray(stack)"

    @property
    def row_bytes(self) -> int | None:
        """The bytes of each array; None if the rows may differ."""
        return None if self.header is None else math.prod(self.header.shape) * self.header.dtype.itemsize

    @property
    def header(self) -> ArrayHeader | None:
        """The header of each map, if all have the same shape."""
        if self.shape is None or self.dtype is None:
            return None
        shape = self.shape if self.order is None else tuple(self.shape[axis] for axis in self.order)
        return ArrayHeader(_without_leading_one(shape), self.dtype)


class Table(ABC):
    """The part of a :class:`~async_maps.sources.formats.registry.Reader` that tables share: a row is a map.

    The name of a column is the part of its maps, which are named by the column ``name`` or ``id``, or numbered.
    """

    def __init__(self, schema: pa.Schema) -> None:
        with translate_format_errors("the name of a column is no text"):
            self.schema, _ = schema, schema.names
        self._columns: dict[str, Column] = {}

    @abstractmethod
    def count(self) -> int:
        """Return the number of rows."""

    @abstractmethod
    def most_rows(self) -> int:
        """Return a number of rows with arrays that the files are too small for."""

    @abstractmethod
    def row_bytes(self, column: Column) -> int:
        """Return about how many bytes a row of a column has."""

    @abstractmethod
    def load(self, column: str, row: int, count: int) -> pa.Array:
        """Read up to ``count`` rows of a column, at least one."""

    @abstractmethod
    def load_row(self, column: Column, index: int, max_pixels: int | None) -> pa.Array:
        """Read one row of a column of arrays. A map of more than ``max_pixels`` is refused if that is possible."""

    def columns(self) -> Iterator[Column]:
        """Yield the columns of arrays."""
        for field in self.schema:
            column = self._column(field)
            if column is not None:
                yield column

    def arrays(self) -> Iterator[ListedArray | PassedOver]:
        rows, found = self.count(), False
        for column in self.columns():
            if rows > self.most_rows():
                raise SourceError(f"{DAMAGED}: it claims {rows:,} rows, more than its bytes can contain")
            found, size = True, column.row_bytes
            if size is None:
                size = self.row_bytes(column)
            yield ListedArray(column.name, column.name, rows * size, column.header, column.problem, rows)
        for field in self.schema:
            if is_flat(field):
                yield PassedOver(BELOW_TWO_DIMENSIONS)
        if not found:
            yield PassedOver(NO_ARRAYS)

    def names(self, array: ListedArray, length: int) -> Iterator[str] | None:
        column = name_column(self.schema)
        return None if column is None else self._texts(column)

    def read(self, part: str, index: int | None, max_pixels: int | None = None) -> NDArray[Any]:
        if part not in self._columns:
            position = self.schema.get_field_index(part)
            column = self._column(self.schema.field(position)) if position >= 0 else None
            if column is None:
                raise SourceError(f"the column {part!r} holds no arrays anymore")
            self._columns[part] = column
        column = self._columns[part]
        with translate_format_errors(DAMAGED):
            return row_array(self.load_row(column, index or 0, max_pixels), column, max_pixels)

    def _column(self, field: pa.Field) -> Column | None:
        column = array_column(field)
        if column is None and is_binary(field) and self._starts_with_npy(field.name):
            column = Column(field.name, "npy")
        if column is not None and self.schema.get_field_index(field.name) < 0:
            raise SourceError(f"two columns have the name {field.name!r}: rename one")
        return column

    def _starts_with_npy(self, column: str) -> bool:
        """Whether the first row of a column of bytes is an ``.npy`` file, as NumPy and Petastorm write it."""
        try:
            with translate_format_errors(DAMAGED):
                first = self.load(column, 0, 1)[0].as_buffer() if self.count() else None
        except SourceError:
            return False
        return first is not None and bytes(first[: len(_NPY_MAGIC)]) == _NPY_MAGIC

    def _texts(self, column: str) -> Iterator[str]:
        """Yield the name in each row; empty where there is none."""
        row, rows = 0, self.count()
        with translate_format_errors(DAMAGED):
            while row < rows:
                names = self.load(column, row, _NAMES).to_pylist()
                row += len(names)
                yield from ("" if name is None else str(name) for name in names)


def array_column(field: pa.Field) -> Column | None:
    """Return how a column holds arrays of two or more dimensions; None if it does not."""
    sizes, leaf = _lists(field.type)
    if isinstance(field.type, pa.FixedShapeTensorType) and len(field.type.shape) >= 2 and _is_number(leaf):
        order = field.type.permutation
        return Column(field.name, "tensor", _dtype(leaf), tuple(field.type.shape), tuple(order) if order else None)
    shape = _claimed_shape(field)
    if len(sizes) == 1 and shape and len(shape) >= 2 and _is_number(leaf):
        return Column(field.name, "tensor", _dtype(leaf), shape)
    if len(sizes) >= 2 and _is_number(leaf) and not isinstance(field.type, pa.FixedShapeTensorType):
        if shape is None and None not in sizes:
            shape = tuple(size for size in sizes if size is not None)
        return Column(field.name, "lists", _dtype(leaf), shape if shape and len(shape) == len(sizes) else None)
    leaf = _variable_leaf(field.type)
    return None if leaf is None else Column(field.name, "variable", _dtype(leaf))


def is_flat(field: pa.Field) -> bool:
    """Whether the rows of a column are lists of numbers in one dimension."""
    sizes, leaf = _lists(field.type)
    return len(sizes) == 1 and _is_number(leaf) and array_column(field) is None


def is_binary(field: pa.Field) -> bool:
    """Whether the rows of a column are bytes."""
    return bool(types.is_binary(field.type) or types.is_large_binary(field.type))


def name_column(schema: pa.Schema) -> str | None:
    """Return the column that names the maps, ``name`` or ``id``; None if there is none of text or whole numbers."""
    for name in ("name", "id"):
        position = schema.get_field_index(name)
        if position >= 0:
            kind = schema.field(position).type
            kind = kind.value_type if types.is_dictionary(kind) else kind
            if (
                types.is_integer(kind)
                or types.is_string(kind)
                or types.is_large_string(kind)
                or str(kind) == "string_view"
            ):
                return name
    return None


def without_arrays(schema: pa.Schema) -> str:
    """Return why a table without a column of arrays has no maps, and what to do."""
    shown = ", ".join(
        f"{printable(field.name)[:80]} ({printable(str(field.type))[:60]})" for field in list(schema)[:_SHOWN_COLUMNS]
    )
    if any(_is_picture(field) for field in schema):
        return (
            f"the table has pictures, but no column of arrays; found {shown}: decode them, and call "
            "am.run(((name, array) for ...), DESTINATION) in Python"
        )
    return (
        f"the table needs the columns name and path, or a column of arrays; found {shown or 'none'}: save maps as "
        "nested lists, or as pyarrow.FixedShapeTensorArray.from_numpy_ndarray(stack)"
    )


def row_array(row: pa.Array, column: Column, max_pixels: int | None = None) -> NDArray[Any]:
    """Return the array in a column of a single row, without a copy where that is possible.

    Raises:
        SourceError: the row is null, its lists differ in length, a value is null, or the array is too large.
    """
    if column.problem:
        raise SourceError(column.problem)
    if row.null_count:
        raise SourceError("the row has no array")
    if column.layout == "npy":
        content = row[0].as_buffer()
        return npy.read_stream(io.BytesIO(content), content.size, None, max_pixels)
    shape = column.shape
    row = stored(row)
    if column.layout == "variable":
        shape = tuple(row.field("shape").slice(0, 1).flatten().to_pylist())
        row = row.field("data")
    found, leaf = _unnested(row)
    if column.layout == "lists":
        shape = found
    assert shape is not None  # noqa: S101  # a tensor's type has its shape
    if None in shape or min(shape, default=0) < 0 or math.prod(shape) != len(leaf):
        raise SourceError(f"the row has {len(leaf):,} values, which do not fit its shape {shape}")
    check_size(shape, column.dtype.itemsize if column.dtype else 1, max_pixels)
    array = _numbers(leaf).reshape(shape)
    if column.order is not None:
        array = array.transpose(column.order)
    return array.reshape(_without_leading_one(array.shape))


def stored(array: pa.Array) -> pa.Array:
    """Return the storage of an extension array; other arrays as they are."""
    return array.storage if isinstance(array.type, pa.BaseExtensionType) else array


def stored_type(kind: pa.DataType) -> pa.DataType:
    """Return the storage type of an extension type; other types as they are."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is a list, a large list or a fixed-size list."""
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def is_view(kind: pa.DataType) -> bool:
    """Whether a type is that of texts or bytes of which short ones are stored inline."""
    return str(kind) in {"string_view", "binary_view"}


def _lists(kind: pa.DataType) -> tuple[list[int | None], pa.DataType]:
    """Return the size of each level of nested lists, None if it varies, and the type of the innermost values."""
    kind, sizes = stored_type(kind), list[int | None]()
    while is_list(kind):
        sizes.append(kind.list_size if types.is_fixed_size_list(kind) else None)
        # An extension type inside lists is no number: its shape would be lost.
        kind = kind.value_type
    return sizes, kind


def _is_number(kind: pa.DataType) -> bool:
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def _dtype(kind: pa.DataType) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(kind.to_pandas_dtype())
    return dtype


def _is_picture(field: pa.Field) -> bool:
    """Whether a column could hold encoded pictures: bytes, or Hugging Face's Image with bytes and path."""
    kind = stored_type(field.type)
    return is_binary(field) or (types.is_struct(kind) and {part.name for part in kind} == {"bytes", "path"})


def _claimed_shape(field: pa.Field) -> tuple[int, ...] | None:
    """Return the shape in the metadata of Hugging Face's and Ray's extension types, if it is fixed."""
    # The metadata of a type that is not registered is that of the field.
    metadata = field.metadata or {}
    name, text = metadata.get(b"ARROW:extension:name", b""), metadata.get(b"ARROW:extension:metadata", b"")
    if isinstance(field.type, pa.ExtensionType):
        name, text = field.type.extension_name.encode(), field.type.__arrow_ext_serialize__()
    if not name.startswith(tuple(prefix.encode() for prefix in _SHAPED)):
        return None
    try:
        shape = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(shape, list) and shape and isinstance(shape[0], list):
        shape = shape[0]
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        return None
    return tuple(shape)


def _variable_leaf(kind: pa.DataType) -> pa.DataType | None:
    """Return the type of the values of tensors with a shape in each row; None if the type is another."""
    kind = stored_type(kind)
    if not types.is_struct(kind) or {part.name for part in kind} != {"data", "shape"} or kind.num_fields != 2:
        return None
    (sizes, leaf), (shape_sizes, integer) = (_lists(kind.field(name).type) for name in ("data", "shape"))
    return leaf if len(sizes) == len(shape_sizes) == 1 and _is_number(leaf) and types.is_integer(integer) else None


def _unnested(level: pa.Array) -> tuple[tuple[int, ...], pa.Array]:
    """Return the shape of nested lists, in an array of one row, and the values of the innermost lists."""
    shape = []
    while is_list(level.type):
        if level.null_count:
            raise SourceError("a list in the row is null")
        if types.is_fixed_size_list(level.type):
            size = level.type.list_size
        else:
            lengths = np.diff(level.offsets.to_numpy())
            size = int(lengths[0]) if lengths.size else 0
            if (lengths != size).any():
                other = int(lengths[lengths != size][0])
                raise SourceError(
                    f"its lists differ in length: {size:,} and {other:,}; the rows of a map must have equal lengths"
                )
        shape.append(size)
        level = level.flatten()
    return tuple(shape), level


def _numbers(leaf: pa.Array) -> NDArray[Any]:
    """Return values as a NumPy array; null is NaN, as in pandas."""
    if leaf.null_count and not types.is_floating(leaf.type):
        raise SourceError("a value is null, and whole numbers have no NaN: save floats, or fill the gaps")
    array: NDArray[Any] = leaf.to_numpy(zero_copy_only=False)
    return array


def _without_leading_one(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a map for that of a stack of one, such as Hugging Face's ``Array3D((1, h, w))``."""
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
