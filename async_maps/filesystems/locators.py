"""Locators: where an overlay lies, as text. The stores make them; here they are taken apart, and told to Kolena."""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from async_maps.errors import InputValidationError
from async_maps.keys import printable

DATA_TYPE = "ANNOTATION/BITMAP_MASK"
"""What Kolena calls a ``BitmapMask`` in JSON (kolena 1.69.0)."""

_FOR_KOLENA = re.compile(r"(s3|gs|https)://(.+/)+.+")
"""What Kolena's own validators of locators accept; ``BitmapMask`` itself accepts anything."""
_FILE = re.compile(r"file://(?:localhost)?(/.*)", re.DOTALL)


class S3Place(NamedTuple):
    """Where an object lies in S3.

    Attributes:
        bucket: the bucket's name.
        key: the object's key, as it is.
    """

    bucket: str
    key: str


def s3_place(locator: str) -> S3Place | None:
    """The object behind ``s3://bucket/key``; None if the locator is another one."""
    bucket, slash, key = locator.removeprefix("s3://").partition("/")
    return S3Place(bucket, key) if locator.startswith("s3://") and bucket and slash and key else None


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
