"""Rows of CSV, JSON lines and Parquet, read for listings and for tables of results."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path
from time import thread_time
from typing import TYPE_CHECKING, Any

import pytest

from async_maps import tables
from async_maps.errors import SourceError
from async_maps.filesystems.filesystem import LocalFilesystem
from async_maps.tables import Row, is_table, read_table
from tests.support.installed import needs_parquet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

pytestmark = [pytest.mark.fast]

KINDS = [".csv", ".jsonl", ".parquet"]
ROWS = [{"name": "ä", "path": "a.npy", "more": "1"}, {"name": "b", "path": "b,c.npy", "more": ""}]


def content(suffix: str, rows: Sequence[dict[str, Any]]) -> bytes:
    if suffix == ".csv":
        return b"".join(
            (",".join(f'"{cell}"' for cell in cells) + "\r\n").encode()
            for cells in (list(rows[0]), *(row.values() for row in rows))
        )
    if suffix == ".jsonl":
        return "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(list(rows)), file)
    return file.getvalue()


def rows_of(suffix: str, data: bytes, columns: Sequence[str] = ()) -> list[Row]:
    return list(read_table(f"t{suffix}", lambda _: io.BytesIO(data), columns))


@pytest.mark.parametrize("suffix", KINDS)
def test_rows_have_their_values_and_their_place(suffix: str) -> None:
    found = rows_of(suffix, content(suffix, ROWS))
    assert [row.values for row in found] == ROWS
    assert [row.problem for row in found] == ["", ""]
    places = {".csv": ["line 2", "line 3"], ".jsonl": ["line 1", "line 2"], ".parquet": ["row 1", "row 2"]}
    assert [row.place for row in found] == places[suffix]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_chosen_columns_are_the_only_ones_read(suffix: str) -> None:
    found = rows_of(suffix, content(suffix, ROWS), ["path", "name"])
    assert [row.values for row in found] == [{"name": row["name"], "path": row["path"]} for row in ROWS]


@pytest.mark.parametrize("suffix", KINDS)
def test_missing_columns_are_named_with_those_found(suffix: str) -> None:
    with pytest.raises(SourceError) as refusal:
        rows_of(suffix, content(suffix, ROWS), ["name", "file"])
    assert str(refusal.value) == f"t{suffix}: the table needs the columns name and file; found name, path, more"


@pytest.mark.parametrize("suffix", KINDS)
def test_a_file_is_a_table_by_its_suffix_in_any_case(suffix: str) -> None:
    assert is_table(f"folder.x/t{suffix}")
    assert is_table(f"T{suffix.upper()}")
    assert not is_table(f"t{suffix}.gz")
    assert not is_table(f"{suffix}/t")


@pytest.mark.parametrize("suffix", KINDS)
def test_the_file_is_closed_when_reading_stops_early(suffix: str) -> None:
    opened = io.BytesIO(content(suffix, ROWS))
    rows = read_table(f"t{suffix}", lambda _: opened)
    next(rows)
    assert not opened.closed
    rows.close()
    assert opened.closed


@pytest.mark.parametrize("suffix", KINDS)
def test_a_file_that_cannot_be_opened_is_named(suffix: str) -> None:
    def refuse(path: str) -> BinaryIO:
        raise PermissionError(13, "Permission denied", path)

    with pytest.raises(SourceError, match=rf"^t\{suffix}: cannot be read: Permission denied$"):
        list(read_table(f"t{suffix}", refuse))


def test_a_byte_order_mark_is_not_part_of_a_column() -> None:
    assert rows_of(".csv", b"\xef\xbb\xbfname,path\r\nx,y\r\n")[0].values == {"name": "x", "path": "y"}
    assert rows_of(".jsonl", b'\xef\xbb\xbf{"name": "x"}')[0].values == {"name": "x"}


def test_a_csv_place_is_the_last_line_of_its_row() -> None:
    found = rows_of(".csv", b'\r\nname,path\r\n\r\n"two\r\nlines",y\r\nz,y\r\n')
    assert [(row.place, row.values["name"]) for row in found] == [("line 5", "two\r\nlines"), ("line 6", "z")]


def test_short_and_long_csv_rows_keep_their_columns() -> None:
    found = rows_of(".csv", b"a,b\n1\n1,2,3\n")
    assert [row.values for row in found] == [{"a": "1", "b": ""}, {"a": "1", "b": "2"}]


def test_bytes_that_are_not_utf8_reach_their_row() -> None:
    (row,) = rows_of(".csv", b"name,path\nx,\xff.npy\n")
    assert row.values["path"].encode("utf-8", "surrogateescape") == b"\xff.npy"


def test_a_csv_row_with_a_huge_cell_is_one_problem() -> None:
    huge, good = rows_of(".csv", b"a,b\n1," + b"y" * 200_000 + b"\n3,4\n")
    assert (huge.place, dict(huge.values)) == ("line 2", {})
    assert huge.problem.startswith("expected a CSV row: field larger")
    assert (good.values, good.problem) == ({"a": "3", "b": "4"}, "")


def test_each_invalid_json_line_is_one_problem() -> None:
    lines = ["{", "[1, 2]", "[" * 100_000, "", '{"a": 1}', '{"b": 2}']
    found = rows_of(".jsonl", "\n".join(lines).encode(), ["a"])
    assert [row.place for row in found] == ["line 1", "line 2", "line 3", "line 5", "line 6"]
    assert [row.values for row in found] == [{}, {}, {}, {"a": 1}, {"b": 2}]
    assert found[1].problem == "expected a JSON object, found [1, 2]"
    assert [row.problem.startswith("expected a JSON object") for row in found] == [True, True, True, False, False]


def test_nested_parquet_cells_are_lists_and_dicts() -> None:
    rows: list[dict[str, Any]] = [{"cams": [{"x": 1}, {"x": 2}]}, {"cams": None}]
    assert [row.values for row in rows_of(".parquet", content(".parquet", rows))] == rows


@pytest.mark.parametrize(
    ("suffix", "data", "said"),
    [
        (".csv", b"y" * 200_000, "expected a CSV file: field larger"),
        pytest.param(".parquet", b"no Parquet", "expected a Parquet file: ", marks=needs_parquet),
        pytest.param(".parquet", b"", "expected a Parquet file: ", marks=needs_parquet),
    ],
)
def test_a_file_of_another_format_is_refused(suffix: str, data: bytes, said: str) -> None:
    with pytest.raises(SourceError, match=rf"^t\{suffix}: {said}"):
        rows_of(suffix, data)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_an_endless_line_is_refused_in_bounded_memory(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_MAX_LINE", 1000)
    exact = b'{"a": "' + b"x" * 990 + b'"}\n'
    assert len(exact) == 1000
    assert len(rows_of(".jsonl", exact)) == 1
    endless = b"\0" * 2**20
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match=r"a line has more than 1,000 characters; is the file a table\?"):
            rows_of(suffix, endless)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200_000


@pytest.mark.parametrize("suffix", KINDS)
def test_memory_does_not_grow_with_the_rows(suffix: str) -> None:
    rows = [{"name": f"{number:09}", "path": "gone.npy"} for number in range(15_000)]
    data = content(suffix, rows)
    del rows
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_table(f"t{suffix}", lambda _: io.BytesIO(data)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 15_000
    # The values alone are over 2 MB.
    assert peak < len(data) + 1_500_000


@pytest.mark.parametrize("columns", [(), ("name", "path")])
def test_a_column_that_is_there_twice_is_refused(columns: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("name,path,name\na,a.npy,b\n")
    with pytest.raises(SourceError, match="the table has the column name twice: rename or delete one of them"):
        list(read_table(str(path), LocalFilesystem().open, columns))


def test_columns_without_a_name_and_unread_columns_may_be_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("name,path,x,x,,\na,a.npy,1,2,,\n")
    (row,) = read_table(str(path), LocalFilesystem().open, ("name", "path"))
    assert row.values == {"name": "a", "path": "a.npy"}


def test_many_keys_of_which_one_is_there_twice_take_no_time(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("{" + ", ".join(f'"{n}": 0' for n in [*range(50_000), 49_999]) + "}\n")
    began_at = thread_time()
    (row,) = read_table(str(tmp_path / "t.jsonl"), LocalFilesystem().open, ())
    assert "the key '49999' is there twice" in row.problem
    assert thread_time() - began_at < 10


def test_a_key_that_is_there_twice_is_a_problem_of_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"name": "a", "path": "a.npy", "name": "b"}\n{"name": "c", "path": "c.npy"}\n')
    first, second = read_table(str(path), LocalFilesystem().open, ("name", "path"))
    assert "the key 'name' is there twice" in first.problem
    assert second.values == {"name": "c", "path": "c.npy"}
