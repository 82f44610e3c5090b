"""Small files that unpack to gigabytes."""

from __future__ import annotations

import zlib
from pathlib import Path

GIB = 2**30
_PIECE = 64 * 2**20


def deflated(size: int, wrapper: int = zlib.MAX_WBITS) -> bytes:
    """Return a stream of ``size`` zeros, a thousandth of its size; its checksum is wrong, which is found at its end.

    Args:
        size: the number of bytes, a multiple of 64 MiB.
        wrapper: the ``wbits`` of zlib.
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, wrapper)
    zeros = bytes(_PIECE)
    first = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)
    # After a full flush, the next piece is the same bytes.
    piece = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + piece * (size // _PIECE - 1) + packer.flush()


def lying_hdf5(path: Path, size: int) -> None:
    """Write a file with a good map ``a``, and a map ``b`` whose only chunk of 8 KB unpacks to ``size`` bytes."""
    import h5py
    import numpy as np

    with h5py.File(path, "w") as file:
        file["a"] = np.linspace(0, 1, 1024, dtype=np.float32).reshape(32, 32)
        lying = file.create_dataset("b", (32, 64), "f4", chunks=(32, 64), compression="gzip")
        lying.id.write_direct_chunk((0, 0), deflated(size))


def lying_zarr(path: Path, size: int) -> None:
    """Write a hierarchy like :func:`lying_hdf5`."""
    import numcodecs
    import numpy as np
    import zarr

    root = zarr.open_group(path, mode="w", zarr_format=2)
    good = root.create_array("a", shape=(32, 32), dtype="f4", chunks=(32, 32))
    good[...] = np.linspace(0, 1, 1024, dtype=np.float32).reshape(32, 32)
    lying = root.create_array("b", shape=(32, 64), dtype="f4", chunks=(32, 64), compressors=numcodecs.Zlib())
    lying[...] = np.ones((32, 64))
    (path / "b" / "0.0").write_bytes(deflated(size))
