"""A browser for the tests of the page, and a run with its images."""

from __future__ import annotations

import secrets
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

import async_maps as am
from async_maps.concurrency.loop import run_blocking
from async_maps.viewer.server import Viewer
from tests.support.browsing import COUNT, SHAPE, Shown, Tab, chromium
from tests.support.viewing import smooth_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from playwright.sync_api import Browser

    from async_maps.demo.seaweed import S3Server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # Not for the session: Playwright runs an event loop in this thread, and other tests run their own.
    with chromium() as browser:
        yield browser


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    tab = Tab(browser)
    yield tab
    tab.close()
    assert tab.problems == []
    # No request leaves the machine.
    assert {urlsplit(address).hostname for address in tab.addresses} <= {"127.0.0.1", None}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server, browser: Browser) -> Iterator[Shown]:
    """30 maps with ranges of their own, in a bucket, on PNG images of their size; two are broken, one has no image."""
    from async_maps.demo import seaweed

    folder, bucket = tmp_path_factory.mktemp("shown"), f"shown-{secrets.token_hex(4)}"
    maps, images = {}, {}
    for i in range(COUNT):
        name = f"{'train' if i % 3 else 'val'}/{i:03}"
        maps[name] = smooth_map(i, SHAPE) * np.float32(0.5 + i / 10) - np.float32(0.1)
        images[name] = np.random.default_rng(i).integers(40, 216, (*SHAPE, 3)).astype(np.uint8)
        if i != 4:
            path = folder / "images" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[name]).save(path)
    broken = [(f"broken/{i}", np.full((3, 3), np.nan)) for i in range(2)]
    settings = am.Settings(workers=0, range="per-map", colormap="viridis")
    with seaweed.in_environment(s3_server):
        run_blocking(partial(seaweed.create_bucket, s3_server, bucket))
        am.run([*maps.items(), *broken], f"s3://{bucket}", manifest=folder / "run.sqlite", settings=settings)
        with Viewer(folder / "run.sqlite", images=folder / "images") as viewer:
            viewer.save(folder / "page")
            yield Shown(viewer, folder / "page" / "index.html", maps, images, folder)


@pytest.fixture(params=["server", "disk"])
def place(request: pytest.FixtureRequest, shown: Shown) -> Viewer | Path:
    """The page, from a server and from a disk."""
    return shown.viewer if request.param == "server" else shown.page


@pytest.fixture
def intensities(shown: Shown) -> Callable[[str], NDArray[np.uint8]]:
    """Return the intensities of a map by its name."""

    def found(name: str) -> NDArray[np.uint8]:
        values = shown.maps[name].astype(np.float64)
        shares = (values - values.min()) / (values.max() - values.min())
        return np.asarray(np.rint(shares * 255), np.uint8)

    return found
