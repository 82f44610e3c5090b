"""Runs the viewer on loopback, in a thread of its own."""

from __future__ import annotations

import atexit
import html
import logging
import os
import sys
import tempfile
import webbrowser
import zlib
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from async_maps.concurrency.loop import open_portal
from async_maps.errors import SettingsError
from async_maps.report import counted
from async_maps.settings import given_or_default
from async_maps.viewer.app import make_app
from async_maps.viewer.content import Content
from async_maps.viewer.guard import LOOPBACK, Guard
from async_maps.viewer.side import place_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike
    from typing import Self

    from async_maps.report import Report
    from async_maps.settings import Settings

_logger = logging.getLogger("async_maps")
_requests = logging.getLogger("async_maps.viewer")
_requests.addFilter(lambda record: not isinstance((record.exc_info or (None, None))[1], HttpProcessingError))
"""Requests that are not HTTP are no event for the user."""

_MOST_PORT = 65_535
_MOST_FIELD = 32 * 2**10
"""Bytes of a header: browsers send the cookies of all servers of this host, on all its ports."""
_SHUTDOWN_S = 1.0
_FIRST_PORT, _PORTS = 20_000, 10_000
"""The ports of which each manifest has its own: below those that systems give to connections."""


class Viewer:
    """A page on loopback that shows the overlays of a manifest, until it is closed or the program ends.

    Attributes:
        url: its address, with a token: whoever has it can see the overlays and images.

    Args:
        manifest: the path of a manifest, the address of a plan, or the report of a run that has a manifest.
        images: the place of the source images, as for :func:`view`.
        compare: a second manifest, whose maps are shown beside those with the same names.
        port: the port; 0 for any that is free. None for the manifest's own, because browsers keep marks by port; any
            that is free if it is taken.
        hosts: further names of this machine, for proxies.
        settings: the time limits and attempts of requests.

    Raises:
        AsyncMapsError: the manifest, the plan or the images cannot be read, or the port cannot be used.
    """

    def __init__(  # noqa: PLR0913  # one argument per option
        self,
        manifest: str | PathLike[str] | Report,
        *,
        images: str | PathLike[str] | None = None,
        compare: str | PathLike[str] | None = None,
        port: int | None = None,
        hosts: Sequence[str] = (),
        settings: Settings | None = None,
    ) -> None:
        if port is not None and not 0 <= port <= _MOST_PORT:
            raise SettingsError(f"port {port}: expected 0 to {_MOST_PORT}")
        guard = Guard(hosts)
        with ExitStack() as stack:
            place = None if images is None else os.fspath(images)
            self._content = stack.enter_context(
                Content(_manifest_of(manifest), place, compare, given_or_default(settings).s3)
            )
            portal = stack.enter_context(open_portal())
            runner = web.AppRunner(
                make_app(self._content, guard),
                access_log=None,
                logger=_requests,
                handle_signals=False,
                shutdown_timeout=_SHUTDOWN_S,
                max_field_size=_MOST_FIELD,
            )
            portal.call(runner.setup)
            stack.callback(portal.call, runner.cleanup)
            address = self._content.side.rows.address
            portal.call(partial(_start, runner, [_port_of(address), 0] if port is None else [port]))
            used: int = runner.addresses[0][1]
            guard.listens(used)
            self.url = f"http://{LOOPBACK}:{used}{guard.root}?token={guard.token}"
            self._opened = stack.pop_all()
        self._is_closed = False
        # Its thread would wait for ever at the end of the program. This also keeps a viewer that nobody holds.
        atexit.register(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server and delete its temporary files."""
        self._is_closed = True
        atexit.unregister(self.close)
        self._opened.close()

    def save(self, folder: str | PathLike[str], *, size: int | None = None, limit: int | None = None) -> int:
        """Write the page with all it shows into a folder, which opens from a disk or a bucket, without a server.

        Args:
            folder: the folder; that of an earlier page is replaced.
            size: the longest side of maps and images in pixels; None for all pixels.
            limit: only the first maps by name; None for all.

        Returns:
            The number of maps; a warning is logged if overlays of some of them are missing.

        Raises:
            SettingsError: the folder has other files, or cannot be written; or the viewer is closed.
            AsyncMapsError: the manifest cannot be read, or a store cannot be reached.
        """
        from async_maps.viewer.export import write_static

        self._check_open()
        written = write_static(self._content, Path(folder), side=size, limit=limit)
        if written.missing:
            _logger.warning("%s in %s cannot be read: see the page", counted(written.missing, "overlay"), folder)
        return written.maps

    def _repr_html_(self) -> str:
        """Return the first maps for a notebook, which shows the last value of a cell."""
        from async_maps.viewer.notebook import frame

        return frame(self._content)

    def show(self) -> bool:
        """Open the page in a browser.

        Returns:
            False if there is none, as on a machine without a screen.

        Raises:
            SettingsError: the viewer is closed.
        """
        self._check_open()
        is_linux = sys.platform.startswith("linux")
        if is_linux and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            return False
        # Not the address: everybody on the machine can see the arguments of a process, and would have the token.
        descriptor, path = tempfile.mkstemp(prefix="async-maps-view-", suffix=".html")
        self._opened.callback(partial(_delete, path))
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(f'<!doctype html><meta http-equiv="refresh" content="0; url={html.escape(self.url)}">\n')
        with suppress(webbrowser.Error):
            return webbrowser.open(Path(path).as_uri())
        return False

    def _check_open(self) -> None:
        if self._is_closed:
            raise SettingsError("the viewer is closed: call view(...) again")


async def _start(runner: web.AppRunner, ports: Sequence[int]) -> None:
    """Serve on the first of these ports that is free."""
    for port in ports:
        site = web.TCPSite(runner, LOOPBACK, port)
        try:
            return await site.start()
        except OSError as error:
            await site.stop()
            problem = f"cannot serve on {LOOPBACK} port {port}: {error.strerror or error}; choose another port"
            refused = SettingsError(problem)
            refused.__cause__ = error
    raise refused


def _port_of(address: str) -> int:
    return _FIRST_PORT + zlib.crc32(place_of(address).encode("utf-8", "surrogateescape")) % _PORTS


def _manifest_of(manifest: str | PathLike[str] | Report) -> str | PathLike[str]:
    """Return the manifest of a report, or the plan of that of a share; else what was given."""
    if isinstance(manifest, str | os.PathLike):
        return manifest
    found = getattr(manifest, "plan", None) or getattr(manifest, "manifest", None)
    if not isinstance(found, str | os.PathLike):
        raise SettingsError(
            "expected a manifest, a plan, or the report of a run with a manifest: pass manifest=... to the run"
        )
    return found


def _delete(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)
