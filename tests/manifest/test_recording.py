"""The recorder: the manifest of a run on the event loop."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from anyio import CancelScope

from async_maps.errors import ManifestError
from async_maps.manifest import recorder as recorder_module
from async_maps.manifest.manifest import Manifest
from async_maps.manifest.recorder import Recorder, open_reader, open_recorder
from async_maps.outcomes import Failure
from async_maps.render.ranges import UNIT
from async_maps.report import Report
from async_maps.settings import Settings
from async_maps.sources.coverage import Coverage
from async_maps.stores.promises import Promises
from tests.support.manifests import (
    DESTINATION,
    SETTINGS,
    counted,
    make_map,
    receipt_for,
    write_run,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from async_maps.manifest.manifest import Select
    from async_maps.sources.batches import Entry


pytestmark = pytest.mark.fast


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "manifest.sqlite"


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
        assert counted(path) == {}
        await recorder.note([receipt_for(make_map("last"))])
        assert counted(path) == {"done": 1000}
        await recorder.note([receipt_for(make_map("next"))])
        assert counted(path) == {"done": 1000}
    assert counted(path) == {"done": 1001}


async def test_rows_are_committed_after_the_interval(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "_COMMIT_INTERVAL_S", 1000.0)
    async with open_recorder(path, DESTINATION) as recorder:
        assert recorder is not None
        await recorder.note([receipt_for(make_map("a"))])
        assert counted(path) == {}
        monkeypatch.setattr(recorder_module, "_COMMIT_INTERVAL_S", 0.0)
        await recorder.note([receipt_for(make_map("b"))])
        assert counted(path) == {"done": 2}


@pytest.mark.parametrize("end", [None, RuntimeError, asyncio.CancelledError, KeyboardInterrupt])
async def test_rows_are_committed_at_any_end_of_the_run(
    path: Path, end: type[BaseException] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "_COMMIT_INTERVAL_S", 1000.0)
    try:
        async with open_recorder(path, DESTINATION) as recorder:
            assert recorder is not None
            await recorder.note([receipt_for(make_map("a"))])
            assert counted(path) == {}
            if end is not None:
                raise end
    except (RuntimeError, asyncio.CancelledError, KeyboardInterrupt) as error:
        assert type(error) is end  # noqa: PT017  # pytest.raises would demand an error in the case without one
    assert counted(path) == {"done": 1}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


async def test_rows_are_committed_when_the_outer_scope_is_cancelled(path: Path) -> None:
    with CancelScope() as scope:
        async with open_recorder(path, DESTINATION) as recorder:
            assert recorder is not None
            await recorder.note([receipt_for(make_map("a"))])
            scope.cancel()
            await asyncio.sleep(30)
    assert scope.cancelled_caught
    assert counted(path) == {"done": 1}
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
    assert counted(path) == {"done": 1000}
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
    assert counted(path) == {"failed": 10_000}


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
    assert counted(path) == {"done": 1}


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
    assert counted(path) == {"done": 1}


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
