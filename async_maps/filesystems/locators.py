"""Locators: where an overlay lies, as text. The stores make them; here they are taken apart, and told to Kolena."""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from async_maps.errors import AsyncMapsError, InputValidationError, SourceError
from async_maps.keys import printable

DATA_TYPE = "ANNOTATION/BITMAP_MASK"
"""What Kolena calls a ``BitmapMask`` in JSON (kolena 1.69.0)."""

_FOR_KOLENA = re.compile(r"(s3|gs|https)://(.+/)+.+")
"""What Kolena's own validators of locators accept; ``BitmapMask`` itself accepts anything."""
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{1,}[A-Za-z0-9]")
"""What a bucket may be called: also what servers other than Amazon's, and access points, allow."""
_FILE = re.compile(r"file://(?:localhost)?(/.*)", re.DOTALL)


class S3Address(NamedTuple):
    """An object in S3, or the prefix that objects share. Its text is ``s3://bucket/key``.

    Attributes:
        bucket: the bucket's name.
        key: the object's key, not percent-encoded; or a prefix, which may be empty.
    """

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


def parse_s3_address(address: str, error: type[AsyncMapsError] = SourceError) -> S3Address:
    """Return the bucket and the key of ``s3://bucket/key``.

    Args:
        address: the text.
        error: the class of the error.

    Raises:
        AsyncMapsError: an ``error``: there is no name of a bucket in the text.
    """
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
    """What Kolena's ``BitmapMask(locator)`` is in JSON, which its service takes as well.

    Args:
        locator: where the overlay lies.
        fields: whatever else the mask is to tell.

    Raises:
        InputValidationError: Kolena cannot read what lies there.
    """
    if not _FOR_KOLENA.fullmatch(locator):
        raise InputValidationError(
            f"Kolena reads s3://, gs:// and https:// locators with a bucket and a key; found {printable(locator)}"
        )
    return {**fields, "locator": locator, "data_type": DATA_TYPE}
