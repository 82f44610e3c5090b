from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import async_maps as am
from async_maps.errors import ManifestError, MissingExtraError, SettingsError
from async_maps.export import tables as export
from async_maps.export.tables import export_manifest
from async_maps.manifest.manifest import Manifest
from async_maps.manifest.schema import COLUMNS
from async_maps.outcomes import Failure
from tests.support.exports import EXPORTED_NAMES, SUFFIXES, read_any, read_exported
from tests.support.installed import needs_parquet
from tests.support.manifests import make_map, receipt_for

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fast


def _expected(manifest: Path, *, failed: bool) -> list[dict[str, Any]]:
    with Manifest(manifest, read_only=True) as opened:
        return [dict(zip(COLUMNS, row, strict=True)) for row in opened.rows(failed=failed)]


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".CSV", pytest.param(".Parquet", marks=needs_parquet)])
@pytest.mark.parametrize("failed", [False, True])
def test_a_table_has_every_row_unchanged(manifest: Path, tmp_path: Path, suffix: str, failed: bool) -> None:
    file = tmp_path / f"locators{suffix}"
    expected = _expected(manifest, failed=failed)
    assert (
        export_manifest(manifest, file, rows="all" if failed else "done")
        == len(expected)
        == len(EXPORTED_NAMES) + 2 * failed
    )
    assert read_exported(file) == expected
    assert {row["name"] for row in expected} >= set(EXPORTED_NAMES)
    assert ("broken" in {row["name"] for row in expected}) == failed


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_paths_may_be_strings(manifest: Path, tmp_path: Path, suffix: str) -> None:
    assert export_manifest(str(manifest), str(tmp_path / f"a{suffix}")) == len(EXPORTED_NAMES)
    assert len(read_exported(tmp_path / f"a{suffix}")) == len(EXPORTED_NAMES)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_manifest_gives_an_empty_table(tmp_path: Path, suffix: str) -> None:
    with Manifest(tmp_path / "m.sqlite"):
        pass
    file = tmp_path / f"a{suffix}"
    assert export_manifest(tmp_path / "m.sqlite", file) == 0
    assert read_exported(file) == []
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        assert tuple(pq.read_schema(file).names) == COLUMNS


def test_column_types_do_not_depend_on_the_rows(manifest: Path, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    with Manifest(tmp_path / "failed.sqlite") as opened:
        opened.begin("s3://bucket")
        opened.write([Failure("a", "/maps/a.npy", None, "read", "no")], "settings")
    export_manifest(manifest, tmp_path / "a.parquet")
    export_manifest(tmp_path / "failed.sqlite", tmp_path / "b.parquet", rows="all")
    schemas = [pq.read_schema(tmp_path / name) for name in ("a.parquet", "b.parquet")]
    assert schemas[0] == schemas[1]
    assert {name: str(schemas[0].field(name).type) for name in ("name", "bytes", "width", "height")} == {
        "name": "string",
        "bytes": "int64",
        "width": "int64",
        "height": "int64",
    }


@needs_parquet
@pytest.mark.parametrize("batch", [1, 3, len(EXPORTED_NAMES) - 1, len(EXPORTED_NAMES)])
def test_rows_are_exported_in_batches_of_any_size(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(export, "_BATCH", batch)
    file = tmp_path / "a.parquet"
    assert export_manifest(manifest, file) == len(EXPORTED_NAMES)
    assert read_exported(file) == _expected(manifest, failed=False)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_older_table_is_replaced_atomically(manifest: Path, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a{suffix}"
    export_manifest(manifest, file, columns=["name", "locator"])
    older = file.read_bytes()
    with file.open("rb") as reader:
        export_manifest(manifest, file)
        assert reader.read() == older
    assert len(read_exported(file)) == len(EXPORTED_NAMES)
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name, "run"]
    assert [path.name for path in manifest.parent.iterdir()] == [manifest.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_export_keeps_the_older_table(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "m.sqlite"
    with Manifest(path) as opened:
        opened.begin("s3://bucket")
        opened.write([Failure(f"{n:0500}", "x", None, "read", "no") for n in range(500)], "settings")
    file = tmp_path / f"a{suffix}"
    export_manifest(path, file, rows="all")
    older = file.read_bytes()
    content = bytearray(path.read_bytes())
    content[8192:] = b"\xff" * (len(content) - 8192)
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=rf"^the manifest {path} cannot be read: "):
        export_manifest(path, file, rows="all")
    assert file.read_bytes() == older
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [file.name, "m.sqlite"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_umask_sets_the_mode_of_a_table(manifest: Path, tmp_path: Path, umask: int, mode: int) -> None:
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
    assert (
        str(refusal.value)
        == "writing Parquet needs the extra 'parquet': pip install '.[parquet]' where this package was cloned"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert export_manifest(manifest, tmp_path / "a.csv") == len(EXPORTED_NAMES)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_unwritable_path_is_reported(manifest: Path, tmp_path: Path, suffix: str) -> None:
    missing, folder = tmp_path / "none" / f"a{suffix}", tmp_path / f"folder{suffix}"
    folder.mkdir()
    for file, reason in ((missing, "No such file or directory"), (folder, "Is a directory")):
        with pytest.raises(ManifestError, match=rf"^cannot write {file}: .*{reason}"):
            export_manifest(manifest, file)
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name, "run"]


def test_a_missing_or_invalid_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such manifest"):
        export_manifest(tmp_path / "none.sqlite", tmp_path / "a.csv")
    (tmp_path / "m.sqlite").write_bytes(b"")
    with pytest.raises(ManifestError, match="not a manifest"):
        export_manifest(tmp_path / "m.sqlite", tmp_path / "a.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["m.sqlite"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_statistics_of_a_run_are_exported(tmp_path: Path, suffix: str) -> None:
    maps = [("a", np.array([[0.0, 0.5, 1.0]])), ("b", np.full((2, 2), 0.25)), ("c", np.array([[np.nan]]))]
    manifest, file = tmp_path / "m.sqlite", tmp_path / f"table{suffix}"
    am.run(maps, tmp_path / "out", settings=am.Settings(workers=0), manifest=manifest)
    assert am.export_manifest(manifest, file, rows="all") == 3
    a, b, c = read_exported(file)
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


# Columns


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_table_has_the_requested_columns_in_order(manifest: Path, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a{suffix}"
    assert export_manifest(manifest, file, columns=("status", "locator", "name")) == len(EXPORTED_NAMES)
    rows = read_any(file)
    assert {tuple(row) for row in rows} == {("status", "locator", "name")}
    assert rows == [
        {"status": "done", "locator": f"s3://bucket/{name}.png", "name": name} for name in sorted(EXPORTED_NAMES)
    ]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"columns": ["name", "color"]}, "columns: unknown 'color'; known: name, locator, status, source"),
        ({"columns": []}, "columns: expected at least one"),
        ({"columns": ["name", "name"]}, "columns: name each column only once, found name, name"),
        ({"columns": ["name"], "export_format": "kolena"}, "from which activation_map is made, found name"),
        ({"columns": ["name"], "export_format": "fiftyone"}, "from which map_path is made, found name"),
        ({"export_format": "excel"}, "export_format: expected plain, kolena, fiftyone, found 'excel'"),
        ({"rows": "broken"}, "rows: expected done, failed, all, found 'broken'"),
        (
            {"rows": "failed", "export_format": "kolena"},
            "failed maps have no overlays for kolena: export them as plain",
        ),
        ({"rows": "failed", "presign_hours": 1}, "presign: failed maps have no overlays to sign"),
        ({"columns": ["reason", "reason"]}, "columns: name each column only once, found reason, reason"),
        ({"presign_hours": 0}, "presign: expected 1 to 168 hours, found 0"),
        ({"presign_hours": float("nan")}, "presign: expected 1 to 168 hours, found nan"),
        ({"presign_hours": 169}, "presign: expected 1 to 168 hours, found 169"),
    ],
)
def test_invalid_export_options_are_refused(
    manifest: Path, tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SettingsError) as refusal:
        export_manifest(manifest, tmp_path / "a.csv", **options)
    assert sentence in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


FAILURES = [
    {"name": "broken", "stage": "read", "reason": 'two\nlines\r\nand "quotes", é 🧠', "source": "/maps/broken.npy"},
    {"name": r"caf\udce9", "stage": "source", "reason": "is not UTF-8", "source": r"/maps/caf\udce9.npy"},
]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_failures_alone_have_the_columns_that_say_why(manifest: Path, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"failures{suffix}"
    assert export_manifest(manifest, file, rows="failed") == 2
    rows = read_any(file)
    assert [tuple(row) for row in rows] == [("name", "stage", "reason", "source")] * 2
    assert rows == FAILURES


def test_failures_have_other_columns_when_asked(manifest: Path, tmp_path: Path) -> None:
    file = tmp_path / "failures.jsonl"
    assert export_manifest(manifest, file, rows="failed", columns=["error", "reason", "locator"]) == 2
    assert read_any(file) == [{"error": row["reason"], "reason": row["reason"], "locator": None} for row in FAILURES]


# For Kolena


def _read_by_kolena(kolena: Any, file: Path) -> Any:
    if file.suffix == ".jsonl":
        return kolena.dataframe_from_json(file, lines=True)
    return getattr(kolena, f"dataframe_from_{file.suffix[1:]}")(file)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_kolena_reads_bitmap_masks(kolena: Any, manifest: Path, tmp_path: Path, suffix: str) -> None:
    from kolena.annotation import BitmapMask

    file = tmp_path / f"a{suffix}"
    assert export_manifest(manifest, file, rows="all", export_format="kolena") == len(EXPORTED_NAMES) + 2
    frame = _read_by_kolena(kolena, file)
    assert list(frame.columns) == ["name", "activation_map", *COLUMNS[2:]]
    masks = dict(zip(frame["name"], frame["activation_map"], strict=True))
    assert masks.pop("broken") is None
    assert masks.pop(r"caf\udce9" if suffix != ".parquet" else r"caf\\udce9") is None
    # Kolena's reader of Parquet removes quotes but keeps the escapes between them.
    escaped = {name for name in EXPORTED_NAMES if suffix == ".parquet" and set(name) & {'"', "\\"}}
    assert len(masks) == len(EXPORTED_NAMES)
    for name in set(EXPORTED_NAMES) - escaped:
        assert masks[name] == BitmapMask(f"s3://bucket/{name}.png")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_table_for_kolena_equals_kolenas_own(kolena: Any, tmp_path: Path, suffix: str) -> None:
    import pandas as pd
    from kolena.annotation import BitmapMask

    locators = {"val/a": "s3://b/val/a.png", "0007": "s3://b/0007.png", "1e5": "s3://b/1e5.png"}
    with Manifest(tmp_path / "m.sqlite") as opened:
        opened.begin("s3://b")
        opened.write([replace(receipt_for(make_map(name)), locator=locator) for name, locator in locators.items()], "s")
    ours, theirs = tmp_path / f"ours{suffix}", tmp_path / f"theirs{suffix}"
    export_manifest(tmp_path / "m.sqlite", ours, export_format="kolena", columns=["name", "locator", "width", "stage"])
    names = sorted(locators)
    masks = [BitmapMask(locators[name]) for name in names]
    frame = pd.DataFrame({"name": names, "activation_map": masks, "width": [4] * 3, "stage": [None] * 3})
    if suffix == ".csv":
        kolena.dataframe_to_csv(frame, theirs, index=False)
        assert ours.read_bytes().replace(b"\r\n", b"\n") == theirs.read_bytes()
    elif suffix == ".parquet":
        import pyarrow.parquet as pq

        kolena.dataframe_to_parquet(frame, theirs)
        read = _read_by_kolena(kolena, ours)
        assert read.equals(_read_by_kolena(kolena, theirs))
        assert read["name"].tolist() == names
        for column in ("name", "activation_map", "width"):
            assert pq.read_table(ours)[column].to_pylist() == pq.read_table(theirs)[column].to_pylist()
    else:
        rows = [json.loads(line) for line in ours.read_text().splitlines()]
        assert [row["activation_map"] for row in rows] == [mask._to_dict() for mask in masks]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_locators_that_kolena_cannot_read_are_refused(tmp_path: Path, suffix: str) -> None:
    am.run([("a", np.zeros((2, 2)))], tmp_path / "out", settings=am.Settings(workers=0), manifest=tmp_path / "m.sqlite")
    file = tmp_path / f"a{suffix}"
    export_manifest(tmp_path / "m.sqlite", file)
    older = file.read_bytes()
    with pytest.raises(ManifestError) as refusal:
        export_manifest(tmp_path / "m.sqlite", file, export_format="kolena")
    assert str(refusal.value) == (
        f"{tmp_path / 'm.sqlite'} cannot be exported for Kolena: Kolena reads s3://, gs:// and https:// "
        f"locators with a bucket and a key; found {(tmp_path / 'out' / 'a.png').as_uri()}"
    )
    assert file.read_bytes() == older


# For FiftyOne


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_table_for_fiftyone_has_gray_paths_and_their_range(tmp_path: Path, suffix: str) -> None:
    maps = {name: np.random.default_rng(len(name)).normal(size=(5, 7)) for name in ("a", "b +%/é c")}
    bad = np.full((2, 2), np.nan)
    settings = am.Settings(workers=0, png="gray", range="-2,2")
    manifest, file = tmp_path / "m.sqlite", tmp_path / f"a{suffix}"
    am.run([*maps.items(), ("zz", bad)], tmp_path / "out", settings=settings, manifest=manifest)
    assert (
        export_manifest(manifest, file, export_format="fiftyone", columns=["name", "locator", "range_low"], rows="all")
        == 3
    )
    rows = read_any(file)
    assert [tuple(row) for row in rows] == [("name", "map_path", "range", "range_low")] * 3
    assert list(rows[2].values()) == ["zz", *([""] * 3 if suffix == ".csv" else [None] * 3)]
    for row in rows[:2]:
        assert (json.loads(row["range"]) if suffix == ".csv" else row["range"]) == [0, 255]
        assert float(row["range_low"]) == -2
        assert row["map_path"] == str(tmp_path / "out" / f"{row['name']}.png")
        with Image.open(row["map_path"]) as image:
            assert image.mode == "L"
            expected = np.rint((np.clip(maps[row["name"]], -2, 2) + 2) / 4 * 255)
            assert np.abs(np.asarray(image) - expected).max() <= 1


def test_colored_overlays_and_local_urls_are_refused(tmp_path: Path) -> None:
    manifest, file = tmp_path / "m.sqlite", tmp_path / "a.jsonl"
    maps = {"a": np.zeros((2, 2)), "b": np.ones((2, 2))}
    am.run(maps.items(), tmp_path / "out", settings=am.Settings(workers=0), manifest=manifest)
    with pytest.raises(ManifestError, match=r"for FiftyOne, .*: 2 of its overlays are colored; .* run .* --png gray"):
        export_manifest(manifest, file, export_format="fiftyone")
    with pytest.raises(
        SettingsError, match=r"only objects in S3, gs:// or az:// have presigned URLs; these overlays lie in file:"
    ):
        export_manifest(manifest, file, presign_hours=1)
    assert not file.exists()


def test_a_table_for_fiftyone_keeps_s3_locators(manifest: Path, tmp_path: Path) -> None:
    export_manifest(manifest, tmp_path / "a.jsonl", export_format="fiftyone", columns=["name", "locator"])
    rows = read_any(tmp_path / "a.jsonl")
    assert [row["map_path"] for row in rows] == [f"s3://bucket/{name}.png" for name in sorted(EXPORTED_NAMES)]
