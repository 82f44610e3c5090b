"""The pictures of the viewer in the documentation, made from the demo's scenes: ``pytest --screenshots bench``."""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import async_maps as am
from async_maps.concurrency.loop import run_blocking
from async_maps.demo import seaweed
from async_maps.demo.saliency import spectral_residual
from async_maps.demo.scenes import scene
from async_maps.manifest import sampler
from async_maps.viewer.server import Viewer
from tests.support.browsing import Tab, composite
from tests.support.viewing import Client

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser

    from async_maps.demo.seaweed import S3Server

pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra test-browser)")

COUNT = 48
SIZE = (1280, 800)
VIEWS = {
    "gallery": "#/?sort=-entropy",
    "map": "#/map/train/scene-0003?panes=three&opacity=70",
    "models": "#/models?sort=-disagreement",
    "run": "#/run",
}


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Iterator[Viewer]:
    """Two methods on the demo's scenes, in SeaweedFS; the first run is slow, so that its progress can be seen."""
    folder = tmp_path_factory.mktemp("screenshots")
    scenes = {f"{'train' if i % 4 else 'val'}/scene-{i:04}": scene(i) for i in range(COUNT)}
    for name, image in scenes.items():
        path = folder / "images" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, quality=90)
    fine = {name: spectral_residual(image) for name, image in scenes.items()}
    fine |= {f"val/lost-{i}": np.full((288, 384), np.nan, np.float32) for i in range(2)}
    coarse = {name: spectral_residual(image, side=20) for name, image in scenes.items()}
    with pytest.MonkeyPatch.context() as patch, seaweed.in_environment(s3_server):
        # Not asyncio.run: Playwright runs an event loop in this thread.
        run_blocking(partial(seaweed.create_bucket, s3_server, "saliency"))
        patch.setattr(sampler, "_INTERVAL_S", 0.1)
        for kind, maps, settings in (
            ("fine", fine, am.Settings(workers=0, rate=25)),
            ("coarse", coarse, am.Settings(workers=0)),
        ):
            am.run(maps.items(), f"s3://saliency/{kind}", manifest=folder / f"{kind}.sqlite", settings=settings)
        images, other = folder / "images", folder / "coarse.sqlite"
        with Viewer(folder / "fine.sqlite", images=images, compare=other) as viewer:
            Client(viewer).measured()
            yield viewer


def test_overlays_in_a_bucket_are_those_of_a_reference(tab: Tab, viewer: Viewer) -> None:
    name, table = "train/scene-0003", am.Settings().table()
    plane = np.rint(np.clip(spectral_residual(scene(3)), 0, 1).astype(np.float64) * 255).astype(np.uint8)
    tab.open(viewer, f"#/map/{name}")
    assert tab.page.locator("aside").get_by_text(f"fine/{name}.png", exact=True).count() == 1
    black = np.zeros((*plane.shape, 3), np.uint8)
    assert np.abs(composite(black, tab.sheet()) - composite(black, table[plane])).max() <= 1
    tab.page.keyboard.press("Escape")
    tab.settle()
    assert len(tab.names()) > 12


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("view", VIEWS)
def test_a_picture_of_each_view(
    browser: Browser, viewer: Viewer, view: str, scheme: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    tab = Tab(browser, size=SIZE, scheme=scheme)
    try:
        tab.open(viewer, VIEWS[view])
        if view == "map":
            tab.page.mouse.move(560, 260)
        tab.settle()
        with Image.open(io.BytesIO(tab.page.screenshot(animations="disabled"))) as shot:
            picture = shot.convert("RGB")
    finally:
        tab.close()
    assert tab.problems == []
    pixels = np.asarray(picture)
    assert pixels.shape == (SIZE[1], SIZE[0], 3)
    # The background is that of the scheme, and there is more than text.
    assert (np.median(pixels) < 60) == (scheme == "dark") or view in {"gallery", "models"}
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > (500 if view == "run" else 10_000)
    wanted = request.config.option.screenshots
    folder = tmp_path if wanted is None else request.config.invocation_params.dir / wanted
    picture.save(folder / f"view-{view}-{scheme}.jpg", quality=82, optimize=True, progressive=True)
