"""Viewers for tests: a client that has the token, and requests over a raw socket."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import struct
import time
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import numpy as np

import async_maps as am

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from async_maps.viewer.server import Viewer


def make_run(folder: Path, count: int, destination: str | None = None, **settings: Any) -> Path:
    """Store smooth maps of 48x64 below ``val/`` in a folder or a bucket; return the manifest."""
    maps = ((f"val/{i:03}", smooth_map(i)) for i in range(count))
    manifest = folder / "run.sqlite"
    settings = {"workers": 0, **settings}
    am.run(maps, destination or folder / "out", manifest=manifest, settings=am.Settings(**settings))
    return manifest


def smooth_map(seed: int, shape: tuple[int, int] = (48, 64)) -> NDArray[np.float32]:
    """Return a map with one bump, float32, 0 to 1, equal for equal seeds."""
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[: shape[0], : shape[1]]
    center_y, center_x = rng.uniform(0.2, 0.8, 2) * shape
    distance = (y - center_y) ** 2 + (x - center_x) ** 2
    values: NDArray[np.float64] = np.exp(-distance / (2 * (min(shape) / rng.uniform(4, 9)) ** 2))
    return values.astype(np.float32)


def bomb() -> bytes:
    """Return a PNG that says it has 1.6 billion pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))


class Answer(NamedTuple):
    """What the server has answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Asks a viewer, or the one at an address, with its token as a cookie; paths are below its folder."""

    def __init__(self, viewer: Viewer | str) -> None:
        url = urlsplit(viewer if isinstance(viewer, str) else viewer.url)
        self.port = url.port or 0
        self.root = url.path
        self.token = url.query.removeprefix("token=")
        self.cookie = f"async-maps-{self.port}={self.token}"

    def get(self, path: str, query: Mapping[str, object] | None = None, **more: object) -> Answer:
        query = {**(query or {}), **more}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            target = self.root + path.removeprefix("/")
            target = f"{target}?{urlencode(query, doseq=True)}" if query else target
            connection.request("GET", target, headers={"Cookie": self.cookie})
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def order(self, **query: object) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/api/order", query, wait=1).json
        return found

    def rows(self, start: int = 0, count: int = 500, **query: object) -> list[Any]:
        order = self.order(**query)["order"]
        found: list[Any] = self.get(f"/api/order/{order}/rows", {"from": start, "n": count}).json
        return found

    def measured(self) -> dict[str, Any]:
        """Let the pairs of two manifests be measured, and return how many there are."""
        self.order(sort="-disagreement")
        while (found := self.get("/api/models").json)["is_measuring"]:
            time.sleep(0.01)
        return dict(found)

    def raw(self, request: bytes) -> bytes:
        """Send bytes, and return all that comes until the server closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(request)
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
            return b"".join(parts)


def unpacked(data: bytes) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    """Return the intensities and the mask that the server has packed."""
    text = gzip.decompress(data)
    width, height, has_mask = np.frombuffer(text, "<u4", 3)
    size = int(width) * int(height)
    values = np.cumsum(np.frombuffer(text, np.uint8, size, 12).reshape(height, width), axis=0, dtype=np.uint8)
    mask = np.frombuffer(text, np.uint8, size, 12 + size).reshape(height, width) == 1 if has_mask else None
    return values, mask
