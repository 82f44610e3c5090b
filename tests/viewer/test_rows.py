"""Reading of a manifest beside its run: short connections, copies where it cannot be opened, plans."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest

import async_maps as am
from async_maps.manifest.manifest import Manifest
from async_maps.manifest.samples import LastRun, Sample
from async_maps.plans.planning import aplan
from async_maps.shares.share import arun_plan
from async_maps.viewer import rows as rows_module
from async_maps.viewer.groups import Groups
from async_maps.viewer.history import history
from async_maps.viewer.orders import Snapshot
from async_maps.viewer.rows import ViewedRows
from tests.support.leftovers import leaves_nothing
from tests.support.manifests import SETTINGS, failure_for, make_map, receipt_for, write_run
from tests.support.maps import random_map

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.fast, pytest.mark.usefixtures(leaves_nothing.__name__)]


def beside(path: Path) -> set[str]:
    return {file.name for file in path.parent.iterdir()}


def test_a_reader_leaves_nothing_beside_the_manifest(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    write_run(path, [receipt_for(make_map("a"))])
    before = beside(path), path.read_bytes()
    with ViewedRows(path) as viewed:
        assert viewed.counts() == (1, 0)
        Snapshot(viewed).column("mean")
    assert (beside(path), path.read_bytes()) == before


def test_a_run_that_ends_beside_a_reader_closes_its_log(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    with Manifest(path) as manifest:
        manifest.begin("s3://bucket/prefix")
        manifest.write([receipt_for(make_map("a"))], SETTINGS)
        with ViewedRows(path) as viewed:
            assert len(Snapshot(viewed)) == 1
            manifest.write([receipt_for(make_map("b"))], SETTINGS)
            assert len(Snapshot(viewed)) == 2
            assert {"m.sqlite-wal"} < beside(path)
            manifest.close()
            assert beside(path) <= {"m.sqlite", "m.sqlite-lock"}
            assert len(Snapshot(viewed)) == 2


def test_a_copy_whose_log_cannot_be_read_in_place_is_copied(
    unprivileged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(unprivileged))
    there, here = unprivileged / "there", unprivileged / "here"
    there.mkdir()
    here.mkdir()
    with Manifest(there / "m.sqlite") as manifest:
        manifest.begin("s3://bucket/prefix")
        manifest.write([receipt_for(make_map("a"))], SETTINGS)
        # As a backup takes it during a run: with its log, but without the index of the log.
        for suffix in ("", "-wal"):
            shutil.copyfile(there / f"m.sqlite{suffix}", here / f"m.sqlite{suffix}")
    here.chmod(0o555)
    try:
        with ViewedRows(here / "m.sqlite") as viewed:
            assert viewed.is_copy
            assert viewed.counts().total == 1
        assert beside(here / "m.sqlite") == {"m.sqlite", "m.sqlite-wal"}
    finally:
        here.chmod(0o755)


def test_a_copy_without_its_log_gets_no_files_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / "m.sqlite"
    with Manifest(tmp_path / "m.sqlite") as manifest:
        manifest.begin("s3://bucket/prefix")
        manifest.write([receipt_for(make_map("a"))], SETTINGS)
        with closing(sqlite3.connect(tmp_path / "m.sqlite")) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copyfile(tmp_path / "m.sqlite", copy)
    with ViewedRows(copy) as viewed:
        assert (viewed.is_copy, viewed.counts().total) == (True, 1)
        assert beside(copy) == {"m.sqlite"}
    with ViewedRows(tmp_path / "m.sqlite") as viewed:
        assert not viewed.is_copy


def test_a_manifest_is_found_after_the_folder_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "m.sqlite", [receipt_for(make_map("a"))])
    monkeypatch.chdir(tmp_path)
    with ViewedRows("m.sqlite") as viewed:
        monkeypatch.chdir("/")
        assert viewed.counts(fresh=True).total == 1


def test_a_copy_of_a_manifest_that_is_written_is_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.sqlite"
    run = LastRun("2026-01-01T00:00:00.000+00:00", None, "changed", None)
    sample = Sample(run.started_at, run.started_at, None, 0, 0, 0, 0, 0, 0, 1, {})
    with Manifest(path) as manifest:
        manifest.begin("s3://bucket/prefix")
        manifest.keep_sample(run, sample)
        for can_open in (True, False):
            monkeypatch.setattr(rows_module, "_can_open", lambda _, can_open=can_open: can_open)
            with ViewedRows(path) as viewed:
                found = history(viewed)
                assert (found["state"], found["is_copy"]) == ("running", not can_open)
                assert (viewed.is_written(), viewed.is_live()) == (True, can_open)
    with ViewedRows(path) as viewed:
        assert (history(viewed)["state"], viewed.is_written()) == ("lost", False)


@pytest.mark.parametrize("what", ["missing", "text", "database", "folder"])
def test_what_is_no_manifest_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "m.sqlite"
    if what == "text":
        path.write_text("no manifest")
    elif what == "database":
        with closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE t (x)")
    elif what == "folder":
        path = tmp_path / "missing" / "m.sqlite"
    with pytest.raises(am.ManifestError):
        ViewedRows(path)


def test_rows_have_plain_values(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    write_run(path, [receipt_for(make_map("a")), failure_for(make_map("b"))])
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "UPDATE maps SET mean = 9e999, maximum = 'text', source = CAST(x'ff41' AS TEXT), etag = x'ff41', "
            "width = 9e999, height = -1, bytes = 9223372036854775807, error = x'41'"
        )
    with ViewedRows(path) as viewed, viewed.opened() as opened:
        first, second, gone = opened.page([1, 2, 3])
    assert gone is None
    assert first is not None
    assert second is not None
    assert (first["mean"], first["maximum"], first["minimum"]) == (None, None, -1.5)
    assert first["source"] == first["etag"] == "\N{REPLACEMENT CHARACTER}A"
    assert (first["width"], first["height"], first["bytes"], second["error"]) == (None, None, None, "A")
    assert (first["faint"], second["faint"]) == (True, None)


def test_names_that_are_no_text_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    refused = am.Failure("d", "d.npy", None, "source", "it is refused")
    write_run(path, [*(receipt_for(make_map(name)) for name in "abc"), refused])
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE maps SET name = CAST(name AS BLOB) WHERE name IN ('b', 'd')")
    with ViewedRows(path) as viewed, viewed.opened() as opened:
        assert [found.text for found in viewed.names()] == ["a\0c", ""]
        assert [row and row["name"] for row in opened.first(0, 9)] == ["a", "c", "b"]


@pytest.mark.parametrize("value", ["{}", "[1, 2]", "[", "[null, 5, {}]", '[null, "s", {"x": 1e999}]', "[" * 9999])
def test_data_of_runs_that_cannot_be_read_are_left_out(tmp_path: Path, value: str) -> None:
    path = tmp_path / "m.sqlite"
    write_run(path, [receipt_for(make_map("a"))])
    with closing(sqlite3.connect(path)) as database, database:
        for key in ("run x", "last run"):
            database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
    with ViewedRows(path) as viewed:
        assert viewed.runs() == []
        assert history(viewed)["state"] == "empty"


def test_failures_are_grouped_by_reason(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    maps = [make_map(f"m{i}") for i in range(6)]
    broken = [am.Failure(map_.name, map_.source, None, "read", f"found {i} bytes") for i, map_ in enumerate(maps[:4])]
    write_run(path, [*broken, failure_for(maps[4], "upload"), receipt_for(maps[5])])
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE maps SET error = CAST(error AS BLOB) WHERE name = 'm1'")
    with ViewedRows(path) as viewed:
        found = Groups.of(viewed)
        assert [(group["stage"], group["count"]) for group in found.as_dict()["groups"]] == [("read", 4), ("upload", 1)]
        with viewed.opened() as opened:
            key = found.groups[0].key
            rows = opened.page(found.numbers(key).tolist())
    assert {row["name"] for row in rows if row is not None} == {"m0", "m1", "m2", "m3"}
    assert found.failed == 5
    assert not found.numbers("0").size
    # The key is the same after other maps have failed.
    write_run(tmp_path / "other.sqlite", [failure_for(maps[5], "upload"), broken[0]])
    with ViewedRows(tmp_path / "other.sqlite") as viewed:
        assert key in {group.key for group in Groups.of(viewed).groups}


def test_a_map_that_was_refused_at_its_source_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    refused = [am.Failure(name, f"{name}.npy", None, "source", "it is refused") for name in ("a", "b")]
    write_run(path, [*refused, receipt_for(make_map("a"))])
    with ViewedRows(path) as viewed, viewed.opened() as opened:
        rows = opened.page([opened.number_of(name) or 0 for name in ("a", "b")])
        assert [row and row["status"] for row in rows] == ["done", "failed"]
        assert opened.number_of("c") is None


@pytest.mark.runs
async def test_the_rows_of_a_plan_are_those_of_its_parts(maps: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for i in range(7):
        np.save(maps / f"{i}.npy", random_map(i))
    (maps / "bad.npy").write_bytes(b"no map")
    plan = await aplan(maps, tmp_path / "out", tmp_path / "plan", part_size=3)
    with ViewedRows(tmp_path / "plan") as viewed:
        assert viewed.counts().total == 0
    await arun_plan(tmp_path / "plan", settings=am.Settings(workers=0))
    with ViewedRows(tmp_path / "plan") as viewed:
        assert viewed.counts() == (7, 1)
        assert viewed.destination() == (tmp_path / "out").as_uri() == plan.destination
        assert [run.source for run in viewed.runs()] == [str(maps)]
        with viewed.opened() as opened:
            found = opened.first(0, 10)
        assert [row["name"] for row in found if row] == [*map(str, range(7)), "bad"]
        folder = viewed.path.parent
    assert not folder.exists()


def test_the_process_has_no_open_manifest_between_questions(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    write_run(path, [receipt_for(make_map("a"))])
    with ViewedRows(path) as viewed:
        viewed.counts()
        targets = {os.readlink(entry) for entry in _descriptors()}
    assert not [target for target in targets if str(path) in target]


def _descriptors() -> list[str]:
    return [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")]
