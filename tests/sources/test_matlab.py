"""MATLAB files of the versions 5 to 7.3: layout, structs and cells, names, and damage.

SciPy writes the older versions. Those of 7.3 are written here as MATLAB writes them.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("h5py")

import h5py

import async_maps as am
from async_maps.filesystems.filesystem import LocalFilesystem
from async_maps.sources import open_source
from async_maps.sources.formats.registry import ListedArray, open_reader
from tests.support.entries import (
    CHANGES,
    STACK,
    assert_same,
    damaged,
    kinds_of_numbers,
    names_of,
    only_failure,
    plane_by_plane,
    read_all,
    try_to_read,
    why_not,
)
from tests.support.maps import MAP
from tests.support.properties import examples

if TYPE_CHECKING:
    from collections.abc import Callable

scipy_io: Any = pytest.importorskip("scipy.io")

IN_MATLAB = np.moveaxis(STACK, 0, -1)
"""The stack as MATLAB has it: h x w x n."""
NAMES = ["dog 1", "b", "é", "d", "x.y"]


def cells(*values: Any) -> Any:
    found = np.empty(len(values), object)
    found[:] = values
    return found


def save_5(path: Path, variables: dict[str, Any], **options: Any) -> None:
    scipy_io.savemat(path, variables, **options)


def save_7(path: Path, variables: dict[str, Any]) -> None:
    scipy_io.savemat(path, variables, do_compression=True)


def save_73(path: Path, variables: dict[str, Any]) -> None:
    """Write a file as MATLAB does: a user block, reversed axes, and a class for each array."""
    with h5py.File(path, "w", userblock_size=512) as file:
        references = file.create_group("#refs#")
        file["#subsystem#/MCOS"] = np.zeros((3, 4))
        for name, value in variables.items():
            _add(file, references, name, value)
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(116) + bytes(8) + b"\x00\x02IM")


def _add(group: Any, references: Any, name: str, value: Any) -> None:
    if isinstance(value, dict):
        for field, inner in value.items():
            _add(group.require_group(name), references, field, inner)
        group[name].attrs["MATLAB_class"] = np.bytes_(b"struct")
        return
    if isinstance(value, str):
        units = np.frombuffer(value.encode("utf-16-le"), np.uint16)
        value, kind, decode = units.reshape(1, -1), b"char", 2
    elif value.dtype.kind == "U":
        rows = [np.frombuffer(text.ljust(8).encode("utf-16-le"), np.uint16) for text in value]
        value, kind, decode = np.array(rows), b"char", 2
    elif value.dtype == object:
        found = []
        for inner in value.ravel(order="F"):
            _add(references, references, own := f"r{len(references)}", inner)
            found.append(references[own].ref)
        dataset = group.create_dataset(name, (len(found), 1), h5py.ref_dtype)
        dataset[:, 0] = found
        dataset.attrs["MATLAB_class"] = np.bytes_(b"cell")
        return
    elif value.dtype == np.bool_:
        value, kind, decode = value.astype(np.uint8), b"logical", 1
    else:
        kind, decode = {"f8": b"double", "f4": b"single"}.get(value.dtype.str[1:], value.dtype.name.encode()), 0
    value = np.atleast_2d(value)
    if value.dtype.kind == "c":
        value = value.astype(np.complex128).view([("real", "f8"), ("imag", "f8")])
    packed = {"chunks": value.T.shape, "compression": "gzip"} if value.size > 1 else {}
    dataset = group.create_dataset(name, data=np.array([0, 0], "u8") if 0 in value.shape else value.T, **packed)
    if 0 in value.shape:
        dataset.attrs["MATLAB_empty"] = np.uint8(1)
    dataset.attrs["MATLAB_class"] = np.bytes_(kind)
    if decode:
        dataset.attrs["MATLAB_int_decode"] = np.int32(decode)


versions = pytest.mark.parametrize("save", [save_5, save_7, save_73])


@versions
def test_the_last_axis_is_the_stack_and_maps_are_upright(maps: Path, save: Callable[..., None]) -> None:
    save(maps / "a.mat", {"cams": IN_MATLAB, "channel": IN_MATLAB[:, :, None], "one": MAP})
    written = plane_by_plane("a/cams", STACK) | plane_by_plane("a/channel", STACK)
    assert_same(read_all(maps), written | {"a/one": MAP})


@versions
def test_all_kinds_of_numbers_are_read(maps: Path, save: Callable[..., None]) -> None:
    arrays = {name: array for name, array in kinds_of_numbers().items() if name[1:3] in {"32", "64", "8"}}
    arrays = {name: array for name, array in arrays.items() if not name.endswith("be")}
    arrays |= {kind: (MAP * 100).astype(kind) for kind in ("i1", "i2", "i4", "i8", "u2", "u4", "u8")}
    arrays["logical"] = MAP > 0.5
    save(maps / "a.mat", arrays)
    read = read_all(maps)
    assert_same({name: read[f"a/{name}"] for name in arrays}, arrays)


def test_a_signaling_nan_is_nan(maps: Path) -> None:
    stored = np.ones((3, 5), np.float32)
    stored.view(np.uint32)[0, 0] = 0x7F800001
    save_5(maps / "a.mat", {"map": stored})
    with (maps / "a.mat").open("r+b") as raw:
        # Behind the header and two tags: singles become doubles, whose values are stored as singles.
        raw.seek(128 + 8 + 8)
        assert raw.read(1) == b"\x07"
        raw.seek(-1, os.SEEK_CUR)
        raw.write(b"\x06")
    expected = np.ones((3, 5))
    expected[0, 0] = np.nan
    assert_same(read_all(maps), {"a": expected})


@versions
def test_what_is_no_map_is_passed_over(maps: Path, save: Callable[..., None]) -> None:
    side = {"labels": np.arange(5.0), "count": np.array(7.0), "text": "hello", "empty": np.zeros((0, 0))}
    save(maps / "a.mat", {"cam": MAP, **side})
    passed: list[str] = []
    assert names_of(open_source(maps, pass_over=passed.append)) == ["a"]
    assert Counter(passed) == {"arrays below two dimensions": 2, "arrays of text": 1, "empty arrays": 1}


@versions
def test_arrays_in_structs_and_cells_are_read(maps: Path, save: Callable[..., None]) -> None:
    variables = {"results": {"cam": MAP, "deep": {"stack": IN_MATLAB}, "id": "x"}, "list": cells(MAP, MAP * 2, "text")}
    save(maps / "a.mat", variables)
    written = {"a/results/cam": MAP, "a/list/000000": MAP, "a/list/000001": MAP * 2}
    written |= plane_by_plane("a/results/deep/stack", STACK)
    read = read_all(maps)
    assert read.keys() == written.keys()
    assert_same({name: read[name] for name in written}, written)


@pytest.mark.parametrize("save", [save_5, save_7])
def test_the_fields_of_an_array_of_structs_are_numbered(maps: Path, save: Callable[..., None]) -> None:
    structs = np.zeros(2, [("cam", object), ("id", object)])
    structs["cam"] = cells(MAP, MAP * 2)
    structs["id"] = cells("a", "b")
    save(maps / "a.mat", {"s": structs})
    assert_same(read_all(maps), {"a/s/cam/000000": MAP, "a/s/cam/000001": MAP * 2})


@versions
@pytest.mark.parametrize("name", ["names", "ids", "filenames", "paths"])
@pytest.mark.parametrize("kind", [lambda names: cells(*names), np.array])
def test_cells_or_rows_of_text_name_the_maps(
    maps: Path, save: Callable[..., None], name: str, kind: Callable[[list[str]], Any]
) -> None:
    save(maps / "a.mat", {"s": {"cams": IN_MATLAB, name: kind(NAMES)}, "names": kind(["wrong"])})
    assert_same(read_all(maps), {f"a/{text}": plane for text, plane in zip(NAMES, STACK, strict=True)})


@versions
def test_complex_numbers_are_one_failure(maps: Path, save: Callable[..., None]) -> None:
    save(maps / "a.mat", {"x": MAP * 1j, "y": MAP})
    x, y = open_source(maps)
    assert why_not(x) == "its values are complex numbers: save their abs()"
    assert names_of([y]) == ["a/y"]


@pytest.mark.parametrize("moved", [False, True])
def test_a_stack_whose_first_axis_is_the_stack_is_asked_about(
    maps: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, moved: bool
) -> None:
    cams = np.random.default_rng(0).random((10, 56, 56))
    scipy_io.savemat(maps / "a.mat", {"cams": np.moveaxis(cams, 0, -1) if moved else cams})
    report = am.run(maps, tmp_path / "out", settings=am.Settings(workers=0))
    assert report.uploaded == (10 if moved else 56)
    text = "if these are 10 maps of 56 x 56, save np.moveaxis(cams, 0, -1)"
    assert (text in caplog.text) is not moved


def test_sparse_arrays_are_passed_over(maps: Path) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    save_5(maps / "a.mat", {"s": sparse.csc_array(MAP)})
    passed: list[str] = []
    assert list(open_source(maps, pass_over=passed.append)) == []
    assert passed == ["sparse arrays"]


def test_a_stack_is_unpacked_once_and_map_by_map(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = np.random.default_rng(0).random((20, 64, 64))
    save_7(maps / "a.mat", {"x": np.moveaxis(stack, 0, -1)})
    unpacked = 0

    class Counting:
        def __init__(self) -> None:
            self._inner = zlib_decompressobj()

        def decompress(self, data: bytes, limit: int) -> bytes:
            nonlocal unpacked
            found: bytes = self._inner.decompress(data, limit)
            unpacked += len(found)
            return found

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

    zlib_decompressobj = zlib.decompressobj
    reader = open_reader(str(maps / "a.mat"), LocalFilesystem())
    (array,) = reader.arrays()
    assert isinstance(array, ListedArray)
    monkeypatch.setattr(zlib, "decompressobj", Counting)
    for index in range(20):
        np.testing.assert_array_equal(reader.read(array.part, index), stack[index])
    assert stack.nbytes <= unpacked < stack.nbytes + 1000
    np.testing.assert_array_equal(reader.read(array.part, 3), stack[3])
    reader.close()


REAL = sorted(Path(scipy_io.__file__).parent.glob("matlab/tests/data/*.mat"))


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.name) for path in REAL if not re.search(r"_4|mat4|m4", path.name)]
)
@pytest.mark.filterwarnings("ignore")
def test_files_of_matlab_itself_are_read_as_scipy_reads_them(path: Path) -> None:
    try:
        expected = scipy_io.loadmat(path)
    except (NotImplementedError, TypeError, ValueError, zlib.error):
        pytest.skip("SciPy does not read it")
    reader = open_reader(str(path), LocalFilesystem())
    found = {array.name: array for array in reader.arrays() if isinstance(array, ListedArray)}
    for name, array in expected.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or sum(n > 1 for n in array.shape) < 2:
            assert name not in found or name.startswith("_")
            continue
        axes = (*range(2, array.ndim)[::-1], 0, 1)
        np.testing.assert_array_equal(reader.read(found[name].part, None), array.transpose(axes))
    reader.close()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "expected a MATLAB file of version 5 to 7.3: save it with -v7 or -v7.3"),
        (b"x" * 600, "expected a MATLAB file of version 5 to 7.3: save it with -v7 or -v7.3"),
        (b"\x89HDF\r\n\x1a\n" + b"x" * 600, "expected a MATLAB file: "),
        (b" " * 124 + b"\x00\x01IM", "the file contains no variable"),
        (b" " * 124 + b"\x00\x01IM" + b"\x0e\0\0\0\xff\0\0\0", "truncated: a variable ends at byte 391"),
        (b" " * 124 + b"\x00\x01IM" + bytes(16), "the file is damaged after byte 128: expected a variable"),
    ],
)
def test_a_file_of_another_format_is_a_failure(maps: Path, content: bytes, reason: str) -> None:
    (maps / "a.mat").write_bytes(content)
    assert only_failure(maps).reason.startswith(reason)


def test_a_file_of_version_4_is_refused_with_advice(maps: Path) -> None:
    save_5(maps / "a.mat", {"x": MAP}, format="4")
    assert only_failure(maps).reason == "expected a MATLAB file of version 5 to 7.3: save it with -v7 or -v7.3"


@versions
def test_a_truncated_file_keeps_the_arrays_before_the_cut(maps: Path, save: Callable[..., None]) -> None:
    save(maps / "a.mat", {"x": MAP, "y": MAP})
    content = (maps / "a.mat").read_bytes()
    (maps / "a.mat").write_bytes(content[:-4])
    reason = only_failure(maps).reason
    if save is save_73:
        assert reason.startswith("expected a MATLAB file: ")
    else:
        assert reason.startswith("truncated: a variable ends at byte ")
        assert names_of(open_source(maps)) == ["a/x"]


def test_an_array_that_claims_more_than_its_bytes_is_a_failure(maps: Path) -> None:
    save_5(maps / "a.mat", {"x": IN_MATLAB.astype("f8")})
    content = (maps / "a.mat").read_bytes()
    sizes = np.array([3, 5, 5], "<i4").tobytes()
    assert content.count(sizes) == 1
    (maps / "a.mat").write_bytes(content.replace(sizes, np.array([3, 5, 2**30], "<i4").tobytes()))
    assert "expected the values of an array of the shape (3, 5, 1073741824)" in only_failure(maps).reason


def test_an_array_that_ends_behind_its_cell_is_a_failure(maps: Path) -> None:
    """Else its bytes would be read again as the next cells, and those in them again."""
    save_5(maps / "a.mat", {"c": cells(cells(MAP), cells(MAP))})
    content = (maps / "a.mat").read_bytes()
    outer, inner = (content.index(struct.pack("<I", 14), start) for start in (128, 140))
    (size,) = struct.unpack_from("<I", content, inner + 4)
    (maps / "a.mat").write_bytes(content[: inner + 4] + struct.pack("<I", size - 16) + content[inner + 8 :])
    assert outer == 128
    assert only_failure(maps).reason == "expected an array"


@versions
def test_damaged_files_give_only_maps_and_failures(maps: Path, save: Callable[..., None]) -> None:
    save(
        maps / "a.mat", {"s": {"x": IN_MATLAB, "names": cells(*NAMES)}, "c": cells(MAP, "text"), "e": np.zeros((0, 3))}
    )
    content = (maps / "a.mat").read_bytes()

    @examples(100)
    @given(changes=CHANGES, cut=st.sampled_from([0, 0, 0, 1, 100, 300]))
    def check(changes: list[tuple[int, int]], cut: int) -> None:
        (maps / "a.mat").write_bytes(damaged(content, changes, cut))
        try_to_read(maps)

    check()
