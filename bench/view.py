"""How fast is the viewer with a million rows, in the server and in Chromium?

The manifest is written without a run: its rows have random statistics, and their locators lead to a few overlays of
512x512. Times of the server are CPU times. Those of the page need Chromium; they are left out where there is none.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import HTTPCookieProcessor, build_opener

import numpy as np
from PIL import Image

import async_maps as am
from async_maps.manifest.manifest import Manifest
from async_maps.manifest.schema import COLUMNS
from async_maps.viewer.orders import COLUMNS as SORTED
from async_maps.viewer.orders import Filter, Request, Snapshot
from async_maps.viewer.rows import ViewedRows
from bench.data import make_map
from bench.measure import memory, parser
from bench.tables import Bench

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from playwright.sync_api import Page, ViewportSize

_ROWS, _QUICK_ROWS = 1_000_000, 20_000
_FILES, _SIZE = 64, 512
_ROUNDS, _QUICK_ROUNDS = 15, 2
_PAGE = 200
_TILES = 20
_WINDOW: ViewportSize = {"width": 1440, "height": 900}
_COLUMNS = {"": "", "found": ",.1f", "goal": ",.0f", "unit": "", "rounds": ""}
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
_FIGURES = ("mean", "high_share", "entropy", "center_x", "center_y")
_RANDOM = "abs(random() / 9223372036854775808.0)"
_FULL_SCREEN = """async (count) => {
    const loaded = () => [...document.querySelectorAll(".tile")].filter(({ tile }) => tile.isLoaded).length;
    while (loaded() < count) await new Promise(requestAnimationFrame);
    return performance.now();
}"""
_RECOLOR = """async ([selector, count, rounds]) => {
    const slider = document.querySelector("input[aria-label=threshold]");
    const all = [...document.querySelectorAll(".tile")].map(({ tile }) => tile);
    const tiles = all.filter((tile) => tile.isLoaded).slice(0, count);
    const times = [];
    for (let round = 0; round < rounds; round += 1) {
        slider.value = 10 + 3 * round;
        slider.dispatchEvent(new Event("input"));
        await new Promise((done) => setTimeout(done, 60));
        const began = performance.now();
        if (selector === "tiles") {
            // A picture that has these colors is not painted again.
            for (const tile of tiles) tile.picture.painted = null;
            for (const tile of tiles) tile.paint();
        } else slider.dispatchEvent(new Event("input", { bubbles: true, detail: (slider.value = 11 + 3 * round) }));
        times.push(performance.now() - began);
    }
    return times;
}"""


def write_manifest(path: Path, overlays: Sequence[Path], rows: int) -> None:
    """Write a manifest of that many rows, one in a hundred of a failed map, in random order."""
    with Manifest(path) as manifest:
        manifest.begin(overlays[0].parent.as_uri())
    settings = am.Settings(range="per-map").fingerprint()
    names = [*COLUMNS]
    values = dict.fromkeys(names, "NULL") | {
        "name": "printf('%s/scene-%07d', CASE WHEN i % 4 THEN 'train' ELSE 'val' END, i)",
        "source": "printf('maps/%07d.npy', i)",
        "time": "'2026-01-01T00:00:00.000+00:00'",
        "fingerprint": "'1-1'",
        "settings": f"'{settings}'",
        "status": "CASE WHEN i % 100 = 7 THEN 'failed' ELSE 'done' END",
        "stage": "CASE WHEN i % 100 = 7 THEN 'read' END",
        "error": "CASE WHEN i % 100 = 7 THEN printf('expected a map, found %d bytes', i) END",
    }
    done = {
        "locator": f"printf('{overlays[0].parent.as_uri()}/%02d.png', i % {len(overlays)})",
        "bytes": "20000 + i % 5000",
        "width": str(_SIZE),
        "height": str(_SIZE),
        "etag": "printf('%032x', i)",
        "crc32": "printf('%08x', i)",
        "range_low": "0.0",
        "range_high": "1.0",
        "invalid_pixels": "0",
        "constant": "0",
        "transparent": "i % 50 = 0",
        "faint": "i % 30 = 0",
        **dict.fromkeys(_FIGURES, _RANDOM),
        # Those of float32 maps.
        **dict.fromkeys(("minimum", "maximum"), f"round({_RANDOM} * 65536) / 65536"),
    }
    values |= {name: f"CASE WHEN i % 100 != 7 THEN {value} END" for name, value in done.items()}
    query = (
        f"INSERT INTO maps ({', '.join(names)}) WITH RECURSIVE n(i) AS "  # noqa: S608  # our own
        f"(SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {rows - 1}) "
        f"SELECT {', '.join(values[name] for name in names)} FROM n ORDER BY random()"
    )
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(query)


def _write_overlays(folder: Path) -> list[Path]:
    folder.mkdir()
    table = am.Settings().table()
    for index in range(_FILES):
        plane = np.rint(make_map(index, _SIZE) * 255).astype(np.uint8)
        image = Image.fromarray(plane, "P")
        image.putpalette(table.tobytes(), "RGBA")
        image.save(folder / f"{index:02}.png", transparency=table[:, 3].tobytes())
    return sorted(folder.iterdir())


def _cpu_ms(work: Callable[[], object], rounds: int) -> list[float]:
    times = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        times.append(1000 * (time.process_time() - began))
    return times


def _measure_server(bench: Bench, path: Path, rows: int, rounds: int) -> None:
    table = bench.table(f"The server, {rows:,} rows, CPU time", _COLUMNS)
    choice = random.Random(1)
    with ViewedRows(path) as viewed:

        def first() -> object:
            with viewed.opened() as opened:
                return opened.first(0, 100)

        def page(numbers: Sequence[int]) -> object:
            with viewed.opened() as opened:
                return opened.page(numbers)

        def add(what: str, goal: float | None, work: Callable[[], object], count: int = 1) -> None:
            found = _cpu_ms(work, count)
            table.add(**{"": what, "found": found, "goal": goal, "unit": "ms", "rounds": len(found)})

        add("first 100 rows, before anything is read", None, first, rounds)
        made: list[Snapshot] = []
        add("all names", None, lambda: made.append(Snapshot(viewed)))
        snapshot = made[0]
        order = partial(snapshot.order, group=lambda _: np.empty(0, np.int64))
        by_mean = partial(order, Request("-mean"))
        add("first sort by a column", 600, by_mean)
        add("next sort", 30, partial(order, Request("mean")), rounds)
        ordered = by_mean()
        add(
            f"page of {_PAGE} rows at any offset",
            10,
            lambda: page(ordered.page(choice.randrange(max(1, rows - _PAGE)), _PAGE)),
            rounds,
        )
        add("filter by a column", 25, partial(order, Request("mean", (Filter.parse("mean:0.2..0.5"),))), rounds)
        add("part of a name", 40, lambda: order(Request("name", (), f"scene-{choice.randrange(100):03}")), rounds)


def _measure_memory(bench: Bench, path: Path) -> None:
    table = bench.table("Memory with all columns", _COLUMNS)
    with _served(path) as (process, url):
        opener = build_opener(HTTPCookieProcessor())
        base = url.partition("?")[0]
        opener.open(url).read()
        opener.open(f"{base}api/order?wait=1").read()
        for column in SORTED:
            opener.open(f"{base}api/histogram?column={column}").read()
            opener.open(f"{base}api/order?sort={column}").read()
        table.add(**{"": "server", "found": memory(process.pid) / 1e6, "goal": 250, "unit": "MB", "rounds": 1})


@contextmanager
def _served(path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [
        sys.executable,
        "-m",
        "async_maps",
        "view",
        str(path),
        "--images",
        str(path.parent / "images"),
        "--no-open",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None  # noqa: S101  # a pipe was asked for
            yield process, process.stdout.readline().strip()
        finally:
            process.terminate()


def _measure_page(bench: Bench, path: Path, rounds: int) -> None:
    from playwright.sync_api import sync_playwright

    table = bench.table("The page in headless Chromium, software rendering", _COLUMNS)
    chromium = next(found for found in map(shutil.which, _CHROMIUM) if found)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        paints, screens = [], []
        for _ in range(max(2, rounds // 3)):
            # A new server, which has read nothing yet.
            with _served(path) as (_, url):
                page = browser.new_context(viewport=_WINDOW).new_page()
                page.goto(url)
                screens.append(float(page.evaluate(_FULL_SCREEN, _TILES)))
                paints.append(_first_paint(page))
                page.context.close()
        with _served(path) as (_, url):
            page = browser.new_page(viewport=_WINDOW)
            page.goto(url)
            page.evaluate(_FULL_SCREEN, _TILES)
            tiles = page.evaluate(_RECOLOR, ["tiles", _TILES, 2 * rounds])
            page.locator(".tile:visible").nth(3).click()
            page.locator(".sheet canvas").wait_for()
            page.wait_for_timeout(500)
            one = page.evaluate(_RECOLOR, ["map", 0, 2 * rounds])
        browser.close()
    for what, found, goal in (
        ("first contentful paint", paints, 300),
        (f"full screen of {_TILES} tiles", screens, 1000),
        (f"recolor {_TILES} tiles", tiles, 5),
        (f"recolor one map of {_SIZE}x{_SIZE}", one, 2),
    ):
        table.add(**{"": what, "found": found, "goal": goal, "unit": "ms", "rounds": len(found)})


def _first_paint(page: Page) -> float:
    return float(page.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0].startTime"))


def main(arguments: Sequence[str]) -> None:
    """Run ``python -m bench view``."""
    options = parser("view", __doc__).parse_args(arguments)
    bench = Bench("view", options.quick)
    rows, rounds = (_QUICK_ROWS, _QUICK_ROUNDS) if options.quick else (_ROWS, _ROUNDS)
    with tempfile.TemporaryDirectory(prefix="async-maps-bench-") as name:
        folder = Path(name)
        overlays = _write_overlays(folder / "overlays")
        (folder / "images").mkdir()
        for part in ("train", "val"):
            # One image for all maps of a folder, as for layers.
            pixels = np.random.default_rng(1).integers(0, 256, (_SIZE, _SIZE, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{part}.jpg")
        path = folder / "view.sqlite"
        write_manifest(path, overlays, rows)
        _measure_server(bench, path, rows, rounds)
        bench.publish()
        _measure_memory(bench, path)
        bench.publish()
        if any(map(shutil.which, _CHROMIUM)):
            _measure_page(bench, path, rounds)
            bench.publish()
        else:
            print("\nthere is no Chromium: the page is not measured")


if __name__ == "__main__":
    main(sys.argv[1:])
