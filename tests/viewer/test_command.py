"""``async-maps view`` as a process: its address, its end, and a run beside it."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import async_maps as am
from async_maps.viewer.server import Viewer
from tests.support.commands import invoke, only_error, start
from tests.support.leftovers import leaves_nothing
from tests.support.viewing import Client, make_run, smooth_map

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
@pytest.mark.usefixtures(leaves_nothing.__name__)
def test_the_command_serves_until_a_signal(
    tmp_path: Path, number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    manifest = make_run(tmp_path, 2)
    before = manifest.read_bytes()
    running = start("view", manifest, "--no-open")
    assert running.stdout is not None
    client = Client(running.stdout.readline().strip())
    assert [row["name"] for row in client.rows()] == ["val/000", "val/001"]
    os.killpg(running.pid, number)
    out, err = running.communicate(timeout=60)
    assert running.returncode == code, err
    assert (out, "Traceback" in err) == ("", False)
    assert client.token not in err
    assert manifest.read_bytes() == before
    # No temporary file, and no file beside the manifest.
    assert {path.name for path in tmp_path.iterdir()} - {"run.sqlite-lock"} == {"out", "run.sqlite"}


def test_a_browser_gets_the_address_from_a_private_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    opened: list[str] = []

    def note(url: str) -> bool:
        opened.append(url)
        return True

    monkeypatch.setattr("webbrowser.open", note)
    with Viewer(make_run(tmp_path, 1)) as viewer:
        assert viewer.show()
        (url,) = opened
        # Others can see the arguments of a process.
        assert Client(viewer).token not in url
        path = url.removeprefix("file://")
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        with open(path, encoding="utf-8") as file:
            assert re.findall(r"url=([^\"]*)", file.read()) == [viewer.url]
    assert not os.path.exists(path)


def test_a_viewer_that_is_closed_is_refused(tmp_path: Path) -> None:
    viewer = Viewer(make_run(tmp_path, 1))
    viewer.close()
    with pytest.raises(am.SettingsError, match="the viewer is closed"):
        viewer.show()
    with pytest.raises(am.SettingsError, match="the viewer is closed"):
        viewer.save(tmp_path / "page")
    viewer.close()


@pytest.mark.parametrize("port", [-1, 65_536, 99_999])
def test_a_port_must_exist(tmp_path: Path, port: int) -> None:
    with pytest.raises(am.SettingsError, match=f"port {port}: expected 0 to 65535"):
        am.view(make_run(tmp_path, 1), port=port)


PROGRAM = """
import sys, threading, webbrowser
import async_maps as am
from tests.support.viewing import Client

webbrowser.open = lambda _: True
viewer = am.view(sys.argv[1], compare=sys.argv[1])
client = Client(viewer)
assert [row["name"] for row in client.rows(sort="-disagreement")] == ["val/000"]
assert client.get("/map/1/indices").status == 200
if sys.argv[2] == "dropped":
    del viewer
    assert client.get("/api/counts").status == 200
print("end")
"""


@pytest.mark.parametrize("how", ["held", "dropped"])
def test_a_program_that_does_not_close_its_viewer_ends(tmp_path: Path, how: str) -> None:
    manifest = make_run(tmp_path, 1)
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "DISPLAY": ":0", "TMPDIR": str(tmp_path / "tmp")}
    command = [sys.executable, "-c", PROGRAM, str(manifest), how]
    ended = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "end\n", "")
    assert not list((tmp_path / "tmp").iterdir())


def test_there_is_no_browser_without_a_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    with Viewer(make_run(tmp_path, 1)) as viewer:
        assert not viewer.show()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["missing.sqlite"], "no such manifest"),
        (["{manifest}", "--images", "missing"], "is not a folder"),
        (["{manifest}", "--compare", "missing.sqlite"], "no such manifest"),
        (["{manifest}", "--port", "99999"], "--port"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = make_run(tmp_path, 1)
    assert invoke("view", *(argument.format(manifest=manifest) for argument in arguments)) == 2
    assert text in only_error(capsys.readouterr())


def test_a_port_that_is_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = make_run(tmp_path, 1)
    with Viewer(manifest) as viewer:
        assert invoke("view", manifest, "--port", Client(viewer).port) == 2
    assert "choose another port" in only_error(capsys.readouterr())


def test_each_manifest_has_a_port_of_its_own(tmp_path: Path) -> None:
    manifest = make_run(tmp_path, 1)
    with Viewer(manifest) as viewer, Viewer(manifest) as second:
        port = Client(viewer).port
        assert 20_000 <= port < 30_000
        assert Client(second).port != port
        assert Client(second).get("/").status == 200
    with Viewer(os.path.relpath(manifest)) as again, Viewer(manifest, port=0) as free:
        assert Client(again).port == port
        assert Client(free).port != port


@pytest.mark.usefixtures(leaves_nothing.__name__)
def test_a_run_beside_an_idle_viewer_closes_its_log_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_run(tmp_path, 3)
    waits: list[float] = []
    monkeypatch.setattr("async_maps.manifest.file.time", SimpleNamespace(sleep=waits.append))
    with Viewer(manifest, compare=manifest) as viewer:
        client = Client(viewer)

        def maps() -> Iterator[tuple[str, Any]]:
            for i in range(4):
                # Each question while the run writes has its answer before the run ends.
                client.rows(sort="-mean", fresh=1)
                for path in ("/api/manifest", "/api/run", "/api/failures", "/api/models", "/map/1/indices"):
                    assert client.get(path).status == 200
                yield f"new/{i}", smooth_map(i)

        report = am.run(maps(), tmp_path / "out", manifest=manifest, settings=am.Settings(workers=0))
        assert {path.name for path in tmp_path.iterdir()} - {"run.sqlite-lock"} == {"run.sqlite", "out"}
    assert (report.uploaded, waits) == (4, [])


@pytest.mark.usefixtures(leaves_nothing.__name__)
def test_a_run_beside_a_busy_viewer_leaves_one_file(tmp_path: Path) -> None:
    manifest = make_run(tmp_path, 200, str(tmp_path / "out"))
    ended = threading.Event()
    problems: list[object] = []
    with Viewer(manifest) as viewer:

        def ask() -> None:
            client = Client(viewer)
            while not ended.is_set():
                rows = client.rows(sort="-mean", fresh=1)
                answers = [client.get(path) for path in ("/api/counts", "/api/run", "/api/failures", "/map/1/indices")]
                problems.extend(answer for answer in answers if answer.status != 200)
                problems.extend(row for row in rows if row is None)

        asking = [threading.Thread(target=ask) for _ in range(3)]
        for thread in asking:
            thread.start()
        settings = am.Settings(workers=0)
        maps = [(f"val/{i:03}", smooth_map(i + 1)) for i in range(250)]
        report = am.run(maps, tmp_path / "out", manifest=manifest, settings=settings)
        left = {path.name for path in tmp_path.iterdir()}
        ended.set()
        for thread in asking:
            thread.join()
        assert Client(viewer).get("/api/counts").json == {"done": 250, "failed": 0}
    assert (report.uploaded, report.failed, problems) == (250, 0, [])
    assert left - {"run.sqlite-lock"} == {"run.sqlite", "out"}
