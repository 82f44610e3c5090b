"""NetCDF: every variable of numbers with two or more dimensions is a map or a stack, except coordinates.

NetCDF 3 needs no library. NetCDF 4 is HDF5 (extra ``netcdf``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from async_maps.errors import require_extra
from async_maps.filesystems.filesystem import OneFile
from async_maps.sources.formats.netcdf3 import Netcdf3Reader
from async_maps.sources.formats.registry import close_on_error

if TYPE_CHECKING:
    from async_maps.filesystems.filesystem import Filesystem
    from async_maps.sources.formats.registry import Reader


def NetcdfReader(path: str, filesystem: Filesystem) -> Reader:  # noqa: N802  # in place of a class: there are two
    """Return the reader of a file's version."""
    with close_on_error(filesystem.open(path)) as file:
        opened = OneFile(file)
        if file.read(3) == b"CDF":
            return Netcdf3Reader(path, opened)
        with require_extra("reading NetCDF 4", "netcdf"):
            import h5py  # noqa: F401  # is it there?
        from async_maps.sources.formats.netcdf4 import Netcdf4Reader

        return Netcdf4Reader(path, opened)
