"""Writes the viewer's page with all it shows into a folder, which opens without a server. Everything here blocks.

A page on a disk may load scripts and images, but not read files: so intensities are text in scripts.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from async_maps.errors import ObjectError, SettingsError, SourceError
from async_maps.render.colormap import colormap_table
from async_maps.report import counted
from async_maps.viewer.bundle import offline_script, page_files
from async_maps.viewer.compare import DISAGREEMENT
from async_maps.viewer.content import COLORMAPS, Content
from async_maps.viewer.history import history
from async_maps.viewer.orders import Request
from async_maps.viewer.pixels import checked_kind, pack, thumbnail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_logger = logging.getLogger("async_maps")

_MARK = ".async-maps-view"
"""This file marks a folder of such a page, whose content may be replaced."""
_FOLDERS = ("maps", "other", "images")
_OURS = re.compile(r"\d+\.(js|png|jpg|gif|webp)")
"""The names of the files in these folders; others are the user's."""
_SAMPLES = 8
"""The maps from which the size of the page is estimated."""
_PAGE = 500
_THREADS = 8
_SUFFIXES = {"image/png": "png", "image/jpeg": "jpg", "image/gif": "gif", "image/webp": "webp"}
_POLICY = (
    "default-src 'none'; script-src 'self' file:; style-src 'self' file:; img-src 'self' file:; base-uri 'none'; "
    "form-action 'none'"
)
_INDEX = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="dark light">
<meta name="referrer" content="no-referrer">
<title>async-maps</title>
<link rel="icon" href="icon.svg">
<link rel="stylesheet" href="app.css">
<script defer src="data.js"></script>
<script defer src="app.js"></script>
</head>
"""


class Written(NamedTuple):
    """What was written: the numbers of maps, of those without an overlay here, of images, and of bytes."""

    maps: int
    missing: int
    images: int
    size: int


def body_of(index: bytes) -> str:
    """Return the body of the page, with its end."""
    text = index.decode()
    return text[text.index("<body>") :]


def chosen_rows(content: Content, limit: int | None) -> list[dict[str, Any]]:
    """Return the first rows by name, with their partners and all measures if there is a second manifest.

    Raises:
        StoreError: the overlays are compared, and a store cannot be reached.
    """
    order = content.order(Request())
    count = order["total"] if limit is None else min(limit, order["total"])
    pages = (content.page(order["order"], start, min(_PAGE, count - start)) for start in range(0, count, _PAGE))
    rows = [row for page in pages for row in page if row is not None]
    pairs = [row for row in rows if row.get("other")]
    with _threads() as threads:
        for row, found in zip(pairs, threads.map(partial(_measured, content), pairs), strict=True):
            row[DISAGREEMENT] = found
    return rows


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Return threads for the ``with`` block. Ctrl-C does not wait for those that wait for a store."""
    threads = ThreadPoolExecutor(_THREADS, "async-maps-view")
    is_interrupted = True
    try:
        yield threads
        is_interrupted = False
    except Exception:
        is_interrupted = False
        raise
    finally:
        threads.shutdown(wait=not is_interrupted, cancel_futures=True)


def _measured(content: Content, row: dict[str, Any]) -> float | None:
    """Return the disagreement of a row and its partner; None if it cannot be measured."""
    known: float | None = row[DISAGREEMENT]
    if known is not None or content.comparison is None:
        return known
    found = content.comparison.measured(row, row["other"])
    return None if math.isnan(found) else found


def overlays_of(rows: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
    """Return the rows that have an overlay and their partners, each with the folder of its plane."""
    own = [(row, "maps") for row in rows if row["locator"]]
    return own + [(row["other"], "other") for row in rows if row.get("other")]


def data_of(content: Content, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what the page asks for besides pixels, for JSON."""
    numbers = {row["row"] for row in rows}
    groups = content.groups()
    failures = groups.as_dict()
    for shown, group in zip(failures["groups"], groups.groups, strict=True):
        shown["rows"] = [number for number in group.rows if number in numbers]
        shown["count"] = len(shown["rows"])
    failures["groups"] = [shown for shown in failures["groups"] if shown["rows"]]
    failed = sum(row["status"] == "failed" for row in rows)
    manifest = content.describe() | {"counts": {"done": len(rows) - failed, "failed": failed}}
    # Whoever gets the page learns no folders of this machine beside those in rows.
    sides = [side for side in (manifest, manifest["other"]) if side]
    for side in sides:
        label = side["name"] if len({other["name"] for other in sides}) == len(sides) else side["address"]
        side.update(address=label, place=label, live=False)
    manifest["images"] = manifest["images"] and "images"
    tables = {
        f"{name} {alpha}": base64.b64encode(colormap_table(name, alpha).tobytes()).decode()
        for name in COLORMAPS
        for alpha in ("fade", "opaque")
    }
    return {
        "manifest": manifest,
        "rows": rows,
        "failures": failures,
        "run": history(content.side.rows),
        "colors": tables,
    }


def script_of(data: object) -> str:
    """Return data as an expression of JavaScript that may also stand in HTML."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def packed_plane(content: Content, row: dict[str, Any], of: str, side: int | None) -> str:
    """Return the intensities of a row as text; ``of`` is "maps", or "other" for the second manifest."""
    one = content.side if of == "maps" or content.comparison is None else content.comparison.side
    return base64.b64encode(pack(one.overlays.plane(row, side)[0])).decode()


def image_of(content: Content, name: str, side: int | None) -> tuple[bytes, str] | None:
    """Return the image of a map and its content type; None if there is none that can be shown.

    Raises:
        StoreError: the store refuses all requests.
        SourceError: the store cannot be reached.
    """
    if content.images is None:
        return None
    try:
        data = content.images.read(name)
        return (data, checked_kind(data)) if side is None else thumbnail(data, side)
    except (ObjectError, SourceError) as error:
        if error.may_pass:
            raise
        _logger.debug("%s has no image: %s", name, error)
        return None


def write_static(
    content: Content,
    out: Path,
    *,
    side: int | None = None,
    limit: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Written:
    """Write the page with its data into a folder.

    Args:
        content: what is shown.
        out: the folder; that of an earlier page is replaced.
        side: the longest side of maps and images in pixels; None for all pixels.
        limit: only the first maps by name; None for all.
        tell: gets a sentence about the size, before the maps are written.

    Returns:
        What was written.

    Raises:
        SettingsError: the folder has other files, or cannot be written.
        AsyncMapsError: the manifest cannot be read, or the store is down.
    """
    _check_folder(out)
    rows = chosen_rows(content, limit)
    pairs = overlays_of(rows)
    about = _estimated(content, rows, pairs, side)
    pixels = "all pixels" if side is None else f"at most {side} pixels a side"
    tell(f"{counted(len(pairs), 'overlay')} and their images with {pixels}: about {about / 1e6:,.1f} MB")
    try:
        _clear(out)
        for folder in _FOLDERS:
            (out / folder).mkdir(exist_ok=True)
        with _threads() as threads:
            found = list(threads.map(partial(_write_plane, content, out, side), pairs))
            for row, image in zip(rows, threads.map(partial(_write_image, content, out, side=side), rows), strict=True):
                row["image"] = image
        for name, data in page_files().items():
            if name in {"app.css", "icon.svg"}:
                (out / name).write_bytes(data)
        (out / "data.js").write_text(f"window.ASYNC_MAPS = {script_of(data_of(content, rows))};\n", encoding="utf-8")
        (out / "app.js").write_text(offline_script(), encoding="utf-8")
        # Last, so that a page that opens is whole.
        (out / "index.html").write_text(_INDEX + body_of(page_files()["index.html"]), encoding="utf-8")
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    except OSError as error:
        raise SettingsError(f"cannot write the page to {out}: {error.strerror or error}") from error
    return Written(len(rows), found.count(False), sum(row["image"] is not None for row in rows), size)


def _write_plane(content: Content, out: Path, side: int | None, pair: tuple[dict[str, Any], str]) -> bool:
    row, of = pair
    address = f"{of}/{row['row']}"
    try:
        text = packed_plane(content, row, of, side)
    except ObjectError as error:
        _logger.debug("%s is left out: %s", row["name"], error)
        return False
    (out / f"{address}.js").write_text(f"ASYNC_MAPS.plane({json.dumps(address)}, {json.dumps(text)});\n")
    return True


def _write_image(content: Content, out: Path, row: dict[str, Any], *, side: int | None) -> str | None:
    found = image_of(content, row["name"], side)
    if found is None:
        return None
    address = f"images/{row['row']}.{_SUFFIXES[found[1]]}"
    (out / address).write_bytes(found[0])
    return address


def _estimated(
    content: Content, rows: Sequence[dict[str, Any]], pairs: Sequence[tuple[dict[str, Any], str]], side: int | None
) -> float:
    """Return about how many bytes the planes and images of all rows will have, from some of them."""
    planes, images = [0], [0]
    for row, of in pairs[:: max(1, len(pairs) // _SAMPLES)]:
        with suppress(ObjectError):
            planes.append(len(packed_plane(content, row, of, side)))
    found_images = (image_of(content, row["name"], side) for row in rows[:: max(1, len(rows) // _SAMPLES)])
    images.extend(0 if found is None else len(found[0]) for found in found_images)
    return sum(
        sum(found) / max(1, len(found) - 1) * count for found, count in ((planes, len(pairs)), (images, len(rows)))
    )


def _check_folder(out: Path) -> None:
    """Refuse a folder with files that are no page."""
    try:
        if out.exists() and not (out / _MARK).exists() and any(out.iterdir()):
            raise SettingsError(f"{out} has files that are no page of async-maps view: choose another folder")
    except OSError as error:
        raise SettingsError(f"cannot write the page to {out}: {error.strerror or error}") from error


def _clear(out: Path) -> None:
    """Make the folder, or delete the files of an earlier page."""
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARK).touch()
    # First, so that a page that opens is whole.
    (out / "index.html").unlink(missing_ok=True)
    for path in (path for name in _FOLDERS for path in (out / name).glob("*") if _OURS.fullmatch(path.name)):
        path.unlink()
