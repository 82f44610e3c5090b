"""Parsing of locators (the URLs of overlays), and their JSON for Kolena."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import unquote_to_bytes

from async_maps.errors import AsyncMapsError, InputValidationError, SourceError
from async_maps.filesystems.addresses import SCHEMES, parse_account
from async_maps.keys import printable

DATA_TYPE = "ANNOTATION/BITMAP_MASK"
"""The type of a ``BitmapMask`` in JSON (kolena 1.69.0)."""

_FOR_KOLENA = re.compile(r"(s3|gs|https)://(.+/)+.+")
"""The locators that Kolena's own validators accept; ``BitmapMask`` itself accepts anything."""
_SCHEMES = {*SCHEMES, "file", "memory"}
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
EXPECTED = "s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, file:///folder or a path"
"""The places that people can name."""
_FILE = re.compile(r"file://(?:localhost)?(/.*)", re.DOTALL)


def file_path(locator: str) -> str | None:
    """Return the path of a ``file:///path`` locator; None for other locators."""
    found = _FILE.fullmatch(locator)
    # File names may have bytes that are not UTF-8; keep them.
    return None if found is None else os.fsdecode(unquote_to_bytes(os.fsencode(found[1])))


def file_number(locator: str) -> str | None:
    """Return a text that is the same for all names of a file; None for other locators, and without the file."""
    path = file_path(locator)
    try:
        found = None if path is None else os.stat(path)
    except (OSError, ValueError):
        found = None
    return None if found is None else f"{found.st_dev}:{found.st_ino}"


def place_at(address: str, error: type[AsyncMapsError] = SourceError) -> str:
    """Return the local path or the remote address that a text means: ``file:///folder`` and ``~`` are local.

    Raises ``error`` if it is neither, or empty, or mistyped.
    """
    if not address:
        raise error(f"the address is empty; expected {EXPECTED}")
    scheme, _, rest = address.partition(":")
    known, shown = scheme.lower(), printable(address)
    if known in _SCHEMES and not rest.startswith("//") and address != scheme:
        raise error(f"{shown!r} has one slash instead of two (pathlib.Path removes one); expected {EXPECTED}")
    if known in SCHEMES:
        return f"{known}:{rest}" if rest else address
    if known == "file" and rest:
        path = file_path(f"file:{rest}")
        if path is None:
            raise error(f"{shown!r} has a host, or no folder; expected file:///folder")
        return path
    if known in {"https", "http"} and parse_account(f"{known}:{rest}") is not None:
        return f"{known}:{rest}"
    if rest.startswith("//") and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise error(f"unknown address {shown!r}; expected {EXPECTED}")
    if _WINDOWS.match(address) and os.sep == "/" and not os.path.lexists(address):
        raise error(f"{shown!r} is a path of Windows; write it as this machine has it, with /")
    return os.path.expanduser(address)


def bitmap_mask_fields(locator: str, **fields: Any) -> dict[str, Any]:
    """Return ``BitmapMask(locator, **fields)`` as the JSON object that Kolena's service accepts.

    Raises:
        InputValidationError: Kolena cannot read this kind of locator.
    """
    if not _FOR_KOLENA.fullmatch(locator):
        raise InputValidationError(
            f"Kolena reads s3://, gs:// and https:// locators with a bucket and a key; found {printable(locator)}"
        )
    return {**fields, "locator": locator, "data_type": DATA_TYPE}
