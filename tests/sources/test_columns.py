"""Columns of arrays in Parquet and Arrow files, written by pyarrow."""

from __future__ import annotations

import io
import os
import pickle
import struct
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

import async_maps as am
from async_maps.errors import SourceError
from async_maps.filesystems.filesystem import LocalFilesystem
from async_maps.sources import open_source
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.formats.ipc import IpcFile
from async_maps.sources.formats.registry import Readers, open_reader
from async_maps.sources.options import SourceOptions
from tests.support.entries import assert_same, failures_of, names_of, only_failure, passed_over, read_all, why_not
from tests.support.leftovers import leaves_nothing
from tests.support.maps import npy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Write = Callable[[pa.Table, Path], Path]

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

CAMS = np.linspace(0, 1, 5 * 3 * 4, dtype=np.float32).reshape(5, 3, 4)

_PYARROW = int(pa.__version__.partition(".")[0])


def _is_of_fixed_size(kind: Any) -> bool:
    return pa.types.is_fixed_size_list(kind) or isinstance(kind, pa.BaseExtensionType)


def write_parquet(table: pa.Table, folder: Path) -> Path:
    views = any(pa.types.is_string_view(kind) for kind in table.schema.types)
    missing = any(_is_of_fixed_size(column.type) and column.null_count for column in table.columns)
    if (views and _PYARROW < 24) or (missing and _PYARROW < 25):
        pytest.skip("text views in Parquet need pyarrow 24, nulls in columns of a fixed size pyarrow 25")
    pq.write_table(table, folder / "x.parquet", row_group_size=2)
    return folder / "x.parquet"


def write_file(table: pa.Table, folder: Path, batch: int = 2) -> Path:
    with pa.ipc.new_file(folder / "x.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)
    return folder / "x.arrow"


def write_stream(table: pa.Table, folder: Path) -> Path:
    with pa.ipc.new_stream(folder / "x.ipc", table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return folder / "x.ipc"


def write_feather(table: pa.Table, folder: Path) -> Path:
    pyarrow.feather.write_feather(table, folder / "x.feather", compression="lz4", chunksize=2)
    return folder / "x.feather"


def write_zstd(table: pa.Table, folder: Path) -> Path:
    with pa.ipc.new_file(folder / "x.arrow", table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file:
        file.write_table(table, max_chunksize=3)
    return folder / "x.arrow"


WRITERS = [write_parquet, write_file, write_stream, write_feather, write_zstd]


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest) -> Write:
    function: Write = request.param
    return function


def lists(arrays: Any, kind: Any = None, leaf: Any = None) -> Any:
    """Return nested lists of the arrays, which may differ in shape."""
    leaf = leaf or pa.float32()
    return pa.array([None if array is None else array.tolist() for array in arrays], kind or pa.list_(pa.list_(leaf)))


def numbered(arrays: Any, name: str = "x") -> dict[str, Any]:
    return {f"{name}/{index:06}": array for index, array in enumerate(arrays)}


def layouts() -> dict[str, tuple[Any, NDArray[Any]]]:
    """Return columns by layout, each with the arrays that it holds."""
    f32 = pa.float32()
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray
    # Each of them is stored in Fortran order.
    turned = np.ascontiguousarray(CAMS.transpose(0, 2, 1)).transpose(0, 2, 1)
    return {
        "list": (lists(CAMS), CAMS),
        "large list": (lists(CAMS, pa.large_list(pa.large_list(f32))), CAMS),
        "fixed-size list": (lists(CAMS, pa.list_(pa.list_(f32, 4), 3)), CAMS),
        "list of fixed-size lists": (lists(CAMS, pa.list_(pa.list_(f32, 4))), CAMS),
        "tensor": (tensor(CAMS), CAMS),
        "permuted tensor": (tensor(turned), turned),
        "float64": (lists(CAMS.astype("f8"), leaf=pa.float64()), CAMS.astype("f8")),
        "float16": (tensor(CAMS.astype("f2")), CAMS.astype("f2")),
        "uint8": (lists((255 * CAMS).astype("u1"), leaf=pa.uint8()), (255 * CAMS).astype("u1")),
        "bool": (lists(CAMS > 0.5, leaf=pa.bool_()), CAMS > 0.5),
        "channel": (lists(CAMS[..., None], pa.list_(pa.list_(pa.list_(f32)))), CAMS),
        "leading one": (lists(CAMS[:, None], pa.list_(pa.list_(pa.list_(f32)))), CAMS),
        "leading one of a tensor": (tensor(CAMS.reshape(5, 1, 3, 4)), CAMS),
        "npy": (pa.array([npy(cam) for cam in CAMS], pa.binary()), CAMS),
        "large npy": (pa.array([npy(cam) for cam in CAMS], pa.large_binary()), CAMS),
    }


@pytest.mark.parametrize("layout", layouts())
def test_each_row_of_a_column_of_arrays_is_a_map(maps: Path, write: Write, layout: str) -> None:
    column, arrays = layouts()[layout]
    write(pa.table({"label": ["cat"] * len(arrays), "cam": column}), maps)
    assert_same(read_all(maps), numbered(arrays))


def test_rows_may_have_different_shapes(maps: Path, write: Write) -> None:
    arrays = [np.full((size, size + 1), size, "f4") for size in (3, 5, 2, 9, 1, 40)]
    write(pa.table({"cam": lists(arrays)}), maps)
    assert_same(read_all(maps), numbered(arrays))


def test_tensors_with_a_shape_in_each_row_are_read(maps: Path, write: Write) -> None:
    arrays = [np.full((size, size + 1), size, "f4") for size in (3, 5, 2)]
    data = pa.array([array.ravel() for array in arrays], pa.large_list(pa.float32()))
    shapes = pa.array([array.shape for array in arrays], pa.list_(pa.int64()))
    write(pa.table({"cam": pa.StructArray.from_arrays([data, shapes], ["data", "shape"])}), maps)
    assert_same(read_all(maps), numbered(arrays))


@pytest.mark.parametrize("metadata", ["[3, 4]", '[[3, 4], "float32"]'])
def test_the_shape_of_a_foreign_extension_type_is_used(maps: Path, write: Write, metadata: str) -> None:
    # Ray has flat lists, Hugging Face nested ones.
    flat = metadata == "[3, 4]"
    name = "ray.data.arrow_tensor_v2" if flat else "datasets.features.features.Array2DExtensionType"
    kind = pa.large_list(pa.float32()) if flat else pa.list_(pa.list_(pa.float32()))
    field = pa.field("cam", kind, metadata={"ARROW:extension:name": name, "ARROW:extension:metadata": metadata})
    column = pa.array([(cam.ravel() if flat else cam).tolist() for cam in CAMS], kind)
    write(pa.Table.from_arrays([column], schema=pa.schema([field])), maps)
    assert_same(read_all(maps), numbered(CAMS))
    assert all(
        map_.header == ((3, 4), np.dtype("f4"), ()) for map_ in open_source(maps) if isinstance(map_, ActivationMap)
    )


def test_axes_in_an_ambiguous_order_are_refused(maps: Path, write: Write) -> None:
    # Its new axis has the stride 0, so that pyarrow stores it last.
    write(pa.table({"cam": pa.FixedShapeTensorArray.from_numpy_ndarray(CAMS[:, None])}), maps)
    for entry in open_source(maps):
        assert "is ambiguous: save np.ascontiguousarray(stack)" in why_not(entry)
        assert isinstance(entry, ActivationMap)
        assert entry.problem == why_not(entry)


def test_a_table_of_one_row_has_the_name_of_its_file(maps: Path, write: Write) -> None:
    write(pa.table({"cam": lists(CAMS[:1])}), maps)
    assert_same(read_all(maps), {"x": CAMS[0]})


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.int32(), pa.uint64(), pa.string_view()])
@pytest.mark.parametrize("column", ["name", "id"])
def test_the_column_name_or_id_names_the_maps(maps: Path, write: Write, column: str, kind: Any) -> None:
    if pa.types.is_integer(kind):
        ids: list[Any] = [7, 30, 5, 1, 2]
    else:
        ids = ["b", "a/é", "a name longer than twelve bytes", "d", "another name of many bytes"]
    write(pa.table({column: pa.array(ids, kind), "label": [1] * 5, "cam": lists(CAMS)}), maps)
    assert_same(read_all(maps), {f"x/{name}": cam for name, cam in zip(ids, CAMS, strict=True)})


def test_name_comes_before_id_and_columns_of_other_types_name_nothing(maps: Path, write: Write) -> None:
    name, number = pa.array(list("abcde")), pa.array(range(5))
    write(pa.table({"id": number, "name": name, "cam": lists(CAMS)}), maps)
    assert names_of(open_source(maps)) == [f"x/{text}" for text in "abcde"]
    write(pa.table({"name": pa.array([1.5] * 5), "id": number, "cam": lists(CAMS)}), maps)
    assert names_of(open_source(maps)) == [f"x/{text}" for text in range(5)]
    write(pa.table({"name": pa.array([b"x"] * 5), "cam": lists(CAMS)}), maps)
    assert names_of(open_source(maps)) == list(numbered(CAMS))


def test_categories_name_the_maps_of_parquet_only(maps: Path) -> None:
    table = pa.table({"name": pa.array(list("abcde")).dictionary_encode(), "cam": lists(CAMS)})
    write_parquet(table, maps)
    assert names_of(open_source(maps)) == [f"x/{text}" for text in "abcde"]
    (maps / "x.parquet").unlink()
    write_file(table, maps)
    assert "is not read from Arrow files: cast it to text" in only_failure(maps).reason


def test_rows_with_equal_or_no_names_fail_alone(maps: Path, write: Write) -> None:
    write(pa.table({"name": ["a", "b", None, "b", ""], "cam": lists(CAMS)}), maps)
    entries = list(open_source(maps))
    assert names_of(entries) == ["x/a"]
    reasons = [failure.reason for failure in failures_of(entries)]
    same = "another map of the same file has the same name; rename one of them"
    assert reasons == [same, "the row has no name", same, "the row has no name"]
    assert len({failure.source for failure in failures_of(entries)}) == 4


def test_several_columns_of_arrays_need_a_choice(maps: Path, write: Write) -> None:
    path = write(pa.table({"cam": lists(CAMS), "mask": lists(CAMS > 0.5, leaf=pa.bool_()), "id": list("abcde")}), maps)
    for place in (maps, path):
        assert only_failure(place).reason == "several columns hold arrays: cam, mask; choose one with --column cam"
        chosen = list(open_source(place, options=SourceOptions(column="mask")))
        assert names_of(chosen) == [f"x/{text}" for text in "abcde"]
    assert isinstance(chosen[0], ActivationMap)
    with Readers() as readers:
        np.testing.assert_array_equal(readers.read(str(path), chosen[0].part), CAMS[0] > 0.5)


def bad_rows() -> dict[str, tuple[Any, str]]:
    """Return columns whose second of three rows has no map, each with the reason."""
    good = CAMS[0].tolist()
    nested = pa.list_(pa.list_(pa.float32()))
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(CAMS[:3])
    data = pa.array([[1.0, 2.0, 3.0, 4.0]] * 3, pa.list_(pa.float32()))
    shapes = pa.array([[2, 2], [2, 3], [2, 2]], pa.list_(pa.int64()))
    return {
        "null": (pa.array([good, None, good], nested), "the row has no array"),
        "null of a fixed size": (
            pa.array([good, None, good], pa.list_(pa.list_(pa.float32(), 4), 3)),
            "the row has no array",
        ),
        "null of a tensor": (
            pa.ExtensionArray.from_storage(
                tensor.type, pa.array([tensor.storage[0].as_py(), None, tensor.storage[0].as_py()], tensor.storage.type)
            ),
            "the row has no array",
        ),
        "null npy": (pa.array([npy(), None, npy()], pa.binary()), "the row has no array"),
        "ragged": (pa.array([good, [[1], [1, 2]], good], nested), "its lists differ in length: 1 and 2"),
        "null list": (pa.array([good, [[1], None], good], nested), "a list in the row is null"),
        "null number": (pa.array([[[1]], [[None]], [[1]]], pa.list_(pa.list_(pa.int32()))), "a value is null"),
        "no npy": (pa.array([npy(), b"text", npy()], pa.binary()), "expected an .npy file"),
        "objects": (pa.array([npy(), pickled_npy(), npy()], pa.binary()), "pickled"),
        "shape": (
            pa.StructArray.from_arrays([data, shapes], ["data", "shape"]),
            "the row has 4 values, which do not fit its shape (2, 3)",
        ),
    }


def pickled_npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize("kind", bad_rows())
def test_a_row_without_a_map_fails_alone(maps: Path, write: Write, kind: str) -> None:
    column, reason = bad_rows()[kind]
    write(pa.table({"cam": column}), maps)
    first, second, third = open_source(maps)
    assert reason in why_not(second)
    with Readers() as readers:
        for entry in (first, third):
            assert isinstance(entry, ActivationMap)
            assert readers.read(str(entry.path), entry.part).ndim == 2


def test_null_is_nan_in_floats(maps: Path, write: Write) -> None:
    write(
        pa.table({"cam": pa.array([[[0.5, None], [None, 1]], [[1, 0], [0, 1]]], pa.list_(pa.list_(pa.float64())))}),
        maps,
    )
    assert_same(read_all(maps), numbered([np.array([[0.5, np.nan], [np.nan, 1]]), np.eye(2)]))


def test_an_empty_row_is_an_empty_array(maps: Path, write: Write) -> None:
    rows: list[Any] = [[[1.0]], [], [[]], [[], []]]
    write(pa.table({"cam": pa.array(rows, pa.list_(pa.list_(pa.float32())))}), maps)
    report = am.run(maps, am.MemoryStore(), settings=am.Settings(workers=0))
    assert (report.uploaded, report.failed) == (1, 3)
    assert all("the activation map is empty" in failure.reason for failure in report.failures)


def test_a_row_of_too_many_pixels_is_refused_alone(maps: Path, write: Write) -> None:
    write(pa.table({"cam": lists([np.zeros((2, 2), "f4"), np.zeros((300, 4), "f4"), np.ones((2, 2), "f4")])}), maps)
    with Readers(max_pixels=1000) as readers:
        entries = [entry for entry in open_source(maps) if isinstance(entry, ActivationMap)]
        for entry in entries[::2]:
            assert readers.read(str(entry.path), entry.part).shape == (2, 2)
        with pytest.raises(SourceError, match=r"too large: .* max_pixels allows 1,000 pixels"):
            readers.read(str(entries[1].path), entries[1].part)


def test_other_columns_are_passed_over(maps: Path, write: Write) -> None:
    others = {
        "text": pa.array(["x"] * 5),
        "words": pa.array([["a", "b"]] * 5),
        "boxes": pa.array([[1.0, 2.0]] * 5),
        "vector": pa.FixedShapeTensorArray.from_numpy_ndarray(CAMS[:, 0]),
        "nothing": pa.nulls(5),
        "struct": pa.array([{"a": 1, "b": [[1.0]]}] * 5),
        "map": pa.array([[(1, 2)]] * 5, pa.map_(pa.int8(), pa.int8())),
        "texts": pa.array([[["a"]]] * 5),
        "bytes": pa.array([b"x"] * 5),
        "view": pa.array(["a text of more than twelve bytes"] * 5, pa.string_view()),
        "category": pa.array(["x"] * 5).dictionary_encode(),
        "flag": pa.array([True, None, False, True, None]),
        "time": pa.array([0] * 5, pa.timestamp("us")),
    }  # fmt: skip
    if write is write_parquet:
        del others["map"]
    passed: list[str] = []
    write(pa.table(others | {"cam": lists(CAMS)} | {f"{name} 2": column for name, column in others.items()}), maps)
    assert len(names_of(open_source(maps, pass_over=passed.append))) == 5
    assert passed == ["arrays below two dimensions"] * 4
    assert_same(read_all(maps), numbered(CAMS))


def test_a_table_without_arrays_is_passed_over_in_a_folder_and_refused_alone(maps: Path, write: Write) -> None:
    passed: list[str] = []
    path = write(pa.table({"label": ["cat"], "size": [3]}), maps)
    assert list(open_source(maps, pass_over=passed.append)) == []
    assert passed == ["tables without a column of arrays"]
    with pytest.raises(
        SourceError, match=r"needs .* or a column of arrays; found label \(string\), size \(int64\): save"
    ):
        list(open_source(path))
    write(pa.table({"image": [{"bytes": b"\x89PNG", "path": "a.png"}]}), maps)
    with pytest.raises(SourceError, match=r"has pictures, but no column of arrays.*decode them, and call"):
        list(open_source(path))


def test_a_table_without_rows_has_no_maps(maps: Path, write: Write) -> None:
    write(pa.table({"name": pa.array([], pa.string()), "cam": lists([])}), maps)
    assert list(open_source(maps)) == []
    assert passed_over(maps) == ["tables without rows"]


def test_paths_and_arrays_in_one_table_need_a_choice(maps: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", CAMS[0])
    table = pa.table({"name": ["x"], "path": [str(tmp_path / "a.npy")], "cam": lists(CAMS[1:2])})
    path = write_parquet(table, maps)
    with pytest.raises(SourceError, match=r"choose one with --column cam or --column path$"):
        list(open_source(path))
    for column, name in (("path", "x"), ("cam", "x/x")):
        assert names_of(open_source(path, options=SourceOptions(column=column))) == [name]
    # In a folder, listings are not opened.
    assert names_of(open_source(maps)) == ["x/x"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"name": "x", "cam": [[0.5, 1.0]]}\n'),
        ("a.csv", 'name,cam\nx,"[[0.5, 1.0]]"\n'),
    ],
)
def test_arrays_in_text_tables_are_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(
        SourceError, match="the column cam holds arrays, not paths: save the table as Parquet, or call am"
    ):
        list(open_source(tmp_path / name))


# Hostile files


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def test_metadata_is_never_unpickled(maps: Path, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bomb = pickle.dumps(_Bomb())
    for name in (
        b"arrow.py_extension_type",
        b"ray.data.arrow_tensor",
        b"datasets.features.features.Array2DExtensionType",
    ):
        metadata = {b"ARROW:extension:name": name, b"ARROW:extension:metadata": bomb}
        field = pa.field("cam", pa.list_(pa.list_(pa.float32())), metadata=metadata)
        write(pa.Table.from_arrays([lists(CAMS)], schema=pa.schema([field], {b"pandas": bomb, b"PANDAS": bomb})), maps)
        assert_same(read_all(maps), numbered(CAMS))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("cut", [1, 7, 30, 200, 1000])
def test_a_truncated_file_is_one_failure_with_its_name(maps: Path, write: Write, cut: int) -> None:
    path = write(pa.table({"cam": lists(np.random.default_rng(0).random((5, 9, 9), np.float32))}), maps)
    content = path.read_bytes()
    if cut < 10 and write is write_stream:
        pytest.skip("the end of a stream is optional")
    path.write_bytes(content[:-cut])
    failure = only_failure(maps)
    assert failure.name == "x"
    assert "\n" not in failure.reason
    assert failure.reason.startswith(("expected a", "truncated: ", "the file is damaged"))


@pytest.mark.parametrize("content", [b"", b"text" * 100, b"ARROW1\0\0", b"PAR1", b"\xff" * 64, bytes(64)])
@pytest.mark.parametrize("name", ["x.arrow", "x.feather", "x.ipc", "x.parquet"])
def test_other_bytes_are_one_failure(maps: Path, name: str, content: bytes) -> None:
    (maps / name).write_bytes(content)
    assert only_failure(maps).reason.startswith(("expected a", "truncated: "))


def test_a_damaged_value_costs_its_map_only(maps: Path) -> None:
    path = write_file(pa.table({"cam": lists(CAMS)}), maps)
    content = bytearray(path.read_bytes())
    # The offsets of the lists of the second batch: 0, 4, 8 and so on.
    offsets = np.arange(0, 28, 4, dtype="<i4").tobytes()
    place = content.index(offsets, content.index(offsets) + 1)
    content[place + 4 : place + 8] = (2**31 - 1).to_bytes(4, "little")
    path.write_bytes(content)
    entries = list(open_source(maps))
    assert len(names_of(entries)) == 5
    assert why_not(entries[2]) == "the file is damaged: the offsets of its lists decrease"
    with Readers() as readers:
        for index in (0, 1, 3, 4):
            entry = entries[index]
            assert isinstance(entry, ActivationMap)
            np.testing.assert_array_equal(readers.read(str(path), entry.part), CAMS[index])


def test_a_compressed_buffer_that_claims_gigabytes_is_refused(maps: Path) -> None:
    path = write_feather(pa.table({"cam": lists(np.random.default_rng(0).random((2, 40, 40), np.float32))}), maps)
    content = path.read_bytes()
    size = (2 * 40 * 40 * 4).to_bytes(8, "little")
    assert content.count(size) == 1
    path.write_bytes(content.replace(size, (2**40).to_bytes(8, "little")))
    first, *_ = open_source(maps)
    assert why_not(first).startswith(
        "too large: a column of a compressed record batch has 1,099,511,627,776 or more bytes"
    )


def test_names_that_share_their_bytes_are_refused_when_they_are_many(maps: Path) -> None:
    names = pa.array(["a" * 10**6] + ["b"] * 99, pa.string_view())
    path = write_file(pa.table({"name": names, "cam": lists([CAMS[0]] * 100)}), maps, batch=100)
    view = struct.pack("<i4sii", 10**6, b"aaaa", 0, 0)
    start, found, end = path.read_bytes().partition(view)
    path.write_bytes(start + 100 * found + end[99 * len(view) :])
    assert only_failure(maps).reason == (
        "too large: the names or the files in some rows have together more than 67,108,864 bytes"
    )


@pytest.mark.parametrize("writer", [write_file, write_parquet])
def test_rows_that_no_bytes_can_contain_are_one_failure(maps: Path, writer: Write) -> None:
    path = writer(pa.table({"cam": lists([CAMS[0]] * 2)}), maps)
    content = path.read_bytes()
    if writer is write_file:
        content = content.replace(struct.pack("<q", 2), struct.pack("<q", 10**12))
    else:
        # The number of rows in the metadata of the file and of its row group.
        footer = content.rindex(b"\x16\x04")
        start, end = content[:footer], content[footer:]
        assert start.count(b"\x16\x04\x19") == 1
        many = b"\x16" + _zigzag(10**12)
        grown = start.replace(b"\x16\x04\x19", many + b"\x19") + end.replace(b"\x16\x04", many, 1)
        size = int.from_bytes(content[-8:-4], "little") + len(grown) - len(content)
        content = grown[:-8] + size.to_bytes(4, "little") + b"PAR1"
    path.write_bytes(content)
    reason = only_failure(maps).reason
    assert reason == "the file is damaged: it claims 1,000,000,000,000 rows, more than its bytes can contain"


def _zigzag(number: int) -> bytes:
    """Return an integer as Thrift's compact protocol writes it."""
    number, found = 2 * number, b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


def test_a_compressed_buffer_without_its_size_is_a_failure(maps: Path) -> None:
    path = write_feather(pa.table({"cam": lists(CAMS)}), maps)
    ipc = IpcFile(io.BytesIO(path.read_bytes()))
    ipc.load(0, 0)
    ipc._batch.buffers[:, 1] = 4
    ipc._unpacked.clear()
    with pytest.raises(SourceError, match="an offset or a length is negative"):
        ipc.load(0, 0)


def test_a_file_that_shrank_is_a_failure(maps: Path, write: Write) -> None:
    write(pa.table({"cam": lists(CAMS)}), maps)
    *_, last = open_source(maps)
    write(pa.table({"cam": lists(CAMS[:2])}), maps)
    assert why_not(last) == "the table has no row 4 anymore: it has 2 rows"
    write(pa.table({"other": ["x"] * 5}), maps)
    assert why_not(last) == "the column 'cam' holds no arrays anymore"


# Memory and repeated reads


class Counting(LocalFilesystem):
    """Counts the bytes that are read."""

    def __init__(self) -> None:
        self.count = 0

    def open(self, path: str) -> Any:
        counting = self

        class Raw(io.FileIO):
            def readinto(self, buffer: Any) -> int:
                found = super().readinto(buffer)
                counting.count += found
                return found

        return io.BufferedReader(Raw(path))


@pytest.mark.parametrize("writer", [write_file, write_stream])
def test_arrow_reads_little_more_than_the_rows_that_are_wanted(maps: Path, writer: Write) -> None:
    cams = np.random.default_rng(0).random((40, 300, 300), np.float32)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(cams)
    path = writer(pa.table({"image": [bytes(10**6)] * 40, "cam": tensors}), maps)
    files = Counting()
    with closing(open_reader(str(path), files)) as reader:
        np.testing.assert_array_equal(reader.read("cam", 33), cams[33])
    assert files.count < 5 * cams[0].nbytes


def test_parquet_decodes_a_large_row_group_once_and_in_batches(maps: Path) -> None:
    cams = np.random.default_rng(0).random((2000, 100, 100), np.float32)
    table = pa.table({"cam": pa.FixedShapeTensorArray.from_numpy_ndarray(cams)})
    pq.write_table(table, maps / "x.parquet", compression="none", use_dictionary=False)
    del table
    assert pq.read_metadata(maps / "x.parquet").num_row_groups == 1
    files = Counting()
    pa.default_memory_pool().release_unused()
    held = pa.total_allocated_bytes()
    most = 0
    with closing(open_reader(str(maps / "x.parquet"), files)) as reader:
        for index in range(0, len(cams), 7):
            np.testing.assert_array_equal(reader.read("cam", index), cams[index])
            most = max(most, pa.total_allocated_bytes() - held)
    assert files.count < 1.2 * cams.nbytes
    assert most < 32 * 2**20 < cams.nbytes


def test_rows_may_be_read_in_any_order(maps: Path, write: Write) -> None:
    path = write(pa.table({"cam": lists(CAMS), "b": lists(1 - CAMS)}), maps)
    with closing(open_reader(str(path), LocalFilesystem())) as reader:
        for index in (4, 0, 3, 3, 1, 4, 2):
            np.testing.assert_array_equal(reader.read("cam", index), CAMS[index])
            np.testing.assert_array_equal(reader.read("b", index), 1 - CAMS[index])


def test_a_file_that_is_kept_between_chunks_is_opened_again_when_it_changes(maps: Path, write: Write) -> None:
    path = write(pa.table({"cam": lists(CAMS)}), maps)
    with Readers() as readers:
        readers.read(str(path), ["cam", 0])
        kept = readers._reader
        readers.rest()
        readers.read(str(path), ["cam", 1])
        assert readers._reader is kept
        readers.rest()
        write(pa.table({"cam": lists(np.zeros((5, 3, 6), "f4"))}), maps)
        assert readers.read(str(path), ["cam", 2]).shape == (3, 6)
        np.save(maps / "y.npy", CAMS[0])
        readers.read(str(maps / "y.npy"), None)
        readers.rest()
        assert readers._reader is None
