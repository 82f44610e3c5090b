"""Names of the maps of a stack, from an array of strings beside it in the same file."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.numpy

pytest.importorskip("h5py")
pytest.importorskip("zarr")

import h5py
import zarr

from async_maps.sources import open_source
from tests.support.entries import STACK, assert_same, failures_of, names_of, only_failure, plane_by_plane, read_all

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXTS = ["dog 1", "b/c", "é", "000001", "x.y"]
BYTES = np.array([text.encode() for text in TEXTS])


def hdf5_strings(path: Path, arrays: dict[str, Any]) -> None:
    with h5py.File(path / "a.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = array.astype(object) if array.dtype.kind == "U" else array


def hdf5_bytes(path: Path, arrays: dict[str, Any]) -> None:
    with h5py.File(path / "a.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = np.char.encode(array, "utf-8") if array.dtype.kind == "U" else array


def hdf5_packed(path: Path, arrays: dict[str, Any]) -> None:
    with h5py.File(path / "a.h5", "w") as file:
        for name, array in arrays.items():
            values = array.astype(object) if array.dtype.kind == "U" else array
            dtype = h5py.string_dtype() if array.dtype.kind == "U" else array.dtype
            file.create_dataset(name, data=values, dtype=dtype, chunks=(2, *array.shape[1:]), compression="gzip")


def zarr_2(path: Path, arrays: dict[str, Any]) -> None:
    group = zarr.open_group(path / "a.zarr", mode="w", zarr_format=2)
    for name, array in arrays.items():
        values = array.astype("T") if array.dtype.kind == "U" else array
        group.create_array(name, data=values, chunks=(2, *array.shape[1:]))


def zarr_3(path: Path, arrays: dict[str, Any]) -> None:
    group = zarr.open_group(path / "a.zarr", mode="w")
    for name, array in arrays.items():
        group.create_array(name, data=array.astype("T") if array.dtype.kind == "U" else array)


def zarr_3_fixed(path: Path, arrays: dict[str, Any]) -> None:
    group = zarr.open_group(path / "a.zarr", mode="w")
    for name, array in arrays.items():
        group.create_array(name, data=array)


def npz(path: Path, arrays: dict[str, Any]) -> None:
    np.savez(path / "a.npz", **arrays)


def npz_packed(path: Path, arrays: dict[str, Any]) -> None:
    packed: dict[str, Any] = {
        name: np.char.encode(a, "utf-8") if a.dtype.kind == "U" else a for name, a in arrays.items()
    }
    np.savez_compressed(path / "a.npz", **packed)


def tensors(path: Path, arrays: dict[str, Any]) -> None:
    texts = {name: json.dumps(array.tolist()) for name, array in arrays.items() if array.dtype.kind == "U"}
    numbers = {name: array for name, array in arrays.items() if array.dtype.kind != "U"}
    safetensors.numpy.save_file(numbers, path / "a.safetensors", texts)


writers = pytest.mark.parametrize(
    "write", [hdf5_strings, hdf5_bytes, hdf5_packed, zarr_2, zarr_3, zarr_3_fixed, npz, npz_packed, tensors]
)
ignore_unstable = pytest.mark.filterwarnings("ignore:The data type")
"""Zarr has no specification of strings yet."""


@ignore_unstable
@writers
@pytest.mark.parametrize("name", ["names", "ids", "filenames", "paths"])
def test_strings_beside_a_stack_name_its_maps(maps: Path, write: Callable[..., None], name: str) -> None:
    write(maps, {"cams": STACK, name: np.array(TEXTS), "labels": np.arange(5)})
    assert_same(read_all(maps), {f"a/{text}": plane for text, plane in zip(TEXTS, STACK, strict=True)})


@ignore_unstable
@writers
def test_the_first_list_of_the_right_length_is_used(maps: Path, write: Callable[..., None]) -> None:
    write(maps, {"cams": STACK, "names": np.array(TEXTS[:3]), "paths": np.array(["x"] * 5), "ids": np.array(TEXTS)})
    assert names_of(open_source(maps)) == [f"a/{text}" for text in TEXTS]


@ignore_unstable
@writers
def test_two_maps_with_the_same_name_are_both_refused(maps: Path, write: Callable[..., None]) -> None:
    write(maps, {"cams": STACK, "names": np.array(["a", "b", "a", "c", "d"])})
    entries = list(open_source(maps))
    assert names_of(entries) == ["a/b", "a/c", "a/d"]
    assert Counter(failure.name for failure in failures_of(entries)) == {"a/a": 2}


@ignore_unstable
@writers
def test_a_list_of_names_beside_the_file_comes_first(maps: Path, write: Callable[..., None]) -> None:
    write(maps, {"cams": STACK, "names": np.array(TEXTS)})
    (maps / "a.names.txt").write_text("\n".join("vwxyz"))
    assert names_of(open_source(maps)) == [f"a/{name}" for name in "vwxyz"]


@ignore_unstable
@writers
def test_arrays_of_other_lengths_or_of_numbers_name_nothing(maps: Path, write: Callable[..., None]) -> None:
    write(maps, {"cams": STACK, "names": np.array(TEXTS[:3]), "paths": np.arange(5)})
    assert_same(read_all(maps), plane_by_plane("a", STACK))


def test_names_belong_to_the_stacks_of_their_group(maps: Path) -> None:
    with h5py.File(maps / "a.h5", "w") as file:
        file["x/cams"], file["x/names"] = STACK, TEXTS
        file["y/cams"], file["y/names"] = STACK, STACK
        file["z/cams"], file["z/names/deep"] = STACK, 1
        file["names"] = TEXTS
    expected = {f"a/x/cams/{text}": plane for text, plane in zip(TEXTS, STACK, strict=True)}
    for name in ("y/cams", "y/names", "z/cams"):
        expected |= plane_by_plane(f"a/{name}", STACK)
    assert_same(read_all(maps), expected)


def test_names_in_a_folder_of_an_archive_are_used(maps: Path) -> None:
    arrays: dict[str, Any] = {"x/cams": STACK, "x/ids": BYTES, "y/cams": STACK}
    np.savez(maps / "a.npz", **arrays)
    expected = {f"a/x/cams/{text}": plane for text, plane in zip(TEXTS, STACK, strict=True)}
    assert_same(read_all(maps), expected | plane_by_plane("a/y/cams", STACK))


def test_pickled_names_in_an_archive_are_never_read(maps: Path) -> None:
    np.savez(maps / "a.npz", cams=STACK, names=np.array(TEXTS, object))
    assert_same(read_all(maps), plane_by_plane("a", STACK))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.array([b"a", b"b", b"c", b"d", b"\xff"]), "a name in the array 'names' is not UTF-8: b'\\xff'"),
        (np.array(["x" * 5000] * 5), "the strings in the array 'names' have 20,000 bytes, which is too long"),
    ],
)
def test_strings_that_are_no_names_are_one_failure(maps: Path, value: Any, reason: str) -> None:
    np.savez(maps / "a.npz", cams=STACK, names=value)
    assert only_failure(maps).reason.startswith(reason)
    assert names_of(open_source(maps)) == []


@pytest.mark.parametrize("names", ['["a", "b", "c", "d", 5]', "[1, 2, 3, 4, 5]"])
def test_metadata_of_other_types_are_one_failure(maps: Path, names: str) -> None:
    safetensors.numpy.save_file({"cams": STACK}, maps / "a.safetensors", {"names": names})
    assert only_failure(maps).reason == "expected names in the array 'names', found int"


@pytest.mark.parametrize("names", ["dog", "{}", "[", '["a"]', "[" * 100_000])
def test_metadata_that_are_no_list_of_the_length_name_nothing(maps: Path, names: str) -> None:
    safetensors.numpy.save_file({"cams": STACK}, maps / "a.safetensors", {"names": names})
    assert_same(read_all(maps), plane_by_plane("a", STACK))


def test_many_names_are_read_in_blocks(maps: Path) -> None:
    texts = [f"{index:05}-{'x' * (index % 7)}" for index in range(25_000)]
    with h5py.File(maps / "a.h5", "w") as file:
        file["cams"], file["names"] = np.zeros((25_000, 1, 5), "u1"), texts
    np.savez(maps / "b.npz", cams=np.zeros((25_000, 1, 5), "u1"), names=texts)
    assert names_of(open_source(maps)) == [f"{file}/{text}" for file in "ab" for text in texts]
