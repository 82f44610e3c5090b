"""Parsing of locators (the URLs of overlays), and their JSON for Kolena."""

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
_BUCKET = re.compile(r"(?:[A-Za-z0-9_.-]*:)?[A-Za-z0-9][A-Za-z0-9._-]{1,}[A-Za-z0-9]")
"""A bucket's name, with a tenant of Ceph if there is one, including names that only other servers than AWS allow."""
_ACCESS_POINT = re.compile(
    r"(arn:aws[a-z-]*:(?:s3|s3-object-lambda):(?P<region>[a-z0-9-]*):\d{12}:accesspoint[:/][A-Za-z0-9.-]{1,63}"
    r"|arn:aws[a-z-]*:s3-outposts:[a-z0-9-]+:\d{12}:outpost[:/][A-Za-z0-9-]{1,63}[:/]accesspoint[:/][A-Za-z0-9-]{1,63})"
    r"(?:/(?P<key>.*))?",
    re.DOTALL,
)
"""The ARN of an access point, which stands for a bucket, and a key."""
_BUCKET_ARN = re.compile(r"arn:aws[a-z-]*:s3:::(.+)", re.DOTALL)
_SCHEMES = {"s3", "file", "memory"}
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
EXPECTED = "s3://bucket/prefix, file:///folder or a path"
"""The places that people can name."""
_FILE = re.compile(r"file://(?:localhost)?(/.*)", re.DOTALL)


class S3Address(NamedTuple):
    """A bucket and a key, or a bucket and a prefix, which may be empty. The key is not percent-encoded."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


def parse_s3_address(address: str, error: type[AsyncMapsError] = SourceError) -> S3Address:
    """Return the bucket and the key of ``s3://bucket/key``; raise ``error`` if the bucket's name is not valid.

    The bucket may be the ARN of an access point, or have a tenant: ``s3://tenant:bucket/key``.
    """
    place = address.removeprefix("s3://")
    if place.startswith("arn:") and place != address:
        return _parse_arn(place, error)
    bucket, _, key = place.partition("/")
    if not (address.startswith("s3://") and _BUCKET.fullmatch(bucket)):
        raise error(f"{bucket!r} is not a valid bucket name; expected s3://bucket/prefix")
    return S3Address(bucket, key)


def _parse_arn(place: str, error: type[AsyncMapsError]) -> S3Address:
    found, of_bucket = _ACCESS_POINT.fullmatch(place), _BUCKET_ARN.fullmatch(place)
    if of_bucket is not None:
        raise error(f"{printable(place)!r} is the ARN of a bucket; expected s3://{printable(of_bucket[1])}")
    if found is None:
        expected = "s3://arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME/prefix"
        raise error(f"{printable(place)!r} is not the ARN of an access point; expected {expected}")
    if found["region"] == "":
        raise error(
            f"{found[1]!r} is a multi-region access point, which needs signatures of version 4A that async_maps cannot "
            "make; use the access point or the bucket of one region"
        )
    return S3Address(found[1], found["key"] or "")


def is_directory_bucket(bucket: str) -> bool:
    """Whether a bucket is one of S3 Express, ``name--azid--x-s3``: its listings are not in the order of the keys."""
    return bucket.endswith("--x-s3")


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
    """Return the local path or the ``s3://`` address that a text means: ``file:///folder`` and ``~`` are local.

    Raises ``error`` if it is neither, or empty, or mistyped.
    """
    if not address:
        raise error(f"the address is empty; expected {EXPECTED}")
    scheme, _, rest = address.partition(":")
    known, shown = scheme.lower(), printable(address)
    if known in _SCHEMES and not rest.startswith("//") and address != scheme:
        raise error(f"{shown!r} has one slash instead of two (pathlib.Path removes one); expected {EXPECTED}")
    if known == "s3":
        return f"s3:{rest}" if rest else address
    if known == "file" and rest:
        path = file_path(f"file:{rest}")
        if path is None:
            raise error(f"{shown!r} has a host, or no folder; expected file:///folder")
        return path
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
