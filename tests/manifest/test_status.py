"""What a manifest says about its last run."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

import async_maps as am
from async_maps.errors import ManifestError, StoreError
from async_maps.manifest.manifest import Manifest
from async_maps.manifest.samples import LastRun, Sample
from tests.support.commands import invoke
from tests.support.leftovers import leaves_nothing
from tests.support.maps import random_map
from tests.support.pipelines import THREADS, FailingStore, SlowStore, until

pytestmark = [pytest.mark.fast, pytest.mark.usefixtures(leaves_nothing.__name__)]

START = datetime.now(UTC) - timedelta(hours=1)
RUN = LastRun(START.isoformat(), "/maps", "changed", None)


def sample(second: float, uploaded: int, *, total: int | None = None, busy: float = 0.5, **other: int) -> Sample:
    """Return the sample of a run at a second after its start."""
    time = (START + timedelta(seconds=second)).isoformat()
    counts = {"surveyed": 0, "skipped": 0, "failed": 0, "retries": 0, "upload_limit": 32} | other
    stages = {name: {"busy": share, "queue": 0.25, "workers": 2} for name, share in (("encode", busy), ("upload", 0.3))}
    return Sample(
        started_at=RUN.started_at,
        time=time,
        total=total,
        listed=uploaded + 7,
        uploaded=uploaded,
        stages=stages,
        **counts,
    )


def written(path: Path, run: LastRun, *samples: Sample) -> am.ManifestStatus:
    """Write samples of a run that is no longer active, and return the status."""
    with Manifest(path) as manifest:
        manifest.keep_destination("memory://")
        for found in samples:
            manifest.keep_sample(run, found)
    return am.status(path)


def fresh(run: LastRun, *samples: Sample) -> tuple[LastRun, list[Sample]]:
    """Move samples so that the last one is of this moment."""
    age = datetime.now(UTC) - datetime.fromisoformat(samples[-1].time)
    moved = [found._replace(time=(datetime.fromisoformat(found.time) + age).isoformat()) for found in samples]
    return run, moved


def test_rate_and_eta_are_of_the_last_minute(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    run, samples = fresh(
        RUN, sample(0, 0), sample(100, 5000, busy=0.1), sample(130, 5300), sample(160, 5600, total=12000, failed=3)
    )
    with Manifest(path) as manifest:
        for found in samples:
            manifest.keep_sample(run, found)
        status = am.status(path)
    assert status.state == "running"
    assert status.maps_per_s == pytest.approx(603 / 60, abs=0.01)
    assert status.eta_s == pytest.approx((12000 - 5603) / (603 / 60), abs=30)
    assert (status.slowest_stage, status.busy["encode"], status.queues["upload"]) == ("encode", 0.5, 0.25)
    assert (status.total, status.uploaded, status.newly_failed) == (12000, 5600, 3)


def test_a_total_that_is_not_counted_leaves_the_eta_unknown(tmp_path: Path) -> None:
    run, samples = fresh(RUN, sample(0, 0), sample(10, 100))
    status = written(tmp_path / "m.sqlite", run, *samples)
    assert (status.total, status.listed, status.eta_s, status.maps_per_s) == (None, 107, None, 10)


def test_nothing_is_said_about_the_speed_of_a_run_that_does_not_write(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    with Manifest(path) as manifest:
        for found in (sample(0, 0), sample(10, 100, total=1000)):
            manifest.keep_sample(RUN, found)
        status = am.status(path)
    assert (status.state, status.maps_per_s, status.eta_s, status.slowest_stage) == ("running", None, None, None)
    assert status.last_write_at == sample(10, 0).time


def test_a_clock_that_was_set_back_gives_no_negative_speed(tmp_path: Path) -> None:
    run, samples = fresh(RUN, sample(40, 0, total=100), sample(5, 20, total=100))
    status = written(tmp_path / "m.sqlite", run, *samples)
    assert (status.maps_per_s, status.eta_s, status.uploaded) == (None, None, 20)


def test_the_last_progress_is_the_first_sample_with_the_same_counts(tmp_path: Path) -> None:
    status = written(tmp_path / "m.sqlite", RUN, sample(0, 0), sample(5, 8), sample(10, 8), sample(15, 8))
    assert (status.last_progress_at, status.last_write_at) == (sample(5, 0).time, sample(15, 0).time)


@pytest.mark.parametrize(
    ("run", "state"),
    [
        (RUN, "lost"),
        (RUN._replace(ended_at=RUN.started_at, complete=True), "complete"),
        (RUN._replace(ended_at=RUN.started_at), "stopped"),
    ],
)
def test_the_state_of_a_run_that_is_not_active(tmp_path: Path, run: LastRun, state: str) -> None:
    assert written(tmp_path / "m.sqlite", run, sample(0, 0)).state == state


def test_a_manifest_without_a_run_is_empty(tmp_path: Path) -> None:
    Manifest(tmp_path / "m.sqlite").close()
    status = am.status(tmp_path / "m.sqlite")
    assert (status.state, status.done, status.destination, status.last_write_at) == ("empty", 0, None, None)


def test_samples_are_bounded_and_the_newest_stay(tmp_path: Path) -> None:
    with Manifest(tmp_path / "m.sqlite") as manifest:
        for second in range(2600):
            manifest.keep_sample(RUN, sample(second, second))
        uploaded = [found.uploaded for found in manifest.samples(RUN)]
    assert len(uploaded) <= 1000
    assert uploaded == sorted(set(uploaded))
    assert uploaded[-99:] == list(range(2501, 2600))
    assert uploaded[0] < 20


def test_a_missing_manifest_stays_missing(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such manifest"):
        am.status(tmp_path / "m.sqlite")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"text", b"SQLite format 3\0"])
def test_another_file_is_no_manifest(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.sqlite"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match="choose another manifest file"):
        am.status(path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == content


def test_a_copy_from_a_run_is_read_where_nothing_can_be_written(unprivileged: Path) -> None:
    path, copies = unprivileged / "m.sqlite", unprivileged / "copies"
    copies.mkdir()
    with Manifest(path) as manifest:
        manifest.keep_sample(RUN, sample(0, 5))
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA wal_checkpoint(FULL)")
        shutil.copy(path, copies / "alone.sqlite")
        manifest.keep_sample(RUN, sample(5, 9))
        shutil.copy(path, copies / "both.sqlite")
        shutil.copy(f"{path}-wal", copies / "both.sqlite-wal")
    copies.chmod(0o555)
    there = sorted(file.name for file in copies.iterdir())
    status = am.status(copies / "alone.sqlite")
    assert (status.state, status.uploaded) == ("lost", 5)
    # Without the log, an old state would be shown as the present one.
    with pytest.raises(ManifestError, match="copy both to another folder"):
        am.status(copies / "both.sqlite")
    assert sorted(file.name for file in copies.iterdir()) == there
    copies.chmod(0o755)
    assert am.status(copies / "both.sqlite").uploaded == 9


def test_a_run_closes_its_manifest_to_one_file_beside_short_readers(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    manifest = Manifest(path)
    manifest.keep_sample(RUN, sample(0, 5))
    reader = Manifest(path, read_only=True)
    assert reader.last_run() == RUN
    tries = []

    def close_reader(statement: str) -> None:
        if statement.startswith("PRAGMA journal_mode"):
            tries.append(statement)
            if len(tries) == 2:
                reader.close()

    manifest._database.set_trace_callback(close_reader)
    manifest.close()
    assert len(tries) >= 2
    assert [file.name for file in tmp_path.iterdir()] == ["m.sqlite"]


# Runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.runs
async def test_a_run_is_sampled_from_its_start_to_its_end(tmp_path: Path) -> None:
    store, path = SlowStore(), tmp_path / "m.sqlite"
    async with am.Pipeline(store, settings=THREADS) as pipeline:
        running = asyncio.create_task(pipeline.run([(f"{i}", random_map(i)) for i in range(5)], manifest=path))
        await until(lambda: store.asked > 0)
        during = am.status(path)
        assert (during.state, during.total, during.source, during.uploaded) == ("running", None, None, 0)
        assert during.writer
        store.gate.set()
        await running
    after = am.status(path)
    assert (after.state, after.total, after.uploaded, after.done) == ("complete", 5, 5, 5)
    assert after.writer is None


@pytest.mark.runs
def test_the_limit_of_the_rate_is_sampled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, maps = tmp_path / "m.sqlite", [(f"{i}", random_map(i)) for i in range(20)]
    am.run(maps, am.MemoryStore(), manifest=path, settings=am.Settings(workers=0, rate=50))
    assert am.status(path).upload_rate == 50.0
    assert invoke("status", path) == 0
    assert "uploads are limited to 50.0 a second" in capsys.readouterr().out


async def test_the_end_of_a_run_names_its_error(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    maps = [(f"{i}", random_map(i)) for i in range(50)]
    with pytest.raises(StoreError):
        async with am.Pipeline(FailingStore(set(), dies_after=3), settings=THREADS) as pipeline:
            await pipeline.run(maps, manifest=path)
    status = am.status(path)
    assert (status.state, status.error) == ("stopped", {"kind": "StoreError", "message": "the store is on fire"})
    async with am.Pipeline("memory://x", settings=THREADS) as pipeline:
        with pytest.raises(ManifestError):
            await pipeline.run(maps, manifest=path)
    # A run that was refused is no run.
    assert am.status(path).error == status.error


@pytest.mark.runs
async def test_a_drained_or_cancelled_run_has_stopped(tmp_path: Path) -> None:
    for name in ("drained", "cancelled"):
        store, path = SlowStore(), tmp_path / f"{name}.sqlite"
        async with am.Pipeline(store, settings=THREADS) as pipeline:
            running = asyncio.create_task(pipeline.run(((f"{i}", random_map(i)) for i in range(10000)), manifest=path))
            await until(lambda store=store: store.asked > 0)  # type: ignore[misc]
            if name == "drained":
                pipeline.drain()
            else:
                running.cancel()
            store.gate.set()
            await asyncio.wait({running})
        status = am.status(path)
        assert (status.state, status.error) == ("stopped", None)


@pytest.mark.runs
async def test_a_limited_run_is_complete_with_its_limit(maps: Path, tmp_path: Path) -> None:
    for i in range(5):
        np.save(maps / f"{i}.npy", random_map(i))
    async with am.Pipeline(am.MemoryStore(), settings=THREADS) as pipeline:
        await pipeline.run(
            str(maps), manifest=tmp_path / "m.sqlite", limit=2, on_progress=lambda progress: progress.total
        )
    status = am.status(tmp_path / "m.sqlite")
    assert (status.state, status.limit, status.uploaded, status.source) == ("complete", 2, 2, str(maps))
    # The source may have more maps, and nobody has counted them.
    assert status.total in {None, 2}


@pytest.mark.runs
async def test_failures_are_grouped_by_reason(tmp_path: Path) -> None:
    maps = [("a", random_map(1)), ("b", np.zeros((0, 3), np.float32)), ("c", np.zeros((0, 4), np.float32))]
    async with am.Pipeline(am.MemoryStore(), settings=THREADS) as pipeline:
        await pipeline.run(maps, manifest=tmp_path / "m.sqlite")
    status = am.status(tmp_path / "m.sqlite")
    (group,) = status.failure_groups
    assert (group.count, status.failed, status.ungrouped, status.done) == (2, 2, 0, 1)
    assert status.as_dict()["failure_groups"][0]["examples"][0]["name"] == "b"
