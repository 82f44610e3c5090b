"""The page in a folder and in a notebook: what is written, and what is refused."""

from __future__ import annotations

import html
import json
import os
import re
import signal
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import async_maps as am
from async_maps.report.ending import exit_code
from async_maps.viewer.bundle import offline_script, page_files
from async_maps.viewer.content import Content
from async_maps.viewer.export import write_static
from async_maps.viewer.notebook import MOST_MAPS
from async_maps.viewer.server import Viewer
from tests.support.commands import COMMAND, invoke, only_error
from tests.support.leftovers import leaves_nothing
from tests.support.manifests import make_map, receipt_for, write_run
from tests.support.viewing import make_run, smooth_map

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

ONE_LINE = re.compile(r'import \{ \w+(, \w+)* \} from "\./[a-z]+\.js";')


def data_in(text: str) -> Any:
    """Return the data of a page from the script that sets them."""
    return json.JSONDecoder().raw_decode(text.partition("window.ASYNC_MAPS = ")[2])[0]


def test_the_modules_can_be_joined() -> None:
    modules = {name: data.decode() for name, data in page_files().items() if name.endswith(".js")}
    for name, text in modules.items():
        imports = [line for line in text.splitlines() if line.startswith(("import", "} from"))]
        assert [line for line in imports if not ONE_LINE.fullmatch(line)] == [], name
        assert not re.search(r"^export (default|let|\{|\*)", text, re.MULTILINE), name
        assert len(text.splitlines()) < 400, name
    # The first page needs one round of requests for its modules.
    preloaded = set(re.findall(r'modulepreload" href="([a-z]+\.js)"', page_files()["index.html"].decode()))
    assert preloaded == modules.keys() - {"main.js", "offline.js"}
    script = offline_script()
    assert "import " not in re.sub(r"//.*", "", script)
    assert script.count("const of_main = ") == script.count("const of_source = ") == 1


def test_the_two_sources_answer_the_same_questions() -> None:
    def questions(name: str) -> set[str]:
        text = page_files()[name].decode().partition("export const source = {")[2]
        return set(re.findall(r"^  (?:async )?(\w+)[:(,]", text, re.MULTILINE))

    assert questions("source.js") == questions("offline.js")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images" / "val").mkdir(parents=True)
    for i in range(2):
        Image.fromarray(np.full((480, 640, 3), 40 * i, np.uint8)).save(tmp_path / "images" / "val" / f"{i:03}.jpg")
    return tmp_path / "images"


@pytest.mark.runs
def test_a_folder_has_the_page_and_all_it_shows(tmp_path: Path, images: Path) -> None:
    with Viewer(make_run(tmp_path, 3), images=images) as viewer:
        assert viewer.save(tmp_path / "page") == 3
    page = tmp_path / "page"
    files = {path.relative_to(page).as_posix() for path in page.rglob("*") if path.is_file()}
    data = data_in((page / "data.js").read_text())
    numbers = {row["name"]: row["row"] for row in data["rows"]}
    assert list(numbers) == [f"val/{i:03}" for i in range(3)]
    assert files == {
        "index.html", "app.css", "app.js", "data.js", "icon.svg", ".async-maps-view",
        *(f"maps/{number}.js" for number in numbers.values()),
        *(f"images/{numbers[f'val/{i:03}']}.jpg" for i in range(2)),
    }  # fmt: skip
    stored = (images / "val" / "001.jpg").read_bytes()
    assert (page / f"images/{numbers['val/001']}.jpg").read_bytes() == stored
    assert [row["image"] is None for row in data["rows"]] == [False, False, True]
    assert "<script>" not in (page / "index.html").read_text()


@pytest.mark.runs
def test_sizes_and_limits_make_a_folder_smaller(tmp_path: Path, images: Path) -> None:
    manifest = make_run(tmp_path, 3)
    arguments = ("view", manifest, "--images", images, "--static", tmp_path / "page")
    assert invoke(*arguments, "--size", 32, "--limit", 1) == 0
    assert len(list((tmp_path / "page" / "maps").iterdir())) == 1
    (image,) = (tmp_path / "page" / "images").iterdir()
    with Image.open(image) as small:
        assert small.size == (32, 24)
    # The page of an earlier command is replaced.
    assert invoke(*arguments) == 0
    assert len(list((tmp_path / "page" / "maps").iterdir())) == 3


@pytest.mark.runs
def test_a_folder_of_others_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = make_run(tmp_path, 1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("precious")
    assert invoke("view", manifest, "--static", tmp_path / "mine") == 2
    assert "choose another folder" in only_error(capsys.readouterr())
    assert (tmp_path / "mine" / "index.html").read_text() == "precious"
    assert invoke("view", manifest, "--static", tmp_path / "mine" / "index.html") == 2


@pytest.mark.runs
def test_a_page_without_any_image_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest, images = make_run(tmp_path, 3), tmp_path / "images"
    images.mkdir()
    assert invoke("view", manifest, "--static", tmp_path / "page", "--images", images) == 0
    output = capsys.readouterr()
    assert f"no map has an image in {images}" in output.err
    assert output.out.startswith("3 maps, 0 with an image in ")
    Image.new("RGB", (8, 8)).save(images / "val.png")
    assert invoke("view", manifest, "--static", tmp_path / "page", "--images", images) == 0
    output = capsys.readouterr()
    assert "no map has" not in output.err
    assert output.out.startswith("3 maps, 3 with an image in ")


@pytest.mark.runs
def test_missing_overlays_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = make_run(tmp_path, 3)
    (tmp_path / "out" / "val" / "001.png").unlink()
    assert invoke("view", manifest, "--static", tmp_path / "page") == 1
    output = capsys.readouterr()
    assert "1 overlay could not be read" in only_error(output)
    assert output.out.startswith("3 maps in ")


@pytest.mark.runs
def test_a_page_that_is_replaced_keeps_the_files_of_others(tmp_path: Path, images: Path) -> None:
    manifest, page = make_run(tmp_path, 3), tmp_path / "page"
    assert invoke("view", manifest, "--images", images, "--static", page) == 0
    for name in ("images/holiday.jpg", "maps/notes.txt", "notes.txt"):
        (page / name).write_text("precious")
    assert invoke("view", manifest, "--images", images, "--static", page, "--limit", 1) == 0
    for name in ("images/holiday.jpg", "maps/notes.txt", "notes.txt"):
        assert (page / name).read_text() == "precious"
    assert len(list((page / "maps").iterdir())) == len(list((page / "images").iterdir())) == 2


@pytest.mark.runs
def test_the_size_is_told_before(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = make_run(tmp_path, 3)
    assert invoke("view", manifest, "--images", images, "--static", tmp_path / "page") == 0
    shown = re.search(r"3 overlays and their images with all pixels: about ([\d.]+) MB", capsys.readouterr().err)
    assert shown is not None
    files = [path for name in ("maps", "images") for path in (tmp_path / "page" / name).iterdir()]
    assert float(shown[1]) == pytest.approx(sum(path.stat().st_size for path in files) / 1e6, abs=0.11)


def test_a_store_that_is_down_ends_it_and_keeps_the_old_page(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, page = make_run(tmp_path, 3, f"s3://{bucket}/out"), tmp_path / "page"
    assert invoke("view", manifest, "--static", page) == 0
    before = {path: path.stat().st_mtime_ns for path in page.rglob("*")}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    settings = am.Settings(s3={"max_attempts": 1, "give_up_s": 1, "connect_timeout_s": 1})
    with Content(manifest, s3=settings.s3) as content, pytest.raises(am.StoreError) as refused:
        write_static(content, page)
    assert f"s3://{bucket}/out/val/00" in str(refused.value)
    assert exit_code(refused.value) == 3
    assert {path: path.stat().st_mtime_ns for path in page.rglob("*")} == before
    with Viewer(manifest, settings=settings) as viewer, pytest.raises(am.StoreError):
        viewer._repr_html_()


@pytest.mark.parametrize("options", [(), ("--compare",)])
def test_ctrl_c_ends_it_while_s3_does_not_answer(tmp_path: Path, options: tuple[str, ...]) -> None:
    write_run(tmp_path / "m.sqlite", [receipt_for(make_map(f"m{i}")) for i in range(20)])
    environment = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        compare = [f"{option}={tmp_path / 'm.sqlite'}" for option in options]
        command = [*COMMAND, "view", str(tmp_path / "m.sqlite"), "--static", str(tmp_path / "page"), *compare]
        running = subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.PIPE, text=True)
        connection, _ = silent.accept()
        with connection:
            connection.recv(1)
            running.send_signal(signal.SIGINT)
            _, err = running.communicate(timeout=60)
    assert (running.returncode, "Traceback" in err) == (130, False), err


@pytest.mark.parametrize("option", ["--port=0", "--allow-host=proxy.example"])
def test_options_of_the_server_are_not_for_the_folder(
    tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke("view", tmp_path / "m.sqlite", "--static", tmp_path / "page", option) == 2
    assert "are for the server" in only_error(capsys.readouterr())


@pytest.mark.parametrize("flag", ["--size", "--limit"])
def test_options_of_the_folder_need_it(tmp_path: Path, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("view", tmp_path / "m.sqlite", flag, 5) == 2
    assert "are for --static" in only_error(capsys.readouterr())


def test_names_cannot_end_a_script(tmp_path: Path) -> None:
    name = "</script><script>alert(1)</script>\u2028"
    write_run(tmp_path / "m.sqlite", [am.Failure(name, name, None, "read", name)], tmp_path.as_uri())
    with Viewer(tmp_path / "m.sqlite") as viewer:
        viewer.save(tmp_path / "page")
        shown = html.unescape(viewer._repr_html_())
    assert data_in((tmp_path / "page" / "data.js").read_text())["rows"][0]["name"] == name
    assert "</script><script>alert" not in shown.replace('</script><script>"use strict"', "")


@pytest.mark.runs
def test_a_notebook_shows_the_first_maps(tmp_path: Path, images: Path) -> None:
    maps = [(f"val/{i:03}", smooth_map(i, (8, 8))) for i in range(MOST_MAPS + 3)]
    settings = am.Settings(workers=0)
    report = am.run(maps, tmp_path / "out", manifest=tmp_path / "run.sqlite", settings=settings)
    with am.view(report, images=images, open_browser=False) as viewer:
        text = viewer._repr_html_()
        assert f"The first {MOST_MAPS} of {MOST_MAPS + 3} maps" in text
        # Whoever gets the notebook does not get the token.
        root, _, token = viewer.url.removeprefix("http://").partition("/")[2].partition("/?token=")
        assert root not in text
        assert token not in text
    frame = html.unescape(re.findall(r'srcdoc="(.*?)"', text, re.DOTALL)[0])
    data = data_in(frame)
    assert len(data["rows"]) == len(data["planes"]) == MOST_MAPS
    assert data["rows"][0]["image"].startswith("data:image/jpeg;base64,")


@pytest.mark.runs
@pytest.mark.parametrize(
    "make",
    [
        lambda folder: am.run([("a", smooth_map(1))], folder / "out", settings=am.Settings(workers=0)),
        lambda _: 5,
        lambda _: None,
    ],
    ids=["report", "number", "none"],
)
def test_what_has_no_manifest_is_refused(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    with pytest.raises(am.SettingsError, match="expected a manifest"):
        am.view(make(tmp_path))
