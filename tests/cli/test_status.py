"""``async-maps status`` beside runs in other processes."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.manifest.manifest import Manifest
from async_maps.manifest.samples import LastRun, Sample
from tests.support.commands import COMMAND, invoke, only_error
from tests.support.leftovers import leaves_nothing
from tests.support.maps import random_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import IO, TypeAlias

    Ask: TypeAlias = Callable[[], tuple[int, dict[str, Any]]]

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

MANIFEST = "async-maps.sqlite"


@contextmanager
def waiting_run(*arguments: object) -> Iterator[tuple[IO[str], subprocess.Popen[str]]]:
    """Start a run that waits for paths on standard input."""
    command = [*COMMAND, "run", "-", "out", "--workers", "0", "--quiet", *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as running:
        assert running.stdin is not None
        yield running.stdin, running
        if not running.stdin.closed:
            running.stdin.close()


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """Return a function that gives the exit code and the JSON object of ``status --json``."""

    def asked() -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = invoke("status", MANIFEST, "--json")
        return code, json.loads(capsys.readouterr().out)

    return asked


def until_running(ask: Ask, least: int = 0) -> dict[str, Any]:
    """Ask until the run has done a number of maps, and return the status."""
    while True:
        # It does not exist yet, or is just being created.
        with suppress(am.ManifestError):
            found = am.status(MANIFEST)
            if found.state == "running" and found.uploaded >= least:
                return ask()[1]
        time.sleep(0.05)


def test_a_run_in_another_process_is_told_while_it_writes(
    maps: Path, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(3):
        np.save(maps / f"{i}.npy", random_map(i))
    (maps / "empty.npy").touch()
    with waiting_run() as (paths, running):
        assert until_running(ask)["uploaded"] == 0
        paths.writelines(f"{path}\n" for path in sorted(maps.iterdir()))
        paths.flush()
        # A sample comes every 5 seconds.
        found = until_running(ask, 3)
        assert found["writer"].startswith(f"process {running.pid} on ")
        assert (found["done"], found["failed"], found["newly_failed"]) == (3, 1, 1)
        assert (found["total"], found["listed"], found["eta_s"]) == (None, 4, None)
        assert [group["reason"] for group in found["failure_groups"]] == ["expected an .npy file, found an empty one"]
        assert ask()[0] == 1
        assert invoke("status", MANIFEST) == 1
        output = capsys.readouterr()
        assert f"{MANIFEST}: running (process {running.pid} on " in output.out
        assert "4 of at least 4 maps: 3 uploaded, 0 skipped, 1 failed" in output.out
        assert "failed: " in output.out
        assert "to list the failure: async-maps export " in output.err
    code, found = ask()
    assert (code, found["state"], found["total"], found["writer"]) == (1, "complete", 4, None)
    # The readers have not kept the run from merging its log.
    assert sorted(path.name for path in Path().glob(f"{MANIFEST}*")) == [MANIFEST]


def test_a_killed_run_is_told_from_one_that_goes_on(maps: Path, ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(maps / "a.npy", random_map(1))
    with waiting_run() as (paths, running):
        paths.write(f"{maps}/a.npy\n")
        paths.flush()
        until_running(ask, 1)
        running.kill()
    code, found = ask()
    assert (code, found["state"], found["ended_at"], found["done"]) == (3, "lost", None, 1)
    assert invoke("status", MANIFEST) == 3
    assert "did not record its end" in capsys.readouterr().out
    assert invoke("run", maps / "a.npy", "out", "--workers", 0) == 0
    assert ask()[0] == 0


def test_an_interrupted_run_has_stopped_early(maps: Path, ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    with waiting_run() as (_, running):
        until_running(ask)
        running.send_signal(signal.SIGTERM)
        running.wait()
    assert ask()[0] == 3
    assert invoke("status", MANIFEST) == 3
    assert "the last run stopped early; run it again" in capsys.readouterr().out


def test_an_error_that_ended_the_run_is_told(maps: Path, ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "abc":
        (maps / f"{name}.npy").touch()
    assert invoke("run", maps, "out", "--workers", 0, "--max-failures", 0) != 0
    capsys.readouterr()
    code, found = ask()
    assert (code, found["state"], found["error"]["kind"]) == (3, "stopped", "TooManyFailuresError")
    invoke("status", MANIFEST)
    assert f"run it again ({found['error']['message']})" in capsys.readouterr().out


def test_a_run_that_does_not_write_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    hours_ago = "2026-01-01T00:00:00.000+00:00"
    with Manifest(tmp_path / MANIFEST) as manifest:
        run = LastRun(hours_ago, None, "changed", None)
        manifest.keep_sample(run, Sample(hours_ago, hours_ago, None, 9, 0, 4, 0, 0, 0, 32, {}))
        assert invoke("status", tmp_path / MANIFEST) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ", but it has written nothing for " in lines[0]
    assert not [line for line in lines if "maps/s" in line]


def test_json_has_no_secret_that_it_escapes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", 'of"some"one')
    at = "2026-01-01T00:00:00.000+00:00"
    with Manifest(tmp_path / MANIFEST) as manifest:
        run = LastRun(at, None, "changed", None, at, error={"kind": "ValueError", "message": 'the key of"some"one'})
        manifest.keep_sample(run, Sample(at, at, None, 0, 0, 0, 0, 0, 0, 32, {}))
    assert invoke("status", tmp_path / MANIFEST, "--json") == 3
    assert json.loads(capsys.readouterr().out)["error"]["message"] == "the key ***"


def test_what_is_no_manifest_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for path, said in (("none.sqlite", "no such manifest: none.sqlite"), ("empty", "empty is an empty file, not a")):
        assert invoke("status", tmp_path / path if path == "empty" else path) == 2
        assert said in only_error(capsys.readouterr()).replace(f"{tmp_path}/", "")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_manifest_that_a_repair_has_locked_is_told(maps: Path, ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(maps / "a.npy", random_map(1))
    assert invoke("run", maps, "out", "--workers", 0) == 0
    capsys.readouterr()
    with Manifest(MANIFEST):
        code, found = ask()
        assert (code, found["state"]) == (0, "complete")
        assert found["writer"]
        assert invoke("status", MANIFEST) == 0
        assert "; locked by process " in capsys.readouterr().out
