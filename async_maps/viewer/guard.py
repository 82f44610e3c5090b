"""Who may ask the server, and what browsers may do with its answers.

The server reads private objects with the user's credentials. Another user of the machine, or a page in the same
browser, must not: each request needs the token, as a cookie, and a Host header that names this machine. Browsers send
cookies to all ports of a host, where other users may listen: the path of the cookie is a folder with a random name.
"""

from __future__ import annotations

import hmac
import re
import secrets
from typing import TYPE_CHECKING

from aiohttp import web

from async_maps.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp.typedefs import Handler, Middleware

LOOPBACK = "127.0.0.1"
_HOSTS = {LOOPBACK, "localhost", "[::1]"}
_NAME = r"\[[0-9a-f:.]+\]|[^:\[\]@/\s]+"
_HOST = re.compile(rf"({_NAME})(?::\d{{1,5}})?", re.IGNORECASE)
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "async-maps",
}


class Guard:
    """Refuses requests without the token or for another host, and adds headers to all answers.

    Attributes:
        token: a random text that each request must have.
        root: the folder with a random name that all addresses are in, such as ``/x7Yq/``.

    Args:
        hosts: further names of this machine, for proxies.

    Raises:
        SettingsError: a host is not a name.
    """

    def __init__(self, hosts: Sequence[str] = ()) -> None:
        self.token = secrets.token_urlsafe(32)
        self.root = f"/{secrets.token_urlsafe(16)}/"
        for host in hosts:
            if not re.fullmatch(_NAME, host, re.IGNORECASE):
                raise SettingsError(f"allowed host {host!r}: expected a name without a scheme or a port")
        self._hosts = _HOSTS | {host.lower() for host in hosts}
        self._cookie = ""

    def listens(self, port: int) -> None:
        """Set the port of the server: cookies do not tell ports apart, so its cookie has the port in its name."""
        self._cookie = f"async-maps-{port}"

    @property
    def middleware(self) -> Middleware:
        """The middleware of the application."""

        @web.middleware
        async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._answer(request, handler)

        return guarded

    async def protect(self, _: web.BaseRequest, response: web.StreamResponse) -> None:
        """Add the headers; for ``on_response_prepare``, so that errors have them, too."""
        response.headers.update(_HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        hosts = request.headers.getall("Host", [])
        found = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if found is None or found[1].lower() not in self._hosts:
            raise web.HTTPForbidden(text="This host is not allowed: see async-maps view --help, --allow-host.\n")
        if request.method not in {"GET", "HEAD"}:
            raise web.HTTPMethodNotAllowed(request.method, ["GET", "HEAD"])
        if request.path == "/favicon.ico":
            # Browsers ask for it by themselves, without the cookie, and tell their user of a refusal.
            return web.Response(status=204)
        if request.path == self.root and "token" in request.query:
            return self._enter(request.query["token"])
        if not self._is_known(request.cookies.get(self._cookie, "")):
            return self._refuse(request)
        return await handler(request)

    def _is_known(self, token: str) -> bool:
        return hmac.compare_digest(token.encode("utf-8", "surrogateescape"), self.token.encode())

    def _enter(self, token: str) -> web.StreamResponse:
        """Exchange the token in the address for a cookie, and go to the address without it."""
        if not self._is_known(token):
            raise web.HTTPUnauthorized(text="The token is wrong: open the address that async-maps view has printed.\n")
        answer = web.Response(status=303, headers={"Location": "./"})
        # Without a path, it is that of the address, also behind a proxy that adds another one.
        answer.headers["Set-Cookie"] = f"{self._cookie}={self.token}; HttpOnly; SameSite=Strict"
        return answer

    def _refuse(self, request: web.Request) -> web.StreamResponse:
        is_followed = (request.headers.get("Sec-Fetch-Site"), request.headers.get("Sec-Fetch-Mode")) == (
            "cross-site",
            "navigate",
        )
        if is_followed and request.path == self.root:
            # A link on another site, such as a notebook's: the browser has the cookie, and sends it from here.
            return web.Response(text="", content_type="text/html", headers={"Refresh": "0; url=./"})
        raise web.HTTPUnauthorized(text="Open the address that async-maps view has printed: it has a token.\n")
