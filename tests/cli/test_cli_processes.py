"""The command with worker processes, and how signals end it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from async_maps.cli.commands import COMMANDS
from async_maps.manifest.manifest import Manifest
from tests.support.commands import COMMAND, done_rows, invoke, start
from tests.support.leftovers import leaves_nothing
from tests.support.maps import random_map
from tests.support.processes import alive, worker_pids_of

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)


def test_bad_files_among_good_ones_fail_alone(maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(95):
        np.save(maps / f"good{i}.npy", random_map(i))
    (maps / "empty.npy").touch()
    (maps / "text.npy").write_text("this is no array at all")
    np.save(maps / "pickled.npy", np.array([{}, None]))
    np.save(maps / "nan.npy", np.full((4, 5), np.nan))
    np.save(maps / "volume.npy", np.zeros((3, 4, 5, 6)))
    assert invoke("run", maps, "out", "--progress", "none", "--report", "report.json") == 1
    out, err = capsys.readouterr()
    assert "95 uploaded, 0 skipped, 5 failed" in out
    reasons = {
        "empty.npy": "read: expected an .npy file, found an empty one",
        "text.npy": "read: expected an .npy file",
        "pickled.npy": "pickled Python objects, which are never read",
        "nan.npy": "every value must lie in [0, 1]; found NaN at index (0, 0)",
        "volume.npy": "must have the shape (h, w) or (h, w, 1); found (3, 4, 5, 6)",
    }
    for file, reason in reasons.items():
        (line,) = [line for line in err.splitlines() if f"{maps}/{file}" in line]
        assert reason in line
    report = json.loads(Path("report.json").read_text())
    assert (report["uploaded"], report["failed"], report["exit_code"]) == (95, 5, 1)
    assert {failure["name"] for failure in report["failures"]} == {file.removesuffix(".npy") for file in reasons}
    assert len(list(Path("out").glob("*.png"))) == 95


@pytest.mark.slow
def test_a_second_signal_leaves_a_consistent_manifest(maps: Path) -> None:
    for i in range(4000):
        np.save(maps / f"{i:04}.npy", random_map(i, (32, 32)))
    running = start("run", maps, "out", "--progress", "none", "--files.fsync", "--rate", 80)
    while not done_rows("async-maps.sqlite"):
        assert running.poll() is None
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGINT)
    os.kill(running.pid, signal.SIGTERM)
    running.communicate(timeout=60)
    assert running.returncode in {130, 143}
    with Manifest("async-maps.sqlite", read_only=True) as manifest:
        done = {str(row[0]) for row in manifest.rows()}
    assert done <= {path.stem for path in Path("out").glob("*.png")}
    assert not list(Path("out").glob(".async-maps-*"))


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(maps: Path) -> None:
    for i in range(3000):
        np.save(maps / f"{i:04}.npy", random_map(i, (64, 64)))
    running = start("run", maps, "out", "--progress", "none", "--workers", 2, "--rate", 60)
    while not done_rows("async-maps.sqlite"):
        assert running.poll() is None
        time.sleep(0.02)
    workers = worker_pids_of(running.pid)
    assert len(workers) == 2
    running.kill()
    running.communicate()
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert invoke("run", maps, "out", "--progress", "none") == 0
    assert len(list(Path("out").glob("*.png"))) == 3000


@pytest.mark.parametrize("kind", ["json", "log"])
def test_a_new_reason_is_told_while_the_run_goes_on(maps: Path, kind: str) -> None:
    for name in ("a", "b", "c"):
        np.save(maps / f"{name}.npy", np.zeros((2, 3, 3 + ord(name) % 2)))
    (maps / "empty.npy").touch()
    command = [*COMMAND, "run", "-", "out", "--workers", "0", "--progress", kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdin is not None
        assert running.stderr is not None
        for names, reason in (("a", "shape"), ("b\nc\nempty", "empty one")):
            running.stdin.write("".join(f"{maps}/{name}.npy\n" for name in names.split()))
            running.stdin.flush()
            # The source has not ended.
            while "first for this reason" not in (line := running.stderr.readline()):
                assert line
            assert reason in line
        running.stdin.close()
        rest = running.stderr.read()
    assert running.returncode == 1
    assert "first for this reason" not in rest
    if kind == "json":
        assert [json.loads(line) for line in rest.splitlines()][-1]["report"]["failed"] == 4


def test_too_many_failures_end_the_run_with_exit_1(maps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(50):
        np.save(maps / f"{i}.npy", np.full((3, 3), 7.0))
    assert invoke("run", maps, "out", "--progress", "none", "--max-failures", 5) == 1
    assert "more than max_failures = 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "not_imported"),
    [
        ((), {"numpy", "pydantic", "anyio", "async_maps.settings", *(f"async_maps.cli.{name}" for name in COMMANDS)}),
        (("run",), {"numba", "aioboto3", "botocore", "PIL", "pyarrow", "async_maps.pipeline", "async_maps.cli.demo"}),
    ],
)
def test_help_imports_only_what_it_prints(arguments: tuple[str, ...], not_imported: set[str]) -> None:
    code = (
        "import sys\n"
        "from async_maps.cli.app import main\n"
        "try: main([*sys.argv[1:], '--help'])\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    imported = set(done.stderr.split())
    assert "async_maps.cli.commands" in imported
    assert not imported & not_imported


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_of_a_command_is_the_first_line_of_its_docstring(name: str) -> None:
    module, _, function = COMMANDS[name].function.partition(":")
    docstring = getattr(import_module(f"async_maps.cli.{module}"), function).__doc__
    assert docstring.splitlines()[0] == COMMANDS[name].summary


@pytest.mark.parametrize("closed", [[1], [2], [1, 2]])
def test_closed_standard_streams_change_no_result(maps: Path, closed: list[int]) -> None:
    np.save(maps / "a.npy", random_map(1))
    program = (
        "import os, sys; [os.close(int(fd)) for fd in sys.argv[1].split(',')]; "
        "os.execv(sys.executable, [sys.executable, '-m', 'async_maps', *sys.argv[2:]])"
    )
    command = [sys.executable, "-c", program, ",".join(map(str, closed)), "run"]
    assert subprocess.run([*command, str(maps), "out", "--workers", "0"], check=False).returncode == 0
    assert Path("out/a.png").exists()
    assert subprocess.run([*command, "nowhere", "out"], check=False).returncode == 2
