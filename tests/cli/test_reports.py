"""``--report`` at every ending: the file is there, agrees with its schema, and says what happened."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from async_maps.cli.app import main
from async_maps.demo import seaweed
from async_maps.manifest.lock import RunLock
from tests.support.commands import COMMAND, done_rows, invoke, start
from tests.support.leftovers import leaves_nothing
from tests.support.maps import random_map
from tests.support.reports import check_report, read_report

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

QUICK = ("--workers", 0, "--progress", "none", "--report", "r.json")


def ending(*arguments: object) -> tuple[int, bool, str | None]:
    """Run a command with a report; return its exit code, and what the report says."""
    Path("r.json").unlink(missing_ok=True)
    code = invoke(*arguments, "--report", "r.json")
    report = read_report()
    assert report["exit_code"] == code
    return code, report["complete"], report["error"] and report["error"]["kind"]


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        ("run maps out", 0, None),
        ("run maps out --dry-run", 0, None),
        ("run maps out --limit 2", 0, None),
        ("run mixed out", 1, None),
        ("run mixed out --max-failures 0", 1, "TooManyFailuresError"),
        ("run nowhere out", 2, "SourceError"),
        ("run nowhere out --dry-run", 2, "SourceError"),
        ("run empty out", 2, "SourceError"),
        ("run maps out --bogus", 2, "SettingsError"),
        ("run maps", 2, "SettingsError"),
        ("run maps out --png gif", 2, "SettingsError"),
        ("run maps out --config none.toml", 2, "SettingsError"),
        ("run maps out --overwrite --retry-failed", 2, "SettingsError"),
        ("run maps ftp://bucket/x", 2, "SettingsError"),
        ("run maps file", 2, "StoreError"),
        ("run maps out --manifest other.sqlite", 2, "ManifestError"),
        ("run maps out --manifest file", 2, "ManifestError"),
        ("run maps out --manifest busy.sqlite", 3, "ManifestError"),
        ("verify other.sqlite", 0, None),
        ("verify broken.sqlite", 1, None),
        ("verify none.sqlite", 2, "ManifestError"),
        ("verify other.sqlite --bogus", 2, "SettingsError"),
        ("verify other.sqlite --delete-foreign", 2, "SettingsError"),
    ],
)
def test_every_ending_writes_a_report(arguments: str, code: int, kind: str | None, maps: Path) -> None:
    for folder in ("mixed", "empty"):
        Path(folder).mkdir()
    for i in range(3):
        np.save(maps / f"{i}.npy", random_map(i))
    np.save("mixed/good.npy", random_map(1))
    np.save("mixed/bad.npy", np.full((3, 3), 7.0))
    Path("file").write_text("no manifest")
    for name in ("other", "broken"):
        assert invoke("run", maps, name, *QUICK[:4], "--manifest", f"{name}.sqlite") == 0
    Path("broken/1.png").unlink()
    lock = RunLock(Path("busy.sqlite"))
    flags = ("--workers", 0) if "--bogus" not in arguments else ()
    assert ending(*arguments.split(), *flags, "--progress", "none") == (code, kind is None, kind)
    lock.release()


def test_a_report_counts_what_was_selected(maps: Path) -> None:
    for i in range(3):
        np.save(maps / f"{i}.npy", random_map(i))
    (maps / "notes.txt").touch()
    assert invoke("run", maps, "out", *QUICK) == 0
    np.save(maps / "new.npy", random_map(4))
    np.save(maps / "bad.npy", np.full((3, 3), 7.0))
    assert invoke("run", maps, "out", *QUICK, "--alpha", 0.5, "--limit", 9) == 1
    np.save(maps / "0.npy", random_map(5))
    assert invoke("run", maps, "out", *QUICK, "--alpha", 0.5) == 1
    found = read_report()
    counts = ("total", "selected", "done", "failed", "skipped", "passed_over")
    assert [found[name] for name in counts] == [5, 2, 1, 1, 3, {".txt": 1}]
    assert (found["settings"]["alpha"], found["settings"]["workers"]) == (0.5, 0)
    (group,) = found["failure_groups"]
    assert (group["count"], [failure["name"] for failure in group["examples"]]) == (1, ["bad"])


def test_an_unexpected_error_writes_a_report(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(maps / "a.npy", random_map(1))

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("async_maps.pipeline.runs.open_recorder", broken)
    with pytest.raises(RuntimeError):
        main(["run", str(maps), "out", *map(str, QUICK)])
    found = read_report()
    assert (found["complete"], found["exit_code"]) == (False, 1)
    assert found["error"] == {"kind": "RuntimeError", "message": "a bug"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_report_that_cannot_be_written_is_no_success(maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(maps / "a.npy", random_map(1))
    assert invoke("run", maps, "out", *QUICK[:4], "--report", "/dev/full") == 1
    assert "cannot write the report to /dev/full: No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("ends", ["the reader comes", "SIGTERM"])
def test_a_report_waits_for_the_reader_of_its_pipe_until_a_signal(maps: Path, ends: str) -> None:
    np.save(maps / "a.npy", random_map(1))
    os.mkfifo("r.json")
    with start("run", maps, "out", *QUICK) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "waiting for a program that reads the report from the pipe r.json" in line
        if ends == "SIGTERM":
            process.terminate()
        else:
            assert check_report(json.loads(Path("r.json").read_text()))["uploaded"] == 1
        _, err = process.communicate(timeout=240)
    assert process.returncode == (143 if ends == "SIGTERM" else 0)
    assert ("cannot write the report to r.json: no program reads this pipe" in err) == (ends == "SIGTERM")


def test_a_wrong_command_line_does_not_replace_other_files(maps: Path) -> None:
    np.save(maps / "a.npy", random_map(1))
    for name in ("m.sqlite", "text"):
        Path(name).write_text("kept")
        assert invoke("run", maps, "out", "--bogus", "--report", name) == 2
        assert Path(name).read_text() == "kept"
    assert invoke("run", maps, "out", "--manifest", "new.sqlite", "--report", "new.sqlite") == 2
    for same in (("--report", "new.sqlite"), ("--report=new.sqlite",)):
        assert invoke("run", maps, "out", "--bogus", "--manifest", "new.sqlite", *same) == 2
        assert invoke("run", maps, "out", "--bogus", "--manifest=new.sqlite", *same) == 2
    assert not Path("new.sqlite").exists()


# A run that is fed by this test ---------------------------------------------------------------------------------------


class Fed:
    """A run that reads the paths of its maps from this process."""

    def __init__(self, maps: Path, destination: str, *flags: object) -> None:
        self.maps = maps
        arguments = ["run", "-", destination, *QUICK, "--manifest", "m.sqlite", *flags]
        self.running = subprocess.Popen(
            [*COMMAND, *map(str, arguments)], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def feed(self, *names: str) -> None:
        """Make maps, and pass their paths."""
        assert self.running.stdin is not None
        for name in names:
            np.save(self.maps / f"{name}.npy", random_map(len(name)))
            self.running.stdin.write(f"{self.maps}/{name}.npy\n")
        self.running.stdin.flush()

    def wait_for_rows(self, count: int) -> None:
        while done_rows("m.sqlite") < count:
            assert self.running.poll() is None
            time.sleep(0.02)

    def end(self) -> tuple[int, str, dict[str, Any]]:
        """Wait for the end; return the exit code, what it said, and its report."""
        _, said = self.running.communicate(timeout=120)
        report = read_report()
        assert report["exit_code"] == self.running.returncode, said
        return self.running.returncode, said, report


def test_a_store_that_dies_in_mid_run_is_3_with_its_reason(maps: Path, tmp_path: Path) -> None:
    with seaweed.serve(tmp_path / "server") as server, seaweed.in_environment(server):
        asyncio.run(seaweed.create_bucket(server, "dying"))
        run = Fed(maps, "s3://dying/x", "--s3.give-up-s", 0.5)
        run.feed("a", "b")
        run.wait_for_rows(1)
        os.kill(server.pid, signal.SIGKILL)
        run.feed("c", "d")
        code, said, report = run.end()
        # The same command cannot start now, either, and that may pass, too.
        assert invoke("run", maps, "s3://dying/x", *QUICK) == 3
    assert code == 3
    assert report["error"]["kind"] == "StoreError"
    assert "the store has accepted nothing" in report["error"]["message"]
    assert f"error: {report['error']['message']}" in said
    assert (report["complete"], report["failed"], report["total"]) == (False, 0, None)
    assert 1 <= report["done"] < report["selected"] <= 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_writes_a_report(number: signal.Signals, code: int, maps: Path) -> None:
    run = Fed(maps, "out")
    run.feed("a", "b")
    run.wait_for_rows(1)
    run.running.send_signal(number)
    found, _, report = run.end()
    assert (found, report["complete"], report["total"]) == (code, False, None)
    assert report["error"] == {"kind": "Interrupted", "message": f"interrupted by {number.name}"}
    assert report["done"] == done_rows("m.sqlite")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_the_run_listens_is_named(number: signal.Signals, code: int, maps: Path) -> None:
    np.save(maps / "a.npy", random_map(1))
    program = (
        "import os, sys; from async_maps import pipeline; from async_maps.cli.app import main\n"
        "init = pipeline.Pipeline.__init__\n"
        "def interrupted(*arguments, **options):\n"
        "    init(*arguments, **options)\n"
        f"    os.kill(os.getpid(), {number})\n"
        "pipeline.Pipeline.__init__ = interrupted\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", program, "run", str(maps), "out", *map(str, QUICK)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == code
    assert read_report()["error"] == {"kind": "Interrupted", "message": f"interrupted by {number.name}"}


def test_the_time_of_a_suspended_run_counts(maps: Path) -> None:
    run = Fed(maps, "out")
    run.feed("a", "b")
    run.wait_for_rows(1)
    run.running.send_signal(signal.SIGSTOP)
    began_at = time.monotonic()
    while (suspended_s := time.monotonic() - began_at) < 1:
        time.sleep(0.05)
    run.running.send_signal(signal.SIGCONT)
    code, _, report = run.end()
    assert (code, report["complete"], report["total"]) == (0, True, 2)
    # read_report() has compared it with the times of start and end.
    assert report["elapsed_s"] > suspended_s


def test_an_earlier_report_stays_whole_until_the_next(maps: Path) -> None:
    np.save(maps / "a.npy", random_map(1))
    assert invoke("run", maps, "out", *QUICK) == 0
    with open("r.json") as reader:
        assert invoke("run", maps, "out", *QUICK) == 0
        # The reader has the old file, not a truncated one.
        check_report(json.load(reader))
    assert read_report()["skipped"] == 1
    assert [path.name for path in Path().iterdir() if path.name.startswith(".")] == []


# S3 -------------------------------------------------------------------------------------------------------------------


def test_the_exit_code_tells_a_wrong_bucket_from_a_store_that_is_down(
    bucket: str, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(maps / "a.npy", random_map(1))
    flags = ("--workers", 0, "--progress", "none")
    out = f"s3://{bucket}/x"
    assert ending("run", maps, "s3://no-such-bucket/x", *flags) == (2, False, "StoreError")
    assert ending("run", "s3://no-such-bucket/maps/", out, *flags) == (2, False, "SourceError")
    assert ending("run", f"s3://{bucket}/nothing/", out, *flags) == (2, False, "SourceError")
    assert ending("run", maps, out, *flags) == (0, True, None)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for command in (("run", maps, out), ("run", maps, out, "--dry-run"), ("run", out, "out")):
        code, complete, kind = ending(*command, *flags, "--s3.max-attempts", 1, "--manifest", "new.sqlite")
        assert (code, complete) == (3, False), command
        assert kind in {"StoreError", "SourceError"}
