"""The commands of plans: plan, run --plan, status and commit, and their exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.support.commands import invoke, only_error, start
from tests.support.leftovers import leaves_nothing
from tests.support.maps import random_map
from tests.support.processes import hook
from tests.support.reports import read_report

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

MAPS, PARTS = 12, 4


@pytest.fixture
def plan(maps: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A plan of 12 maps in 4 parts."""
    monkeypatch.setenv("ASYNC_MAPS_WORKERS", "0")
    for i in range(MAPS):
        np.save(maps / f"{i:02}.npy", random_map(i))
    assert invoke("plan", maps, "out", "--to", "plan", "--part-size", MAPS // PARTS) == 0
    assert (
        capsys.readouterr().out
        == f"{PARTS} parts of {MAPS} files, 0.0 MB; run each share: async-maps run --plan plan --part I/N\n"
    )
    return Path("plan")


def committed(plan: Path) -> int:
    return len(list(plan.glob("*/done/*")))


def overlays() -> int:
    return len(list(Path("out").glob("*.png")))


def status(capsys: pytest.CaptureFixture[str], plan: Path) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = invoke("status", plan, "--json")
    return code, json.loads(capsys.readouterr().out)


def test_a_plan_is_run_in_shares_and_committed(
    plan: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke("commit", plan) == 3
    assert "missing: parts 1, 2, 3, 4; 0 of them were started" in capsys.readouterr().out
    assert invoke("run", "--plan", plan, "--part", "2/3", "--report", "r.json") == 0
    out, err = capsys.readouterr()
    assert out.startswith("share 2/3: 4 parts committed, of 4 in the plan\n12 uploaded, 0 skipped, 0 failed\n")
    assert "when all shares have ended: async-maps commit plan" in err
    report = read_report()
    assert (report["done"], report["parts"], sorted(report["committed"])) == (MAPS, PARTS, [1, 2, 3, 4])
    assert (report["part"], report["to_do"], report["total"]) == ([2, 3], PARTS, None)
    assert report["statistics"]["upload"]["maps"] == MAPS
    monkeypatch.setenv("ASYNC_MAPS_MANIFEST", "of-others.sqlite")
    assert invoke("run", "--plan", plan, "--part", "1/3") == 0
    code, found = status(capsys, plan)
    assert (code, found["rows"], found["failures"], found["commits"]) == (0, MAPS, 0, 0)
    assert invoke("status", plan) == 0
    assert "the plan itself is not committed yet: async-maps commit " in capsys.readouterr().out
    assert invoke("commit", plan) == 0
    assert capsys.readouterr().out.endswith("committed as _SUCCESS-1\n")


def test_failed_maps_end_a_share_with_0_and_the_commit_with_1(
    plan: Path, maps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in maps.iterdir():
        path.write_bytes(b"no map, but another size")
    assert invoke("run", "--plan", plan, "--report", "r.json") == 0
    assert "the commit of the plan tells of them" in capsys.readouterr().out
    report = read_report()
    assert (report["failed"], len(report["failures"]), len(report["committed"])) == (MAPS, MAPS, PARTS)
    assert [group["count"] for group in report["failure_groups"]] == [MAPS]
    assert status(capsys, plan)[0] == 1
    assert invoke("commit", plan) == 1
    err = capsys.readouterr().err
    assert "to list the failed maps: async-maps export " in err
    assert "/plan --retry-failed; files that have changed need another plan" in err


def test_a_plan_with_one_range_for_all_maps_is_surveyed_first(
    maps: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ASYNC_MAPS_WORKERS", "0")
    for i in range(MAPS):
        np.save(maps / f"{i:02}.npy", random_map(i) * 10)
    plan = ("plan", maps, "out", "--to", "plan", "--part-size", MAPS // PARTS, "--range", "dataset")
    assert invoke(*plan) == 0
    assert capsys.readouterr().out.endswith(
        "; survey each share: async-maps run --plan plan --part I/N --survey; then call plan again\n"
    )
    assert invoke("run", "--plan", "plan") == 2
    assert "survey its parts with run --survey" in only_error(capsys.readouterr())
    assert invoke(*plan) == 3
    assert "; not surveyed: parts 1, 2, 3, 4; " in capsys.readouterr().out
    assert invoke("run", "--plan", "plan", "--part", "1/2", "--survey", "--report", "r.json") == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"share 1/2: 4 parts surveyed, of 4 in the plan\n{MAPS} maps read, in ")
    assert "call async-maps plan again: it finds the range" in err
    assert read_report()["surveyed"] == MAPS
    assert invoke(*plan) == 0
    values = [np.load(path) for path in maps.iterdir()]
    low, high = float(min(map(np.min, values))), float(max(map(np.max, values)))
    assert f"all parts are surveyed: colors span {low!r} to {high!r}; run each share: " in capsys.readouterr().out
    assert invoke("run", "--plan", "plan", "--report", "r.json") == 0
    report = read_report()
    assert (report["done"], report["range_low"], report["range_high"]) == (MAPS, low, high)
    assert invoke("run", "--plan", "plan", "--survey", "--retry-failed") == 2


def test_a_survey_of_a_plan_with_another_range_is_refused(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("run", "--plan", plan, "--survey") == 2
    assert "the plan has range unit, which needs no survey" in only_error(capsys.readouterr())
    assert invoke("run", "maps", "out", "--survey") == 2
    assert "--survey needs --plan" in only_error(capsys.readouterr())


def test_a_second_plan_at_a_place_is_not_made(plan: Path, maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (plan / "plan.json").read_bytes()
    np.save(maps / "99.npy", random_map(99))
    assert invoke("plan", maps, "out", "--to", "plan") == 0
    assert "plan has a plan already, made at " in capsys.readouterr().err
    assert (plan / "plan.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 9}, "has schema 9, and this version of async-maps reads 1"),
        ({"encoder": "other"}, "the plan was made for the encoder 'other'"),
    ],
)
def test_a_plan_of_another_version_ends_with_4(
    change: dict[str, object], message: str, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads((plan / "plan.json").read_bytes())
    (plan / "plan.json").write_text(json.dumps(found | change))
    assert invoke("run", "--plan", plan, "--report", "r.json") == 4
    assert message in only_error(capsys.readouterr())
    assert read_report()["error"]["kind"] == "PlanError"


@pytest.mark.parametrize("command", ["run --plan maps", "commit maps", "status maps", "status s3://"])
def test_a_place_without_a_plan_is_refused(command: str, plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(*command.split()) == (2 if "s3" in command else 4)
    only_error(capsys.readouterr())


def test_settings_of_another_look_are_refused_by_name(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--colormap", "viridis", "--include", "x*", "--s3.cache-control", "no-store", "--png", "palette")
    assert invoke("run", "--plan", plan, *arguments) == 2
    error = only_error(capsys.readouterr())
    assert "colormap is 'viridis', not 'jet', include is ['x*'], not [], s3.cache_control is 'no-store'" in error
    assert invoke("run", "--plan", plan, "--colormap", "jet") == 0


def test_a_missing_source_folder_fails_no_map(plan: Path, maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    maps.rename("elsewhere")
    assert invoke("run", "--plan", plan) == 3
    assert "does not exist on this machine: mount its disk" in only_error(capsys.readouterr())
    assert committed(plan) == 0


def test_the_share_comes_from_the_scheduler(
    plan: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "8")
    assert invoke("run", "--plan", plan, "--part", "auto") == 0
    assert capsys.readouterr().out.startswith("share 3/8: ")


def test_progress_and_metrics_are_those_of_all_parts(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("run", "--plan", plan, "--progress", "json", "--metrics-textfile", "m.prom") == 0
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    last = [event for event in events if event["event"] == "progress"][-1]
    assert (last["uploaded"], last["parts_done"], last["parts_to_do"]) == (MAPS, PARTS, PARTS)
    assert events[0]["plan"] == "plan"
    assert events[-1]["report"]["done"] == MAPS
    assert 'async_maps_uploads_total{pipeline="plan"} 12.0' in Path("m.prom").read_text()


# Ends ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def slow(plan: Path) -> Iterator[subprocess.Popen[str]]:
    """A share that stores four maps a second, after its first ones."""
    with start("run", "--plan", plan, "--rate", 4, "--progress", "json", "--report", "r.json") as running:
        assert running.stderr is not None
        while not overlays():
            assert running.poll() is None
            time.sleep(0.01)
        yield running
        running.kill()


def test_a_signal_ends_a_share_after_the_maps_in_flight(
    slow: subprocess.Popen[str], plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow.send_signal(signal.SIGTERM)
    _, err = slow.communicate(timeout=200)
    assert slow.returncode == 143
    assert "finishing the maps in flight" in err
    report = read_report()
    assert (report["drained"], report["complete"], report["exit_code"]) == (True, False, 143)
    assert 0 < report["done"] < MAPS
    # The parts that ran had been read to their ends.
    assert report["done"] == MAPS // PARTS * len(report["committed"])
    assert 0 < len(report["committed"]) == committed(plan) < PARTS
    assert invoke("run", "--plan", plan) == 0
    assert status(capsys, plan)[1]["rows"] == MAPS
    assert overlays() == MAPS


def test_a_second_signal_stops_a_share_immediately(slow: subprocess.Popen[str], plan: Path) -> None:
    slow.send_signal(signal.SIGINT)
    assert slow.stderr is not None
    while "finishing the maps in flight" not in (line := slow.stderr.readline()):
        assert line
    slow.send_signal(signal.SIGINT)
    slow.communicate(timeout=200)
    assert slow.returncode == 128 + signal.SIGINT
    assert committed(plan) < PARTS
    assert not read_report()["complete"]


def test_a_share_that_was_killed_is_completed_by_its_repetition(
    slow: subprocess.Popen[str], plan: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow.kill()
    slow.wait()
    code, found = status(capsys, plan)
    assert (code, found["complete"]) == (3, False)
    assert found["started"] > 0
    assert invoke("run", "--plan", plan, "--report", "r.json") == 0
    assert len(read_report()["committed"]) == PARTS - found["committed"]
    assert status(capsys, plan)[1]["rows"] == MAPS


@pytest.mark.slow
def test_a_map_that_kills_its_share_is_named_by_the_next_attempt(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A share opens the file for its header, with two events, and then for its values; a worker for its values only.
    code = f"""
import os, signal, sys
opened = []
def deadly(event, arguments):
    if event == "open" and str(arguments[0]).endswith("05.npy"):
        opened.append(arguments[0])
        if len(opened) > 2 or os.getppid() != {os.getpid()}:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(deadly)
"""
    hook(tmp_path / "hook", monkeypatch, code)
    with start("run", "--plan", plan) as first:
        first.communicate(timeout=200)
    assert first.returncode == -signal.SIGKILL
    with start("run", "--plan", plan, "--report", "r.json") as second:
        second.communicate(timeout=200)
    assert second.returncode == 0
    (failure,) = read_report()["failures"]
    assert failure["name"] == "05"
    assert status(capsys, plan)[1]["failures"] == 1
    assert overlays() == MAPS - 1
    assert not [name for name in os.listdir(os.environ["TMPDIR"]) if name.startswith("async-maps-parts-")]


def test_files_that_are_no_maps_are_counted_by_plan(maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(maps / "a.npy", random_map(1))
    for name in ("b.png", "c.png", "README"):
        (maps / name).touch()
    assert invoke("plan", maps, "out", "--to", "plan") == 0
    out, err = capsys.readouterr()
    assert out.startswith("1 part of 1 file, ")
    assert "passed over: 2 .png, 1 without a suffix" in err
