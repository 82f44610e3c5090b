"""The check of ``python -m bench kills --plan`` finds each kind of difference between the objects of a plan."""

from __future__ import annotations

import ast
import io
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")

import pyarrow as pa
import pyarrow.parquet as pq

from bench import check_plan
from bench.check_plan import Parts, main, opened
from tests.support.s3 import upload

if TYPE_CHECKING:
    from collections.abc import Sequence

LISTED = {1: ("files/a", "files/b"), 2: ("stack/000000", "stack/000001"), 3: ("stack/000002",)}


def table(rows: Sequence[dict[str, Any]], footer: dict[str, Any] | None = None) -> bytes:
    data, found = io.BytesIO(), pa.Table.from_pylist(list(rows))
    if footer is not None:
        found = found.replace_schema_metadata({b"async-maps-part": json.dumps(footer).encode()})
    pq.write_table(found, data)
    return data.getvalue()


def row(name: str, **values: Any) -> dict[str, Any]:
    return {
        "name": name,
        "status": "done",
        "locator": f"s3://bench/parts/{name}.png",
        "bytes": 1,
        "crc32": "0000000a",
    } | values


def done(part: int, names: Sequence[str], **footer: Any) -> bytes:
    rows = [row(name) for name in names]
    locators = sorted(each["locator"] for each in rows)
    told = {"part": part, "rows": len(rows), "failures": 0, "first": locators[0], "last": locators[-1]}
    return table(rows, told | {"digest": f"digest {part}"} | footer)


@pytest.fixture
def objects(maps: Path) -> dict[str, bytes]:
    """The objects of a plan of two files and a stack, which is in two parts."""
    (maps / "files").mkdir()
    for name in "ab":
        np.save(maps / "files" / f"{name}.npy", np.zeros((2, 2)))
    np.save(maps / "stack.npy", np.zeros((3, 2, 2)))
    files = [
        {"name": f"files/{name}", "path": str(maps / f"files/{name}.npy"), "first": 0, "end": None} for name in "ab"
    ]
    stack: dict[str, Any] = {"name": "stack", "path": str(maps / "stack.npy")}
    lists: dict[int, list[dict[str, Any]]] = {
        1: files,
        2: [stack | {"first": 0, "end": 2}],
        3: [stack | {"first": 2, "end": 3}],
    }
    commit = {"parts": [[part, 0, f"digest {part}"] for part in LISTED]}
    return {
        "plan.json": b'{"id": "x", "parts": 3}',
        "other/parts/0000001.parquet": b"of a killed planner",
        "x/commits/_SUCCESS-1": json.dumps(commit).encode(),
        **{f"x/parts/{part:07}.parquet": table(rows) for part, rows in lists.items()},
        **{f"x/done/{part:07}.0.parquet": done(part, names) for part, names in LISTED.items()},
    }


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The folder of a plan."""
    return tmp_path / "plan"


def write(place: Path, objects: dict[str, bytes]) -> None:
    for name, data in objects.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)


def differences(place: Path) -> list[str]:
    return [*Parts(opened(str(place))).differences(place / "rows.sqlite")]


def test_a_complete_plan_has_no_difference(place: Path, objects: dict[str, bytes]) -> None:
    write(place, objects)
    assert differences(place) == []
    with closing(sqlite3.connect(place / "rows.sqlite")) as database:
        found = database.execute("SELECT name, locator, bytes FROM maps ORDER BY name").fetchall()
    names = [name for names in LISTED.values() for name in names]
    assert found == [(name, f"s3://bench/parts/{name}.png", 1) for name in names]


def test_a_plan_is_read_from_s3(bucket: str, objects: dict[str, bytes], tmp_path: Path) -> None:
    upload(bucket, {f"plan/{name}": data for name, data in objects.items()})
    parts = Parts(opened(f"s3://{bucket}/plan"))
    assert [*parts.differences(tmp_path / "rows.sqlite")] == []
    assert len(parts.maps) == 5


@pytest.mark.parametrize("lost", ["x/parts/0000003.parquet", "x/done/0000002.0.parquet", "x/commits/_SUCCESS-1"])
def test_a_missing_object_is_found(lost: str, place: Path, objects: dict[str, bytes]) -> None:
    del objects[lost]
    write(place, objects)
    assert f"{lost}: it is missing" in differences(place)


@pytest.mark.parametrize("more", ["x/parts/0000004.parquet", "x/done/0000002.1.parquet", "x/commits/_SUCCESS-2"])
def test_an_object_that_does_not_belong_to_the_plan_is_found(more: str, place: Path, objects: dict[str, bytes]) -> None:
    write(place, objects | {more: objects["x/done/0000002.0.parquet" if "done" in more else "x/parts/0000003.parquet"]})
    assert f"{more}: it does not belong to the plan" in differences(place)


@pytest.mark.parametrize(
    ("changed", "data", "difference"),
    [
        ("x/done/0000003.0.parquet", done(3, ("files/a",)), "files/a: its row is in part 3, and the lists have it in "),
        ("x/done/0000001.0.parquet", done(1, ("files/a",)), "files/b: it has no row in part 1"),
        ("x/done/0000003.0.parquet", done(3, ("stack/000003",)), "stack/000003: its row is in part 3, and the lists "),
        ("x/done/0000003.0.parquet", done(3, LISTED[3], rows=2), "the footer of part 3 says [3, 2, 0, "),
        ("x/done/0000003.0.parquet", done(3, LISTED[3], first="a"), "the footer of part 3 says [3, 1, 0, 'a', "),
        ("x/done/0000003.0.parquet", done(3, LISTED[3], digest="b"), "the commit names other manifests"),
    ],
)  # fmt: skip
def test_a_wrong_manifest_is_found(
    changed: str, data: bytes, difference: str, place: Path, objects: dict[str, bytes]
) -> None:
    write(place, objects | {changed: data})
    found = differences(place)
    assert any(each.startswith(difference) for each in found), found


def test_a_map_in_two_lists_is_found(place: Path, objects: dict[str, bytes]) -> None:
    write(place, objects | {"x/parts/0000003.parquet": objects["x/parts/0000002.parquet"]})
    assert "stack/000000: it is in the lists of parts 2 and 3" in differences(place)


@pytest.mark.parametrize("missing", [0, 1])
def test_the_exit_code_says_whether_all_is_equal(
    missing: int, place: Path, objects: dict[str, bytes], maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(place, objects)
    names = [name for names in LISTED.values() for name in names]
    lines = [f"/bench/parts/{name}.png 1 0000000a\n" for name in names[missing:]]
    (tmp_path / "puts.log").write_text("".join(lines))
    with pytest.raises(SystemExit) as ended:
        main([str(place), str(maps), "s3://bench/parts", "--log", str(tmp_path / "puts.log")])
    assert ended.value.code == missing
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == "plan x: 5 maps in 3 parts, 0 differences"
    assert last.startswith(f"5 maps, 5 rows, {5 - missing} objects, ")


def test_the_check_imports_nothing_of_what_it_checks() -> None:
    tree = ast.parse(Path(check_plan.__file__).read_text(encoding="utf-8"))
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name for name in imported if name.split(".")[0] in {"async_maps", "bench", "tests", ""}} == {"bench"}
