from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from async_maps import progress
from async_maps.outcomes import Failure
from async_maps.progress import Progress, reporting
from async_maps.report import Report
from async_maps.sources import files, members, named
from async_maps.sources.formats import registry as formats
from async_maps.stages.meters import LaneStatistics, StageStatistics
from tests.support.pipelines import until
from tests.support.progress import make_progress, make_report, make_statistics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_maps.filesystems.filesystem import Filesystem
    from async_maps.sources.formats.registry import Reader

pytestmark = pytest.mark.fast


class _Recording:
    """A display that records its calls."""

    def __init__(self) -> None:
        self.shown: list[tuple[int, int | None]] = []
        self.ended: list[bool] = []

    def __call__(self, progress: Progress) -> None:
        self.shown.append((progress.report.seen, progress.total))
        self.ended.append(progress.ended)

    async def showed(self, shown: tuple[int, int | None]) -> None:
        while shown not in self.shown:  # noqa: ASYNC110  # bounded by the test's time-out
            await asyncio.sleep(0.001)


@pytest.fixture
def place(maps: Path) -> Path:
    for number in range(5):
        (maps / f"{number}.npy").write_bytes(b"")
    (maps / "broken.npz").write_bytes(b"")
    return maps


# Progress ---------------------------------------------------------------------------------------------------------


def test_rates_count_uploads_of_this_run() -> None:
    progress_ = make_progress(make_report(), make_statistics(), 10_000)
    assert progress_.maps_per_s == 15
    assert progress_.mb_per_s == 1.5


@pytest.mark.parametrize(
    ("total", "eta_s"),
    [
        (10_000, 8100 * 20 / 400),  # 1,900 seen; 400 done in 20 s; skipping takes no time
        (1900, 0.0),
        (1000, 0.0),  # files were added while the source was counted
        (None, None),
    ],
)
def test_the_eta_follows_from_done_maps_without_skipped_ones(total: int | None, eta_s: float | None) -> None:
    assert make_progress(make_report(), make_statistics(), total).eta_s == eta_s


@pytest.mark.parametrize("report", [Report(), Report(skipped=5), Report(skipped=5, elapsed_s=1.0)])
def test_the_eta_is_unknown_before_the_first_map(report: Report) -> None:
    progress_ = make_progress(report, make_statistics(), 10)
    assert (progress_.eta_s, progress_.maps_per_s, progress_.mb_per_s) == (None, 0, 0)
    assert "ETA --" in progress_.line()


def test_a_line_has_counts_rates_eta_and_queues() -> None:
    assert make_progress(make_report(), make_statistics(0.0, 0.5, 1.0), 10_000).line() == (
        "1,900 of 10,000 maps, 100 failed, 1,500 skipped, 15 maps/s, 1.5 MB/s, ETA 6:45, "
        "queues: colorize 0% encode 50% upload 100%"
    )
    assert make_progress(make_report(), make_statistics(), None).line().startswith("1,900 maps, 100 failed")


@pytest.mark.parametrize(
    ("left", "shown"), [(1, "0:00"), (60, "0:03"), (1200, "1:00"), (72_000, "1:00:00"), (10**7, "138:53:20")]
)
def test_durations_are_minutes_or_hours(left: int, shown: str) -> None:
    assert f"ETA {shown}, " in make_progress(make_report(), make_statistics(), 1900 + left).line()


def test_as_dict_returns_plain_values() -> None:
    values = make_progress(make_report(), make_statistics(0.1234, 0.5, 1.0), 10_000).as_dict()
    assert json.loads(json.dumps(values)) == {
        "elapsed_s": 20.0,
        "surveyed": 0,
        "uploaded": 300,
        "skipped": 1500,
        "failed": 100,
        "transparent": 0,
        "faint": 0,
        "total": 10_000,
        "uploaded_bytes": 30_000_000,
        "maps_per_s": 15.0,
        "mb_per_s": 1.5,
        "eta_s": 405.0,
        "upload_limit": 1,
        "upload_rate": None,
        "waiting_since": None,
        "retries": 0,
        "queues": {"colorize": 0.123, "encode": 0.5, "upload": 1.0},
        "lanes": [],
    }
    assert make_progress(make_report(), make_statistics(), None).as_dict()["eta_s"] is None


def test_a_line_shows_since_when_the_store_does_not_answer() -> None:
    waiting = replace(make_statistics(), waiting_since="2026-11-29T12:34:56+01:00")
    assert make_progress(make_report(), waiting, None).line().endswith(", waiting for the store since 12:34:56")
    assert make_progress(make_report(), waiting, None).as_dict()["waiting_since"] == "2026-11-29T12:34:56+01:00"


def test_a_line_shows_the_limit_of_the_rate() -> None:
    slowed = replace(make_statistics(), upload_rate=1234.56)
    assert make_progress(make_report(), slowed, None).line().endswith(", at most 1,234.6 uploads/s")
    assert make_progress(make_report(), slowed, None).as_dict()["upload_rate"] == 1234.6


def test_a_line_shows_the_reduced_upload_limit() -> None:
    slowed = replace(make_statistics(), upload=StageStatistics(32, 0.0, 0, 0.0), upload_limit=8)
    assert make_progress(make_report(), slowed, None).line().endswith(", 8 of 32 concurrent uploads")
    assert "uploads" not in make_progress(make_report(), make_statistics(), None).line()


def test_a_lane_has_a_line_and_an_object() -> None:
    lanes = [
        LaneStatistics("1", 4021, 1200, 30, "upload", 0),
        LaneStatistics("2", None, 7, 30, "start", 1),
        LaneStatistics("quarantine", 4050, 2, 1, "", 2),
    ]
    shown = make_progress(make_report(), replace(make_statistics(), lanes=lanes), None)
    assert shown.lane_lines() == [
        "lane 1 (process 4021): 1,200 done, 30 in flight, waits for upload",
        "lane 2 (no process, restarted 1 time): 7 done, 30 in flight, waits for its process",
        "lane quarantine (process 4050, restarted 2 times): 2 done, 1 in flight",
    ]
    assert shown.as_dict()["lanes"] == [asdict(lane) for lane in lanes]
    assert make_progress(make_report(), None, None).lane_lines() == []


# During a run ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def count_immediately(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_COUNT_AFTER_S", 0)
    monkeypatch.setattr(progress, "_INTERVAL_S", 0.001)


async def test_the_source_of_a_short_run_is_not_counted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_COUNT_AFTER_S", 30)
    display = _Recording()
    async with reporting(display, Report(), place, make_statistics):
        await until(lambda: len(display.shown) > 5)
    assert {total for _, total in display.shown[:-1]} == {None}
    assert display.shown[-1] == (0, 0)  # the total is the number of maps seen


async def test_counting_opens_one_file_of_each_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(6):
        np.save(tmp_path / f"{i}.npy", np.zeros((4, 4 + i // 5)))
    np.save(tmp_path / "7-stack.npy", np.zeros((3, 5, 6)))
    opened: list[str] = []

    def opening(path: str, filesystem: Filesystem) -> Reader:
        opened.append(path)
        return formats.open_reader(path, filesystem)

    monkeypatch.setattr(members, "open_reader", opening)
    monkeypatch.setattr(named, "_BATCH", 1)
    display = _Recording()
    async with reporting(display, Report(), tmp_path, make_statistics):
        await display.showed((0, 9))
    assert [Path(path).name for path in opened] == ["0.npy", "5.npy", "7-stack.npy"]


async def test_progress_is_shown_repeatedly_and_once_at_the_end(place: Path) -> None:
    display = _Recording()
    report = Report()
    tasks, threads = len(asyncio.all_tasks()), threading.active_count()
    async with reporting(display, report, place, make_statistics):
        await display.showed((0, 6))  # with the source counted
        report.uploaded = 4
        await display.showed((4, 6))
        before = len(display.shown)
        report.uploaded, report.failed = 5, 1
    assert len(display.shown) == before + 1
    assert display.shown[-1] == (6, 6)
    assert display.ended[-1]
    assert display.ended.count(True) == 1
    assert report.elapsed_s > 0
    assert len(asyncio.all_tasks()) == tasks
    # Counting has ended; at most a worker thread idles in anyio's pool.
    assert threading.active_count() <= threads + 1


class _OwnError(Exception):
    pass


@pytest.mark.parametrize("error", [_OwnError, asyncio.CancelledError, KeyboardInterrupt])
async def test_an_error_of_the_run_is_raised_unchanged(place: Path, error: type[BaseException]) -> None:
    display = _Recording()
    own = error("theirs")
    with pytest.raises(error) as raised:  # noqa: PT012
        async with reporting(display, Report(), place, make_statistics):
            await until(lambda: bool(display.shown))
            raise own
    assert raised.value is own
    assert raised.value.__cause__ is None
    assert display.ended[-1]
    assert display.ended.count(True) == 1
    assert len(asyncio.all_tasks()) == 1


async def test_a_cancelled_run_closes_its_display(place: Path) -> None:
    display = _Recording()

    async def run() -> None:
        async with reporting(display, Report(), place, make_statistics):
            await asyncio.sleep(30)

    running = asyncio.create_task(run())
    await until(lambda: bool(display.shown))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert display.ended[-1]
    assert display.ended.count(True) == 1
    assert len(asyncio.all_tasks()) == 1


async def test_counting_a_long_source_ends_with_the_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, may_go_on, listed = threading.Event(), threading.Event(), []
    walk = files._Walk.files

    def slow(self: files._Walk) -> Iterator[str | Failure]:
        for path in walk(self):
            listed.append(path)
            entered.set()
            assert may_go_on.wait(60)
            yield path

    monkeypatch.setattr(files._Walk, "files", slow)
    monkeypatch.setattr(named, "_BATCH", 1)
    async with reporting(_Recording(), Report(), place, make_statistics):
        assert await asyncio.to_thread(entered.wait, 60)
    may_go_on.set()
    await asyncio.sleep(0.1)
    assert len(listed) == 1


@pytest.mark.parametrize("kind", ["missing", "empty"])
async def test_a_source_that_cannot_be_counted_is_not_an_error(tmp_path: Path, kind: str) -> None:
    display = _Recording()
    async with reporting(display, Report(), tmp_path / ("none" if kind == "missing" else ""), make_statistics):
        await until(lambda: len(display.shown) > 5)
    assert {total for _, total in display.shown[:-1]} <= {None, 0}


async def test_without_a_display_no_task_runs(place: Path) -> None:
    report = Report()
    async with reporting(None, report, place, make_statistics):
        assert len(asyncio.all_tasks()) == 1
    assert report.elapsed_s == 0


async def test_the_source_is_counted_only_if_the_total_is_read(place: Path) -> None:
    seen: list[Progress] = []
    async with reporting(seen.append, Report(), place, make_statistics):
        while len(seen) < 10:  # noqa: ASYNC110  # bounded by the test's time-out
            await asyncio.sleep(0.001)
        assert seen[-1]._count is not None
        assert seen[-1]._count.total is None
        assert seen[-1].total is None
        while seen[-1].total != 6:  # noqa: ASYNC110  # bounded by the test's time-out
            await asyncio.sleep(0.001)


async def test_an_error_of_the_callback_cancels_the_run_and_is_raised(place: Path) -> None:
    cancelled = False
    calls = 0

    def fail(_: Progress) -> None:
        nonlocal calls
        calls += 1
        raise _OwnError("theirs")

    with pytest.raises(_OwnError, match="theirs"):  # noqa: PT012
        async with reporting(fail, Report(), place, make_statistics):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled = True
                raise
    assert cancelled
    assert calls == 1
    assert len(asyncio.all_tasks()) == 1


async def test_a_progress_is_a_copy(place: Path) -> None:
    report, seen = Report(), list[Progress]()
    async with reporting(seen.append, report, place, make_statistics):
        while not seen:  # noqa: ASYNC110  # bounded by the test's time-out
            await asyncio.sleep(0.001)
        report.uploaded = 7
        report.failures.append(Failure("a", "a", None, "read", "no"))
    assert (seen[0].report.uploaded, seen[0].report.failures) == (0, [])
    assert (seen[-1].report.uploaded, len(seen[-1].report.failures)) == (7, 1)
