"""A real Chromium for tests of the viewer, and what they look at in it."""

from __future__ import annotations

import base64
import io
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from playwright.sync_api import Browser, ConsoleMessage, Dialog, Frame, Page

    from async_maps.viewer.server import Viewer

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--force-color-profile=srgb",
)  # fmt: skip


COUNT = 30
SHAPE = (96, 128)


class Shown(NamedTuple):
    """A run that is shown: its viewer, its page on a disk, and the values and the image of each map."""

    viewer: Viewer
    page: Path
    maps: dict[str, NDArray[np.float32]]
    images: dict[str, NDArray[np.uint8]]
    folder: Path


_SETTLE = """async () => {
    const isBusy = () => !document.querySelector("main[aria-busy=false] > *")
        || [...document.images].some((image) => image.offsetParent && image.src && !image.complete);
    for (let still = 0; still < 3; still = isBusy() ? 0 : still + 1) await new Promise(requestAnimationFrame);
}"""
_READ = """([find, argument]) => {
    const tiles = [...document.querySelectorAll(".tile")].map(({ tile }) => tile);
    const canvas = find === "tile"
        ? tiles.find((tile) => tile && tile.row && tile.row.name === argument).picture.canvas
        : document.querySelectorAll(".sheet canvas")[argument];
    const { data, width, height } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let text = "";
    for (let at = 0; at < data.length; at += 4096) text += String.fromCharCode(...data.subarray(at, at + 4096));
    return [btoa(text), width, height];
}"""
_NAMES_SHOWN = """() => [...document.querySelectorAll(".tile")].map(({ tile }) => tile)
    .filter((tile) => tile && tile.row && tile.element.offsetParent)
    .sort((one, other) => one.place - other.place).map((tile) => tile.row.name)
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium; skip the test without it or Playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra test-browser)")
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_OPTIONS))
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """A tab with a viewer's page.

    Attributes:
        page: Playwright's page.
        addresses: the addresses of all requests.
        problems: errors of scripts, and messages of the console that are errors, such as violations of the policy.
    """

    def __init__(self, browser: Browser, *, size: tuple[int, int] = (1280, 800), scheme: Any = "dark") -> None:
        self._context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, reduced_motion="reduce"
        )
        self.page: Page = self._context.new_page()
        self.addresses: list[str] = []
        self.problems: list[str] = []
        self.page.on("request", lambda request: self.addresses.append(request.url))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._note)
        self.page.on("dialog", self._refuse)

    def _note(self, message: ConsoleMessage) -> None:
        # Chromium tells each image that is missing.
        is_image = "/image/" in message.location["url"]
        if message.type == "error" and not (is_image and "404" in message.text):
            self.problems.append(f"{message.text} {message.location['url']}")

    def _refuse(self, dialog: Dialog) -> None:
        self.problems.append(dialog.message)
        dialog.dismiss()

    def close(self) -> None:
        self._context.close()

    def open(self, place: Viewer | Path, address: str = "") -> Tab:
        """Open an address in the page of a viewer, or in one on a disk, and wait until its tiles are drawn."""
        url = place.as_uri() if isinstance(place, Path) else place.url
        # After a change of the part behind #, the page would stay.
        self.page.goto("about:blank")
        self.page.goto(f"{url}{address}")
        self.settle()
        return self

    def settle(self) -> None:
        """Wait until nothing is asked, loaded or painted anymore."""
        self.page.evaluate(_SETTLE)

    @property
    def hash(self) -> str:
        """The part of the address that the page keeps its state in."""
        return self.page.url.partition("#")[2]

    def names(self) -> list[str]:
        """Return the names of the tiles that exist, in the order of their places."""
        found: list[str] = self.page.evaluate(_NAMES_SHOWN)
        return found

    def canvas(self, name: str) -> NDArray[np.uint8]:
        """Return the pixels that are drawn for a map in the gallery, (h, w, 4) uint8."""
        return self._pixels("tile", name)

    def sheet(self, number: int = 0) -> NDArray[np.uint8]:
        """Return the pixels that are drawn for the map that is shown large."""
        return self._pixels("sheet", number)

    def _pixels(self, find: str, argument: object) -> NDArray[np.uint8]:
        text, width, height = self.page.evaluate(_READ, [find, argument])
        return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4)

    def serious(self, frame: Frame | None = None, **options: Any) -> list[tuple[str, str]]:
        """Return the serious problems that axe finds in the page or a frame: the rule and the element of each."""
        axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
        wanted = {"resultTypes": ["violations"], "preload": False, **options}
        found = axe.run(frame or self.page, options=wanted).response["violations"]
        return [
            (rule["id"], node["html"])
            for rule in found
            if rule["impact"] in {"serious", "critical"}
            for node in rule["nodes"]
        ]

    def shot(self, selector: str) -> NDArray[np.uint8]:
        """Return what is on the screen where an element is, (h, w, 3) uint8."""
        data = self.page.locator(selector).first.screenshot(animations="disabled")
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))


def composite(below: NDArray[np.uint8], over: NDArray[np.uint8], opacity: float = 1.0) -> NDArray[np.int64]:
    """Return an overlay, (h, w, 4), on an image, (h, w, 3), as Pillow composes them: (h, w, 3), 0 to 255."""
    over = over.copy()
    over[..., 3] = np.rint(over[..., 3] * opacity)
    image = Image.alpha_composite(Image.fromarray(below).convert("RGBA"), Image.fromarray(over))
    return np.asarray(image)[..., :3].astype(int)
