"""With ``--progress json``, every line on standard error is a JSON object, also after errors and signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.support.chaos import chaos
from tests.support.commands import COMMAND, start
from tests.support.leftovers import leaves_nothing
from tests.support.maps import random_map

if TYPE_CHECKING:
    from async_maps.demo.seaweed import S3Server

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

JSON = ("--progress", "json")


def events_in(text: str) -> list[dict[str, Any]]:
    """Return the events; fail if a line is none."""
    events = [json.loads(line) for line in text.splitlines()]
    for event in events:
        written = datetime.fromisoformat(event["time"])
        assert written.utcoffset() == timedelta(0)
        assert abs(datetime.now(UTC) - written) < timedelta(hours=1)
        assert event["level"] in {"debug", "info", "warning", "error"}
        assert event["event"]
    return events


def ran(*arguments: object, environment: dict[str, str] | None = None) -> tuple[int, list[dict[str, Any]]]:
    """Run the command, and return its exit code and its events."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env={**os.environ, **(environment or {})},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.returncode, events_in(done.stderr)


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in events]


def test_a_run_starts_tells_its_reasons_and_ends_with_its_report(maps: Path) -> None:
    np.save(maps / "good.npy", random_map(1))
    (maps / "empty.npy").touch()
    code, events = ran("run", maps, "out", "--workers", 0, *JSON)
    assert "progress" in kinds(events)
    # Progress comes by the clock.
    events = [event for event in events if event["event"] != "progress"]
    assert kinds(events) == ["start", "failure", "notice", "end"]
    assert (events[0]["source"], events[0]["destination"]) == (str(maps), "out")
    assert events[1]["name"] == "empty"
    assert (code, events[-1]["exit_code"]) == (1, 1)
    assert (events[-1]["report"]["uploaded"], events[-1]["report"]["failed"]) == (1, 1)


def test_errors_of_the_command_line_are_events(maps: Path) -> None:
    np.save(maps / "a.npy", random_map(1))
    for arguments in (
        ("run", maps, "out", "--bogus", *JSON),
        ("run", maps, *JSON),
        ("run", "--progress=json"),
        ("run", maps, "out", "--png", "gif", *JSON),
        ("run", maps, "out", "--overwrite", "--retry-failed", *JSON),
        ("run", maps, "out", "--config", "none.toml", *JSON),
        ("run", maps, "out", "--report", "none/r.json", *JSON),
        ("verify", "none.sqlite", *JSON),
        ("run", "nowhere", "out", "--workers", 0, *JSON),
    ):
        code, events = ran(*arguments)
        (error,) = (event for event in events if event["event"] == "error")
        assert (code, error["level"]) == (2, "error"), arguments
        assert error["kind"].endswith("Error")
        assert not error["message"].startswith("error")


def test_text_of_libraries_and_workers_becomes_events(maps: Path, tmp_path: Path) -> None:
    np.save(maps / "a.npy", random_map(1))
    # Python imports it at the start of every process.
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        textwrap.dedent("""
            import os, sys
            if "-c" in sys.orig_argv:
                os.write(2, b"a worker is here\\nand has no line end")
        """)
    )
    path = f"{tmp_path / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', os.getcwd())}"
    code, events = ran("run", maps, "out", "--workers", 1, *JSON, environment={"PYTHONPATH": path})
    assert code == 0
    said = [event["message"] for event in events if event.get("logger") == "stderr"]
    # The last one has no line end, so it is written when nothing can follow: after the end.
    assert said == ["a worker is here", "and has no line end"]
    assert kinds(events)[-2:] == ["end", "warning"]


UNEXPECTED = """
    import ctypes, logging, sys, threading, warnings
    from async_maps.cli import app, job

    def fail(*_, **__):
        warnings.warn("mind the gap")
        logging.getLogger("boto").warning("a library %s", "warns")
        ctypes.CDLL(None).perror(b"a C library")
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        print("half a line", end="", file=sys.stderr)
        raise RuntimeError("surprise")

    job.check_report = fail
    app.main()
"""


def test_warnings_threads_and_unexpected_exceptions_are_events(maps: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(UNEXPECTED), "run", maps, "out", *JSON],
        capture_output=True,
        text=True,
        check=False,
    )
    events = events_in(done.stderr)
    assert done.returncode == 1
    said = "\n".join(event["message"] for event in events)
    assert {event.get("logger") for event in events} == {None, "py.warnings", "boto", "stderr"}
    assert "mind the gap" in said
    assert "a library warns" in said
    assert "a C library" in said
    assert "half a line" in said
    failed = {event["kind"]: event for event in events if event["event"] == "error"}
    assert set(failed) == {"ZeroDivisionError", "RuntimeError"}
    assert "Traceback" in failed["RuntimeError"]["traceback"]


@pytest.mark.parametrize("signals", [1, 2])
def test_signals_are_events(maps: Path, signals: int) -> None:
    np.save(maps / "a.npy", random_map(1))
    command = [*COMMAND, "run", "-", "out", "--workers", "0", *JSON]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdin is not None
        assert running.stderr is not None
        lines = [running.stderr.readline()]
        running.stdin.write(f"{maps}/a.npy\n")
        running.stdin.flush()
        while json.loads(lines[-1])["event"] != "progress":
            lines.append(running.stderr.readline())
        for _ in range(signals):
            running.send_signal(signal.SIGTERM)
            while json.loads(lines[-1])["event"] != "signal":
                lines.append(running.stderr.readline())
        events = events_in("".join(lines) + running.stderr.read())
    assert running.returncode == 143
    found = [event for event in events if event["event"] == "signal"]
    assert [event["signal"] for event in found[:signals]] == ["SIGTERM"] * len(found[:signals])
    assert (kinds(events)[-1], events[-1]["exit_code"]) == ("end", 143)


def test_retries_and_slow_downs_are_told(
    maps: Path, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(40):
        np.save(maps / f"{i}.npy", random_map(i))
    with chaos(s3, monkeypatch, seed=1, rate=0.3, kinds=("slow down",)):
        code, events = ran("run", maps, f"s3://{bucket}/out", "--workers", 0, *JSON)
    assert code == 0
    told = [event for event in events if event["event"] == "retry"]
    assert sum(event["new"] for event in told) == told[-1]["retries"] > 0
    assert "SlowDown" in told[0]["reason"]
    (slowed, *_) = (event for event in events if event["event"] == "slow-down")
    assert 0 < slowed["upload_rate"] < 1_000
    assert slowed["upload_limit"] == slowed["concurrency"]


def test_a_reader_that_is_gone_does_not_end_the_run(maps: Path) -> None:
    for i in range(20):
        np.save(maps / f"{i}.npy", random_map(i))
    running = start("run", maps, "out", "--workers", 0, *JSON)
    assert running.stderr is not None
    running.stderr.close()
    assert running.stdout is not None
    assert "20 uploaded" in running.stdout.read()
    running.stdout.close()
    assert running.wait() == 0
    assert len(list(Path("out").glob("*.png"))) == 20
