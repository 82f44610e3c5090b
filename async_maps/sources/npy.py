"""NumPy's ``.npy``: one array a file."""

from __future__ import annotations

import math
import os
from tokenize import TokenError
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.lib import format as npy_format

from async_maps.errors import SourceError

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray


_DAMAGE = (ValueError, TypeError, LookupError, ArithmeticError, SyntaxError, TokenError, RecursionError, MemoryError)
"""NumPy evaluates a header as a Python literal: a damaged one can end in any of these."""

_PIECE = 2**20


def matches(path: str) -> bool:
    """Whether the file's name says it is one."""
    return path.lower().endswith(".npy")


def read(path: str) -> NDArray[Any]:
    """Read the array; never unpickles.

    Raises:
        SourceError: no ``.npy`` file, pickled objects, or shorter than its header says.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return read_stream(file, os.fstat(file.fileno()).st_size)


def read_stream(file: IO[bytes], size: int) -> NDArray[Any]:
    """Read the array from a file of ``size`` bytes that is at its start.

    The header is checked against the size before any memory is taken, so a header of 200 bytes that claims a terabyte
    costs nothing.

    Raises:
        SourceError: as :func:`read`.
    """
    if size == 0:
        raise SourceError("expected an .npy file, found an empty one")
    try:
        shape, fortran, dtype = _read_header(file)
    except _DAMAGE as error:
        # NumPy may quote the header, and goes on with advice to trust the file.
        reason = str(error).partition("\n")[0][:200]
        raise SourceError(f"expected an .npy file: {reason}") from error
    if dtype.hasobject:
        raise SourceError("expected an array of numbers, found pickled Python objects, which are never read")
    if dtype.subdtype is not None or not dtype.itemsize or min(shape, default=0) < 0:
        raise SourceError(f"expected an array of numbers, found the shape {shape} of {dtype}")
    expected, found = math.prod(shape) * dtype.itemsize, size - file.tell()
    if found < expected:
        raise SourceError(
            f"truncated: its header promises {expected:,} bytes of data (shape {shape}, {dtype}), found {found:,}"
        )
    data = np.empty(expected, np.uint8)
    filled = 0
    # In pieces, because a member of an archive reads into memory of its own first.
    while count := file.readinto(data.data[filled : filled + _PIECE]):  # type: ignore[attr-defined]  # binary files have it
        filled += count
    if filled < expected:
        raise SourceError("truncated while it was read")
    return data.view(dtype).reshape(shape, order="F" if fortran else "C")


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy_format.read_magic(file)
    if version == (1, 0):
        return npy_format.read_array_header_1_0(file)
    if version == (2, 0):
        return npy_format.read_array_header_2_0(file)
    # Version 3 differs from 2 in the encoding of field names only, and maps have no fields.
    raise ValueError(f"version {version} of the format is for structured arrays, found in no activation map")
