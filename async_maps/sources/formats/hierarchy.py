"""Hierarchies: arrays in groups within groups, as in HDF5 and Zarr."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from async_maps.errors import SourceError, translate_os_error
from async_maps.sources.activation_map import ArrayHeader
from async_maps.sources.formats.names import BLOCK, check_width, decode_names, paths_of_names
from async_maps.sources.formats.registry import ListedArray, PassedOver, translate_format_errors
from async_maps.sources.formats.size import check_chunk, check_size
from async_maps.sources.formats.stacks import not_a_map, shape_at

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, ClassVar, TypeAlias

    from numpy.typing import NDArray

    Array: TypeAlias = Any
    Group: TypeAlias = Any


class HierarchyReader(ABC):
    """Reads every array of numbers with two or more dimensions, as a map or a stack of maps.

    The part of an array is its path. Arrays are sorted by their paths. The last array stays open. ``whole`` and
    ``array`` are the format's words for a hierarchy and an array, for messages.
    """

    whole: ClassVar[str]
    array: ClassVar[str]
    group_type: ClassVar[Any]

    def __init__(self) -> None:
        self._path = ""
        self._array: Array = None

    def arrays(self) -> Iterator[ListedArray | PassedOver]:
        is_empty = True
        for path, found in self._arrays():
            is_empty = False
            if isinstance(found, ArrayHeader):
                yield ListedArray(path, path, math.prod(found.shape) * found.dtype.itemsize, found)
            elif isinstance(found, PassedOver):
                yield found
            else:
                yield ListedArray(path, path, 0, None, found)
        if is_empty:
            raise SourceError(f"the {self.whole} contains no {self.array}")

    def names(self, array: ListedArray, length: int) -> Iterator[str] | None:
        """Return the strings of the first array of names beside an array, if it has their length."""
        return self._first_names(paths_of_names(array.name), length)

    def read(self, part: str, index: int | None, max_pixels: int | None = None) -> NDArray[Any]:
        with translate_format_errors(f"the {self.whole} is damaged at {part!r}"):
            if self._array is None or part != self._path:
                # Free the old array before the next one is opened, to save memory.
                self._array = None
                self._path, self._array = part, self._open(part)
            shape, itemsize = self._shape(self._array), self._array.dtype.itemsize
            if index is not None:
                shape = shape_at(f"the {self.array} {part!r}", shape, index)
            check_size(shape, itemsize, max_pixels)
            check_chunk(self._array.chunks or (), itemsize, max_pixels)
            return np.asarray(self._values(self._array, index)).reshape(shape)

    def close(self) -> None:
        self._array = None

    @abstractmethod
    def _root(self) -> Group | Array:
        """Return the outermost group, or the only array."""

    @abstractmethod
    def _names(self, group: Group) -> list[str]:
        """Return the names of the members of a group."""

    @abstractmethod
    def _member(self, group: Group, name: str) -> Any:
        """Return a group, an array, what else is counted, or anything else; raise an error if it cannot be read."""

    @abstractmethod
    def _identity(self, group: Group) -> object:
        """Return a value that is equal for two names of the same group."""

    @abstractmethod
    def _open(self, path: str) -> Array:
        """Return the array at a path."""

    @abstractmethod
    def _strings(self, path: str) -> Array | None:
        """Return the array of strings, or of characters, at a path; None if there is none."""

    @abstractmethod
    def _values(self, array: Array, index: int | None) -> Any:
        """Read an array, or one map of a stack."""

    def _shape(self, array: Array) -> tuple[int, ...]:
        """Return the shape of an array as it is read."""
        return tuple(array.shape or ())

    def _listed(self, array: Array) -> ArrayHeader | PassedOver | str:
        """Return the header of an array, what it is if it is no map, or the reason why it cannot be read."""
        if what := self._what(array) or not_a_map(tuple(array.shape or ()), array.dtype):
            return PassedOver(what)
        return ArrayHeader(self._shape(array), array.dtype, tuple(array.chunks or ()))

    def _what(self, array: Array) -> str:
        """Return what an array is that is no map; empty if its shape and dtype decide."""
        return ""

    def _first_names(self, paths: list[str], length: int) -> Iterator[str] | None:
        for path in paths:
            with translate_format_errors(f"the {self.whole} is damaged at {path!r}"):
                array = self._strings(path)
                if array is not None and array.shape[:1] == (length,):
                    return self._texts(path, array)
        return None

    def _texts(self, path: str, array: Array) -> Iterator[str]:
        """Yield the strings of an array with one dimension, or of an array of characters with two."""
        check_width(path, array.dtype.itemsize * math.prod(array.shape[1:]))
        check_chunk(array.chunks or (), array.dtype.itemsize, 0)
        # Whole chunks, because each is unpacked completely.
        rows = max(1, (array.chunks or (1,))[0])
        block = rows * max(1, BLOCK // rows)
        for start in range(0, array.shape[0], block):
            with translate_format_errors(f"the {self.whole} is damaged at {path!r}"):
                values = np.asarray(array[start : start + block])
                if values.ndim == 2:
                    values = np.ascontiguousarray(values).view(f"S{values.shape[1]}")[:, 0]
            yield from decode_names(path, values)

    def _arrays(self) -> Iterator[tuple[str, ArrayHeader | PassedOver | str]]:
        """Yield the path of each array, with its header or what it is; or the reason why it cannot be opened."""
        with translate_format_errors(f"the {self.whole} is damaged"):
            root = self._root()
            if not isinstance(root, self.group_type):
                yield "", self._listed(root)
                return
            # Not recursive, because a file can nest groups to any depth.
            groups = [("", root, iter(sorted(self._names(root))))]
            seen = {self._identity(root)}
        while groups:
            above, group, names = groups[-1]
            name = next(names, None)
            if name is None:
                groups.pop()
                continue
            path = f"{above}{name}"
            found: ArrayHeader | PassedOver | str | None = None
            try:
                member = self._member(group, name)
                if isinstance(member, PassedOver):
                    found = member
                elif _is_array(member):
                    found = self._listed(member)
                # A group with two names, or inside itself, is listed once.
                elif isinstance(member, self.group_type) and (identity := self._identity(member)) not in seen:
                    groups.append((f"{path}/", member, iter(sorted(self._names(member)))))
                    seen.add(identity)
            except Exception:  # noqa: BLE001  # the errors of these libraries have no common class
                found = self._problem(path)
            if found is not None:
                yield path, found

    def _problem(self, path: str) -> str:
        """Return why an array cannot be opened; empty if it can."""
        try:
            with translate_format_errors(f"the {self.whole} is damaged at {path!r}"):
                self._open(path)
        except (SourceError, OSError) as error:
            return translate_os_error(error)
        return ""


def could_be_maps(array: Array) -> bool:
    """Whether an object is an array of numbers with two or more dimensions."""
    return _is_array(array) and not not_a_map(tuple(array.shape or ()), array.dtype)


def _is_array(member: Any) -> bool:
    return hasattr(member, "shape") and hasattr(member, "dtype")
