"""What does a map cost to read in each format, beside the time that the format's own library needs just to load it?

Both sides run in this process, in turn: we list the file and read each of its maps as a worker does; the library opens
the file and loads all maps as NumPy arrays. Files are in the page cache.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from async_maps.sources import open_source
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.formats.registry import Readers
from bench.data import make_map
from bench.measure import interleaved, parser, ratio_of
from bench.tables import Bench

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Maps = NDArray[np.float32]

_SIZE = 224
_COLUMNS = {"": "", "file": "", "async_maps ms/map": ".3f", "library ms/map": ".3f", "ratio": ".2f"}


class _Format(NamedTuple):
    """How a format is written, and how its library loads it; both import their libraries themselves."""

    suffix: str
    write: Callable[[Path, Maps], object]
    load: Callable[[Path], object]
    module: str = "numpy"


def _write_tar(path: Path, maps: Maps) -> None:
    with tarfile.open(path, "w") as archive:
        for index, array in enumerate(maps):
            buffer = io.BytesIO()
            np.save(buffer, array)
            member = tarfile.TarInfo(f"{index:06}.npy")
            member.size = buffer.tell()
            buffer.seek(0)
            archive.addfile(member, buffer)


def _load_tar(path: Path) -> list[Any]:
    with tarfile.open(path) as archive:
        return [np.load(io.BytesIO(archive.extractfile(member).read())) for member in archive]  # type: ignore[union-attr]


def _load_npz(path: Path) -> list[Any]:
    with np.load(path) as archive:
        return [archive[name] for name in archive.files]


def _by_name(maps: Maps) -> dict[str, Any]:
    return {f"{index:06}": array for index, array in enumerate(maps)}


def _write_gzip(path: Path, maps: Maps) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        np.save(file, maps)


def _load_gzip(path: Path) -> Any:
    with gzip.open(path) as file:
        return np.load(io.BytesIO(file.read()))


def _write_hdf5(path: Path, maps: Maps, **how: Any) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("cams", data=maps, chunks=(1, *maps.shape[1:]), **how)


def _load_hdf5(path: Path) -> list[Any]:
    import h5py

    with h5py.File(path) as file:
        return list(file["cams"])


def _write_zarr(path: Path, maps: Maps) -> None:
    import zarr

    array = zarr.create_array(path, shape=maps.shape, chunks=(4, *maps.shape[1:]), dtype="f4", overwrite=True)
    array[...] = maps


def _load_zarr(path: Path) -> Any:
    import zarr

    return zarr.open_array(path, mode="r")[...]


def _write_safetensors(path: Path, maps: Maps) -> None:
    from safetensors.numpy import save_file

    save_file(_by_name(maps), path)


def _load_safetensors(path: Path) -> Any:
    from safetensors.numpy import load_file

    return load_file(path)


def _write_torch(path: Path, maps: Maps) -> None:
    import torch

    torch.save({name: torch.from_numpy(array) for name, array in _by_name(maps).items()}, path)


def _load_torch(path: Path) -> Any:
    import torch

    return {name: tensor.numpy() for name, tensor in torch.load(path, weights_only=True).items()}


def _write_picture(path: Path, maps: Maps) -> None:
    from PIL import Image

    path.mkdir(exist_ok=True)
    for name, array in _by_name(maps).items():
        Image.fromarray((array * 255).astype(np.uint8)).save(path / f"{name}.png")


def _load_pictures(path: Path) -> list[Any]:
    from PIL import Image

    return [np.asarray(Image.open(file)) for file in sorted(path.iterdir())]


def _write_tiff(path: Path, maps: Maps) -> None:
    import tifffile

    tifffile.imwrite(path, maps, photometric="minisblack")


def _load_tiff(path: Path) -> Any:
    import tifffile

    return tifffile.imread(path)


def _write_netcdf(path: Path, maps: Maps) -> None:
    import h5netcdf

    with h5netcdf.File(path, "w") as file:
        file.dimensions = dict(zip(("n", "y", "x"), maps.shape, strict=True))
        file.create_variable("cam", ("n", "y", "x"), data=maps)


def _load_netcdf(path: Path) -> Any:
    import h5netcdf

    with h5netcdf.File(path) as file:
        return file["cam"][...]


def _write_matlab(path: Path, maps: Maps) -> None:
    import scipy.io

    scipy.io.savemat(path, {"cams": np.moveaxis(maps, 0, -1)})


def _load_matlab(path: Path) -> Any:
    import scipy.io

    return scipy.io.loadmat(path)["cams"]


def _column(maps: Maps) -> Any:
    import pyarrow as pa

    row = pa.list_(pa.list_(pa.float32(), maps.shape[2]), maps.shape[1])
    values = pa.array(maps.reshape(-1))
    inner = pa.FixedSizeListArray.from_arrays(values, maps.shape[2])
    rows = pa.FixedSizeListArray.from_arrays(inner, maps.shape[1])
    return pa.table({"cam": rows.cast(row)})


def _write_parquet(path: Path, maps: Maps) -> None:
    import pyarrow.parquet

    pyarrow.parquet.write_table(_column(maps), path)


def _load_parquet(path: Path) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path)["cam"].combine_chunks().flatten().flatten().to_numpy()


def _write_arrow(path: Path, maps: Maps) -> None:
    import pyarrow.feather

    pyarrow.feather.write_feather(_column(maps), path, compression="uncompressed")


def _load_arrow(path: Path) -> Any:
    import pyarrow.feather

    return pyarrow.feather.read_table(path)["cam"].combine_chunks().flatten().flatten().to_numpy()


_FORMATS = {
    "NumPy, a stack": _Format(".npy", np.save, np.load),
    "NumPy archive": _Format(".npz", lambda path, maps: np.savez(path, **_by_name(maps)), _load_npz),
    "NumPy archive, compressed": _Format(
        ".npz", lambda path, maps: np.savez_compressed(path, **_by_name(maps)), _load_npz
    ),
    "NumPy, gzip": _Format(".npy.gz", _write_gzip, _load_gzip),
    "tar of NumPy files": _Format(".tar", _write_tar, _load_tar),
    "HDF5": _Format(".h5", _write_hdf5, _load_hdf5, "h5py"),
    "HDF5, gzip": _Format(".h5", lambda path, maps: _write_hdf5(path, maps, compression="gzip"), _load_hdf5, "h5py"),
    "Zarr": _Format(".zarr", _write_zarr, _load_zarr, "zarr"),
    "Safetensors": _Format(".safetensors", _write_safetensors, _load_safetensors, "safetensors"),
    "PyTorch": _Format(".pt", _write_torch, _load_torch, "torch"),
    "PNG, 8 bit": _Format("", _write_picture, _load_pictures, "PIL"),
    "TIFF": _Format(".tiff", _write_tiff, _load_tiff, "tifffile"),
    "NetCDF 4": _Format(".nc", _write_netcdf, _load_netcdf, "h5netcdf"),
    "MATLAB 5": _Format(".mat", _write_matlab, _load_matlab, "scipy"),
    "Parquet": _Format(".parquet", _write_parquet, _load_parquet, "pyarrow"),
    "Arrow": _Format(".arrow", _write_arrow, _load_arrow, "pyarrow"),
}


def _read(path: Path) -> int:
    """List a source and read all its maps; return their number."""
    count = 0
    with Readers() as readers:
        for entry in open_source(path):
            if not isinstance(entry, ActivationMap) or entry.path is None:
                raise TypeError(f"not a map in a file: {entry}")
            readers.read(entry.path, entry.part)
            count += 1
    return count


def main(arguments: Sequence[str]) -> None:
    """Run ``python -m bench formats``."""
    options = parser("formats", __doc__).parse_args(arguments)
    bench = Bench("formats", options.quick)
    count, rounds = (8, 2) if options.quick else (64, 7)
    maps = np.stack([make_map(index, _SIZE) for index in range(count)])
    table = bench.table(f"{count} maps of {_SIZE}x{_SIZE}, {rounds} rounds, in one process", _COLUMNS)
    with tempfile.TemporaryDirectory(prefix="async-maps-bench-") as place:
        for number, (name, form) in enumerate(_FORMATS.items()):
            if find_spec(form.module) is None:
                print(f"  {name}: {form.module} is not installed")
                continue
            path = Path(place) / f"{number}{form.suffix}"
            form.write(path, maps)
            if (found := _read(path)) != len(maps):
                raise RuntimeError(f"{name}: read {found} maps of {len(maps)}")
            times = interleaved({"us": partial(_read, path), "library": partial(form.load, path)}, rounds)
            ours, library = ([ms / len(maps) for ms in times[side]] for side in ("us", "library"))
            figures = {"async_maps ms/map": ours, "library ms/map": library, "ratio": ratio_of(ours, library)}
            table.add(**{"": name, "file": form.suffix or ".png", **figures})
    bench.publish()
