"""The manifest of a job: planning from it, writing to it, and its consistency."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tracemalloc
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from async_maps.errors import ManifestError
from async_maps.manifest.manifest import Manifest
from async_maps.manifest.schema import VERSION
from async_maps.outcomes import Failure
from async_maps.render.ranges import ValueRange
from async_maps.render.sketch import QuantileSketch
from tests.support.manifests import (
    COUNTED,
    DESTINATION,
    SETTINGS,
    counted,
    failure_for,
    make_map,
    make_plan,
    read_rows,
    receipt_for,
    write_run,
)

if TYPE_CHECKING:
    pass

pytestmark = pytest.mark.fast


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "manifest.sqlite"


# Writing -----------------------------------------------------------------------------------------------------------


def test_a_row_has_the_outcome_of_its_map(path: Path) -> None:
    write_run(
        path,
        [
            receipt_for(make_map("é/🧠", source="/maps/é.npz[🧠]")),
            replace(failure_for(make_map("b")), reason="two\nlines, 'quoted'"),
        ],
    )
    failed, done = read_rows(path)
    assert done == {
        "name": "é/🧠",
        "locator": "s3://bucket/prefix/é/🧠.png",
        "status": "done",
        "source": "/maps/é.npz[🧠]",
        "bytes": 7,
        "width": 4,
        "height": 3,
        "etag": "etag",
        "crc32": "00c0ffee",
        "time": "2026-01-02T12:00:00.250+00:00",
        "stage": None,
        "error": None,
        "fingerprint": "1-1",
        "settings": SETTINGS,
        **COUNTED._asdict(),
    }
    assert datetime.fromisoformat(failed.pop("time")).tzinfo == UTC
    assert {column: value for column, value in failed.items() if value is not None} == {
        "name": "b",
        "status": "failed",
        "source": "/maps/b.npy",
        "stage": "read",
        "error": "two\nlines, 'quoted'",
        "fingerprint": "1-1",
        "settings": SETTINGS,
    }


def test_a_name_has_one_row_after_several_runs(path: Path) -> None:
    map_ = make_map("a")
    for outcome, status, locator in (
        (failure_for(map_), "failed", None),
        (receipt_for(map_), "done", f"{DESTINATION}/a.png"),
        (receipt_for(map_), "done", f"{DESTINATION}/a.png"),
        (failure_for(map_, "upload"), "failed", None),
    ):
        write_run(path, [outcome])
        (row,) = read_rows(path)
        assert (row["status"], row["locator"]) == (status, locator)
        assert (row["error"] is None) == (status == "done")
        assert (row["bytes"] is None) == (status == "failed")


def test_refused_maps_share_the_name_of_another_map(path: Path) -> None:
    refused = Failure("a", "/maps/a.NPY", "2-2", "source", "another map of this run has the same name")
    write_run(path, [receipt_for(make_map("a")), refused, replace(refused, source="/maps/a.nPy")])
    assert [(row["status"], row["source"]) for row in read_rows(path)] == [
        ("failed", "/maps/a.NPY"),
        ("failed", "/maps/a.nPy"),
        ("done", "/maps/a.npy"),
    ]
    plan = make_plan(path, [make_map("a")])
    assert (plan.skipped, plan.todo) == (1, [])


def test_a_batch_is_written_atomically(path: Path) -> None:
    unfit = replace(receipt_for(make_map("b")), locator=object())  # type: ignore[arg-type]
    with Manifest(path) as manifest:
        manifest.begin(DESTINATION)
        with pytest.raises(ManifestError, match="cannot be written"):
            manifest.write([receipt_for(make_map("a")), unfit], SETTINGS)
        assert manifest.counts() == {}
        manifest.write([receipt_for(make_map("a"))], SETTINGS)
        assert manifest.counts() == {"done": 1}


def test_rows_are_ordered_by_name_and_failures_are_optional(path: Path) -> None:
    write_run(path, [receipt_for(make_map("b")), failure_for(make_map("c")), receipt_for(make_map("a"))])
    with Manifest(path, read_only=True) as manifest:
        assert [row[0] for row in manifest.rows()] == ["a", "b"]
        assert [row[0] for row in manifest.rows(failed=True)] == ["a", "b", "c"]
        assert manifest.counts() == {"done": 2, "failed": 1}


# The file ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read_only", [False, True])
def test_another_file_is_refused_and_not_changed(path: Path, read_only: bool) -> None:
    path.write_bytes(b"no database, but long enough to be looked at " * 100)
    before = path.read_bytes()
    with pytest.raises(ManifestError, match=rf"^the manifest {path} cannot be opened: it is not an SQLite file, or"):
        Manifest(path, read_only=read_only)
    assert path.read_bytes() == before
    path.unlink()
    with closing(sqlite3.connect(path)) as foreign:
        foreign.execute("CREATE TABLE maps (name)")
    before = path.read_bytes()
    with pytest.raises(ManifestError, match=rf"^{path} is an SQLite file, but not a manifest: choose another"):
        Manifest(path, read_only=read_only)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("version", [VERSION - 1, 99])
def test_a_manifest_of_another_schema_is_refused(version: int, path: Path) -> None:
    write_run(path, [receipt_for(make_map("a"))])
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {version}")
    before = path.read_bytes()
    for read_only in (False, True):
        with pytest.raises(
            ManifestError, match=f"has manifest schema {version}, .* reads schema {VERSION}: choose another"
        ):
            Manifest(path, read_only=read_only)
    assert path.read_bytes() == before


def test_the_range_and_the_sketch_of_the_last_run_are_kept(path: Path) -> None:
    sketch = QuantileSketch()
    sketch.add(np.arange(10, dtype=np.float64))
    with Manifest(path) as manifest:
        manifest.begin(DESTINATION)
        assert manifest.sketch("error") is None
        manifest.keep_sketch("error", sketch)
        manifest.keep_range(ValueRange("fixed", -1, 2.5), "dataset")
    with Manifest(path) as manifest:
        assert manifest.value_range() == ValueRange("fixed", -1, 2.5)
        found = manifest.sketch("error")
        assert found is not None
        assert found.dump() == sketch.dump()
        assert manifest.sketch("zero") is None
        # A run without a sketch keeps the last one.
        manifest.keep_range(ValueRange("per-map"), "per-map")
        assert manifest.sketch("error") is not None
        with pytest.raises(ManifestError, match=r"has no range for other runs: its run used range per-map"):
            manifest.value_range()


@pytest.mark.parametrize("key", ["sketch", "range"])
def test_a_damaged_range_or_sketch_is_reported(path: Path, key: str) -> None:
    write_run(path, [])
    with closing(sqlite3.connect(path)) as database:
        database.execute("INSERT INTO meta VALUES (?, '[1, 2')", (key,))
        database.commit()
    with Manifest(path) as manifest, pytest.raises(ManifestError, match=rf"^the manifest {path} cannot be read"):
        _ = manifest.sketch("error") if key == "sketch" else manifest.value_range()


def test_a_missing_manifest_or_an_invalid_path_is_reported(path: Path) -> None:
    with pytest.raises(ManifestError, match=rf"^no such manifest: {path}$"):
        Manifest(path, read_only=True)
    fifo = path.parent / "fifo"
    os.mkfifo(fifo)
    missing = path.parent / "none" / "m.sqlite"
    for impossible, reason in (
        (missing, f"the folder {missing.parent} does not exist"),
        (path.parent, "it is not a file"),
        (fifo, "it is not a file"),
        (Path("/dev/null"), "it is not a file"),
    ):
        with pytest.raises(ManifestError, match=rf"^the manifest {impossible} cannot be opened: {reason}$"):
            Manifest(impossible)
    assert list(path.parent.iterdir()) == [fifo]


def test_a_manifest_without_permission_is_reported(unprivileged: Path) -> None:
    path = unprivileged / "manifest.sqlite"
    write_run(path, [receipt_for(make_map("a"))])
    path.chmod(0o444)
    with pytest.raises(ManifestError, match=rf"^the manifest {path} cannot be opened: no permission to write to the"):
        Manifest(path)
    unprivileged.chmod(0o555)
    with pytest.raises(ManifestError, match="cannot be opened: no permission to write to the file or its folder"):
        Manifest(unprivileged / "new.sqlite")
    assert [row["name"] for row in read_rows(path)] == ["a"]
    path.chmod(0)
    with pytest.raises(ManifestError, match="cannot be opened: no permission for the file"):
        Manifest(path, read_only=True)
    # The folder may not be searched.
    unprivileged.chmod(0)
    for read_only in (False, True):
        with pytest.raises(ManifestError, match=rf"^(no such manifest: {path}|the manifest {path} cannot be opened: )"):
            Manifest(path, read_only=read_only)
    unprivileged.chmod(0o755)


def test_a_damaged_manifest_is_reported_and_can_be_closed(path: Path) -> None:
    write_run(path, [receipt_for(make_map(f"{n:0200}")) for n in range(200)])
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with Manifest(path) as manifest, pytest.raises(ManifestError, match=rf"^the manifest {path} cannot be "):
        manifest.begin(DESTINATION)


@pytest.mark.parametrize("name", ["with space.sqlite", "100%41.sqlite", "what?mode=ro#x.sqlite", "é🧠.sqlite"])
def test_a_manifest_may_have_any_file_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_run(tmp_path / name, [receipt_for(make_map("a"))])
    assert [file.name for file in tmp_path.iterdir()] == [name]
    monkeypatch.chdir(tmp_path)
    assert len(read_rows(Path(name))) == 1


def test_a_closed_manifest_is_a_single_file(path: Path) -> None:
    with Manifest(path) as manifest:
        manifest.begin(DESTINATION)
        manifest.write([receipt_for(make_map("a"))], SETTINGS)
        assert {file.name for file in path.parent.iterdir()} > {path.name}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_reader_does_not_keep_a_run_from_closing(path: Path) -> None:
    manifest = Manifest(path)
    manifest.begin(DESTINATION)
    with Manifest(path, read_only=True) as reader:
        manifest.write([receipt_for(make_map(f"{n}")) for n in range(10)], SETTINGS)
        rows = reader.rows()
        next(rows)
        manifest.close()
        assert len(list(rows)) == 9
    assert len(read_rows(path)) == 10


def test_a_reader_sees_one_snapshot_while_a_run_writes(path: Path) -> None:
    with Manifest(path) as manifest:
        manifest.begin(DESTINATION)
        manifest.write([receipt_for(make_map("a"))], SETTINGS)
        with Manifest(path, read_only=True) as reader:
            assert reader.counts() == {"done": 1}
            rows = reader.rows()
            assert next(rows)[0] == "a"
            manifest.write([receipt_for(make_map("b"))], SETTINGS)
            assert list(rows) == []  # a snapshot
            assert reader.counts() == {"done": 2}
            with pytest.raises(ManifestError, match="cannot be written: no permission"):
                reader.write([receipt_for(make_map("c"))], SETTINGS)


@pytest.mark.runs
def test_a_run_killed_inside_a_transaction_leaves_the_old_rows(path: Path) -> None:
    program = (
        "import os, sys\n"
        "from async_maps.manifest.manifest import Manifest\n"
        "from tests.support.manifests import DESTINATION, SETTINGS, make_map, receipt_for\n"
        "manifest = Manifest(sys.argv[1])\n"
        "manifest.begin(DESTINATION)\n"
        "manifest.write([receipt_for(make_map(str(n))) for n in range(1000)], SETTINGS)\n"
        # With a small cache, rows reach the log before the commit. The process dies inside the batch.
        "manifest._database.execute('PRAGMA cache_size = 5')\n"
        "steps = iter(range(3000))\n"
        "manifest._database.set_progress_handler(lambda: next(steps, None) is None and os.kill(os.getpid(), 9), 10)\n"
        "print(os.stat(f'{sys.argv[1]}-wal').st_size, flush=True)\n"
        "manifest.write([receipt_for(make_map(str(n), fingerprint='2-2')) for n in range(500, 1500)], SETTINGS)\n"
    )
    root = Path(__file__).parents[2]
    answer = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False, cwd=root
    )
    assert answer.returncode == -signal.SIGKILL, answer.stderr
    assert (path.parent / f"{path.name}-wal").stat().st_size > int(answer.stdout)
    assert counted(path) == {"done": 1000}
    assert {row["fingerprint"] for row in read_rows(path)} == {"1-1"}
    plan = make_plan(path, [make_map(str(n)) for n in range(1500)])
    assert (plan.skipped, len(plan.todo)) == (1000, 500)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.slow
def test_planning_takes_one_query_a_batch_and_little_memory(path: Path) -> None:
    maps = [make_map(f"{n:06}") for n in range(50_000)]
    write_run(path, [receipt_for(map_) for map_ in maps])
    statements: list[str] = []
    with Manifest(path) as manifest:
        manifest.begin(DESTINATION)
        manifest._database.set_trace_callback(lambda statement: statements.append(statement.split(maxsplit=1)[0]))
        skipped = 0
        for start in range(0, len(maps), 256):
            skipped += manifest.plan(maps[start : start + 256], SETTINGS, "changed").skipped
        manifest._database.set_trace_callback(None)
        manifest._database.execute("DELETE FROM seen")
        tracemalloc.start()
        for start in range(0, len(maps), 256):
            manifest.plan(maps[start : start + 256], SETTINGS, "changed")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert skipped == 50_000
    batches = -(-50_000 // 256)
    assert statements.count("SELECT") == batches
    # Each batch adds BEGIN, SELECT, SAVEPOINT, RELEASE and COMMIT.
    assert len(statements) == 50_000 + 5 * batches
    assert peak < 2**20


def test_planning_uses_the_index(path: Path) -> None:
    with Manifest(path) as manifest:
        manifest.begin(DESTINATION)
        seen: list[str] = []
        manifest._database.set_trace_callback(seen.append)
        manifest.plan([make_map("a"), make_map("b")], SETTINGS, "changed")
        manifest._database.set_trace_callback(None)
        (query,) = (statement for statement in seen if statement.startswith("SELECT"))
        how = [row[3] for row in manifest._database.execute(f"EXPLAIN QUERY PLAN {query}")]
    assert how == ["SEARCH maps USING INDEX maps_name (name=?)"]
