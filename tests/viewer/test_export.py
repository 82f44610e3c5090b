"""The page in a folder and in a notebook: what is written, and what is refused."""

from __future__ import annotations

import html
import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import async_maps as am
from async_maps.viewer.bundle import offline_script, page_files
from async_maps.viewer.notebook import MOST_MAPS
from async_maps.viewer.server import Viewer
from tests.support.commands import invoke, only_error
from tests.support.leftovers import leaves_nothing
from tests.support.manifests import write_run
from tests.support.viewing import make_run, smooth_map

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.fast, pytest.mark.usefixtures(leaves_nothing.__name__)]

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
def test_missing_overlays_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = make_run(tmp_path, 3)
    (tmp_path / "out" / "val" / "001.png").unlink()
    assert invoke("view", manifest, "--static", tmp_path / "page") == 1
    output = capsys.readouterr()
    assert "1 overlay could not be read" in only_error(output)
    assert output.out.startswith("3 maps in ")


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
        assert f"the first {MOST_MAPS} of {MOST_MAPS + 3} maps" in text
        assert html.escape(viewer.url) in text
    frame = html.unescape(re.findall(r'srcdoc="(.*?)"', text, re.DOTALL)[0])
    data = data_in(frame)
    assert len(data["rows"]) == len(data["planes"]) == MOST_MAPS
    assert data["rows"][0]["image"].startswith("data:image/jpeg;base64,")
    # Whoever gets the notebook gets no token with the frame.
    assert "token" not in frame


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
