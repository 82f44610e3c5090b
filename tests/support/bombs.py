"""Small files that unpack to gigabytes."""

from __future__ import annotations

import gzip
import io
import math
import struct
import subprocess
import sys
import zlib
from typing import TYPE_CHECKING

import h5py
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

GIB = 2**30
BOMB = 2 * GIB
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


def _good() -> NDArray[np.float32]:
    return np.linspace(0, 1, 1024, dtype=np.float32).reshape(32, 32)


def zstd_zeros(size: int) -> bytes:
    """Return a Zstandard frame of ``size`` zeros, a multiple of 128 KiB, in 4 bytes for each 128 KiB."""
    block = 128 * 2**10
    count = size // block
    # A content size of 8 bytes, a window of 2 MiB; blocks of one repeated byte (RFC 8878, 3.1.1).
    blocks = b"".join(
        (int(number == count - 1) | 1 << 1 | block << 3).to_bytes(3, "little") + b"\0" for number in range(count)
    )
    return b"\x28\xb5\x2f\xfd\xc0\x58" + size.to_bytes(8, "little") + blocks


def blosc_claim(size: int) -> bytes:
    """Return a Blosc buffer of a few bytes whose header claims ``size`` bytes."""
    import numcodecs

    packed = bytearray(numcodecs.Blosc("lz4").encode(bytes(2**16)))
    packed[4:8] = min(size, 2**31 - 2**16).to_bytes(4, "little")
    return bytes(packed)


def _hdf5_names(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["cams"] = np.stack([_good()] * 4)
        names = file.create_dataset("names", (4,), "S64", chunks=(4,), compression="gzip")
        names.id.write_direct_chunk((0,), deflated(BOMB))


def _hdf5_header(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("b", (2**20, 2**20), "f8", chunks=(2**14, 2**14), compression="gzip")


def _hdf5_blosc(path: Path) -> None:
    # In a process of its own: that of a test may have found the plugins of netCDF4, for another HDF5.
    code = (
        "import h5py, hdf5plugin, sys; file = h5py.File(sys.argv[1], 'w')\n"
        "file.create_dataset('b', (32, 64), 'f4', chunks=(32, 64), compression=hdf5plugin.Blosc())"
    )
    subprocess.run([sys.executable, "-c", code, path], check=True)
    with h5py.File(path, "a") as file:
        file["b"].id.write_direct_chunk((0, 0), blosc_claim(BOMB))


def _matlab73(path: Path, lie: str) -> None:
    """Write an array of MATLAB 7.3 with names, of which the values, the cells or the text lie."""
    with h5py.File(path, "w", userblock_size=512) as file:
        chunks = {"chunks": True, "compression": "gzip"} if lie == "values" else {}
        cams = file.create_dataset("cams", data=_good() if lie == "values" else np.stack([_good()] * 4), **chunks)
        cams.attrs["MATLAB_class"] = np.bytes_("single")
        if lie == "values":
            cams.id.write_direct_chunk((0, 0), deflated(BOMB))
        texts = [file.create_dataset(f"#refs#/{n}", data=np.full((1, 1), 97 + n, np.uint16)) for n in range(4)]
        if lie == "text":
            del file["#refs#/3"]
            texts[3] = file.create_dataset("#refs#/3", (1, 1), np.uint16, chunks=(1, 1), compression="gzip")
            texts[3].id.write_direct_chunk((0, 0), deflated(BOMB))
        for text in texts:
            text.attrs["MATLAB_class"] = np.bytes_("char")
        cell = {"chunks": (1, 4), "compression": "gzip"} if lie == "cells" else {}
        names = file.create_dataset("names", (1, 4), h5py.ref_dtype, **cell)
        names.attrs["MATLAB_class"] = np.bytes_("cell")
        names[0, :] = [text.ref for text in texts]
        if lie == "cells":
            names.id.write_direct_chunk((0, 0), deflated(BOMB))
    with path.open("r+b") as file_:
        file_.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


def _matlab5(path: Path, shape: tuple[int, int]) -> None:
    """Write a compressed variable with the header of an array of uint8, and gigabytes of zeros behind it."""
    size = math.prod(shape)

    def element(kind: int, data: bytes) -> bytes:
        return kind.to_bytes(4, "little") + len(data).to_bytes(4, "little") + data + bytes(-len(data) % 8)

    header = (
        element(6, (9).to_bytes(8, "little"))
        + element(5, b"".join(length.to_bytes(4, "little") for length in shape))
        + element(1, b"b")
        + (2).to_bytes(4, "little")
        + size.to_bytes(4, "little")
    )
    matrix = (14).to_bytes(4, "little") + (len(header) + size).to_bytes(4, "little") + header
    packer = zlib.compressobj(9)
    start = packer.compress(matrix) + packer.flush(zlib.Z_FULL_FLUSH)
    packed = start + deflated(BOMB)[2:]
    content = (15).to_bytes(4, "little") + len(packed).to_bytes(4, "little") + packed
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + content)


def _zarr(path: Path, packed: bytes, codec: str, *, names: bool = False) -> None:
    import numcodecs
    import zarr

    compressor = numcodecs.get_codec({"id": codec})
    root = zarr.open_group(path, mode="w", zarr_format=2)
    values = np.stack([_good()] * 4) if names else _good()
    root.create_array("cams", shape=values.shape, dtype="f4", chunks=values.shape, compressors=compressor)[...] = values
    if names:
        root.create_array("names", shape=(4,), dtype="S16", chunks=(4,), compressors=compressor)[...] = b"x"
    (path / "names" / "0" if names else path / "cams" / "0.0").write_bytes(packed)


def _tiff(path: Path, packed: bytes, compression: str) -> None:
    import tifffile

    tifffile.imwrite(path, _good(), compression=compression, photometric="minisblack")
    offset = path.stat().st_size
    with path.open("ab") as file:
        file.write(packed)
    with tifffile.TiffFile(path, mode="r+") as opened:
        tags = opened.pages.first.tags
        tags["StripOffsets"].overwrite([offset])
        tags["StripByteCounts"].overwrite([len(packed)])


def _lzw_zeros() -> bytes:
    """Return an LZW stream (TIFF 6.0, section 13) that unpacks to 7 MB: each code stands for one zero more."""
    bits, number = f"{256:09b}{0:09b}", 257
    for code in range(258, 4093):
        number += 1
        width = 9 + (number >= 511) + (number >= 1023) + (number >= 2047)
        bits += f"{code:0{width}b}"
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")


def _zip(path: Path, name: str, start: bytes, claimed: int = BOMB) -> None:
    """Write an archive of one member that starts with these bytes, and unpacks to gigabytes of zeros behind them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH) + deflated(BOMB, -15)
    sizes = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, 0, len(packed), len(start) + claimed, len(name), 0)
    local = b"PK\3\4" + sizes + name.encode() + packed
    central = b"PK\1\2" + struct.pack("<H", 20) + sizes + bytes(14) + name.encode()
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)
    path.write_bytes(local + central + end)


def _npy_header(shape: tuple[int, int]) -> bytes:
    start = io.BytesIO()
    np.lib.format.write_array_header_1_0(start, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return start.getvalue()


def _npy_gz(path: Path, shape: tuple[int, int]) -> None:
    path.write_bytes(gzip.compress(_npy_header(shape)) + deflated(BOMB, 31))


def _parquet_names(path: Path) -> None:
    """Write 1,000 rows whose names are 64 MiB each, but one value in the dictionary of the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["n" * 2**26]))
    cams = pa.array([[[0.0, 1.0], [1.0, 0.0]]] * 1000)
    pq.write_table(pa.table({"name": names, "cam": cams}), path, compression="zstd")


def _arrow(path: Path, codec: str) -> None:
    """Write a compressed column whose buffer claims gigabytes."""
    import pyarrow as pa
    import pyarrow.feather as pf

    table = pa.table({"cam": pa.array([np.zeros((64, 64)).tolist()] * 4, pa.list_(pa.list_(pa.float64(), 64), 64))})
    pf.write_feather(table, str(path), compression=codec)
    content = bytearray(path.read_bytes())
    magic = {"zstd": b"\x28\xb5\x2f\xfd", "lz4": b"\x04\x22\x4d\x18"}[codec]
    at = content.find(magic)
    assert at > 0
    content[at - 8 : at] = BOMB.to_bytes(8, "little")
    path.write_bytes(content)


def _safetensors(path: Path, header: bytes, size: int | None = None) -> None:
    path.write_bytes((len(header) if size is None else size).to_bytes(8, "little") + header)


def _tar_gz(path: Path) -> None:
    path.write_bytes(deflated(BOMB, 31))


def _png(path: Path, kind: bytes, data: bytes) -> None:
    """Write a picture of 8 x 8 gray pixels with a chunk that unpacks to gigabytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    header = chunk(b"IHDR", bytes([0, 0, 0, 8, 0, 0, 0, 8, 8, 0, 0, 0, 0]))
    pixels = chunk(b"IDAT", zlib.compress(bytes(72)))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(kind, data) + (b"" if kind == b"IDAT" else pixels) + chunk(b"IEND", b"")
    )


LISTED: dict[str, tuple[Callable[[Path], None], str]] = {
    "hdf5-names.h5": (_hdf5_names, "unpack to far more than its header says"),
    "matlab-cells.mat": (lambda path: _matlab73(path, "cells"), "unpack to far more than its header says"),
    "matlab-text.mat": (lambda path: _matlab73(path, "text"), "unpack to far more than its header says"),
    "zarr-names.zarr": (lambda path: _zarr(path, deflated(BOMB), "zlib", names=True), "far more than its header says"),
    "parquet-names.parquet": (_parquet_names, "there is not enough memory to decode it"),
    "npygz-header.npy.gz": (lambda path: _npy_gz(path, (2**20, 2**20)), "more than its 2,087,667 compressed bytes"),
    "arrow.tar.gz": (_tar_gz, "a compressed tar has no random access"),
    "safetensors-size.safetensors": (
        lambda path: _safetensors(path, b"{}", 2**40),
        "no header of 1,099,511,627,776 bytes",
    ),
    "safetensors-deep.safetensors": (lambda path: _safetensors(path, b'{"a":' * 10**6), "its header is not JSON"),
    "torch.pt": (lambda path: _zip(path, "archive/data.pkl", b"\x80\x02"), "its members are compressed"),
}
"""Small files that take gigabytes if a program believes them when it lists them, each with why it fails."""

READ: dict[str, tuple[Callable[[Path], None], str]] = {
    "hdf5-header.h5": (_hdf5_header, "too large: its shape is (1,048,576, 1,048,576)"),
    "hdf5-blosc.h5": (_hdf5_blosc, "the file is damaged at 'b'"),
    "matlab-values.mat": (lambda path: _matlab73(path, "values"), "unpack to far more than its header says"),
    "matlab5-header.mat": (lambda path: _matlab5(path, (2**15, 2**15)), "too large: its shape is (32,768, 32,768)"),
    "zarr-gzip.zarr": (lambda path: _zarr(path, deflated(BOMB, 31), "gzip"), "unpack to far more than its header says"),
    "zarr-zstd.zarr": (lambda path: _zarr(path, zstd_zeros(BOMB), "zstd"), "the hierarchy is damaged at 'cams'"),
    "zarr-blosc.zarr": (lambda path: _zarr(path, blosc_claim(BOMB), "blosc"), "the hierarchy is damaged at 'cams'"),
    "npz-header.npz": (lambda path: _zip(path, "b.npy", _npy_header((2**20, 2**20))), "too large|truncated"),
    "npz-values.npz": (lambda path: _zip(path, "b.npy", _npy_header((32, 32)), 4096), "Bad CRC-32"),
    "tiff-deflate.tif": (lambda path: _tiff(path, deflated(BOMB), "deflate"), "INSUFFICIENT_SPACE"),
    "tiff-zstd.tif": (lambda path: _tiff(path, zstd_zeros(BOMB), "zstd"), "Destination buffer is too small"),
    "arrow-zstd.arrow": (lambda path: _arrow(path, "zstd"), "a column of a compressed record batch has 2,147,483,648"),
    "arrow-lz4.arrow": (lambda path: _arrow(path, "lz4"), "a column of a compressed record batch has 2,147,483,648"),
}
"""The same for files that lie about their values."""

HARMLESS: dict[str, Callable[[Path], None]] = {
    "matlab5-values.mat": lambda path: _matlab5(path, (8, 8)),
    "npygz-values.npy.gz": lambda path: _npy_gz(path, (32, 32)),
    "tiff-lzw.tif": lambda path: _tiff(path, _lzw_zeros(), "lzw"),
}
"""Files with more data than their header says, of which only the data of the header are read."""

PICTURES: dict[str, Callable[[Path], None]] = {
    "text.png": lambda path: _png(path, b"zTXt", b"Comment\0\0" + deflated(BOMB)),
    "profile.png": lambda path: _png(path, b"iCCP", b"profile\0\0" + deflated(BOMB)),
    "pixels.png": lambda path: _png(path, b"IDAT", deflated(BOMB)),
}
"""Pictures that unpack to gigabytes; only the last one is a map."""
