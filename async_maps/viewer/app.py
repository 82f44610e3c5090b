"""The routes of the viewer. Handlers only parse and answer; everything that blocks runs in threads."""

from __future__ import annotations

import base64
import json
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import web
from anyio import CapacityLimiter, to_thread

from async_maps.errors import AsyncMapsError, SettingsError, name_shortage
from async_maps.render.colormap import colormap_table
from async_maps.viewer.bundle import TYPES, page_files
from async_maps.viewer.content import UnknownOrderError
from async_maps.viewer.history import history
from async_maps.viewer.images import ImageMissingError
from async_maps.viewer.orders import Request
from async_maps.viewer.overlays import MissingError
from async_maps.viewer.pixels import NoImageError, kind_of, pack, thumbnail

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.typedefs import Handler

    from async_maps.render.colormap import Alpha
    from async_maps.viewer.content import Content
    from async_maps.viewer.guard import Guard
    from async_maps.viewer.side import Side

T = TypeVar("T")

_MAX_ROWS = 500
_MAX_BINS = 200
_LENGTHS = (64, 128, 256, 512)
_READERS, _QUERIES = 8, 4
"""Threads that read objects, and threads that read the manifest."""
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
    app.router.add_get("/", routes.asset)
    app.router.add_get("/{file:[a-z]+\\.[a-z]+}", routes.asset)
    app.router.add_get("/api/manifest", routes.manifest)
    app.router.add_get("/api/order", routes.order)
    app.router.add_get("/api/order/{order}/rows", routes.rows)
    app.router.add_get("/api/order/{order}/find", routes.find)
    app.router.add_get("/api/order/{order}/marks", routes.marks)
    app.router.add_get("/api/histogram", routes.histogram)
    app.router.add_get("/api/scale", routes.scale)
    app.router.add_get("/api/layers", routes.layers)
    app.router.add_get("/api/failures", routes.failures)
    app.router.add_get("/api/counts", routes.counts)
    app.router.add_get("/api/run", routes.run)
    app.router.add_get("/api/colors", routes.colors)
    app.router.add_get("/api/models", routes.models)
    app.router.add_get("/map/{row:\\d{1,18}}", routes.overlay)
    app.router.add_get("/map/{row:\\d{1,18}}/indices", routes.indices)
    app.router.add_get("/thumb/map/{row:\\d{1,18}}", routes.indices)
    app.router.add_get("/image/{row:\\d{1,18}}", routes.image)
    app.router.add_get("/thumb/image/{row:\\d{1,18}}", routes.image)
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
        self._readers, self._queries = CapacityLimiter(_READERS), CapacityLimiter(_QUERIES)
        self._assets = page_files()

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
        return _json(await self._ask(partial(self._content.order, wanted, fresh="fresh" in query)))

    async def rows(self, request: web.Request) -> web.StreamResponse:
        start, count = _number(request, "from", 0), _number(request, "n", 100, _MAX_ROWS)
        return _json(await self._ask(partial(self._content.page, request.match_info["order"], start, count)))

    async def find(self, request: web.Request) -> web.StreamResponse:
        name = request.query.get("name", "")
        return _json(await self._ask(partial(self._content.find, request.match_info["order"], name)))

    async def marks(self, request: web.Request) -> web.StreamResponse:
        return _json(await self._ask(partial(self._content.marks, request.match_info["order"])))

    async def histogram(self, request: web.Request) -> web.StreamResponse:
        column, order = request.query.get("column", "mean"), request.query.get("order", "")
        bins = max(1, _number(request, "bins", 60, _MAX_BINS))
        return _json(await self._ask(partial(self._content.histogram, column, order, bins)))

    async def scale(self, _: web.Request) -> web.StreamResponse:
        return _json(await self._ask(self._content.scale))

    async def layers(self, request: web.Request) -> web.StreamResponse:
        return _json(await self._ask(partial(self._content.layers, request.query.get("name", ""))))

    async def failures(self, _: web.Request) -> web.StreamResponse:
        return _json(await self._ask(lambda: self._content.groups().as_dict()))

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
        found = await self._read(partial(side.overlays.read, row))
        headers = _headers(request, row["crc32"], is_changed=found.is_changed)
        return web.Response(body=bytes(found.data), content_type=kind_of(found.data), headers=headers)

    async def indices(self, request: web.Request) -> web.StreamResponse:
        side, row = await self._row(request)
        data, is_changed = await self._read(partial(_packed, side, row, _length(request)))
        # The page would give new pixels the range of its old row.
        is_changed |= request.query.get("v", row["crc32"]) != row["crc32"]
        headers = _headers(request, row["crc32"], is_changed=is_changed) | {"Content-Encoding": "gzip"}
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
        return (data, kind_of(data)) if length is None else thumbnail(data, length, turned=turned)

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
        return await to_thread.run_sync(function, limiter=self._queries)

    async def _read(self, function: Callable[[], T]) -> T:
        return await to_thread.run_sync(function, limiter=self._readers)


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


def _packed(side: Side, row: dict[str, Any], length: int | None) -> tuple[bytes, bool]:
    plane, is_changed = side.overlays.plane(row, length)
    return pack(plane), is_changed


def _length(request: web.Request) -> int | None:
    """Return the longest side of a thumbnail; None if the whole is asked for."""
    if not request.path.startswith("/thumb/"):
        return None
    wanted = _number(request, "side", 256, _LENGTHS[-1])
    return next(length for length in _LENGTHS if length >= wanted)


def _number(request: web.Request, name: str, default: int, most: int = 2**31) -> int:
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) <= 10):
        raise SettingsError(f"{name}: expected a number, found {text[:80]!r}")
    return min(int(text), most)
