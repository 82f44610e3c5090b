"""Listings as sources: which rows become maps, and the failures of the others."""

from __future__ import annotations

import csv
import json
import re
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.errors import SourceError
from async_maps.outcomes import Failure
from async_maps.sources import open_source
from async_maps.sources.activation_map import ActivationMap
from tests.support.installed import needs_parquet
from tests.support.leftovers import leaves_nothing
from tests.support.maps import npy
from tests.support.s3 import upload

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Write = Callable[[Path, Sequence[dict[str, Any]]], Path]

MAP = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)

pytestmark = [pytest.mark.fast, pytest.mark.usefixtures(leaves_nothing.__name__)]


def write_csv(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path = folder / "list.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path = folder / "list.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = folder / "list.parquet"
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


@pytest.fixture(params=[write_csv, write_jsonl, write_parquet])
def write(request: pytest.FixtureRequest) -> Write:
    function: Write = request.param
    return function


def entries(place: Path | str) -> list[ActivationMap | Failure]:
    return list(open_source(place))


def maps_of(found: Sequence[ActivationMap | Failure]) -> dict[str, str]:
    return {entry.name: str(entry.path) for entry in found if isinstance(entry, ActivationMap)}


def failures_of(found: Sequence[ActivationMap | Failure]) -> list[Failure]:
    return [entry for entry in found if isinstance(entry, Failure)]


def test_each_row_names_the_maps_of_its_file(tmp_path: Path, write: Write) -> None:
    (tmp_path / "deep").mkdir()
    np.save(tmp_path / "a.npy", MAP)
    np.save(tmp_path / "deep" / "b.npy", MAP)
    np.savez(tmp_path / "two.npz", x=MAP, y=MAP)
    np.save(tmp_path / "stack.npy", np.stack([MAP, MAP]))
    rows = [
        {"label": 3, "name": "first", "path": "a.npy"},
        {"label": 1, "name": "val/é 2", "path": str(tmp_path / "deep" / "b.npy")},
        {"label": 2, "name": "many", "path": "./two.npz"},
        {"label": 2, "name": "pile", "path": "deep/../stack.npy"},
    ]
    assert maps_of(entries(write(tmp_path, rows))) == {
        "first": str(tmp_path / "a.npy"),
        "val/é 2": str(tmp_path / "deep" / "b.npy"),
        "many/x": str(tmp_path / "two.npz"),
        "many/y": str(tmp_path / "two.npz"),
        "pile/000000": str(tmp_path / "stack.npy"),
        "pile/000001": str(tmp_path / "stack.npy"),
    }


def test_a_bad_row_fails_alone_and_names_its_line(tmp_path: Path, write: Write) -> None:
    np.save(tmp_path / "a.npy", MAP)
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("no map")
    (tmp_path / "bad.npz").write_text("no archive")
    rows = [
        {"name": "good", "path": "a.npy"},
        {"name": "gone", "path": "gone.npy"},
        {"name": "", "path": "a.npy"},
        {"name": "nowhere", "path": ""},
        {"name": "text", "path": "notes.txt"},
        {"name": "null", "path": "a\0.npy"},
        {"name": "folder", "path": "folder"},
        {"name": "damaged", "path": "bad.npz"},
        {"name": "../up", "path": "a.npy"},
        {"name": "last", "path": "a.npy"},
    ]
    listing = write(tmp_path, rows)
    found = entries(listing)
    assert set(maps_of(found)) == {"good", "last"}
    first = 2 if listing.suffix == ".csv" else 1
    kind = "row" if listing.suffix == ".parquet" else "line"
    expected = {
        1: "the file does not exist",
        2: "the row has no name",
        3: "the row has no path",
        4: "is not a file of activation maps",
        5: "the path has a null byte",
        6: "found a folder",
        7: "expected an .npz archive",
        8: "'..' is not allowed",
    }
    failures = failures_of(found)
    assert len(failures) == len(expected)
    for failure, (index, reason) in zip(failures, expected.items(), strict=True):
        assert failure.stage == "source"
        assert reason in failure.reason
        assert f"{listing}, {kind} {first + index}" in str(failure)
    # The file is the source where it is known, so that a later run recognizes the repaired file.
    assert failures[0].source == str(tmp_path / "gone.npy")


def test_missing_columns_are_named_with_the_columns_found(tmp_path: Path, write: Write) -> None:
    listing = write(tmp_path, [{"id": "1", "file": "a.npy", "name": "x"}])
    columns = "name and path, or a column of arrays; found id (string), file (string), name (string)"
    if listing.suffix != ".parquet":
        columns = "name and path; found id, file, name"
    with pytest.raises(SourceError, match=re.escape(f"{listing.name}: the table needs the columns {columns}")):
        entries(listing)


def test_a_listing_without_rows_is_refused(tmp_path: Path) -> None:
    for name, text in (("a.csv", ""), ("b.csv", "name,path\r\n"), ("c.jsonl", ""), ("d.jsonl", "\n\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(SourceError, match="contains no activation maps"):
            am.run(tmp_path / name, "memory://", settings=am.Settings(workers=0))


def test_a_missing_listing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no such file or folder: .*none\.csv"):
        open_source(tmp_path / "none.csv")


def test_a_csv_file_from_excel_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", MAP)
    np.save(tmp_path / "b,c.npy", MAP)
    listing = tmp_path / "LIST.CSV"
    listing.write_bytes(
        '\ufeffname,path\r\nä,a.npy\r\n\r\n"two\r\nlines","b,c.npy"\r\nx,b'.encode() + b",\xff\r\nshort\r\n"
    )
    found = entries(listing)
    assert maps_of(found) == {"ä": str(tmp_path / "a.npy")}
    two, unread, short = failures_of(found)
    assert "control character" in two.reason
    assert f"{listing}, line 5" in two.reason
    assert "does not exist" in unread.reason
    assert short.source == f"{listing}, line 7"


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl"])
def test_a_listing_in_utf_16_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("name,path\na,a.npy\n", "utf-16")
    with pytest.raises(SourceError, match=rf"{name}: the table is UTF-16: save it as UTF-8"):
        entries(tmp_path / name)


def test_a_csv_row_that_is_too_long_fails_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", MAP)
    listing = tmp_path / "list.csv"
    listing.write_text(f"name,path\nx,{'y' * 200_000}\ngood,a.npy\n")
    found = entries(listing)
    assert set(maps_of(found)) == {"good"}
    (failure,) = failures_of(found)
    assert failure.source == f"{listing}, line 2"
    assert "field larger than field limit" in failure.reason


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl", pytest.param("list.parquet", marks=needs_parquet)])
def test_a_binary_file_is_refused_as_a_listing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff\0" * 2**22)
    with pytest.raises(SourceError, match=rf"{name}: "):
        entries(tmp_path / name)


def test_invalid_json_lines_fail_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", MAP)
    lines = [
        '{"name": "x"',
        "[1, 2]",
        "[" * 100_000,
        '{"name": "n", "path": 5}',
        '{"name": null, "path": "a.npy"}',
        "{}",
    ]
    listing = tmp_path / "list.jsonl"
    good = '{"name": "good", "path": "a.npy", "more": [1]}'
    listing.write_text("\n".join([good, *lines, "", '{"name": 7, "path": "a.npy"}']))
    found = entries(listing)
    assert set(maps_of(found)) == {"good", "7"}
    reasons = [failure.reason for failure in failures_of(found)]
    assert len(reasons) == len(lines)
    for reason, part in zip(
        reasons, ["JSON object: ", "found [1, 2]", "", "found 5", "no name", "no name"], strict=True
    ):
        assert part in reason
    listing.write_text("[1]\n" + good)
    assert len(entries(listing)) == 2


def test_listings_in_a_folder_are_not_opened(maps: Path) -> None:
    np.save(maps / "a.npy", MAP)
    write_csv(maps, [{"name": "b", "path": "a.npy"}])
    assert set(maps_of(entries(maps))) == {"a"}


@pytest.mark.slow
def test_the_memory_of_a_listing_does_not_grow_with_its_rows(tmp_path: Path, write: Write) -> None:
    rows = [{"name": f"{i:09}", "path": "gone.npy"} for i in range(10_000)]
    source = iter(open_source(write(tmp_path, rows)))
    first = next(source)
    del rows
    tracemalloc.start()
    try:
        count = sum(1 for _ in source)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert first.name == "000000000"
    assert count == 9_999
    assert peak < 2 * 2**20


@pytest.mark.runs
def test_a_duplicate_name_is_refused_before_any_upload(tmp_path: Path, write: Write) -> None:
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", MAP)
    rows = [{"name": "y", "path": "c.npy"}, {"name": "x", "path": "a.npy"}, {"name": "x", "path": "b.npy"}]
    listing = write(tmp_path, rows)
    with pytest.raises(am.SourceError, match=r"the name 'x' is in (line|row) \d and in (line|row) \d; give each map"):
        am.run(listing, tmp_path / "out", settings=am.Settings(workers=0), manifest=tmp_path / "manifest.sqlite")
    assert not (tmp_path / "out").exists()


@pytest.mark.runs
def test_a_second_run_skips_unchanged_maps(tmp_path: Path, write: Write) -> None:
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", MAP)
    listing = write(tmp_path, [{"name": "x", "path": "a.npy"}, {"name": "y", "path": "b.npy"}])
    counts = []
    for _ in range(2):
        settings = am.Settings(workers=0)
        report = am.run(listing, tmp_path / "out", settings=settings, manifest=tmp_path / "manifest.sqlite")
        counts.append((report.uploaded, report.failed, report.skipped))
    assert counts == [(2, 0, 0), (0, 0, 2)]


@pytest.mark.slow
def test_rows_and_listings_can_be_in_s3(tmp_path: Path, bucket: str, write: Write) -> None:
    np.save(tmp_path / "here.npy", MAP)
    upload(bucket, {"maps/a.npy": npy(), "maps/deep/b.npy": npy(np.stack([MAP, MAP]))})
    rows = [
        {"name": "far", "path": f"s3://{bucket}/maps/a.npy"},
        {"name": "near", "path": str(tmp_path / "here.npy")},
        {"name": "gone", "path": f"s3://{bucket}/maps/gone.npy"},
        {"name": "no bucket", "path": "s3://!/a.npy"},
        {"name": "unread", "path": f"s3://{bucket}/maps/a.txt"},
    ]
    listing = write(tmp_path, rows)
    found = entries(listing)
    assert [entry.name for entry in found] == ["far", "near", "gone", "no bucket", "unread"]
    assert set(maps_of(found)) == {"far", "near"}
    assert all(f"{listing}, " in failure.reason for failure in failures_of(found))

    relative = write(tmp_path, [{"name": "x", "path": "a.npy"}, {"name": "y", "path": "../maps/deep/b.npy"}])
    upload(bucket, {f"maps/{relative.name}": relative.read_bytes()})
    assert maps_of(entries(f"s3://{bucket}/maps/{relative.name}")) == {
        "x": f"s3://{bucket}/maps/a.npy",
        "y/000000": f"s3://{bucket}/maps/deep/b.npy",
        "y/000001": f"s3://{bucket}/maps/deep/b.npy",
    }
    with pytest.raises(SourceError, match=rf"s3://{bucket}/maps/none{relative.suffix}: the file does not exist"):
        entries(f"s3://{bucket}/maps/none{relative.suffix}")
