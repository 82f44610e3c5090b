"""Compares the content of an object with the upload: content type, pixels and bytes. Runs in a thread."""

from __future__ import annotations

import hashlib
import io
import re
from typing import TYPE_CHECKING

from isal import isal_zlib

from async_maps.keys import printable
from async_maps.verify.comparison import Difference

if TYPE_CHECKING:
    from async_maps.filesystems.objects import Content
    from async_maps.verify.comparison import Expected, Kind

_MD5 = re.compile("[0-9a-f]{32}")


def examine(row: Expected, content: Content, max_pixels: int) -> list[Difference]:
    """Return how an object differs from the expected one. A PNG of more than ``max_pixels`` is not decoded."""
    wrong: list[tuple[Kind, str, str]] = []
    data = content.data
    if content.content_type not in {None, "image/png"}:
        wrong.append(("content-type", "image/png", content.content_type or "none"))
    if problem := _problem(data, row, max_pixels):
        shape = f" of {row.width:,} x {row.height:,}" if row.width and row.height else ""
        wrong.append((problem[0], f"a PNG{shape}", problem[1]))
    if row.size is not None and row.size != len(data):
        wrong.append(("size", f"{row.size:,} bytes", f"{len(data):,} bytes"))
    if row.crc32 is not None:
        crc32 = f"{isal_zlib.crc32(data):08x}"
        if crc32 != row.crc32:
            wrong.append(("digest", f"CRC32 {row.crc32}", f"CRC32 {crc32}"))
    elif content.etag_is_md5 and _MD5.fullmatch(row.etag or ""):
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if md5 != row.etag:
            wrong.append(("digest", f"MD5 {row.etag}", f"MD5 {md5}"))
    return [Difference(kind, row.locator, row.name, expected, found) for kind, expected, found in wrong]


def _problem(data: bytes | bytearray, row: Expected, max_pixels: int) -> tuple[Kind, str] | None:
    """Return why an object is not the expected PNG, or was not decoded; None if it is."""
    from PIL import PngImagePlugin

    try:
        # Not Image.open, which has a lower limit on pixels.
        with PngImagePlugin.PngImageFile(io.BytesIO(data)) as image:
            width, height = image.size
            if row.width not in {None, width} or row.height not in {None, height}:
                return "undecodable", f"{width:,} x {height:,}"
            if width * height > max_pixels:
                return "unreadable", f"{width:,} x {height:,}, more than max_pixels = {max_pixels:,}: raise max_pixels"
            image.load()
        with PngImagePlugin.PngImageFile(io.BytesIO(data)) as image:
            # Checks the checksums, which decoding does not.
            image.verify()
    except Exception as error:  # noqa: BLE001  # a damaged file can cause any error
        return "undecodable", f"{len(data):,} bytes that cannot be decoded ({printable(str(error))})"
    return None
