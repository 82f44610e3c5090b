"""MATLAB's ``.mat`` files: every array of numbers with two or more dimensions is a map or a stack of maps.

MATLAB stores columns first. ``A(:, :, i)`` is map i of a stack, with its rows as rows. Version 7.3 is HDF5 (extra
``matlab``); older versions need no library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from async_maps.errors import require_extra
from async_maps.filesystems.filesystem import OneFile
from async_maps.sources.formats.matlab5 import Matlab5Reader
from async_maps.sources.formats.registry import close_on_error

if TYPE_CHECKING:
    from async_maps.filesystems.filesystem import Filesystem
    from async_maps.sources.formats.registry import Reader

_HDF5 = b"\x89HDF\r\n\x1a\n"
_USER_BLOCK = 512


def MatlabReader(path: str, filesystem: Filesystem) -> Reader:  # noqa: N802  # in place of a class: there are two
    """Return the reader of a file's version."""
    with close_on_error(filesystem.open(path)) as file:
        start = file.read(_USER_BLOCK + len(_HDF5))
        opened = OneFile(file)
        if not (start.startswith(_HDF5) or start.endswith(_HDF5)):
            return Matlab5Reader(path, opened)
        with require_extra("reading MATLAB 7.3", "matlab"):
            import h5py  # noqa: F401  # is it there?
        from async_maps.sources.formats.matlab73 import Matlab73Reader

        return Matlab73Reader(path, opened)
