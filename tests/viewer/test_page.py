"""The page in a real Chromium: its gallery, its controls, one map, and the run."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.manifest import sampler
from async_maps.viewer.server import Viewer
from tests.support.browsing import COUNT, SHAPE, composite
from tests.support.manifests import write_run
from tests.support.viewing import make_run, smooth_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.support.browsing import Shown, Tab

    Intensities = Callable[[str], NDArray[np.uint8]]

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra test-browser)")
expect = sync_api.expect

TABLE = am.Settings(colormap="viridis").table()
ONE = "val/003"


def differs(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> float:
    """Return the largest difference of two overlays on black, 0 to 255."""
    black = np.zeros((*found.shape[:2], 3), np.uint8)
    return float(np.abs(composite(black, found) - composite(black, expected)).max())


def slide(tab: Tab, name: str, value: int) -> None:
    tab.page.get_by_label(name, exact=True).fill(str(value))
    tab.settle()


# The gallery ------------------------------------------------------------------------------------------------------


def test_the_gallery_shows_overlays_on_their_images(tab: Tab, shown: Shown, intensities: Intensities) -> None:
    tab.open(shown.viewer)
    names = tab.names()
    assert names == sorted([*shown.maps, "broken/0", "broken/1"])[: len(names)]
    assert len(names) >= 12
    for name in names[2:8]:
        assert differs(tab.canvas(name), TABLE[intensities(name)]) <= 1
    expect(tab.page.locator(".tile", has_text="broken/0")).to_contain_text("every value must be finite")
    expect(tab.page.locator("#bar")).to_contain_text(f"{COUNT} done, 2 failed")
    assert "token" not in tab.page.url


def test_opacity_and_overlays_are_those_of_a_reference(
    tab: Tab, place: Viewer | Path, shown: Shown, intensities: Intensities
) -> None:
    tab.open(place, f"#/map/{ONE}")
    tab.page.get_by_role("button", name="one pixel of the image").click()
    overlay, image = TABLE[intensities(ONE)], shown.images[ONE]
    for opacity, error in ((100, 1), (60, 2), (0, 0)):
        slide(tab, "opacity", opacity)
        found = tab.shot(".sheet canvas")
        assert found.shape == (*SHAPE, 3)
        assert np.abs(found.astype(int) - composite(image, overlay, opacity / 100)).max() <= error
    slide(tab, "opacity", 100)
    tab.page.keyboard.press("Space")
    assert (tab.shot(".sheet img") == image).all()


def test_the_threshold_hides_low_values(tab: Tab, place: Viewer | Path, intensities: Intensities) -> None:
    tab.open(place)
    slide(tab, "threshold", 200)
    plane = intensities(ONE)
    expected = np.where(plane[..., None] < 200, 0, TABLE[plane]).astype(np.uint8)
    assert differs(tab.canvas(ONE), expected) <= 1
    assert "threshold=200" in tab.hash


def test_another_colormap_replaces_that_of_the_run(
    tab: Tab, place: Viewer | Path, shown: Shown, intensities: Intensities
) -> None:
    tab.open(place)
    tab.page.get_by_label("colormap").select_option("magma")
    tab.settle()
    assert differs(tab.canvas(ONE), am.Settings(colormap="magma", alpha="fade").table()[intensities(ONE)]) <= 1
    tab.page.get_by_label("fade low values").uncheck()
    tab.settle()
    assert differs(tab.canvas(ONE), am.Settings(colormap="magma", alpha="opaque").table()[intensities(ONE)]) <= 1


def test_one_scale_gives_equal_values_equal_colors(
    tab: Tab, place: Viewer | Path, shown: Shown, intensities: Intensities
) -> None:
    tab.open(place)
    tab.page.get_by_role("button", name="one for all").click()
    tab.settle()
    low, high = (float(bound) for bound in re.findall(r"scale=([^%]*)%2C([^&]*)", tab.hash)[0])
    assert low == min(float(values.min()) for values in shown.maps.values())
    assert high == max(float(values.max()) for values in shown.maps.values())
    for name in tab.names()[2:8]:
        values = shown.maps[name].astype(np.float64)
        shown_values = values.min() + intensities(name) / 255 * (values.max() - values.min())
        places = np.rint((shown_values - low) / (high - low) * 255).astype(int)
        assert differs(tab.canvas(name), TABLE[places]) <= 1
    ticks = tab.page.locator(".bar .ticks span").all_text_contents()
    assert [float(tick) for tick in (ticks[0], ticks[-1])] == [pytest.approx(low, 1e-3), pytest.approx(high, 1e-3)]


def test_sorting_filtering_and_searching_are_kept_in_the_address(tab: Tab, place: Viewer | Path, shown: Shown) -> None:
    tab.open(place)
    tab.page.get_by_label("sort by").select_option("maximum")
    tab.page.get_by_role("button", name="ascending").click()
    tab.settle()
    by_maximum = sorted(shown.maps, key=lambda name: -float(shown.maps[name].max()))
    assert tab.names()[:10] == by_maximum[:10]
    tab.page.get_by_label("search names").fill("VAL/")
    expect(tab.page.locator("#bar")).to_contain_text(f"{COUNT} done, 2 failed · {COUNT // 3} shown")
    tab.settle()
    expected = [name for name in by_maximum if name.startswith("val/")]
    assert tab.names() == expected
    assert tab.hash == "/?sort=-maximum&q=VAL%2F"
    tab.page.reload()
    tab.settle()
    assert tab.names() == expected
    tab.page.go_back()
    tab.settle()
    assert tab.names()[:10] == by_maximum[:10]
    tab.page.go_forward()
    tab.settle()
    assert tab.names() == expected


@pytest.mark.parametrize("address", ["#/?sort=-disagreement", "#/models", f"#/pair/{ONE}"])
def test_a_link_that_is_refused_leads_to_all_maps(tab: Tab, shown: Shown, address: str) -> None:
    tab.open(shown.viewer, address)
    if "pair" in address:
        expect(tab.page.locator(".tools .where")).to_have_text(re.compile(r"\d+ of 32"))
        assert tab.hash == f"/map/{ONE}"
    else:
        assert tab.names()[:2] == ["broken/0", "broken/1"]
        assert tab.hash == "/"
    assert sum("api/order?" in asked for asked in tab.addresses) <= 3
    assert all("400" in problem for problem in tab.problems)
    tab.problems.clear()


def test_maps_have_the_new_colors_after_scrolling_back(tab: Tab, shown: Shown, intensities: Intensities) -> None:
    tab.open(shown.viewer, "#/?size=300")
    tab.page.locator(".tile[tabindex='0']").focus()
    tab.page.keyboard.press("End")
    tab.settle()
    tab.page.get_by_label("colormap").select_option("magma")
    tab.settle()
    tab.page.get_by_label("position").fill("0")
    tab.settle()
    expected = am.Settings(colormap="magma", alpha="fade").table()
    assert differs(tab.canvas("train/001"), expected[intensities("train/001")]) <= 1


def test_bounds_can_be_typed(tab: Tab, shown: Shown) -> None:
    tab.open(shown.viewer, "#/?sort=time")
    low = tab.page.get_by_label("smallest value")
    expect(low).to_have_value(re.compile(r"^20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC$"))
    low.fill("2020-02-01")
    low.press("Enter")
    tab.settle()
    assert tab.hash == "/?sort=time&f=time%3A1580515200.."
    expect(tab.page.get_by_role("button", name="remove the filter time from 2020-02-01 00:00:00 UTC")).to_be_visible()
    tab.page.get_by_role("button", name="one for all").click()
    tab.settle()
    lowest = tab.page.get_by_label("value of the lowest color")
    lowest.fill("0,25")
    lowest.press("Enter")
    assert re.search(r"scale=0\.25%2C3\.\d+$", tab.hash)
    lowest.fill("")
    lowest.press("Enter")
    expect(lowest).to_have_value("0.25")


def test_dragging_in_the_histogram_filters(tab: Tab, place: Viewer | Path, shown: Shown) -> None:
    tab.open(place, "#/?sort=mean")
    box = tab.page.locator(".plot").bounding_box()
    assert box is not None
    tab.page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 20)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + box["width"] + 30, box["y"] + 20)
    tab.page.mouse.up()
    tab.settle()
    (low,) = re.findall(r"f=mean%3A([\d.]+)\.\.$", tab.hash)
    expect(tab.page.get_by_role("button", name=f"remove the filter mean from {low}")).to_be_visible()
    means = {name: float(values.mean(dtype=np.float64)) for name, values in shown.maps.items()}
    assert tab.names() == sorted((name for name in means if means[name] >= float(low)), key=lambda name: means[name])
    tab.page.get_by_title("remove this filter").click()
    tab.settle()
    assert tab.hash == "/?sort=mean"


def test_a_reason_of_failures_selects_its_maps(tab: Tab, place: Viewer | Path, shown: Shown) -> None:
    tab.open(place)
    tab.page.locator(".failures button").click()
    expect(tab.page.locator("#bar")).to_contain_text("2 shown")
    tab.settle()
    assert tab.names() == ["broken/0", "broken/1"]
    tab.page.get_by_role("button", name="all", exact=True).first.click()
    tab.settle()
    assert len(tab.names()) > 2


def test_a_missing_image_is_told_with_the_name_that_was_looked_for(tab: Tab, shown: Shown) -> None:
    tab.open(shown.viewer, "#/?q=004")
    frame = tab.page.locator(".tile.bare .frame")
    expect(frame).to_have_attribute("title", re.compile(r"no image: looked for .*/train/004\.jpg"))


def test_pictures_keep_their_shape(tab: Tab, tmp_path: Path) -> None:
    shapes = {"high": (60, 20), "square": (30, 30), "wide": (20, 60)}
    maps = [(name, smooth_map(1, shape)) for name, shape in shapes.items()]
    am.run(maps, tmp_path / "out", manifest=tmp_path / "m.sqlite", settings=am.Settings(workers=0))
    with Viewer(tmp_path / "m.sqlite") as viewer:
        tab.open(viewer)
        for name, (height, width) in shapes.items():
            tile = tab.page.locator(".tile").filter(has_text=name)
            picture, frame = (tile.locator(place).bounding_box() for place in (".picture", ".frame"))
            assert picture is not None
            assert frame is not None
            assert picture["width"] / picture["height"] == pytest.approx(width / height, rel=0.02)
            assert picture["width"] <= frame["width"] + 0.5
            assert picture["height"] <= frame["height"] + 0.5
        tab.page.goto("about:blank")


def test_the_keyboard_reaches_everything(tab: Tab, shown: Shown) -> None:
    tab.open(shown.viewer)
    keys = tab.page.keyboard
    tab.page.locator(".tile[tabindex='0']").focus()
    for key, name in (
        ("ArrowRight", "broken/1"),
        ("ArrowRight", "train/001"),
        ("ArrowLeft", "broken/1"),
        ("End", "val/027"),
        ("Home", "broken/0"),
    ):
        keys.press(key)
        expect(tab.page.locator(".tile:focus .name")).to_have_text(name)
    columns = int(tab.page.locator(".grid").get_attribute("aria-colcount") or 0)
    keys.press("ArrowDown")
    expect(tab.page.locator(".tile:focus .name")).to_have_text(sorted([*shown.maps, "broken/0", "broken/1"])[columns])
    keys.press("]")
    assert "opacity=90" in tab.hash
    keys.press("[")
    keys.press("[")
    assert "opacity=70" in tab.hash
    keys.press("Space")
    assert "overlay=0" in tab.hash
    keys.press("Enter")
    expect(tab.page.locator(".tools h1")).to_have_text(re.compile("train/"))
    keys.press("ArrowRight")
    keys.press("Escape")
    expect(tab.page.locator(".tile:focus")).to_have_count(1)
    keys.press("?")
    expect(tab.page.get_by_role("dialog")).to_be_visible()
    keys.press("Escape")
    keys.press("/")
    expect(tab.page.get_by_label("search names")).to_be_focused()


def test_marks_are_kept_and_downloaded(tab: Tab, shown: Shown) -> None:
    tab.open(shown.viewer)
    tab.page.locator(".tile[tabindex='0']").focus()
    for key in ("ArrowRight", "ArrowRight", "3", "ArrowRight", "5", "ArrowRight", "1", "1"):
        tab.page.keyboard.press(key)
    expect(tab.page.locator(".tile", has_text="train/001").locator(".mark")).to_have_text("3")
    tab.page.reload()
    tab.settle()
    expect(tab.page.locator(".tile", has_text="train/001").locator(".mark")).to_have_text("3")
    # Another tab changes only what is changed in it.
    other = tab.page.context.new_page()
    other.goto(tab.page.url)
    other.locator(".tile", has_text="train/002").focus()
    other.keyboard.press("4")
    expect(tab.page.locator(".tile", has_text="train/002").locator(".mark")).to_have_text("4")
    tab.page.locator(".tile", has_text="train/002").focus()
    tab.page.keyboard.press("5")
    expect(other.locator(".tile", has_text="train/002").locator(".mark")).to_have_text("5")
    other.close()
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="download as CSV").click()
    assert download.value.path().read_text(encoding="utf-8-sig").splitlines() == [
        "name,mark",
        '"train/001",3',
        '"train/002",5',
    ]
    tab.page.get_by_role("button", name="clear").click()
    tab.page.get_by_role("button", name="clear all?").click()
    expect(tab.page.locator(".tile .mark:not(:empty)")).to_have_count(0)


# One map ----------------------------------------------------------------------------------------------------------


def test_the_value_under_the_cursor_is_that_of_the_map(tab: Tab, place: Viewer | Path, shown: Shown) -> None:
    tab.open(place, f"#/map/{ONE}")
    values = shown.maps[ONE]
    half = float(values.max() - values.min()) / 255 / 2
    box = tab.page.locator(".sheet canvas").bounding_box()
    assert box is not None
    for y, x in ((10, 20), (48, 64), (90, 3), np.unravel_index(int(values.argmax()), SHAPE)):
        tab.page.mouse.move(
            box["x"] + (int(x) + 0.5) / SHAPE[1] * box["width"], box["y"] + (int(y) + 0.5) / SHAPE[0] * box["height"]
        )
        text = tab.page.locator(".readout").inner_text()
        found = re.fullmatch(r"x (\d+), y (\d+): (-?[\d.e-]+) ± ([\d.e-]+) \(\d+ of 255\)", text)
        assert found is not None, text
        assert (int(found[1]), int(found[2])) == (x, y)
        assert float(found[3]) == pytest.approx(float(values[y, x]), abs=half * 1.02)
        assert float(found[4]) == pytest.approx(half, rel=1e-3)


def test_panes_have_one_zoom_and_one_position(tab: Tab, shown: Shown) -> None:
    tab.open(shown.viewer, f"#/map/{ONE}")
    tab.page.keyboard.press("s")
    expect(tab.page.locator(".pane")).to_have_count(4)
    tab.settle()
    box = tab.page.locator(".pane").nth(1).bounding_box()
    assert box is not None
    tab.page.mouse.move(box["x"] + 50, box["y"] + 60)
    tab.page.mouse.wheel(0, -400)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + 90, box["y"] + 75)
    tab.page.mouse.up()
    moves = tab.page.evaluate("() => [...document.querySelectorAll('.sheet')].map((sheet) => sheet.style.transform)")
    assert len(moves) == 4
    assert len(set(moves)) == 1
    scale = float(moves[0].partition("scale(")[2].rstrip(")"))
    tab.page.keyboard.press("0")
    fitted = tab.page.evaluate("() => document.querySelector('.sheet').style.transform")
    assert float(fitted.partition("scale(")[2].rstrip(")")) < scale
    assert "panes=three" in tab.hash


def test_a_deep_link_leads_to_a_map_and_back_to_its_place(tab: Tab, place: Viewer | Path, shown: Shown) -> None:
    tab.open(place, "#/map/val/021?sort=-maximum")
    by_maximum = sorted(shown.maps, key=lambda name: -float(shown.maps[name].max()))
    expect(tab.page.locator(".tools .where")).to_have_text(f"{by_maximum.index('val/021') + 1} of {COUNT + 2}")
    tab.page.keyboard.press("ArrowRight")
    expect(tab.page.locator(".tools h1")).to_have_text(by_maximum[by_maximum.index("val/021") + 1])
    tab.page.get_by_role("button", name="back to all maps").click()
    tab.settle()
    assert tab.names()[:5] == by_maximum[:5]
    tab.page.go_back()
    expect(tab.page.locator(".tools h1")).to_be_visible()
    # The same map has another place in another order.
    name = tab.page.locator(".tools h1").inner_text()
    tab.page.keyboard.press("Escape")
    tab.page.get_by_label("sort by").select_option("name")
    tab.settle()
    tab.page.get_by_label("search names").fill(name)
    expect(tab.page.locator("#bar")).to_contain_text("1 shown")
    tab.settle()
    tab.page.locator(".tile:visible").click()
    expect(tab.page.locator(".tools .where")).to_have_text("1 of 1")


def test_all_facts_of_a_map_are_shown(tab: Tab, shown: Shown) -> None:
    tab.open(shown.viewer, f"#/map/{ONE}")
    facts = tab.page.locator("aside")
    with closing(sqlite3.connect(shown.folder / "run.sqlite")) as database:
        locator, size = database.execute("SELECT locator, bytes FROM maps WHERE name = ?", (ONE,)).fetchone()
    for text in (
        f"{SHAPE[1]} \N{MULTIPLICATION SIGN} {SHAPE[0]}",
        f"{size / 1000:#.3g} KB",
        locator,
        "per-map",
        f"{size:,}",
    ):
        expect(facts).to_contain_text(text)
    tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    facts.get_by_role("button", name="copy locator").click()
    expect(tab.page.locator("#status")).to_have_text("copied")
    assert tab.page.evaluate("() => navigator.clipboard.readText()") == locator


def test_a_refused_map_is_told_from_the_one_with_its_name(tab: Tab, tmp_path: Path) -> None:
    manifest = make_run(tmp_path, 2)
    with closing(sqlite3.connect(manifest)) as database, database:
        columns = "name, settings, time, source, status, stage, error"
        values = "name, settings, time, 'twin', 'failed', 'source', 'refused: it has the name of another map'"
        query = f"INSERT INTO maps ({columns}) SELECT {values} FROM maps ORDER BY name LIMIT 1"  # noqa: S608  # our own
        database.execute(query)
    with Viewer(manifest) as viewer:
        viewer.save(tmp_path / "page")
        for place in (viewer, tmp_path / "page" / "index.html"):
            tab.open(place)
            tab.page.locator(".tile.failed").click()
            expect(tab.page.locator(".stage")).to_contain_text("refused: it has the name of another map")
            tab.page.keyboard.press("Escape")
            tab.page.locator(".tile:not(.failed):visible").first.click()
            expect(tab.page.locator("aside")).to_contain_text("CRC-32")
            expect(tab.page.locator(".stage")).not_to_contain_text("refused")
        tab.page.goto("about:blank")


def test_the_maps_of_a_folder_are_side_by_side(tab: Tab, tmp_path: Path) -> None:
    maps = [(f"img/layer{i}", smooth_map(i, (16 * i, 16 * i))) for i in (1, 2, 3)]
    am.run(maps, tmp_path / "out", manifest=tmp_path / "m.sqlite", settings=am.Settings(workers=0))
    with Viewer(tmp_path / "m.sqlite") as viewer:
        tab.open(viewer, "#/map/img/layer3")
        tab.page.keyboard.press("a")
        expect(tab.page.locator(".pane figcaption")).to_have_text(["layer1", "layer2", "layer3"])
        tab.settle()
        table = am.Settings().table()
        for number, (_, values) in enumerate(maps):
            assert differs(tab.sheet(number), table[np.rint(values * 255).astype(np.uint8)]) <= 1
        tab.page.get_by_role("button", name="zoom in").click()
        moves = tab.page.evaluate(
            "() => [...document.querySelectorAll('.sheet')].map((sheet) => sheet.style.transform)"
        )
        assert len(set(moves)) == 1
        # A reload shows the same.
        tab.page.reload()
        expect(tab.page.locator(".pane")).to_have_count(3)
        tab.page.goto("about:blank")


def test_pixels_without_a_value_are_transparent_in_all_colors(tab: Tab, tmp_path: Path) -> None:
    values = smooth_map(1)
    values[:6, :6] = np.nan
    kinds = ("palette", "compact", "rgba")
    for png in kinds:
        settings = am.Settings(workers=0, png=png, invalid="transparent")  # type: ignore[arg-type]  # one of them
        am.run([(png, values)], tmp_path / "out", manifest=tmp_path / "m.sqlite", settings=settings)
    gray = am.Settings(workers=0, png="gray")
    am.run([("gray", smooth_map(1))], tmp_path / "out", manifest=tmp_path / "m.sqlite", settings=gray)
    with Viewer(tmp_path / "m.sqlite") as viewer:
        tab.open(viewer, "#/?colors=magma&fade=0&scale=-1,2")
        places = np.rint((np.rint(smooth_map(1) * 255) + 255) / 3).astype(np.uint8)
        assert differs(tab.canvas("gray"), am.Settings(colormap="magma", alpha="opaque").table()[places]) <= 1
        for png in kinds:
            alphas = tab.canvas(png)[..., 3]
            assert (alphas[:6, :6] == 0).all()
            assert (alphas[values > 0.9] == 255).all()
        tab.page.locator(".tile").first.click()
        tab.settle()
        box = tab.page.locator(".sheet canvas").bounding_box()
        assert box is not None
        tab.page.mouse.move(box["x"] + 3, box["y"] + 3)
        expect(tab.page.locator(".readout")).to_contain_text("no value")
        tab.page.goto("about:blank")


def test_a_failed_map_tells_its_reason(tab: Tab, shown: Shown) -> None:
    tab.open(shown.viewer, "#/map/broken/1")
    expect(tab.page.locator(".stage > .note")).to_contain_text("every value must be finite")
    expect(tab.page.locator("aside")).to_contain_text("colorize")


# The run ----------------------------------------------------------------------------------------------------------


def test_the_run_tells_how_it_was(tab: Tab, place: Viewer | Path, shown: Shown) -> None:
    tab.open(place)
    tab.page.get_by_role("link", name="run").click()
    expect(tab.page.locator(".number.state")).to_contain_text("complete")
    expect(tab.page.locator(".numbers")).to_contain_text(f"{COUNT}uploaded")
    expect(tab.page.locator(".chart svg")).to_have_count(4)
    expect(tab.page.locator(".card", has_text="Settings")).to_contain_text("per-map")
    tab.page.set_viewport_size({"width": 600, "height": 700})
    assert tab.page.locator(".run").evaluate("(run) => run.clientWidth") > 500
    tab.page.get_by_role("button", name="every value must be finite").click()
    tab.settle()
    assert tab.names() == ["broken/0", "broken/1"]


def test_a_run_that_writes_is_followed(tab: Tab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "_INTERVAL_S", 0.1)
    manifest = make_run(tmp_path, 3)
    go_on = threading.Event()

    def maps() -> Iterator[tuple[str, NDArray[np.float32]]]:
        # Maps of an iterable are taken in batches.
        yield from ((f"new/{i:03}", smooth_map(i, (8, 8))) for i in range(700))
        go_on.wait()
        yield "new/last", smooth_map(8)

    def run() -> None:
        am.run(maps(), tmp_path / "out", manifest=manifest, settings=am.Settings(workers=0))

    running = threading.Thread(target=run)
    with Viewer(manifest) as viewer:
        tab.open(viewer)
        assert len(tab.names()) == 3
        running.start()
        try:
            tab.page.get_by_role("link", name="run").click()
            expect(tab.page.locator(".number.state")).to_contain_text("running", timeout=30_000)
            expect(tab.page.locator(".number", has_text="uploaded")).to_contain_text(
                re.compile("[1-9]"), timeout=30_000
            )
            expect(tab.page.get_by_role("button", name=re.compile(r"\d+ new: show"))).to_be_visible(timeout=30_000)
        finally:
            go_on.set()
            running.join()
        expect(tab.page.locator(".number.state")).to_contain_text("complete", timeout=30_000)
        # The gallery does not shift by itself.
        tab.page.get_by_role("link", name="maps").click()
        tab.settle()
        assert len(tab.names()) == 3
        tab.page.get_by_role("button", name="new: show").click()
        tab.settle()
        assert tab.names()[:2] == ["new/000", "new/001"]
        tab.page.goto("about:blank")


def test_maps_that_were_retried_are_offered(tab: Tab, shown: Shown) -> None:
    counts = json.dumps({"done": COUNT + 1, "failed": 1})
    tab.page.route("**/api/counts", lambda route: route.fulfill(body=counts, content_type="application/json"))
    tab.page.clock.install()
    tab.open(shown.viewer)
    tab.page.clock.fast_forward(3000)
    tab.page.get_by_role("button", name="changed: show").click()
    expect(tab.page.locator("#bar")).to_contain_text(f"{COUNT + 1} done, 1 failed")
    expect(tab.page.locator(".fresh")).to_be_hidden()


# Many maps, and hostile ones --------------------------------------------------------------------------------------

MANY = 150_000


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of failed maps, whose tiles ask for nothing."""
    path = tmp_path_factory.mktemp("many") / "m.sqlite"
    write_run(path, [])
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            "INSERT INTO maps (name, status, source, time, stage, error, settings, mean) "
            "SELECT printf('map %06d', i), 'failed', 's', 't', 'read', 'it is broken', 'f', i / 7.0 FROM n",
            (MANY - 1,),
        )
    return path


def test_a_window_of_the_scroll_area_moves_through_any_number_of_maps(tab: Tab, many: Path) -> None:
    with Viewer(many) as viewer:
        tab.open(viewer)
        tab.page.locator(".tile[tabindex='0']").focus()
        tab.page.keyboard.press("End")
        expect(tab.page.locator(".tile:focus .name")).to_have_text(f"map {MANY - 1:06}")
        assert tab.page.locator(".space").evaluate("(space) => space.offsetHeight") <= 4_000_100
        tab.page.keyboard.press("ArrowLeft")
        expect(tab.page.locator(".tile:focus .name")).to_have_text(f"map {MANY - 2:06}")
        slider = tab.page.get_by_label("position")
        for place in (100_000, 3, 149_990, 75_001):
            slider.fill(str(place))
            tab.settle()
            columns = int(tab.page.locator(".grid").get_attribute("aria-colcount") or 0)
            first = f"map {place - place % columns:06}"
            assert first in tab.names() or place == 149_990
            assert f"of {MANY:,}" in (slider.get_attribute("aria-valuetext") or "")
        # A long way with the wheel: no map is repeated or skipped.
        before = tab.names()
        for _ in range(30):
            tab.page.mouse.move(700, 400)
            tab.page.mouse.wheel(0, 700)
        tab.settle()
        after = tab.names()
        assert after[0] > before[0]
        assert [int(name[4:]) for name in after] == [*range(int(after[0][4:]), int(after[-1][4:]) + 1)]
        tab.page.goto("about:blank")


def test_the_place_is_kept(tab: Tab, many: Path) -> None:
    with Viewer(many) as viewer:
        tab.open(viewer, "#/?sort=-mean")
        slider = tab.page.get_by_label("position")
        slider.fill("75000")
        tab.settle()
        names = tab.names()
        tab.page.locator(".tile", has_text=names[8]).click()
        tab.page.keyboard.press("Escape")
        tab.settle()
        assert tab.names() == names
        tab.page.get_by_role("link", name="run").click()
        tab.page.get_by_role("link", name="maps").click()
        tab.settle()
        assert tab.names() == names
        expect(tab.page).to_have_url(re.compile(r"at=7\d{4}$"))
        tab.page.reload()
        tab.settle()
        assert tab.names() == names
        # As after the first load.
        expect(slider).to_have_attribute("max", str(MANY - 1))
        assert sum(asked.endswith("/marks") for asked in tab.addresses) == 2
        tab.page.set_viewport_size({"width": 700, "height": 700})
        slider.fill(str(MANY))
        tab.settle()
        tab.page.set_viewport_size({"width": 1500, "height": 900})
        tab.settle()
        after = tab.names()
        assert len(after) > 12
        assert [int(name[4:]) for name in after] == [*range(int(after[0][4:]), int(after[-1][4:]) - 1, -1)]
        assert after[-1] == "map 000000"
        tab.page.goto("about:blank")


def test_rows_that_fail_are_asked_for_again_but_seldom(tab: Tab, many: Path) -> None:
    tab.page.clock.install()
    with Viewer(many) as viewer:
        tab.open(viewer)
        tab.page.route("**/rows?*", lambda route: route.fulfill(status=502, body='{"error": "the store is down"}'))
        tab.addresses.clear()
        tab.page.get_by_label("position").fill("75000")
        expect(tab.page.locator("#status")).to_have_text("the store is down")
        tab.page.wait_for_timeout(300)
        assert sum("/rows?" in asked for asked in tab.addresses) <= 4
        tab.page.unroute("**/rows?*")
        tab.page.clock.fast_forward(3000)
        expect(tab.page.locator(".tile", has_text="map 075000")).to_be_visible()
        assert all("502" in problem for problem in tab.problems)
        tab.problems.clear()
        tab.page.goto("about:blank")


def test_the_window_of_the_scroll_area_moves_while_scrolling(tab: Tab, many: Path) -> None:
    with Viewer(many) as viewer:
        tab.open(viewer)
        grid = tab.page.locator(".grid")
        seen = set()
        for _ in range(4):
            # To the end of the window, again and again.
            grid.evaluate("(grid) => grid.scrollTo(0, grid.scrollHeight)")
            tab.settle()
            names = tab.names()
            assert [int(name[4:]) for name in names] == [*range(int(names[0][4:]), int(names[-1][4:]) + 1)]
            seen.add(names[0])
        assert f"map {MANY - 1:06}" in tab.names()
        assert len(seen) >= 2
        tab.page.goto("about:blank")


NAMES = [
    "<img src=x onerror=alert(1)>",
    "'); DROP TABLE maps; --",
    "\u202egnp",
    "javascript:alert(1)",
    "a b%2f#?&",
    "#/run",
]


def test_a_hostile_manifest_is_only_text(tab: Tab, tmp_path: Path) -> None:
    failures = [am.Failure(name, f"<b>{name}</b>", None, "read", f"<script>alert('{name}')</script>") for name in NAMES]
    write_run(tmp_path / "m.sqlite", failures, tmp_path.as_uri())
    with Viewer(tmp_path / "m.sqlite") as viewer:
        tab.open(viewer)
        assert sorted(tab.names()) == sorted(NAMES)
        for name in NAMES:
            tab.page.locator(".tile").filter(has=tab.page.get_by_text(name, exact=True)).first.click()
            expect(tab.page.locator(".tools h1")).to_have_text(name)
            expect(tab.page.locator("aside")).to_contain_text(f"<script>alert('{name}')</script>")
            tab.page.reload()
            expect(tab.page.locator(".tools h1")).to_have_text(name)
            tab.page.keyboard.press("Escape")
            tab.settle()
        tab.page.get_by_role("link", name="run").click()
        expect(tab.page.locator(".run")).to_contain_text("<script>")
        assert tab.page.locator("b b, script:not([src]), img[src='x']").count() == 0
        tab.page.goto("about:blank")


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_axe_finds_nothing_serious(tab: Tab, shown: Shown, scheme: str) -> None:
    tab.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]  # one of two
    only: dict[str, Any] = {} if scheme == "dark" else {"runOnly": ["color-contrast"]}
    for address in ("", f"#/map/{ONE}?panes=three", "#/run"):
        tab.open(shown.viewer, address)
        assert tab.serious(**only) == []
    tab.page.keyboard.press("?")
    assert tab.serious(**only) == []
    tab.open(shown.page)
    assert tab.serious(**only) == []
