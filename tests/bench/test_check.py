"""The check of ``python -m bench kills`` finds each kind of difference."""

from __future__ import annotations

import ast
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from bench import check
from bench.check import Check, Row, Stored, logged, main, names, unlike_single

pytestmark = pytest.mark.fast

PLACE, SINGLE = "s3://bench/lanes", "s3://bench/single"
OBJECTS = {f"{PLACE}/{name}.png": Stored(10, f"0000000{name}") for name in "123"}
ROWS = [Row(name, "done", f"{PLACE}/{name}.png", 10, f"0000000{name}") for name in "123"]


def found(rows: list[Row] = ROWS, stored: list[tuple[str, Stored]] | None = None, of_source: str = "123") -> list[str]:
    return [*Check().differences(of_source, rows, [*OBJECTS.items()] if stored is None else stored)]


def write_manifest(path: Path, rows: list[Row], width: int = 14) -> Path:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE maps (name, status, locator, bytes, crc32, time, width)")
        values = [(*row, f"written by {path.name}", width) for row in rows]
        database.executemany("INSERT INTO maps VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    return path


def of_single(row: Row) -> Row:
    return row._replace(locator=f"{SINGLE}/{row.name}.png")


def test_equal_sides_have_no_difference() -> None:
    assert found() == []


def test_a_missing_object_is_found() -> None:
    stored = [(locator, content) for locator, content in OBJECTS.items() if "2" not in locator]
    assert found(stored=stored) == [f"2: its row has (10, '00000002'), the store has None at {PLACE}/2.png"]


@pytest.mark.parametrize("wrong", [Stored(11, "00000002"), Stored(10, "00000003")])
def test_a_wrong_size_or_crc_is_found(wrong: Stored) -> None:
    stored = [*(OBJECTS | {f"{PLACE}/2.png": wrong}).items()]
    assert found(stored=stored) == [f"2: its row has (10, '00000002'), the store has {wrong} at {PLACE}/2.png"]


def test_an_object_without_a_row_is_found() -> None:
    stored = [*OBJECTS.items(), (f"{PLACE}/4.png", Stored(1, "0"))]
    assert found(stored=stored) == [f"{PLACE}/4.png: the object has no row"]


def test_an_object_stored_again_with_other_bytes_is_found() -> None:
    stored = [(f"{PLACE}/2.png", Stored(9, "00000009")), *OBJECTS.items()]
    (difference,) = found(stored=stored)
    assert difference.startswith(f"{PLACE}/2.png: stored with Stored(size=9")


def test_a_missing_row_is_found() -> None:
    assert found(ROWS[:2]) == ["3: expected 1 row, found 0", f"{PLACE}/3.png: the object has no row"]


def test_a_doubled_row_is_found() -> None:
    assert found([*ROWS, ROWS[0]]) == ["1: expected 1 row, found 2"]


def test_a_failed_row_is_found() -> None:
    differences = found([*ROWS[:2], Row("3", "failed", None, None, None)])
    assert differences[0].startswith("3: expected a row with status done and a locator, found Row(name='3'")


def test_a_row_of_no_map_is_found() -> None:
    assert found(of_source="12") == ["3: it has a row, but is not in the source"]


def test_two_rows_of_one_object_are_found() -> None:
    rows = [*ROWS, Row("4", *ROWS[2][1:])]
    assert found(rows, of_source="1234") == [f"4: {PLACE}/3.png is also the locator of 3"]


def test_rows_unlike_the_single_run_are_found(tmp_path: Path) -> None:
    ours = write_manifest(tmp_path / "lanes.sqlite", ROWS)
    equal = write_manifest(tmp_path / "equal.sqlite", [*map(of_single, ROWS)])
    assert [*unlike_single(ours, PLACE, equal, SINGLE)] == []
    others = [of_single(ROWS[0])._replace(crc32="f"), of_single(ROWS[1])._replace(locator=f"{SINGLE}/x.png")]
    other = write_manifest(tmp_path / "other.sqlite", [*others, of_single(ROWS[2])._replace(name="4")])
    assert sorted(unlike_single(ours, PLACE, other, SINGLE)) == [
        "1: unlike the single run, crc32 is '00000001', not 'f'",
        "2: unlike the single run, key is '/2.png', not '/x.png'",
        "3: it has no row in the single run's manifest",
        "4: it has no row in this manifest",
    ]


def test_null_is_unlike_a_value(tmp_path: Path) -> None:
    ours = write_manifest(tmp_path / "lanes.sqlite", [ROWS[0]._replace(size=None)])
    single = write_manifest(tmp_path / "single.sqlite", [of_single(ROWS[0])])
    assert [*unlike_single(ours, PLACE, single, SINGLE)] == ["1: unlike the single run, bytes is None, not 10"]


def test_maps_are_named_as_in_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    np.save(tmp_path / "files" / "a.npy", np.zeros((2, 2)))
    np.save(tmp_path / "stack.npy", np.zeros((2, 2, 2)))
    assert [*names(tmp_path)] == ["files/a", "stack/000000", "stack/000001"]


def test_only_whole_lines_of_a_log_below_the_destination_count(tmp_path: Path) -> None:
    log = tmp_path / "puts.log"
    log.write_bytes(
        b"/bench/lanes/a%20b.png?x-id=PutObject 10 0000000a\n/bench/single/a.png 10 0000000a\n/bench/lanes/c.png 1\n"
    )
    assert [*logged(log, PLACE)] == [(f"{PLACE}/a b.png", Stored(10, "0000000a"))]


@pytest.mark.parametrize("missing", [0, 1])
def test_the_exit_code_says_whether_all_is_equal(
    missing: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "maps").mkdir()
    for name in "123":
        np.save(tmp_path / "maps" / f"{name}.npy", np.zeros((2, 2)))
    lines = [f"/bench/lanes/{name}.png 10 0000000{name}\n" for name in "123"]
    (tmp_path / "puts.log").write_text("".join(lines[missing:]))
    ours = write_manifest(tmp_path / "lanes.sqlite", ROWS)
    single = write_manifest(tmp_path / "single.sqlite", [*map(of_single, ROWS)])
    command = [str(ours), str(tmp_path / "maps"), PLACE, "--log", str(tmp_path / "puts.log")]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--single", str(single), SINGLE])
    assert ended.value.code == missing
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"3 maps, 3 rows, {3 - missing} objects, 0 of them stored again")
    assert last.endswith(f", {missing} differences")


def test_the_check_imports_nothing_of_what_it_checks() -> None:
    tree = ast.parse(Path(check.__file__).read_text(encoding="utf-8"))
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert "sqlite3" in imported
    assert not {name for name in imported if name.split(".")[0] in {"async_maps", "bench", "tests", ""}}
