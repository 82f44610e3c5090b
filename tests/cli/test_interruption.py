"""Signals end a command with their exit code, also where Python or the command drops their exception."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from async_maps.cli import run as run_module
from async_maps.cli import verify as verify_module
from async_maps.cli.reports import write_report
from tests.support.commands import invoke

if TYPE_CHECKING:
    from pathlib import Path

COMMAND = """
import os, sys
from contextlib import suppress
from threading import Event
from async_maps.cli.app import app, main

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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("how", ["waits", "returns", "caught"])
def test_a_signal_whose_exception_is_dropped_ends_the_command(number: signal.Signals, how: str) -> None:
    # A shell starts background processes with SIGINT ignored.
    hearing = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program = hearing + COMMAND.format(number=int(number))
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


def test_a_run_in_the_background_ignores_ctrl_c(job: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    handlers: list[Any] = []

    def display(_: object) -> None:
        handlers.append(signal.getsignal(signal.SIGINT))

    monkeypatch.setattr(run_module, "make_display", lambda _: display)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert invoke(*job) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert set(handlers) == {signal.SIG_IGN}


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
    for module in (run_module, verify_module):
        monkeypatch.setattr(module, "write_report", interrupted)
    assert invoke(*job) == 128 + number
    with open("r.json") as file:
        found = json.load(file)
    assert (found["command"], found["exit_code"]) == (command, 128 + number)
    assert found["done" if command == "run" else "right"] == 1
