"""Locators: where an overlay lies, as text. The stores make them; here they are parsed, and made JSON for Kolena."""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from async_maps.errors import AsyncMapsError, InputValidationError, SourceError
from async_maps.keys import printable

DATA_TYPE = "ANNOTATION/BITMAP_MASK"
"""The type of a ``BitmapMask`` in JSON (kolena 1.69.0)."""

_FOR_KOLENA = re.compile(r"(s3|gs|https)://(.+/)+.+")
"""The locators that Kolena's own validators accept; ``BitmapMask`` itself accepts anything."""
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{1,}[A-Za-z0-9]")
"""A bucket's name: also those that servers other than Amazon's, and access points, allow."""
_FILE = re.compile(r"file://(?:localhost)?(/.*)", re.DOTALL)


class S3Address(NamedTuple):
    """An object in S3, or the prefix that objects share, which may be empty. Its text is ``s3://bucket/key``.

    The key is not percent-encoded.
    """

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


def parse_s3_address(address: str, error: type[AsyncMapsError] = SourceError) -> S3Address:
    """Return the bucket and the key of ``s3://bucket/key``; raise ``error`` if the text has no name of a bucket."""
    bucket, _, key = address.removeprefix("s3://").partition("/")
    if not (address.startswith("s3://") and _BUCKET.fullmatch(bucket)):
        raise error(f"{bucket!r} is not the name of a bucket; expected s3://bucket/prefix")
    return S3Address(bucket, key)


def file_path(locator: str) -> str | None:
    """The file behind ``file:///path``; None if the locator is another one."""
    found = _FILE.fullmatch(locator)
    # The bytes of a name need not be UTF-8; replaced, they would be those of another file.
    return None if found is None else os.fsdecode(unquote_to_bytes(os.fsencode(found[1])))


def bitmap_mask_fields(locator: str, **fields: Any) -> dict[str, Any]:
    """Kolena's ``BitmapMask(locator, **fields)`` in JSON, which its service takes as well.

    Raises:
        InputValidationError: Kolena cannot read such a locator.
    """
    if not _FOR_KOLENA.fullmatch(locator):
        raise InputValidationError(
            f"Kolena reads s3://, gs:// and https:// locators with a bucket and a key; found {printable(locator)}"
        )
    return {**fields, "locator": locator, "data_type": DATA_TYPE}
