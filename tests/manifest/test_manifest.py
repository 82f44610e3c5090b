"""The manifest of a job: planning from it, writing to it, and its consistency."""

from __future__ import annotations

import asyncio
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
from anyio import CancelScope

from async_maps.errors import ManifestError
from async_maps.manifest import recorder as recorder_module
from async_maps.manifest.manifest import Manifest
from async_maps.manifest.recorder import Recorder, open_reader, open_recorder
from async_maps.manifest.schema import VERSION
from async_maps.outcomes import Failure
from async_maps.render.ranges import UNIT, ValueRange
from async_maps.render.sketch import QuantileSketch
from async_maps.report import Report
from async_maps.settings import Settings
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.coverage import Coverage
from async_maps.stores.promises import Promises
from tests.support.manifests import (
    COUNTED,
    DESTINATION,
    SETTINGS,
    failure_for,
    make_map,
    read_rows,
    receipt_for,
    write_run,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from async_maps.manifest.manifest import Plan, Select
    from async_maps.sources.batches import Entry

pytestmark = pytest.mark.fast


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "manifest.sqlite"


def make_plan(path: Path, maps: list[ActivationMap], select: Select = "changed", settings: str = SETTINGS) -> Plan:
    with Manifest(path) as manifest:
        manifest.begin(DESTINATION)
        return manifest.plan(maps, settings, select)


def _counted(path: Path) -> dict[str, int]:
    """Return the number of rows by status, as another program reads them."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        return dict(database.execute("SELECT status, count(*) FROM maps GROUP BY status"))


# Planning ----------------------------------------------------------------------------------------------------------


def test_a_new_manifest_plans_every_map(path: Path) -> None:
    maps = [make_map("a"), make_map("b", fingerprint=None)]
    plan = make_plan(path, maps)
    assert (plan.todo, plan.skipped, plan.refused) == (maps, 0, [])


def test_done_and_unchanged_maps_are_skipped(path: Path) -> None:
    done, failed, moved, touched, memory = (make_map(name) for name in ("done", "failed", "moved", "touched", "memory"))
    memory = replace(memory, fingerprint=None)
    write_run(
        path, [receipt_for(done), failure_for(failed), receipt_for(moved), receipt_for(touched), receipt_for(memory)]
    )
    todo = [
        failed,
        replace(moved, source="/elsewhere/moved.npy"),
        replace(touched, fingerprint="1-2"),
        memory,
        make_map("new"),
    ]
    plan = make_plan(path, [done, *todo])
    assert (plan.todo, plan.skipped, plan.refused) == (todo, 1, [])


@pytest.mark.parametrize(
    ("select", "todo"), [("broken", "a"), ("moved", "ab"), ("failed", "abcf"), ("changed", "abcfn")]
)
def test_a_repair_selects_broken_maps_of_the_same_settings(path: Path, select: Select, todo: str) -> None:
    a, b, c, d = (receipt_for(make_map(name)) for name in "abcd")
    with Manifest(path) as manifest:
        manifest.begin(DESTINATION)
        manifest.write([a, b, d, failure_for(make_map("f"))], SETTINGS)
        manifest.write([c], "other settings")
        manifest.mark_broken((receipt.locator, receipt.name, "missing") for receipt in (a, b, c))
        # A row with another locator now is not marked.
        manifest.mark_broken([("s3://bucket/elsewhere.png", "d", "missing")])
        assert manifest.broken() == {SETTINGS: 2, "other settings": 1}
    maps = [
        make_map("a"),
        make_map("b", source="/moved/b.npy"),
        make_map("c"),
        make_map("d"),
        make_map("f"),
        make_map("n"),
    ]
    assert "".join(map_.name for map_ in make_plan(path, maps, select).todo) == todo
    row = read_rows(path)[0]
    assert (row["status"], row["stage"], row["error"]) == ("failed", "verify", "missing")
    assert (row["locator"], row["etag"], row["crc32"]) == (a.locator, a.etag, a.crc32)


def test_other_settings_plan_every_map_again(path: Path) -> None:
    write_run(path, [receipt_for(make_map("a"))])
    assert make_plan(path, [make_map("a")]).skipped == 1
    assert make_plan(path, [make_map("a")], settings="other").todo == [make_map("a")]


@pytest.mark.parametrize(("select", "todo"), [("changed", "bcd"), ("failed", "b"), ("all", "abcd")])
def test_select_chooses_the_planned_maps(path: Path, select: Select, todo: str) -> None:
    maps = {name: make_map(name) for name in "abcd"}
    write_run(
        path, [receipt_for(maps["a"]), failure_for(maps["b"]), receipt_for(replace(maps["c"], fingerprint="0-0"))]
    )
    plan = make_plan(path, list(maps.values()), select)
    assert [map_.name for map_ in plan.todo] == list(todo)
    assert plan.skipped == 4 - len(todo)


def test_known_maps_have_the_same_source_and_state(path: Path) -> None:
    done, failed, changed, arrays = (make_map(name) for name in ("done", "failed", "changed", "arrays"))
    arrays = replace(arrays, fingerprint=None)
    write_run(path, [receipt_for(done), failure_for(failed), receipt_for(changed), receipt_for(arrays)])
    listed = [done, failed, replace(changed, fingerprint="2-2"), arrays, make_map("new")]
    with Manifest(path, read_only=True) as manifest:
        assert manifest.known(listed) == {done.source, failed.source}
        assert manifest.known(listed, done_with=SETTINGS) == {done.source}
        assert manifest.known(listed, done_with="others") == set()


def test_a_duplicate_name_is_refused_with_both_sources(path: Path) -> None:
    first, second = make_map("a", source="/maps/a.npy"), make_map("a", source="/maps/a.NPY", fingerprint="2-2")
    with Manifest(path) as manifest:
        manifest.begin(DESTINATION)
        assert manifest.plan([first, make_map("b")], SETTINGS, "changed").todo == [first, make_map("b")]
        plan = manifest.plan([second, make_map("c")], SETTINGS, "changed")
    assert plan.todo == [make_map("c")]
    (failure,) = plan.refused
    assert (failure.name, failure.source, failure.fingerprint, failure.stage) == ("a", "/maps/a.NPY", "2-2", "source")
    assert failure.reason.startswith("another map of this run has the same name: '/maps/a.npy'; rename one of them")
    assert "/maps/a.npy" in str(failure)
    assert "/maps/a.NPY" in str(failure)


@pytest.mark.parametrize("select", ["changed", "failed", "all"])
def test_a_skipped_map_keeps_its_name(path: Path, select: Select) -> None:
    write_run(path, [receipt_for(make_map("a"))])
    plan = make_plan(path, [make_map("a"), make_map("a", source="/other/a.npy")], select)
    assert [failure.source for failure in plan.refused] == ["/other/a.npy"]


def test_the_next_run_may_use_the_same_names(path: Path) -> None:
    for _ in range(2):
        assert make_plan(path, [make_map("a")]).todo == [make_map("a")]


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
    assert _counted(path) == {"done": 1000}
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


# On the event loop -------------------------------------------------------------------------------------------------


async def _batches(*batches: list[Entry]) -> AsyncGenerator[list[Entry], None]:
    for batch in batches:
        yield batch


async def _selected(recorder: Recorder, select: Select, report: Report, *batches: list[Entry]) -> list[list[Entry]]:
    recorder.use(Settings(), UNIT)
    return [batch async for batch in recorder.select_maps(_batches(*batches), select, report)]


async def test_a_recorder_skips_done_maps_and_keeps_failures(path: Path) -> None:
    write_run(path, [receipt_for(make_map("a"))])
    refused = Failure("../x", "/maps/x.npz[../x]", None, "source", "a '..' part")
    report = Report()
    async with open_recorder(path, DESTINATION) as recorder:
        assert recorder is not None
        first, second = await _selected(
            recorder, "changed", report, [make_map("a"), refused, make_map("b")], [make_map("b", source="/other/b.npy")]
        )
    assert first == [refused, make_map("b")]
    (duplicate,) = second
    assert isinstance(duplicate, Failure)
    assert report.skipped == 1


async def test_there_is_no_recorder_without_a_path() -> None:
    async with open_recorder(None, DESTINATION) as recorder:
        assert recorder is None


async def test_a_dry_run_writes_nothing(path: Path) -> None:
    async with open_reader(path, DESTINATION) as recorder:
        assert await _selected(recorder, "changed", Report(), [make_map("a")]) == [[make_map("a")]]
    async with open_reader(None, DESTINATION) as recorder:
        assert await _selected(recorder, "changed", Report(), [make_map("a"), make_map("a")]) != [
            [make_map("a"), make_map("a")]
        ]
    assert list(path.parent.iterdir()) == []
    write_run(path, [receipt_for(make_map("a"))])
    before = path.read_bytes()
    report = Report()
    async with open_reader(path, DESTINATION) as recorder:
        assert await _selected(recorder, "changed", report, [make_map("a"), make_map("b")]) == [[make_map("b")]]
    assert report.skipped == 1
    assert path.read_bytes() == before
    with pytest.raises(ManifestError, match="is the manifest of"):
        async with open_reader(path, "s3://other"):
            pass
    assert [file.name for file in path.parent.iterdir()] == [path.name]


async def test_a_recorder_refuses_another_destination_and_closes_its_file(path: Path) -> None:
    write_run(path, [receipt_for(make_map("a"))])
    with pytest.raises(ManifestError, match="is the manifest of"):
        async with open_recorder(path, "s3://other"):
            pass
    assert [file.name for file in path.parent.iterdir()] == [path.name]


async def test_rows_are_committed_every_thousand(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "_COMMIT_INTERVAL_S", 1000.0)
    async with open_recorder(path, DESTINATION) as recorder:
        assert recorder is not None
        await recorder.note([receipt_for(make_map(str(n))) for n in range(999)])
        assert _counted(path) == {}
        await recorder.note([receipt_for(make_map("last"))])
        assert _counted(path) == {"done": 1000}
        await recorder.note([receipt_for(make_map("next"))])
        assert _counted(path) == {"done": 1000}
    assert _counted(path) == {"done": 1001}


async def test_rows_are_committed_after_the_interval(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "_COMMIT_INTERVAL_S", 1000.0)
    async with open_recorder(path, DESTINATION) as recorder:
        assert recorder is not None
        await recorder.note([receipt_for(make_map("a"))])
        assert _counted(path) == {}
        monkeypatch.setattr(recorder_module, "_COMMIT_INTERVAL_S", 0.0)
        await recorder.note([receipt_for(make_map("b"))])
        assert _counted(path) == {"done": 2}


@pytest.mark.parametrize("end", [None, RuntimeError, asyncio.CancelledError, KeyboardInterrupt])
async def test_rows_are_committed_at_any_end_of_the_run(
    path: Path, end: type[BaseException] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "_COMMIT_INTERVAL_S", 1000.0)
    try:
        async with open_recorder(path, DESTINATION) as recorder:
            assert recorder is not None
            await recorder.note([receipt_for(make_map("a"))])
            assert _counted(path) == {}
            if end is not None:
                raise end
    except (RuntimeError, asyncio.CancelledError, KeyboardInterrupt) as error:
        assert type(error) is end  # noqa: PT017  # pytest.raises would demand an error in the case without one
    assert _counted(path) == {"done": 1}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


async def test_rows_are_committed_when_the_outer_scope_is_cancelled(path: Path) -> None:
    with CancelScope() as scope:
        async with open_recorder(path, DESTINATION) as recorder:
            assert recorder is not None
            await recorder.note([receipt_for(make_map("a"))])
            scope.cancel()
            await asyncio.sleep(30)
    assert scope.cancelled_caught
    assert _counted(path) == {"done": 1}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("steps", range(1, 10))
async def test_a_cancel_during_a_commit_loses_no_row(path: Path, steps: int) -> None:
    noting = asyncio.Event()

    async def run() -> None:
        async with open_recorder(path, DESTINATION) as recorder:
            assert recorder is not None
            noting.set()
            await recorder.note([receipt_for(make_map(str(n))) for n in range(1000)])
            await asyncio.sleep(30)

    running = asyncio.create_task(run())
    await noting.wait()
    for _ in range(steps):
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()
    assert _counted(path) == {"done": 1000}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


async def test_a_cancelled_run_finishes_its_commit_once(path: Path) -> None:
    # Maps refused at the source have no unique name, so a second commit would add rows.
    refused = [Failure(str(n), f"/maps/{n}.npy", None, "source", "no") for n in range(10_000)]
    opened: asyncio.Future[Recorder] = asyncio.get_running_loop().create_future()

    async def run() -> None:
        async with open_recorder(path, DESTINATION) as recorder:
            assert recorder is not None
            opened.set_result(recorder)
            await recorder.note(refused)
            raise AssertionError("the commit was not seen under way")

    running = asyncio.create_task(run())
    await _in_transaction(await opened)
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()
    assert _counted(path) == {"failed": 10_000}


async def test_a_cancelled_plan_keeps_the_noted_rows(path: Path) -> None:
    maps: list[Entry] = [make_map(str(n)) for n in range(10_000)]
    async with open_recorder(path, DESTINATION) as recorder:
        assert recorder is not None
        await recorder.note([receipt_for(make_map("a"))])
        selecting = asyncio.create_task(_selected(recorder, "changed", Report(), maps))
        await _in_transaction(recorder)
        selecting.cancel()
        await asyncio.wait({selecting})
        assert selecting.cancelled()
    assert _counted(path) == {"done": 1}


async def test_a_failed_commit_is_reported_and_retried_at_the_end(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        async with open_recorder(path, DESTINATION) as recorder:
            assert recorder is not None
            recorder._manifest._database.execute("PRAGMA busy_timeout = 10")
            await recorder.note([receipt_for(make_map("a"))])
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(ManifestError, match="cannot be written: another program has locked it: wait"):
                await recorder.commit()
            other.execute("ROLLBACK")
    assert _counted(path) == {"done": 1}


def test_rows_keep_their_source_after_the_disk_was_full(path: Path) -> None:
    outcomes = [receipt_for(make_map(f"{n:100}")) for n in range(500)]
    coverage = Coverage()
    coverage.begin("/maps", lambda _: True)
    with Manifest(path) as manifest:
        manifest.begin(DESTINATION)
        manifest.follow(coverage)
        (pages,) = manifest._database.execute("PRAGMA page_count").fetchone()
        manifest._database.execute(f"PRAGMA max_page_count = {pages + 3}")
        with pytest.raises(ManifestError, match="the disk is full"):
            manifest.write(outcomes, SETTINGS)
        manifest._database.execute("PRAGMA max_page_count = 10000")
        manifest.write(outcomes, SETTINGS)
    with closing(sqlite3.connect(path)) as database:
        query = "SELECT place, count(*) FROM maps LEFT JOIN roots ON root = id GROUP BY place"
        assert database.execute(query).fetchall() == [("/maps", 500)]


async def test_what_a_store_keeps_is_saved_after_a_failed_write(path: Path) -> None:
    found = Promises()
    async with open_recorder(path, DESTINATION, promises=found) as recorder:
        assert recorder is not None
        found.create_only = found.is_news = True
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            recorder._manifest._database.execute("PRAGMA busy_timeout = 0")
            other.execute("BEGIN IMMEDIATE")
            await recorder.note([receipt_for(make_map("a"))])
            with pytest.raises(ManifestError, match="another program has locked it"):
                await recorder.commit()
            other.execute("ROLLBACK")
    with Manifest(path, read_only=True) as manifest:
        assert manifest.promises(DESTINATION) == found.dump()


async def test_writing_does_not_block_the_event_loop(path: Path) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    async with open_recorder(path, DESTINATION) as recorder:
        assert recorder is not None
        outcomes = [receipt_for(make_map(str(n))) for n in range(20_000)]
        ticking = asyncio.create_task(tick())
        await recorder.note(outcomes)
        ticking.cancel()
    assert ticks > 10


async def _in_transaction(recorder: Recorder) -> None:
    """Wait until a thread has begun a transaction in the recorder's manifest."""
    while not recorder._manifest._database.in_transaction:  # noqa: ASYNC110  # no event to wait for
        await asyncio.sleep(0.001)
