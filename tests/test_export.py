from __future__ import annotations

import csv
import json
import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import async_maps as am
from async_maps import export
from async_maps.errors import ManifestError, MissingExtraError, SettingsError
from async_maps.export import export_manifest
from async_maps.manifest import COLUMNS, Manifest
from async_maps.records import Failure, Receipt

if TYPE_CHECKING:
    from pathlib import Path

SUFFIXES = (".csv", ".parquet", ".jsonl")
NAMES = (
    *("plain", "with, comma", 'with "quotes"', "with 'quotes'", "semi;colon", " blanks ", "back\\slash", "=1+1"),
    *("é/ü", "cafe\N{COMBINING ACUTE ACCENT}", "日本語", "🧠🔥", "\u2028", "%41 + ?#&"),
)  # fmt: skip
_NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    path = folder / "manifest.sqlite"
    done = [
        Receipt(
            name, f"s3://bucket/{name}.png", f"/maps/{name}.npy", "1-1", 2**40 + n, 4, 3, "etag" if n else None, _NOON
        )
        for n, name in enumerate(NAMES)
    ]
    failed = [
        Failure("broken", "/maps/broken.npy", None, "read", 'two\nlines\r\nand "quotes", é 🧠'),
        Failure(r"caf\udce9", r"/maps/caf\udce9.npy", "1-1", "source", "is not UTF-8"),
    ]
    with Manifest(path) as opened:
        opened.begin("s3://bucket")
        opened.write([*done, *failed], "settings")
    return path


def _expected(manifest: Path, *, failed: bool) -> list[dict[str, Any]]:
    with Manifest(manifest, read_only=True) as opened:
        return [dict(zip(COLUMNS, row, strict=True)) for row in opened.rows(failed=failed)]


def _read(file: Path) -> list[dict[str, Any]]:
    """The rows as another program reads them."""
    if file.suffix.lower() == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
        return rows
    if file.suffix.lower() == ".jsonl":
        return [json.loads(line) for line in file.read_bytes().split(b"\n") if line]
    with file.open(newline="", encoding="utf-8") as opened:
        reader = csv.DictReader(opened)
        assert tuple(reader.fieldnames or ()) == COLUMNS
        return [
            {column: None if text == "" else int(text) if column in {"bytes", "width", "height"} else text
             for column, text in row.items()}
            for row in reader
        ]  # fmt: skip


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".CSV", ".Parquet"])
@pytest.mark.parametrize("failed", [False, True])
def test_a_table_holds_every_row_as_it_is(manifest: Path, tmp_path: Path, suffix: str, failed: bool) -> None:
    file = tmp_path / f"locators{suffix}"
    expected = _expected(manifest, failed=failed)
    assert export_manifest(manifest, file, failed=failed) == len(expected) == len(NAMES) + 2 * failed
    assert _read(file) == expected
    assert {row["name"] for row in expected} >= set(NAMES)
    assert ("broken" in {row["name"] for row in expected}) == failed


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_paths_may_be_strings(manifest: Path, tmp_path: Path, suffix: str) -> None:
    assert export_manifest(str(manifest), str(tmp_path / f"a{suffix}")) == len(NAMES)
    assert len(_read(tmp_path / f"a{suffix}")) == len(NAMES)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_manifest_without_rows_is_a_table_without_rows(tmp_path: Path, suffix: str) -> None:
    with Manifest(tmp_path / "m.sqlite"):
        pass
    file = tmp_path / f"a{suffix}"
    assert export_manifest(tmp_path / "m.sqlite", file) == 0
    assert _read(file) == []
    if suffix == ".parquet":
        assert tuple(pq.read_schema(file).names) == COLUMNS


def test_columns_have_the_same_types_whatever_the_rows_hold(manifest: Path, tmp_path: Path) -> None:
    with Manifest(tmp_path / "failed.sqlite") as opened:
        opened.begin("s3://bucket")
        opened.write([Failure("a", "/maps/a.npy", None, "read", "no")], "settings")
    export_manifest(manifest, tmp_path / "a.parquet")
    export_manifest(tmp_path / "failed.sqlite", tmp_path / "b.parquet", failed=True)
    schemas = [pq.read_schema(tmp_path / name) for name in ("a.parquet", "b.parquet")]
    assert schemas[0] == schemas[1]
    assert {name: str(schemas[0].field(name).type) for name in ("name", "bytes", "width", "height")} == {
        "name": "string",
        "bytes": "int64",
        "width": "int64",
        "height": "int64",
    }


@pytest.mark.parametrize("batch", [1, 3, len(NAMES) - 1, len(NAMES)])
def test_rows_beyond_a_batch_are_there_too(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(export, "_BATCH", batch)
    file = tmp_path / "a.parquet"
    assert export_manifest(manifest, file) == len(NAMES)
    assert _read(file) == _expected(manifest, failed=False)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_older_table_is_replaced_in_one_step_and_nothing_else_stays(
    manifest: Path, tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"a{suffix}"
    file.write_text("an older table")
    with file.open() as reader:
        export_manifest(manifest, file)
        assert reader.read() == "an older table"
    assert len(_read(file)) == len(NAMES)
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name, "run"]
    assert [path.name for path in manifest.parent.iterdir()] == [manifest.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_export_that_fails_leaves_the_older_table_and_nothing_else(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "m.sqlite"
    with Manifest(path) as opened:
        opened.begin("s3://bucket")
        opened.write([Failure(f"{n:0500}", "x", None, "read", "no") for n in range(500)], "settings")
    content = bytearray(path.read_bytes())
    content[8192:] = b"\xff" * (len(content) - 8192)
    path.write_bytes(content)
    file = tmp_path / f"a{suffix}"
    file.write_text("an older table")
    with pytest.raises(ManifestError, match=rf"^the manifest {path} cannot be read: "):
        export_manifest(path, file, failed=True)
    assert file.read_text() == "an older table"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [file.name, "m.sqlite"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_who_may_read_a_table_is_for_the_umask_to_say(manifest: Path, tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        export_manifest(manifest, tmp_path / "a.csv")
    finally:
        os.umask(before)
    assert (tmp_path / "a.csv").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("name", ["a.txt", "a", "a.csv.gz", ".csv"])
def test_another_suffix_is_refused(manifest: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        export_manifest(manifest, tmp_path / name)
    assert str(refusal.value) == f"cannot export to {name!r}: expected a name ending in .csv, .parquet, .jsonl"
    assert not (tmp_path / name).exists()


def test_without_pyarrow_the_extra_is_named(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError) as refusal:
        export_manifest(manifest, tmp_path / "a.parquet")
    assert str(refusal.value) == "writing Parquet needs an optional dependency: pip install 'async-maps[parquet]'"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert export_manifest(manifest, tmp_path / "a.csv") == len(NAMES)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_place_that_cannot_be_written_is_one_sentence(manifest: Path, tmp_path: Path, suffix: str) -> None:
    missing, folder = tmp_path / "none" / f"a{suffix}", tmp_path / f"folder{suffix}"
    folder.mkdir()
    for file, reason in ((missing, "No such file or directory"), (folder, "Is a directory")):
        with pytest.raises(ManifestError, match=rf"^cannot write {file}: .*{reason}"):
            export_manifest(manifest, file)
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name, "run"]


def test_a_manifest_that_is_not_there_or_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such manifest"):
        export_manifest(tmp_path / "none.sqlite", tmp_path / "a.csv")
    (tmp_path / "m.sqlite").write_bytes(b"")
    with pytest.raises(ManifestError, match="no manifest of ours"):
        export_manifest(tmp_path / "m.sqlite", tmp_path / "a.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["m.sqlite"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_a_run_has_written_is_exported_with_what_was_counted(tmp_path: Path, suffix: str) -> None:
    maps = [("a", np.array([[0.0, 0.5, 1.0]])), ("b", np.full((2, 2), 0.25)), ("c", np.array([[np.nan]]))]
    manifest, file = tmp_path / "m.sqlite", tmp_path / f"table{suffix}"
    am.run(maps, tmp_path / "out", settings=am.Settings(workers=0), manifest=manifest)
    assert am.export_manifest(manifest, file, failed=True) == 3
    a, b, c = _read(file)
    assert [float(a[column]) for column in ("minimum", "maximum", "mean", "range_low", "range_high")] == [
        0,
        1,
        0.5,
        0,
        1,
    ]
    assert [str(row["constant"]) for row in (a, b)] == ["False", "True"]
    assert float(a["high_share"]) == pytest.approx(2 / 3)
    assert c["mean"] in {None, ""}
    assert c["constant"] in {None, ""}
