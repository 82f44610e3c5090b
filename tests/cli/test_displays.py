"""The progress display of commands on a terminal, in a log and as JSON."""

from __future__ import annotations

import io
import json
import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from async_maps.cli.console import messages, set_verbosity
from async_maps.cli.displays import BarDisplay, JsonDisplay, LineDisplay, make_display
from async_maps.outcomes import Failure
from async_maps.report import Report
from async_maps.stages.meters import LaneStatistics, StageStatistics
from tests.support.progress import make_progress, make_report, make_statistics

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_maps.cli.displays import ProgressKind, RunProgressKind

pytestmark = [pytest.mark.fast]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("kind", "out", "display"),
    [
        ("auto", Terminal, BarDisplay),
        ("auto", io.StringIO, LineDisplay),
        ("bar", Terminal, BarDisplay),
        ("bar", io.StringIO, LineDisplay),
        ("log", Terminal, LineDisplay),
        ("json", Terminal, JsonDisplay),
        ("none", Terminal, type(None)),
    ],
)
def test_auto_is_a_bar_on_a_terminal_and_lines_elsewhere(
    kind: ProgressKind, out: Callable[[], io.StringIO], display: type
) -> None:
    made = make_display(kind, out())
    assert isinstance(made, display)


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    display = make_display("log")
    assert display is not None
    display(make_progress(make_report(), make_statistics(), None, ended=True))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("1,900 maps, ")


@pytest.mark.parametrize("kind", ["log", "json"])
def test_a_line_is_written_at_each_interval_and_at_the_end(
    kind: ProgressKind, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr("async_maps.cli.displays.monotonic", lambda: clock[0])
    shown = []
    with messages(as_json=kind == "json"):
        display = make_display(kind)
        assert display is not None
        for clock[0], ended, is_shown in (
            (101.0, False, False),
            (105.0, False, True),
            (109.0, False, False),
            (109.5, True, True),
        ):
            progress = make_progress(make_report(), make_statistics(), 10_000, ended=ended)
            display(progress)
            if is_shown:
                shown.append(progress)
    lines = capsys.readouterr().err.splitlines()
    if kind == "json":
        written = [dict(list(json.loads(line).items())[3:]) for line in lines]
        assert written == [progress.as_dict() for progress in shown]
        assert [list(json.loads(line))[:3] for line in lines] == [["time", "level", "event"]] * 2
    else:
        assert lines == [progress.line() for progress in shown]


def test_a_line_for_each_lane_is_written_on_request() -> None:
    lanes = [LaneStatistics("1", 4021, 1200, 30, "upload", 0), LaneStatistics("2", 4022, 7, 0, "maps", 0)]
    progress = make_progress(make_report(), replace(make_statistics(), lanes=lanes), 10_000, ended=True)
    shown: dict[RunProgressKind, list[str]] = {"log": [], "lanes": []}
    for kind in shown:
        out = io.StringIO()
        display = make_display(kind, out)
        assert display is not None
        display(progress)
        shown[kind] = out.getvalue().splitlines()
    assert shown["log"] == [progress.line()]
    assert shown["lanes"] == [progress.line(), *(f"  {line}" for line in progress.lane_lines())]


@pytest.mark.parametrize("columns", [80, 200])
def test_a_bar_draws_any_progress_and_shows_the_cursor_again(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal = Terminal()
    display = BarDisplay(terminal)
    for report, total in ((Report(), None), (make_report(), None), (make_report(), 10_000), (make_report(), 0)):
        for queue in (0.0, 0.49, 1.0):
            display(make_progress(report, make_statistics(queue, queue, queue), total))
    report = Report(uploaded=600_000, failed=123, uploaded_bytes=60_000_000_000, elapsed_s=500.0)
    display(make_progress(report, make_statistics(0.0, 0.5, 1.0), 1_000_000, ended=True))
    drawn = terminal.getvalue()
    assert drawn.rfind("\x1b[?25h") > drawn.rfind("\x1b[?25l") >= 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn).replace("\n", " ")
    assert text.strip().endswith("600123/1000000 1,200 maps/s 120.0 MB/s ETA 5:33 123 failed queues ▁▅█")
    assert "━" in text


def failing(report: Report, *reasons: str) -> Report:
    report.count(
        [Failure(f"{number}", f"/maps/{number}.npy", None, "read", reason) for number, reason in enumerate(reasons)]
    )
    return report.copy()


NEW_REASONS = [
    "0 (/maps/0.npy): read: found 1",
    "1 (/maps/1.npy): read: it is [gone]",
    "2 (/maps/2.npy): read: it is new",
]


REASONS: list[list[str]] = [
    [],
    ["found 1", "it is [gone]", "found 2"],
    ["found 3"] * 100,
    ["found 4", "found 5", "it is new"],
]


@pytest.mark.parametrize("kind", ["log", "bar"])
def test_each_new_reason_is_told_once_while_the_run_goes_on(
    kind: ProgressKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    out, report = Terminal(), Report()
    display = make_display(kind, out)
    assert display is not None
    for reasons in REASONS:
        display(make_progress(failing(report, *reasons), make_statistics(), 10_000))
    display(make_progress(failing(report, "at the end"), make_statistics(), 10_000, ended=True))
    # What the bar had drawn on a line is erased before another text is written there.
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", re.sub(r"[^\n]*\r\x1b\[2K", "", out.getvalue()))
    said = "async-maps: failed (first for this reason): "
    # In one piece each, on a line of its own, however narrow the terminal is.
    assert [line for line in text.splitlines() if said in line] == [said + failure for failure in NEW_REASONS]


@pytest.mark.parametrize("kind", ["log", "bar"])
def test_a_failure_is_shown_without_the_password_in_its_source(kind: ProgressKind) -> None:
    out, report = Terminal(), Report()
    display = make_display(kind, out)
    assert display is not None
    report.count([Failure("a", "ftp://me:passing@host/a.npy", None, "read", "no such scheme")])
    display(make_progress(report, make_statistics(), 10))
    display(make_progress(report, make_statistics(), 10, ended=True))
    assert "a (ftp://***@host/a.npy): read: no such scheme" in out.getvalue()


def events_of(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_each_reason_is_one_event_also_at_the_end_and_with_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    report, display = Report(), JsonDisplay()
    with messages(as_json=True):
        set_verbosity(verbose=True)
        for reasons in REASONS:
            display(make_progress(failing(report, *reasons), make_statistics(), 10_000))
        display(make_progress(failing(report, "at the end"), make_statistics(), 10_000, ended=True))
    *told, last = events_of(capsys)
    assert last["event"] == "progress"
    assert {(event["event"], event["level"]) for event in told} == {("failure", "warning")}
    assert [event["reason"] for event in told] == ["found 1", "it is [gone]", "it is new", "at the end"]
    assert {key: told[0][key] for key in ("name", "source", "fingerprint", "stage")} == {
        "name": "0", "source": "/maps/0.npy", "fingerprint": None, "stage": "read",
    }  # fmt: skip


def test_retries_and_slow_downs_are_events_at_most_once_in_an_interval(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr("async_maps.cli.displays.monotonic", lambda: clock[0])
    display = JsonDisplay()
    uploads = StageStatistics(8, 0.0, 0, 0.0)
    with messages(as_json=True):
        for clock[0], retries, limit in ((100.2, 0, 8), (100.4, 3, 4), (100.6, 10, 2), (104.9, 12, 1), (105.5, 12, 2)):
            found = replace(make_statistics(), retries=retries, upload_limit=limit, retry_reason=f"reason {retries}")
            found = replace(found, upload=uploads)
            display(make_progress(Report(), found, None))
    told = [event for event in events_of(capsys) if event["event"] != "progress"]
    assert [(event["event"], event["level"]) for event in told] == [
        ("retry", "warning"), ("slow-down", "warning"), ("retry", "warning"),
    ]  # fmt: skip
    assert [(event["new"], event["retries"], event["reason"]) for event in (told[0], told[2])] == [
        (3, 3, "reason 3"), (9, 12, "reason 12"),
    ]  # fmt: skip
    assert (told[1]["upload_limit"], told[1]["concurrency"], told[1]["upload_rate"]) == (4, 8, None)
    assert told[1]["message"] == "uploads have timed out: 4 of 8 run concurrently"


def test_a_rate_that_is_limited_or_falls_is_an_event(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr("async_maps.cli.displays.monotonic", lambda: clock[0])
    display = JsonDisplay()
    with messages(as_json=True):
        for clock[0], rate in ((100.0, None), (100.2, 700.0), (105.5, 900.0), (106.0, 630.0), (120.0, None)):
            display(make_progress(Report(), replace(make_statistics(), upload_rate=rate), None))
    told = [event for event in events_of(capsys) if event["event"] == "slow-down"]
    assert [(event["upload_rate"], event["message"]) for event in told] == [
        (700.0, "the rate is limited to 700.0 uploads/s"), (630.0, "the rate is limited to 630.0 uploads/s"),
    ]  # fmt: skip


def test_a_closed_terminal_does_not_end_the_run() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    out = os.fdopen(writing, "w")
    display = make_display("log", out)
    assert display is not None
    display(make_progress(make_report(), make_statistics(), None, ended=True))
    with pytest.raises(BrokenPipeError):
        out.close()
