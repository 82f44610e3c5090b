"""Signals end a command with their exit code, also where Python or the command drops their exception."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

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
