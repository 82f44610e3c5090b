from __future__ import annotations

import asyncio
import io
import json
import os
import re
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from async_maps import progress
from async_maps.progress import BarDisplay, Display, LineDisplay, Snapshot, make_display, showing
from async_maps.report import Report
from async_maps.sources import files
from async_maps.sources.formats import registry as formats
from async_maps.stages.meters import StageStatistics, Statistics

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_maps.filesystems.filesystem import Filesystem
    from async_maps.progress import ProgressKind
    from async_maps.sources.formats.registry import Reader


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class _Recording:
    """Keeps what it is shown."""

    def __init__(self, interval_s: float = 0.001) -> None:
        self.interval_s = interval_s
        self.shown: list[tuple[int, int | None]] = []
        self.closed = 0

    def show(self, snapshot: Snapshot) -> None:
        assert not self.closed
        self.shown.append((snapshot.report.seen, snapshot.total))

    def close(self) -> None:
        self.closed += 1

    async def showed(self, snapshot: tuple[int, int | None]) -> None:
        while snapshot not in self.shown:  # noqa: ASYNC110  # bounded by the test's time-out
            await asyncio.sleep(0.001)


def _statistics(*queues: float) -> Statistics:
    colorize, encode, upload = (StageStatistics(1, 0.0, 0, queue) for queue in queues or (0.0, 0.0, 0.0))
    return Statistics(StageStatistics(16, 0.0, 0, 0.0), colorize, encode, upload, 0, 0, 0, 1, 0)


def _report() -> Report:
    return Report(uploaded=300, skipped=1500, failed=100, uploaded_bytes=30_000_000, elapsed_s=20.0)


@pytest.fixture
def place(maps: Path) -> Path:
    for number in range(5):
        (maps / f"{number}.npy").write_bytes(b"")
    (maps / "broken.npz").write_bytes(b"")
    return maps


# Snapshots ---------------------------------------------------------------------------------------------------------


def test_rates_are_of_what_this_run_has_uploaded() -> None:
    snapshot = Snapshot(_report(), _statistics(), 10_000)
    assert snapshot.maps_per_s == 15
    assert snapshot.mb_per_s == 1.5


@pytest.mark.parametrize(
    ("total", "eta_s"),
    [
        (10_000, 8100 * 20 / 400),  # 1,900 seen; 400 done in 20 s; skipping takes no time
        (1900, 0.0),
        (1000, 0.0),  # files came in while it was counted
        (None, None),
    ],
)
def test_the_time_left_follows_from_what_was_done_and_not_from_what_was_skipped(
    total: int | None, eta_s: float | None
) -> None:
    assert Snapshot(_report(), _statistics(), total).eta_s == eta_s


@pytest.mark.parametrize("report", [Report(), Report(skipped=5), Report(skipped=5, elapsed_s=1.0)])
def test_before_the_first_map_is_done_no_time_left_is_known(report: Report) -> None:
    snapshot = Snapshot(report, _statistics(), 10)
    assert (snapshot.eta_s, snapshot.maps_per_s, snapshot.mb_per_s) == (None, 0, 0)
    assert "ETA --" in snapshot.line()


def test_a_line_tells_it_all() -> None:
    assert Snapshot(_report(), _statistics(0.0, 0.5, 1.0), 10_000).line() == (
        "1,900 of 10,000 maps, 100 failed, 1,500 skipped, 15 maps/s, 1.5 MB/s, ETA 6:45, "
        "queues: colorize 0% encode 50% upload 100%"
    )
    assert Snapshot(_report(), _statistics(), None).line().startswith("1,900 maps, 100 failed")


@pytest.mark.parametrize(
    ("left", "shown"), [(1, "0:00"), (60, "0:03"), (1200, "1:00"), (72_000, "1:00:00"), (10**7, "138:53:20")]
)
def test_durations_are_minutes_or_hours(left: int, shown: str) -> None:
    assert f"ETA {shown}, " in Snapshot(_report(), _statistics(), 1900 + left).line()


def test_for_machines_it_is_plain_values() -> None:
    values = Snapshot(_report(), _statistics(0.1234, 0.5, 1.0), 10_000).as_dict()
    assert json.loads(json.dumps(values)) == {
        "elapsed_s": 20.0,
        "surveyed": 0,
        "uploaded": 300,
        "skipped": 1500,
        "failed": 100,
        "total": 10_000,
        "uploaded_bytes": 30_000_000,
        "maps_per_s": 15.0,
        "mb_per_s": 1.5,
        "eta_s": 405.0,
        "upload_limit": 1,
        "retries": 0,
        "queues": {"colorize": 0.123, "encode": 0.5, "upload": 1.0},
    }
    assert Snapshot(_report(), _statistics(), None).as_dict()["eta_s"] is None


def test_it_shows_that_the_store_has_asked_for_less() -> None:
    slowed = replace(_statistics(), upload=StageStatistics(32, 0.0, 0, 0.0), upload_limit=8)
    assert Snapshot(_report(), slowed, None).line().endswith(", 8 of 32 uploads at once")
    assert "uploads" not in Snapshot(_report(), _statistics(), None).line()


# Displays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "out", "display"),
    [
        ("auto", _Terminal, BarDisplay),
        ("auto", io.StringIO, LineDisplay),
        ("bar", io.StringIO, BarDisplay),
        ("log", _Terminal, LineDisplay),
        ("json", _Terminal, LineDisplay),
        ("none", _Terminal, type(None)),
    ],
)
def test_auto_is_a_bar_on_a_terminal_and_lines_elsewhere(
    kind: ProgressKind, out: Callable[[], io.StringIO], display: type
) -> None:
    made = make_display(kind, out())
    assert isinstance(made, display)
    if made is not None:
        made.close()


def test_it_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    display = make_display("log")
    assert display is not None
    display.show(Snapshot(_report(), _statistics(), None))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("1,900 maps, ")


@pytest.mark.parametrize("kind", ["log", "json"])
def test_every_snapshot_is_a_line_of_its_own(kind: ProgressKind) -> None:
    out = io.StringIO()
    display = make_display(kind, out)
    assert display is not None
    snapshots = [Snapshot(_report(), _statistics(), total) for total in (None, 10_000)]
    for snapshot in snapshots:
        display.show(snapshot)
    display.close()
    assert out.getvalue().endswith("\n")
    lines = out.getvalue().splitlines()
    if kind == "json":
        assert [json.loads(line) for line in lines] == [snapshot.as_dict() for snapshot in snapshots]
    else:
        assert lines == [snapshot.line() for snapshot in snapshots]


@pytest.mark.parametrize("columns", [80, 200])
def test_a_bar_draws_what_there_is_and_leaves_the_cursor_visible(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal = _Terminal()
    display = BarDisplay(terminal)
    for report, total in ((Report(), None), (_report(), None), (_report(), 10_000), (_report(), 0)):
        for queue in (0.0, 0.49, 1.0):
            display.show(Snapshot(report, _statistics(queue, queue, queue), total))
    report = Report(uploaded=600_000, failed=123, uploaded_bytes=60_000_000_000, elapsed_s=500.0)
    display.show(Snapshot(report, _statistics(0.0, 0.5, 1.0), 1_000_000))
    display.close()
    drawn = terminal.getvalue()
    assert drawn.rfind("\x1b[?25h") > drawn.rfind("\x1b[?25l") >= 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn).replace("\n", " ")
    assert text.strip().endswith("600123/1000000 1,200 maps/s 120.0 MB/s ETA 5:33 123 failed queues ▁▅█")
    assert "━" in text


# While a run goes on -----------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def counted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_COUNT_AFTER_S", 0)


async def test_a_run_that_is_soon_through_is_not_counted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_COUNT_AFTER_S", 30)
    display = _Recording()
    async with showing(display, Report(), _statistics, place):
        await asyncio.sleep(0.05)
    assert {total for _, total in display.shown[:-1]} == {None}
    assert display.shown[-1] == (0, 0)  # as many as were seen


async def test_files_are_opened_to_be_counted_only_if_none_of_their_size_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(6):
        np.save(tmp_path / f"{i}.npy", np.zeros((4, 4 + i // 5)))
    np.save(tmp_path / "7-stack.npy", np.zeros((3, 5, 6)))
    opened: list[str] = []

    def opening(path: str, filesystem: Filesystem) -> Reader:
        opened.append(path)
        return formats.open_reader(path, filesystem)

    monkeypatch.setattr(files, "open_reader", opening)
    monkeypatch.setattr(files, "_ASK_AT_ONCE", 1)
    display = _Recording()
    async with showing(display, Report(), _statistics, tmp_path):
        await display.showed((0, 9))
    assert [Path(path).name for path in opened] == ["0.npy", "5.npy", "7-stack.npy"]


async def test_a_run_is_shown_again_and_again_and_once_at_its_end(place: Path) -> None:
    display = _Recording()
    report = Report()
    tasks, threads = len(asyncio.all_tasks()), threading.active_count()
    async with showing(display, report, _statistics, place):
        await display.showed((0, 6))  # with the source counted
        report.uploaded = 4
        await display.showed((4, 6))
        before = len(display.shown)
        report.uploaded, report.failed = 5, 1
    assert len(display.shown) == before + 1
    assert display.shown[-1] == (6, 6)
    assert display.closed == 1
    assert report.elapsed_s > 0
    assert len(asyncio.all_tasks()) == tasks
    # The counter is through; at most a worker thread idles in anyio's pool.
    assert threading.active_count() <= threads + 1


class _OwnError(Exception):
    pass


@pytest.mark.parametrize("error", [_OwnError, asyncio.CancelledError, KeyboardInterrupt])
async def test_the_runs_own_error_comes_through_as_it_is(place: Path, error: type[BaseException]) -> None:
    display = _Recording()
    own = error("theirs")
    with pytest.raises(error) as raised:  # noqa: PT012
        async with showing(display, Report(), _statistics, place):
            await asyncio.sleep(0.01)
            raise own
    assert raised.value is own
    assert raised.value.__cause__ is None
    assert display.closed == 1
    assert len(asyncio.all_tasks()) == 1


async def test_a_cancelled_run_is_cancelled_and_its_display_closed(place: Path) -> None:
    display = _Recording()

    async def run() -> None:
        async with showing(display, Report(), _statistics, place):
            await asyncio.sleep(30)

    running = asyncio.create_task(run())
    await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert display.closed == 1
    assert len(asyncio.all_tasks()) == 1


async def test_counting_a_long_source_ends_with_the_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, may_go_on, listed = threading.Event(), threading.Event(), []
    walk = files._walk

    def slow(*arguments: object) -> object:
        for path in walk(*arguments):  # type: ignore[arg-type]
            listed.append(path)
            entered.set()
            assert may_go_on.wait(10)
            yield path

    monkeypatch.setattr(files, "_walk", slow)
    monkeypatch.setattr(files, "_ASK_AT_ONCE", 1)
    async with showing(_Recording(), Report(), _statistics, place):
        assert await asyncio.to_thread(entered.wait, 5)
    may_go_on.set()
    await asyncio.sleep(0.1)
    assert len(listed) == 1


@pytest.mark.parametrize("kind", ["missing", "empty"])
async def test_a_source_that_cannot_be_counted_is_for_the_run_to_complain_about(tmp_path: Path, kind: str) -> None:
    display = _Recording()
    async with showing(display, Report(), _statistics, tmp_path / ("none" if kind == "missing" else "")):
        await asyncio.sleep(0.05)
    assert {total for _, total in display.shown[:-1]} <= {None, 0}


async def test_without_a_display_nothing_is_watched(place: Path) -> None:
    report = Report()
    async with showing(None, report, _statistics, place):
        assert len(asyncio.all_tasks()) == 1
    assert report.elapsed_s == 0


async def test_a_terminal_that_is_gone_does_not_end_the_run(place: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    out = os.fdopen(writing, "w")
    display: Display = LineDisplay(out, Snapshot.line)
    display.interval_s = 0.001
    async with showing(display, Report(), _statistics, place):
        await asyncio.sleep(0.02)
    with pytest.raises(BrokenPipeError):
        out.close()
    assert not sys.stderr.closed
