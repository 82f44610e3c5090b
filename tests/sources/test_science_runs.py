"""NetCDF and MATLAB files, HDF5 filters and names in arrays, from a disk and from S3 to overlays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import zarr
from PIL import Image

import async_maps as am
from async_maps.render.colorize import colorize_activation_map
from async_maps.sources import open_source
from tests.sources.test_matlab import IN_MATLAB, cells, save_5, save_7, save_73
from tests.support.entries import STACK, failures_of, plane_by_plane
from tests.support.maps import MAP, npy
from tests.support.s3 import upload

if TYPE_CHECKING:
    from pathlib import Path

netcdf4: Any = pytest.importorskip("netCDF4")

NAMES = ["cat", "b/c", "é", "000001", "x.y"]


@pytest.fixture
def files(maps: Path) -> dict[str, Any]:
    """Write a file of each kind; return the maps by their names."""
    for version in ("NETCDF3_CLASSIC", "NETCDF4"):
        with netcdf4.Dataset(maps / f"{version}.nc", "w", format=version) as file:
            for name, size in {"n": None, "y": 3, "x": 5, "width": 8}.items():
                file.createDimension(name, size)
            packed = file.createVariable("cam", "i2", ("n", "y", "x"), fill_value=-1)
            packed.scale_factor, packed.coordinates = 0.0001, "lat"
            packed[:] = STACK
            file.createVariable("lat", "f4", ("y", "x"))[:] = 0
            texts = np.array([name.encode().ljust(8, b"\0") for name in NAMES], "S8").view("S1").reshape(5, 8)
            file.createVariable("names", "S1", ("n", "width"))[:] = texts
    for save in (save_5, save_7, save_73):
        save(maps / f"{save.__name__}.mat", {"s": {"cams": IN_MATLAB, "names": cells(*NAMES)}, "cell": cells(MAP)})
    with h5py.File(maps / "hdf5.h5", "w") as file:
        file["cams"], file["names"] = STACK, NAMES
    group = zarr.open_group(maps / "zarr.zarr", mode="w", zarr_format=2)
    group.create_array("cams", data=STACK)
    group.create_array("names", data=np.array(NAMES))
    expected: dict[str, Any] = {}
    packed_stack = (np.rint(STACK.astype("f8") / 0.0001).astype("i2") * 0.0001).astype("f8")
    for version in ("NETCDF3_CLASSIC", "NETCDF4"):
        expected |= {f"{version}/{name}": plane for name, plane in zip(NAMES, packed_stack, strict=True)}
    for save in (save_5, save_7, save_73):
        expected[f"{save.__name__}/cell/000000"] = MAP
        expected |= {f"{save.__name__}/s/cams/{name}": plane for name, plane in zip(NAMES, STACK, strict=True)}
    for name in ("hdf5", "zarr"):
        expected |= {f"{name}/{text}": plane for text, plane in zip(NAMES, STACK, strict=True)}
    return expected


def check(report: am.Report, out: Path, expected: dict[str, Any]) -> None:
    assert (report.uploaded, report.failed) == (len(expected), 0), report
    written = {str(path.relative_to(out))[:-4]: path for path in out.rglob("*.png")}
    assert written.keys() == expected.keys()
    for name, path in written.items():
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(image.convert("RGBA")), colorize_activation_map(expected[name]))
    assert report.passed_over == {"coordinates": 2, "arrays of text": report.passed_over["arrays of text"]}


@pytest.mark.parametrize("workers", [0, 1])
def test_files_on_a_disk_become_overlays(files: dict[str, Any], maps: Path, tmp_path: Path, workers: int) -> None:
    check(am.run(maps, tmp_path / "out", settings=am.Settings(workers=workers)), tmp_path / "out", files)


def test_files_in_s3_become_overlays(files: dict[str, Any], maps: Path, tmp_path: Path, bucket: str) -> None:
    upload(bucket, {f"x/{path.relative_to(maps)}": path.read_bytes() for path in maps.rglob("*") if path.is_file()})
    report = am.run(f"s3://{bucket}/x/", tmp_path / "out", settings=am.Settings(workers=0))
    check(report, tmp_path / "out", files)


def test_large_stacks_in_s3_are_read_map_by_map(maps: Path, tmp_path: Path, bucket: str) -> None:
    stack = np.random.default_rng(0).random((12, 300, 400), np.float32)
    save_5(maps / "five.mat", {"x": np.moveaxis(stack, 0, -1)})
    save_7(maps / "seven.mat", {"x": np.moveaxis(stack, 0, -1)})
    with netcdf4.Dataset(maps / "classic.nc", "w", format="NETCDF3_CLASSIC") as file:
        for name, size in {"n": None, "y": 300, "x": 400}.items():
            file.createDimension(name, size)
        file.createVariable("x", "f4", ("n", "y", "x"))[:] = stack
        file.createVariable("y", "f4", ("n",))[:] = 0
    upload(bucket, {path.name: path.read_bytes() for path in maps.iterdir()})
    report = am.run(f"s3://{bucket}", tmp_path / "out", settings=am.Settings(workers=0))
    assert (report.uploaded, report.failed) == (36, 0)
    for name in ("five", "seven", "classic"):
        for key, plane in plane_by_plane(name, stack).items():
            with Image.open(tmp_path / "out" / f"{key}.png") as image:
                np.testing.assert_array_equal(np.asarray(image.convert("RGBA")), colorize_activation_map(plane))


@pytest.mark.parametrize("name", ["save_5.mat", "save_7.mat", "save_73.mat", "NETCDF3_CLASSIC.nc", "NETCDF4.nc"])
def test_a_truncated_object_in_s3_is_a_failure(files: dict[str, Any], maps: Path, bucket: str, name: str) -> None:
    assert files
    upload(bucket, {f"t/{name}": (maps / name).read_bytes()[:200], "t/sound.npy": npy(MAP)})
    failed, *sound = open_source(f"s3://{bucket}/t/")
    (failure,) = failures_of([failed])
    assert failure.name == name.partition(".")[0]
    assert failures_of(sound) == []
