"""The routes of the viewer. Handlers only parse and answer; everything that blocks runs in threads."""

from __future__ import annotations

import asyncio
import base64
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import web

from async_maps.errors import AsyncMapsError, SettingsError, name_shortage
from async_maps.render.colormap import colormap_table
from async_maps.viewer.bundle import TYPES, page_files
from async_maps.viewer.content import UnknownOrderError
from async_maps.viewer.history import history
from async_maps.viewer.images import ImageMissingError
from async_maps.viewer.orders import Request
from async_maps.viewer.overlays import MissingError
from async_maps.viewer.pixels import NoImageError, checked_kind, pack, thumbnail

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.typedefs import Handler

    from async_maps.render.colormap import Alpha
    from async_maps.viewer.content import Content
    from async_maps.viewer.guard import Guard
    from async_maps.viewer.overlays import Intensities, Overlay
    from async_maps.viewer.side import Side

T = TypeVar("T")

_MAX_ROWS = 500
_MAX_BINS = 200
_LENGTHS = (64, 128, 256, 512)
_READERS, _QUERIES = 8, 4
"""Threads that read objects, and threads that read the manifest: as many again wait for all names to be read."""
_FOREVER = "private, max-age=31536000, immutable"
_STATUSES: dict[type[Exception], int] = {
    MissingError: 404,
    ImageMissingError: 404,
    UnknownOrderError: 404,
    NoImageError: 415,
    SettingsError: 400,
}


def make_app(content: Content, guard: Guard) -> web.Application:
    """Return the application that shows a manifest to whom the guard lets in."""
    app = web.Application(middlewares=[guard.middleware, _explained])
    app.on_response_prepare.append(guard.protect)
    routes = _Routes(content)
    app.on_cleanup.append(routes.end)
    for path, handler in routes.handlers():
        app.router.add_get(f"{guard.root}{path}", handler)
    return app


@web.middleware
async def _explained(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer errors of this package with their sentence."""
    try:
        return await handler(request)
    except web.HTTPException:
        raise
    except Exception as error:
        named = name_shortage(error)
        if not isinstance(named, AsyncMapsError):
            raise
        status = next((code for kind, code in _STATUSES.items() if isinstance(named, kind)), 502)
        return _json({"error": str(named)}, status)


class _Routes:
    """The handlers."""

    def __init__(self, content: Content) -> None:
        self._content = content
        # Not anyio's threads: Python waits for them at its end, before it closes a viewer that is still open.
        self._readers, self._queries, self._waiters = (
            ThreadPoolExecutor(count, "async-maps-view") for count in (_READERS, _QUERIES, _QUERIES)
        )
        self._assets = page_files()

    def handlers(self) -> list[tuple[str, Handler]]:
        """Return the handlers, each with its path."""
        return [
            ("", self.asset),
            ("{file:[a-z]+\\.[a-z]+}", self.asset),
            ("api/manifest", self.manifest),
            ("api/order", self.order),
            ("api/order/{order}/rows", self.rows),
            ("api/order/{order}/find", self.find),
            ("api/order/{order}/marks", self.marks),
            ("api/histogram", self.histogram),
            ("api/scale", self.scale),
            ("api/layers", self.layers),
            ("api/failures", self.failures),
            ("api/counts", self.counts),
            ("api/run", self.run),
            ("api/colors", self.colors),
            ("api/models", self.models),
            ("map/{row:\\d{1,18}}", self.overlay),
            ("map/{row:\\d{1,18}}/indices", self.indices),
            ("thumb/map/{row:\\d{1,18}}", self.indices),
            ("image/{row:\\d{1,18}}", self.image),
            ("thumb/image/{row:\\d{1,18}}", self.image),
        ]

    async def end(self, _: web.Application) -> None:
        """End the threads that do nothing; the others end when the content is closed."""
        for threads in (self._readers, self._queries, self._waiters):
            threads.shutdown(wait=False, cancel_futures=True)

    async def asset(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info.get("file", "index.html")
        data = self._assets.get(name)
        if data is None:
            raise web.HTTPNotFound
        kind = TYPES[name[name.rindex(".") :]]
        return web.Response(body=data, content_type=kind, charset="utf-8", headers={"Cache-Control": "no-cache"})

    async def manifest(self, _: web.Request) -> web.StreamResponse:
        return _json(await self._ask(self._content.describe))

    async def order(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        wanted = self._content.request(query.get("sort", "name"), query.getall("f", []), query.get("q", ""))
        if wanted == Request() and not self._content.is_ready and "wait" not in query:
            return _json(await self._ask(self._content.first_order))
        return _json(await self._wait(partial(self._content.order, wanted, fresh="fresh" in query)))

    async def rows(self, request: web.Request) -> web.StreamResponse:
        start, count = _number(request, "from", 0), _number(request, "n", 100, _MAX_ROWS)
        return _json(await self._ask(partial(self._content.page, request.match_info["order"], start, count)))

    async def find(self, request: web.Request) -> web.StreamResponse:
        name, row = request.query.get("name", ""), _number(request, "row", 0)
        return _json(await self._ask(partial(self._content.find, request.match_info["order"], name, row)))

    async def marks(self, request: web.Request) -> web.StreamResponse:
        return _json(await self._wait(partial(self._content.marks, request.match_info["order"])))

    async def histogram(self, request: web.Request) -> web.StreamResponse:
        column, order = request.query.get("column", "mean"), request.query.get("order", "")
        bins = max(1, _number(request, "bins", 60, _MAX_BINS))
        return _json(await self._wait(partial(self._content.histogram, column, order, bins)))

    async def scale(self, _: web.Request) -> web.StreamResponse:
        return _json(await self._wait(self._content.scale))

    async def layers(self, request: web.Request) -> web.StreamResponse:
        return _json(await self._ask(partial(self._content.layers, request.query.get("name", ""))))

    async def failures(self, _: web.Request) -> web.StreamResponse:
        return _json(await self._wait(lambda: self._content.groups().as_dict()))

    async def counts(self, _: web.Request) -> web.StreamResponse:
        return _json(await self._ask(lambda: self._content.side.rows.counts(fresh=True)._asdict()))

    async def run(self, request: web.Request) -> web.StreamResponse:
        return _json(await self._ask(partial(history, self._content.side.rows, request.query.get("since", ""))))

    async def models(self, _: web.Request) -> web.StreamResponse:
        comparison = self._content.comparison
        return _json(None if comparison is None else await self._ask(comparison.progress))

    async def colors(self, request: web.Request) -> web.StreamResponse:
        name, alpha = request.query.get("name", "jet")[:2000], request.query.get("alpha", "opaque")
        table = await self._ask(partial(_table, name, alpha))
        return _json({"table": base64.b64encode(table).decode()})

    async def overlay(self, request: web.Request) -> web.StreamResponse:
        side, row = await self._row(request)
        found, kind = await self._read(partial(_whole, side, row))
        headers = _headers(request, row["crc32"], is_changed=found.is_changed)
        return web.Response(body=bytes(found.data), content_type=kind, headers=headers)

    async def indices(self, request: web.Request) -> web.StreamResponse:
        side, row = await self._row(request)
        data, found = await self._read(partial(_packed, side, row, _length(request)))
        # The page would give new pixels the range of its old row.
        is_changed = found.is_changed or request.query.get("v", row["crc32"]) != row["crc32"]
        # The settings of the run may be in the manifest later.
        version = row["crc32"] if found.is_known else None
        headers = _headers(request, version, is_changed=is_changed) | {"Content-Encoding": "gzip"}
        return web.Response(body=data, content_type="application/octet-stream", headers=headers)

    async def image(self, request: web.Request) -> web.StreamResponse:
        if self._content.images is None:
            raise ImageMissingError("no place of images was given: --images")
        _, row = await self._row(request)
        turned = request.query.get("turned") != "0"
        data, kind = await self._read(partial(self._image, row["name"], _length(request), turned))
        return web.Response(body=data, content_type=kind, headers=_headers(request, self._content.session))

    def _image(self, name: str, length: int | None, turned: bool) -> tuple[bytes, str]:
        assert self._content.images is not None  # noqa: S101  # the caller has looked
        data = self._content.images.read(name)
        return (data, checked_kind(data)) if length is None else thumbnail(data, length, turned=turned)

    async def _row(self, request: web.Request) -> tuple[Side, dict[str, Any]]:
        """Return the row of an address, and the manifest that it is of: the second one with ``of=other``."""
        side = self._content.side
        if request.query.get("of") == "other" and self._content.comparison is not None:
            side = self._content.comparison.side
        row = await self._ask(partial(side.row, int(request.match_info["row"])))
        if row is None:
            raise MissingError("the row is gone")
        return side, row

    async def _ask(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._queries, function)

    async def _wait(self, function: Callable[[], T]) -> T:
        """Call a function that may wait until all names are read, which must not stop the first rows."""
        return await asyncio.get_running_loop().run_in_executor(self._waiters, function)

    async def _read(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, function)


def _table(name: str, alpha: str) -> bytes:
    opacity: Alpha = alpha if alpha in {"auto", "fade"} else "opaque"  # type: ignore[assignment]  # one of its texts
    return colormap_table(name, opacity).tobytes()


def _json(value: object, status: int = 200) -> web.Response:
    # Numbers that JSON does not have would stop the page.
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return web.Response(text=text, status=status, content_type="application/json")


def _headers(request: web.Request, version: str | None, *, is_changed: bool = False) -> dict[str, str]:
    """Return headers that let the browser keep an answer for ever if its address has this version."""
    is_kept = version is not None and request.query.get("v") == version and not is_changed
    headers = {"Cache-Control": _FOREVER if is_kept else "no-store"}
    return headers | ({"Async-Maps-Changed": "1"} if is_changed else {})


def _whole(side: Side, row: dict[str, Any]) -> tuple[Overlay, str]:
    overlay = side.overlays.read(row)
    return overlay, checked_kind(overlay.data)


def _packed(side: Side, row: dict[str, Any], length: int | None) -> tuple[bytes, Intensities]:
    found = side.overlays.plane(row, length)
    return pack(found.plane), found


def _length(request: web.Request) -> int | None:
    """Return the longest side of a thumbnail; None if the whole is asked for."""
    if "/thumb/" not in request.path:
        return None
    wanted = _number(request, "side", 256, _LENGTHS[-1])
    return next(length for length in _LENGTHS if length >= wanted)


def _number(request: web.Request, name: str, default: int, most: int = 2**31) -> int:
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) <= 10):
        raise SettingsError(f"{name}: expected a number, found {text[:80]!r}")
    return min(int(text), most)
