"""Signals end a command with their exit code, also where Python or the command drops their exception."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from async_maps.cli import job as job_module
from async_maps.cli import verify as verify_module
from async_maps.cli.reports import write_report
from tests.support.commands import invoke

if TYPE_CHECKING:
    from pathlib import Path

HEARING = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
"""
"""A shell starts background processes with SIGINT ignored, and ``nohup`` any with SIGHUP."""

COMMAND = """
import os, sys
from contextlib import suppress
from threading import Event
from async_maps.cli.app import main
from async_maps.cli.commands import app

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), {number})
        for _ in range(1000):
            pass

@app.command
def hold(how: str) -> int:
    if how == "caught":
        with suppress(BaseException):
            os.kill(os.getpid(), {number})
            Event().wait()
        return 0
    Finalized()
    print("after the finalizer", flush=True)
    if how == "waits":
        Event().wait()
    return 0

main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("how", "number"),
    [
        *product(("waits", "returns", "caught"), (signal.SIGINT, signal.SIGTERM)),
        ("waits", signal.SIGHUP),
    ],
)
def test_a_signal_whose_exception_is_dropped_ends_the_command(number: signal.Signals, how: str) -> None:
    program = HEARING + COMMAND.format(number=int(number))
    ended = subprocess.run(
        [sys.executable, "-c", program, "hold", how], check=False, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 128 + number, ended.stderr
    assert ended.stdout == ("" if how == "caught" else "after the finalizer\n")
    assert "Traceback" not in ended.stderr


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.eye(4))
    return ["run", "a.npy", "out", "--workers", "0", "--report", "r.json"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_imports_is_in_the_report(number: signal.Signals, job: list[str]) -> None:
    program = f"""
import os, signal, sys
from async_maps.cli import main

class Finder:
    def find_spec(name, path, target=None):
        if name == "cyclopts":
            os.kill(os.getpid(), {int(number)})

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder)
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *job], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (128 + number, "async-maps: interrupted\n")
    with open("r.json") as file:
        found = json.load(file)
    assert (found["exit_code"], found["complete"], found["uploaded"]) == (128 + number, False, 0)
    assert found["error"] == {"kind": "Interrupted", "message": f"interrupted by {number.name}"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=["in the background", "nohup"])
def test_a_signal_that_is_ignored_at_the_start_stays_ignored(
    number: signal.Signals, job: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers: list[Any] = []

    def display(_: object) -> None:
        handlers.append(signal.getsignal(number))

    monkeypatch.setattr(job_module, "make_display", lambda _: display)
    before = signal.signal(number, signal.SIG_IGN)
    try:
        assert invoke(*job) == 0
    finally:
        signal.signal(number, before)
    assert set(handlers) == {signal.SIG_IGN}


def test_a_terminal_that_closes_drains_the_run_although_it_says_so_twice(job: list[str]) -> None:
    program = """
import os, signal, sys
from async_maps.cli import job
from async_maps.cli.app import main

def display(progress):
    if progress.report.uploaded and job.make_display is not None:
        job.make_display = None
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)

job.make_display = lambda _: display
main(sys.argv[1:])
"""
    # The open standard input keeps the run going until the signal.
    line = [sys.executable, "-c", HEARING + program, "run", "-", *job[2:], "--progress", "json"]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdin is not None
        assert running.stderr is not None
        running.stdin.write("a.npy\n")
        running.stdin.flush()
        events = [json.loads(line) for line in running.stderr]
        assert running.wait(timeout=60) == 128 + signal.SIGHUP
    said = [event["message"] for event in events if event["event"] == "signal"]
    assert said == ["SIGHUP: finishing the maps in flight; send SIGTERM to stop immediately"]
    assert events[-1]["report"]["drained"]
    assert events[-1]["report"]["uploaded"] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["run", "verify"])
def test_a_signal_while_the_report_is_written_keeps_its_figures(
    command: str, number: signal.Signals, job: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> int:
        os.kill(os.getpid(), number)
        return write_report(*arguments)

    if command == "verify":
        assert invoke(*job) == 0
        job = ["verify", "async-maps.sqlite", "--report", "r.json"]
    for module in (job_module, verify_module):
        monkeypatch.setattr(module, "write_report", interrupted)
    assert invoke(*job) == 128 + number
    with open("r.json") as file:
        found = json.load(file)
    assert (found["command"], found["exit_code"]) == (command, 128 + number)
    assert found["done" if command == "run" else "right"] == 1
