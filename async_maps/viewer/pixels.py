"""The intensities in overlays, and thumbnails: what the page colors. No asyncio, no requests."""

from __future__ import annotations

import io
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from isal import igzip
from PIL import Image, ImageOps

from async_maps.errors import ObjectError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Values = NDArray[np.uint8]

T = TypeVar("T")

KINDS = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}
"""The start of the images that browsers show without running anything in them, and their types."""
_FORMATS = ("PNG", "JPEG", "GIF", "WEBP")
_HEADER = struct.Struct("<III")
"""Width, height, and 1 if a mask of valid pixels follows the intensities."""
_PNG_SIZE = struct.Struct(">II")
_LEVEL = 1
_ORIENTATION = 0x0112
_LARGE, _BAND = 4_000_000, 2**18
"""Pixels: of larger images, one is decoded at a time; and colors are inverted by bands."""
_large = Lock()


class NoImageError(ObjectError):
    """The object is no image that can be shown."""


class Plane(NamedTuple):
    """The intensities of a map.

    Attributes:
        values: (h, w) uint8.
        valid: (h, w) bool, which pixels have a value; None if all have one.
    """

    values: Values
    valid: NDArray[np.bool_] | None = None


class Coloring(NamedTuple):
    """How a run has colored its maps.

    Attributes:
        table: the RGBA color of each intensity, (256, 4) uint8.
        kind: the kind of its PNGs: ``palette``, ``rgba``, ``compact`` or ``gray``.
    """

    table: Values
    kind: str = "palette"

    @property
    def merged(self) -> int | None:
        """The intensity that stands for all fully transparent ones; None if each is kept."""
        found = np.flatnonzero(self.table[:, 3] == 0)
        return int(found[0]) if self.kind == "compact" and len(found) else None


def kind_of(data: bytes | bytearray) -> str:
    """Return the content type of an image by its first bytes; raise NoImageError for anything else."""
    start = bytes(data[:16])
    for magic, kind in KINDS.items():
        if start.startswith(magic):
            return kind
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "image/webp"
    raise NoImageError("the object is not a PNG, JPEG, WebP or GIF image")


def checked_kind(data: bytes | bytearray) -> str:
    """Return the content type of an image that browsers may decode; raise NoImageError if it has too many pixels."""
    with _opened(data):
        return kind_of(data)


def read_plane(data: bytes | bytearray, coloring: Coloring) -> Plane:
    """Return the intensities in an overlay.

    Each object is looked at, not the settings of its run alone: a run that writes palettes writes RGBA where a map
    needs all 256 colors and a transparent one.

    Args:
        data: the PNG.
        coloring: how its run has colored it.

    Raises:
        NoImageError: it is not a PNG, is damaged, or has too many pixels.
    """
    with _opened(data) as image:
        return _alone(image.size, partial(_plane, image, coloring))


def _plane(image: Image.Image, coloring: Coloring) -> Plane:
    if image.mode == "P":
        return _indexed(image, coloring)
    return Plane(np.asarray(image)) if image.mode == "L" else _inverted(image, coloring.table)


def shrink(plane: Plane, side: int, merged: int | None = None) -> Plane:
    """Return the means of equal areas of a map, so that neither side is longer than ``side``; small maps stay.

    Args:
        plane: the map.
        side: in pixels.
        merged: the intensity that stands for others, which is left out of the means.
    """
    height, width = plane.values.shape
    scale = side / max(height, width)
    if scale >= 1:
        return plane
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return _alone((width, height), partial(_shrunk, plane, size, merged))


def _shrunk(plane: Plane, size: tuple[int, int], merged: int | None) -> Plane:
    valid = counted = plane.valid
    if merged is not None:
        counted = plane.values != merged if valid is None else valid & (plane.values != merged)
    if counted is None:
        return Plane(_resized(plane.values, size))
    share = _resized(counted.astype(np.float32), size)
    sums = _resized(np.where(counted, plane.values, np.uint8(0)).astype(np.float32), size)
    is_shown = share >= 0.5
    values = np.rint(np.divide(sums, share, out=np.zeros_like(sums), where=is_shown)).astype(np.uint8)
    if merged is not None:
        values[~is_shown] = merged
    if valid is not None:
        valid = _resized(valid.astype(np.float32), size) >= 0.5
    return Plane(values, valid)


def pack(plane: Plane) -> bytes:
    """Return a map for the page, compressed by gzip.

    It has the width, the height, 1 if there is a mask else 0 (uint32 each, little-endian); the intensities, each row as
    its difference from the one above, modulo 256; and the mask, a byte for each pixel.
    """
    height, width = plane.values.shape
    return _alone((width, height), partial(_packed, plane))


def _packed(plane: Plane) -> bytes:
    height, width = plane.values.shape
    rows = np.ascontiguousarray(plane.values)
    parts = [_HEADER.pack(width, height, plane.valid is not None), rows[:1].tobytes(), (rows[1:] - rows[:-1]).tobytes()]
    if plane.valid is not None:
        parts.append(plane.valid.astype(np.uint8).tobytes())
    return igzip.compress(b"".join(parts), _LEVEL, mtime=0)


def thumbnail(data: bytes | bytearray, side: int, *, turned: bool = True) -> tuple[bytes, str]:
    """Return a small picture of an image, and its content type; an image that is small enough stays as it is.

    Args:
        data: the image.
        side: the longest side in pixels.
        turned: whether it is turned as its EXIF data say.

    Raises:
        NoImageError: it is no image, is damaged, or has too many pixels.
    """
    kind = kind_of(data)
    with _opened(data) as image:
        # Pillow decodes a PNG to look for data that it does not have.
        has_exif = kind != "image/png" or "exif" in image.info
        is_turned = has_exif and image.getexif().get(_ORIENTATION, 1) != 1
        if max(image.size) <= side and not is_turned:
            return bytes(data), kind
        image.draft("RGB", (side, side))
        return _alone(image.size, partial(_small, image, side, turned=turned and is_turned)), "image/jpeg"


def _small(image: Image.Image, side: int, *, turned: bool) -> bytes:
    small = ImageOps.exif_transpose(image) if turned else image
    if small.mode == "RGBA":
        # First, because gray below all its pixels needs four times its memory.
        small.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    small = _flat(small)
    small.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=88)
    return out.getvalue()


def _flat(image: Image.Image) -> Image.Image:
    """Return an image without transparency: on gray, so that neither black nor white drawings vanish."""
    if image.mode in {"RGB", "L"}:
        return image.convert("RGB")
    if image.mode.startswith("I"):
        # A PNG with 16 bits.
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    colors = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colors.size, (128, 128, 128, 255)), colors).convert("RGB")


def _alone(size: tuple[int, int], function: Callable[[], T]) -> T:
    """Call a function that needs memory for an image of this size; for large ones, one at a time."""
    if size[0] * size[1] <= _LARGE:
        return function()
    # A thread of its own: the allocator keeps memory for each thread, and gives it to the next one.
    with _large, ThreadPoolExecutor(1, "async-maps-view") as thread:
        return thread.submit(function).result()


@contextmanager
def _opened(data: bytes | bytearray) -> Iterator[Image.Image]:
    """Open an image of the formats that browsers show, within Pillow's limit of pixels; name what is wrong in it."""
    kind = kind_of(data)
    try:
        if kind == "image/png":
            # Pillow warns about a large image when it is opened.
            _check_size(*_PNG_SIZE.unpack_from(data, 16))
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(*image.size)
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise NoImageError(f"the image has too many pixels to show: {error}") from error
    except (OSError, ValueError, SyntaxError, EOFError, struct.error) as error:
        raise NoImageError(f"the image is damaged: {error}") from error


def _check_size(width: int, height: int) -> None:
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and width * height > most:
        raise NoImageError(f"the image has {width:,}x{height:,} pixels; at most {most:,} are shown")


def _indexed(image: Image.Image, coloring: Coloring) -> Plane:
    """Return the indices of a palette, which are the intensities, and the pixels that are transparent on purpose."""
    values = np.asarray(image)
    alphas = image.info.get("transparency", b"")
    if isinstance(alphas, int):
        alphas = bytes(255 if index != alphas else 0 for index in range(256))
    own = np.full(256, 255, np.uint8)
    own[: len(alphas)] = np.frombuffer(alphas, np.uint8)
    # An intensity that other maps show, and this one does not: it marks the pixels without a value.
    marks = np.flatnonzero((own == 0) & (coloring.table[:, 3] != 0))
    if not len(marks) or coloring.kind == "gray":
        return Plane(values)
    valid = ~np.isin(values, marks)
    return Plane(values, None if valid.all() else valid)


def _inverted(image: Image.Image, table: Values) -> Plane:
    """Return the intensities of colors, and the pixels whose color is in the table."""
    # Of equal colors, the first.
    known, intensities = np.unique(table.view("<u4")[:, 0], return_index=True)
    image.load()
    values = np.empty((image.height, image.width), np.uint8)
    valid = np.empty(values.shape, np.bool_)
    step = max(1, _BAND // image.width)
    for top in range(0, image.height, step):
        band = image.crop((0, top, image.width, min(top + step, image.height))).convert("RGBA")
        colors = np.asarray(band).view("<u4")[..., 0]
        at = np.minimum(np.searchsorted(known, colors), len(known) - 1)
        rows = slice(top, top + step)
        valid[rows] = known[at] == colors
        values[rows] = np.where(valid[rows], intensities[at], 0)
    return Plane(values, None if valid.all() else valid)


def _resized(plane: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Return the means of equal areas: (width, height) of them."""
    image = Image.fromarray(plane)
    step = image.width // size[0]
    if (size[0] * step, size[1] * step) == image.size:
        return np.asarray(image.reduce(step))
    return np.asarray(image.resize(size, Image.Resampling.BOX))
