"""NetCDF 3 and 4: variables that are read, coordinates that are not, missing and packed values, names, and damage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_maps.sources import open_source
from tests.support.entries import (
    CHANGES,
    STACK,
    assert_same,
    damaged,
    failures_of,
    kinds_of_numbers,
    names_of,
    only_failure,
    plane_by_plane,
    read_all,
    try_to_read,
    why_not,
)
from tests.support.properties import examples

if TYPE_CHECKING:
    from pathlib import Path

netcdf4: Any = pytest.importorskip("netCDF4")

PLANE = STACK[1]
CLASSIC = ["NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA"]
VERSIONS = [*CLASSIC, "NETCDF4_CLASSIC", "NETCDF4"]


def write(path: Path, version: str, arrays: dict[str, Any], **dimensions: int | None) -> Any:
    """Write variables of the dimensions n, c, y and x by their shapes; return the open file."""
    file = netcdf4.Dataset(path, "w", format=version)
    for name, size in ({"n": 5, "c": 1, "y": 3, "x": 5} | dimensions).items():
        file.createDimension(name, size)
    for name, array in arrays.items():
        axes = {2: ("y", "x"), 3: ("n", "y", "x"), 4: ("n", "c", "y", "x")}[array.ndim]
        file.createVariable(name, array.dtype, axes)[:] = array
    return file


@pytest.mark.parametrize("version", VERSIONS)
def test_variables_become_maps_and_stacks(maps: Path, version: str) -> None:
    arrays = {name: a for name, a in kinds_of_numbers((3, 5)).items() if name[1:3] in {"32", "64"} and name[-1] != "e"}
    with write(maps / "a.nc", version, {**arrays, "one": STACK[:, None], "stack": STACK}):
        pass
    written: dict[str, Any] = {f"a/{name}": array for name, array in arrays.items()}
    assert_same(read_all(maps), written | plane_by_plane("a/one", STACK) | plane_by_plane("a/stack", STACK))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("alone", [False, True])
def test_records_of_an_unlimited_dimension_are_a_stack(maps: Path, version: str, alone: bool) -> None:
    bits = (STACK * 100).astype(np.int8)
    arrays = {"a": bits} if alone else {"a": bits, "b": STACK}
    with write(maps / "r.nc4", version, arrays, n=None):
        pass
    written = plane_by_plane("r" if alone else "r/a", bits)
    assert_same(read_all(maps), written if alone else written | plane_by_plane("r/b", STACK))


@pytest.mark.parametrize("version", VERSIONS)
def test_coordinates_and_their_bounds_are_no_maps(maps: Path, version: str) -> None:
    passed: list[str] = []
    with write(maps / "a.nc", version, {"cam": STACK, "lat": PLANE, "elsewhere": PLANE, "area": PLANE}, nv=2) as file:
        file["cam"].coordinates = "lat missing"
        file["elsewhere"].units = "degrees_east"
        file.createVariable("n", "f4", ("n",)).bounds = "n_bounds"
        file.createVariable("n_bounds", "f4", ("n", "nv"))[:] = 0
        file.createVariable("label", "S1", ("n", "x"))[:] = b"a"
        file.createVariable("version", "i4", ())[:] = 1
    entries = list(open_source(maps, pass_over=passed.append))
    assert names_of(entries) == ["a/area", *plane_by_plane("a/cam", STACK)] or names_of(entries) == [
        *plane_by_plane("a/cam", STACK), "a/area",
    ]  # fmt: skip
    assert sorted(passed) == [*["arrays below two dimensions"] * 2, "arrays of text", *["coordinates"] * 3]


@pytest.mark.parametrize("version", VERSIONS)
def test_packed_and_missing_values_are_read_as_the_library_reads_them(maps: Path, version: str) -> None:
    values = np.ma.masked_greater(STACK, 0.9)
    with netcdf4.Dataset(maps / "a.nc", "w", format=version) as file:
        for name, size in {"n": None, "y": 3, "x": 5}.items():
            file.createDimension(name, size)

        def variable(name: str, dtype: str, **attributes: Any) -> Any:
            found = file.createVariable(name, dtype, ("n", "y", "x"), fill_value=attributes.pop("fill", None))
            found.setncatts(attributes)
            return found

        variable("floats", "f4", fill=-9.0)[:] = values
        variable("never", "f8")[:] = values
        variable("several", "f4", missing_value=np.array([-1, -2], "f4"))[:] = values.filled(-2)
        variable("packed", "i2", fill=-1, scale_factor=0.01, add_offset=0.25)[:] = values
        variable("packed_single", "i1", fill=-1, scale_factor=np.float32(0.01))[:] = values
        variable("shifted", "f4", add_offset=np.float32(2))[:] = values
        variable("integers", "i2", fill=-7)[:] = np.ma.masked_greater((STACK * 50).astype("i2"), 40)
        variable("unsigned", "i1", fill=-1, _Unsigned="true")[:] = np.ma.masked_greater((STACK * 250).astype("u1"), 240)
    read = read_all(maps)
    with netcdf4.Dataset(maps / "a.nc") as file:
        for name, found in file.variables.items():
            expected = np.ma.filled(found[:].astype(np.float64), np.nan)
            for index, plane in enumerate(expected):
                array = read[f"a/{name}/{index:06}"]
                assert array.dtype.kind == "f"
                np.testing.assert_allclose(array, plane, rtol=1e-6, err_msg=name)
            assert np.isnan(expected).any()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_signaling_nan_is_nan(maps: Path, version: str) -> None:
    stored = np.ones((3, 5), np.float32)
    stored.view(np.uint32)[0, 0] = 0x7F800001
    with write(maps / "a.nc", version, {"packed": stored}) as file:
        file["packed"].set_auto_scale(False)
        file["packed"].scale_factor = 2.0
    expected = np.full((3, 5), 2.0)
    expected[0, 0] = np.nan
    assert_same(read_all(maps), {"a": expected})


@pytest.mark.parametrize("version", VERSIONS)
def test_unsigned_bytes_of_a_classic_file_are_intensities(maps: Path, version: str) -> None:
    values = (STACK * 255).astype(np.uint8)
    with write(maps / "a.nc", version, {"x": values.view(np.int8)}) as file:
        file["x"]._Unsigned = "true"
        file["x"].units = np.float32(1)
    assert_same(read_all(maps), plane_by_plane("a", values))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["n", "names", "ids", "filenames", "paths"])
def test_a_variable_of_text_names_the_maps(maps: Path, version: str, name: str) -> None:
    texts = ["cat", "b/c", "é", "000001", "x.y"]
    with write(maps / "a.nc", version, {"cam": STACK}, width=8) as file:
        if version == "NETCDF4":
            file.createVariable(name, str, ("n",))[:] = np.array(texts, object)
        else:
            characters = np.array([text.encode().ljust(8, b"\0") for text in texts], "S8").view("S1").reshape(5, 8)
            file.createVariable(name, "S1", ("n", "width"))[:] = characters
    assert_same(read_all(maps), {f"a/{text}": plane for text, plane in zip(texts, STACK, strict=True)})


def test_files_of_xarray_are_read_with_the_names_of_their_coordinate(maps: Path) -> None:
    xarray: Any = pytest.importorskip("xarray")
    names = ["dog 1", "b", "é", "d", "x.y"]
    places = {"lat": (("y", "x"), STACK[0]), "lon": (("y", "x"), STACK[1])}
    cams = xarray.DataArray(STACK, dims=("image", "y", "x"), coords={"image": names, **places}, name="cam")
    for index, (engine, version) in enumerate(
        [("netcdf4", "NETCDF4"), ("netcdf4", "NETCDF3_64BIT"), ("h5netcdf", "NETCDF4"), ("scipy", "NETCDF3_CLASSIC")]
    ):
        pytest.importorskip({"netcdf4": "netCDF4"}.get(engine, engine))
        cams.to_netcdf(maps / f"{index}.nc", engine=engine, format=version)
    written = {f"{index}/{name}": plane for index in range(4) for name, plane in zip(names, STACK, strict=True)}
    assert_same(read_all(maps), written)


def test_groups_of_a_netcdf_4_file_are_read(maps: Path) -> None:
    with write(maps / "a.nc", "NETCDF4", {}) as file:
        group = file.createGroup("deep").createGroup("er")
        group.createVariable("cam", "f4", ("n", "y", "x"), zlib=True, chunksizes=(2, 3, 5))[:] = STACK
        file.createVariable("n", str, ("n",))[:] = np.array(list("vwxyz"), object)
    assert_same(read_all(maps), {f"a/{name}": plane for name, plane in zip("vwxyz", STACK, strict=True)})


@pytest.mark.parametrize("version", CLASSIC)
def test_a_truncated_classic_file_loses_only_the_variables_cut_off(maps: Path, version: str) -> None:
    with write(maps / "a.nc", version, {"first": PLANE, "last": STACK}):
        pass
    content = (maps / "a.nc").read_bytes()
    (maps / "a.nc").write_bytes(content[:-8])
    first, last = open_source(maps)
    assert names_of([first, last]) == ["a/first", "a/last"]
    assert why_not(last).startswith("truncated: variable 'last' ends at byte ")
    (maps / "a.nc").write_bytes(content[:40])
    assert only_failure(maps).reason == "expected a NetCDF file: its header is cut off at byte 40"


def test_a_file_written_as_a_stream_has_the_records_that_fit(maps: Path) -> None:
    with write(maps / "a.nc", "NETCDF3_CLASSIC", {"x": STACK, "y": STACK}, n=None):
        pass
    content = bytearray((maps / "a.nc").read_bytes())
    content[4:8] = b"\xff" * 4
    (maps / "a.nc").write_bytes(content)
    assert_same(read_all(maps), plane_by_plane("a/x", STACK) | plane_by_plane("a/y", STACK))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "expected a NetCDF file: "),
        (b"CDF", "expected a NetCDF file: its header is cut off at byte 3"),
        (b"CDF\x07", "expected a NetCDF file, found one that starts with b'CDF\\x07'"),
        (b"CDF\x01" + b"\xff" * 100, "expected a NetCDF file: its header is damaged before byte 16"),
        (b"CDF\x05" + bytes(8) + b"\0\0\0\x0a" + b"\x7f" * 100, "expected a NetCDF file: its header "),
        (b"CDF\x01" + bytes(28), "the file contains no variable"),
        (b"no NetCDF" * 100, "expected a NetCDF file: "),
    ],
)
def test_a_file_of_another_format_is_a_failure(maps: Path, content: bytes, reason: str) -> None:
    (maps / "a.nc").write_bytes(content)
    assert only_failure(maps).reason.startswith(reason)


def test_a_header_that_claims_a_terabyte_takes_no_memory(maps: Path) -> None:
    with write(maps / "a.nc", "NETCDF3_64BIT_DATA", {"x": STACK}):
        pass
    content = (maps / "a.nc").read_bytes()
    # The dimensions n and x.
    (maps / "a.nc").write_bytes(content.replace((5).to_bytes(8, "big"), (10**6).to_bytes(8, "big"), 2))
    (entry,) = open_source(maps)
    assert why_not(entry).startswith("truncated: variable 'x' ends at byte 12,000,000,0")


@pytest.mark.parametrize("version", ["NETCDF3_CLASSIC", "NETCDF3_64BIT_DATA"])
def test_damaged_classic_files_give_only_maps_and_failures(maps: Path, version: str) -> None:
    with write(maps / "a.nc", version, {"x": STACK, "y": PLANE}, n=None) as file:
        file["x"].scale_factor = 0.5
        file["x"].coordinates = "y"
    content = (maps / "a.nc").read_bytes()

    @examples(100)
    @given(changes=CHANGES, cut=st.sampled_from([0, 0, 0, 1, 100, 300]))
    def check(changes: list[tuple[int, int]], cut: int) -> None:
        (maps / "a.nc").write_bytes(damaged(content, [(place % 400, value) for place, value in changes], cut))
        try_to_read(maps)

    check()


def test_names_without_a_width_are_invalid(maps: Path) -> None:
    with write(maps / "a.nc", "NETCDF3_CLASSIC", {"cam": STACK}, width=8) as file:
        file.createVariable("names", "S1", ("n", "width"))
    content = (maps / "a.nc").read_bytes()
    (maps / "a.nc").write_bytes(content.replace(b"width\0\0\0\0\0\0\x08", b"width\0\0\0\0\0\0\0"))
    assert len(failures_of(open_source(maps))) == 5
