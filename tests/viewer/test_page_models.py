"""Two models in a real Chromium: pairs on one scale, and their difference."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

import async_maps as am
from async_maps.viewer.server import Viewer
from tests.support.browsing import composite
from tests.support.viewing import smooth_map

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.support.browsing import Tab

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra test-browser)")
expect = sync_api.expect

COUNT = 6
TABLE = am.Settings().table()
DIFFERENCES = am.Settings(colormap="RdBu_r", alpha="opaque").table()


def first(i: int) -> NDArray[np.float32]:
    return smooth_map(i) * np.float32(2)


def second(i: int) -> NDArray[np.float32]:
    return np.roll(smooth_map(i), 3 * i, axis=1) - np.float32(0.5)


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    folder = tmp_path_factory.mktemp("models")
    settings = am.Settings(workers=0, range="per-map")
    for name, values in (("first", first), ("second", second)):
        maps = [(f"{i:02}", values(i)) for i in range(COUNT)]
        am.run(maps, folder / name, manifest=folder / f"{name}.sqlite", settings=settings)
    with Viewer(folder / "first.sqlite", compare=folder / "second.sqlite") as viewer:
        yield viewer


def intensities(values: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Return the intensities of a map with its own range, and the values that they stand for."""
    wide = values.astype(np.float64)
    span = wide.max() - wide.min()
    plane = np.rint((wide - wide.min()) / span * 255).astype(np.uint8)
    return plane, wide.min() + plane / 255 * span


def on_black(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    return composite(np.zeros((*pixels.shape[:2], 3), np.uint8), pixels)


def test_pairs_are_sorted_by_disagreement(tab: Tab, viewer: Viewer) -> None:
    tab.open(viewer)
    tab.page.get_by_role("link", name="models").click()
    expect(tab.page.locator(".scrub .where")).to_have_text(re.compile(r"map 1 of 6, disagreement 0\.\d+"))
    tab.settle()
    names = tab.names()
    assert sorted(names) == [f"{i:02}" for i in range(COUNT)]
    # The pair that is not moved differs least.
    assert names[-1] == "00"
    assert tab.hash == "/models?sort=-disagreement"


def test_a_pair_is_drawn_on_one_scale_with_its_difference(tab: Tab, viewer: Viewer) -> None:
    tab.open(viewer, "#/pair/05")
    expect(tab.page.locator(".pane")).to_have_count(3)
    tab.settle()
    planes, values = zip(*(intensities(make(5)) for make in (first, second)), strict=True)
    low, high = min(value.min() for value in values), max(value.max() for value in values)
    for number in range(2):
        places = np.rint((values[number] - low) / (high - low) * 255).astype(int)
        assert np.abs(on_black(tab.sheet(number)) - on_black(TABLE[places])).max() <= 1
    assert all(plane.shape == (48, 64) for plane in planes)
    exact = np.clip(127.5 + 255 * (values[1] - values[0]) / (high - low), 0, 255)
    found = tab.sheet(2)[..., :3].astype(int)
    # Where the value is between two colors, either is right.
    either = [
        np.abs(found - DIFFERENCES[part(exact).astype(int)][..., :3].astype(int)).max(-1)
        for part in (np.floor, np.ceil)
    ]
    assert np.minimum(*either).max() <= 1


def test_the_values_of_both_are_under_the_cursor(tab: Tab, viewer: Viewer) -> None:
    tab.open(viewer, "#/pair/03")
    expect(tab.page.locator(".pane")).to_have_count(3)
    tab.settle()
    box = tab.page.locator(".sheet").first.bounding_box()
    assert box is not None
    tab.page.mouse.move(box["x"] + 20.5 / 64 * box["width"], box["y"] + 30.5 / 48 * box["height"])
    text = tab.page.locator(".readout").inner_text()
    found = re.fullmatch(r"x 20, y 30: (-?[\d.e-]+) ±.*, second: (-?[\d.e-]+) ±.*; difference (-?[\d.e-]+)", text)
    assert found is not None, text
    values = [float(make(3)[30, 20]) for make in (first, second)]
    assert [float(found[1]), float(found[2])] == pytest.approx(values, abs=0.01)
    assert float(found[3]) == pytest.approx(values[1] - values[0], abs=0.02)


def test_the_facts_of_both_are_shown(tab: Tab, viewer: Viewer) -> None:
    tab.open(viewer, "#/pair/02?sort=-disagreement")
    aside = tab.page.locator("aside")
    for text in ("first.sqlite", "second.sqlite", "disagreement", "distance of centers"):
        expect(aside).to_contain_text(text)
    tab.page.keyboard.press("Escape")
    tab.settle()
    assert tab.hash == "/models?sort=-disagreement"
    assert len(tab.names()) == COUNT


def test_pairs_without_a_range_or_with_one_value_are_shown(tab: Tab, tmp_path: Path) -> None:
    maps = [("constant", np.full((8, 8), 0.5, np.float32)), ("empty", np.full((8, 8), np.nan, np.float32))]
    settings = am.Settings(workers=0, range="per-map", invalid="transparent")
    for name in ("first", "second"):
        am.run(maps, tmp_path / name, manifest=tmp_path / f"{name}.sqlite", settings=settings)
    with Viewer(tmp_path / "first.sqlite", compare=tmp_path / "second.sqlite") as viewer:
        tab.open(viewer, "#/models")
        assert tab.names() == ["constant", "empty"]
        tab.open(viewer, "#/pair/constant")
        expect(tab.page.locator(".pane")).to_have_count(3)
        tab.settle()
        for number in range(2):
            assert np.abs(on_black(tab.sheet(number)) - on_black(np.broadcast_to(TABLE[128], (8, 8, 4)))).max() <= 1
        assert (np.abs(tab.sheet(2)[..., :3].astype(int) - DIFFERENCES[127, :3].astype(int)) <= 1).all()
        tab.open(viewer, "#/pair/empty")
        expect(tab.page.locator(".pane")).to_have_count(3)
        tab.page.goto("about:blank")


def test_one_overlay_is_shown_if_the_other_is_missing(tab: Tab, viewer: Viewer) -> None:
    tab.page.route(
        "**/map/*/indices?*of=other*", lambda route: route.fulfill(status=404, body='{"error": "it is gone"}')
    )
    tab.open(viewer, "#/pair/05")
    expect(tab.page.locator(".stage > .note")).to_have_text("it is gone")
    assert tab.sheet(0).shape == (48, 64, 4)
    assert all("404" in problem for problem in tab.problems)
    tab.problems.clear()


@pytest.mark.parametrize("address", ["#/models?sort=-disagreement", "#/pair/02"])
def test_axe_finds_nothing_serious(tab: Tab, viewer: Viewer, address: str) -> None:
    tab.open(viewer, address)
    expect(tab.page.locator(".pane, .tile:visible").first).to_be_visible()
    assert tab.serious() == []


def test_plain_maps_and_pairs_have_orders_of_their_own(tab: Tab, viewer: Viewer) -> None:
    tab.open(viewer, "#/models")
    assert len(tab.names()) == COUNT
    tab.page.get_by_role("link", name="maps").click()
    tab.settle()
    assert tab.names() == [f"{i:02}" for i in range(COUNT)]
    expect(tab.page.locator(".frame.pair")).to_have_count(0)
