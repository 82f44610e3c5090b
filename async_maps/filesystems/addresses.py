"""Addresses of objects: the schemes of all object services, and the buckets and keys in addresses.

``s3://bucket/key``, ``gs://bucket/key`` and ``az://container/key`` are what people write; their keys are not
percent-encoded. The locator of an object in Azure is its URL, which names the account and is percent-encoded:
``https://ACCOUNT.blob.core.windows.net/container/key``. Without the account, it is the account of the environment.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from async_maps.errors import AsyncMapsError, InputValidationError, SettingsError, SourceError
from async_maps.keys import check_name, printable

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEMES = ("s3", "gs", "az")
"""The schemes of object services."""
_REMOTE = tuple(f"{scheme}://" for scheme in SCHEMES)
_URL = ("https://", "http://")

_S3_BUCKET = re.compile(r"(?:[A-Za-z0-9_.-]*:)?[A-Za-z0-9][A-Za-z0-9._-]{1,}[A-Za-z0-9]")
"""A bucket's name, with a tenant of Ceph if there is one, including names that only other servers than AWS allow."""
_GS_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_AZ_CONTAINER = re.compile(r"(?=.{3,63}(?!.))[a-z0-9]+(?:-[a-z0-9]+)*|\$(?:root|web|logs)")
_RULES = {
    "gs": "in the name 3 to 222 lower-case letters, digits, hyphens, underscores and dots",
    "az": "in the name 3 to 63 lower-case letters, digits and hyphens",
}
_ACCOUNT = re.compile(
    r"(https?://(?:[a-z0-9-]{3,}\.(?:z[0-9]+\.)?blob\.[a-z0-9.-]+(?::[0-9]+)?"
    r"|(?:localhost|[0-9.]+|\[[0-9a-f:.]+\])(?::[0-9]+)?/[a-z0-9]{3,24}))(?:/(.*))?",
    re.DOTALL | re.IGNORECASE,
)
"""The URL of an account in Azure, whose path is the account in emulators, and what is below it."""
_ACCESS_POINT = re.compile(
    r"(arn:aws[a-z-]*:(?:s3|s3-object-lambda):(?P<region>[a-z0-9-]*):\d{12}:accesspoint[:/][A-Za-z0-9.-]{1,63}"
    r"|arn:aws[a-z-]*:s3-outposts:[a-z0-9-]+:\d{12}:outpost[:/][A-Za-z0-9-]{1,63}[:/]accesspoint[:/][A-Za-z0-9-]{1,63})"
    r"(?:/(?P<key>.*))?",
    re.DOTALL,
)
"""The ARN of an access point, which stands for a bucket, and a key."""
_BUCKET_ARN = re.compile(r"arn:aws[a-z-]*:s3:::(.+)", re.DOTALL)


class Address(NamedTuple):
    """A bucket and a key, or a bucket and a prefix, which may be empty. The key is not percent-encoded.

    Attributes:
        scheme: that of the object service, from :data:`SCHEMES`.
        bucket: the bucket, or the container.
        key: the key, or the prefix.
        account: the URL of the account, if the address is a URL; else empty.
    """

    scheme: str
    bucket: str
    key: str
    account: str = ""

    def __str__(self) -> str:
        if self.account:
            return f"{self.account}/{self.bucket}/{quote_key(self.key)}"
        return f"{self.scheme}://{self.bucket}/{self.key}"

    @property
    def folder(self) -> str:
        """The address without a slash at its end: the start of the addresses below it, with one."""
        return str(self).rstrip("/")


def is_remote(path: str) -> bool:
    """Whether a file is in an object service. Threads of the main process read those, not the worker processes."""
    return path.startswith(_REMOTE) or (path.startswith(_URL) and parse_account(path) is not None)


def is_in_s3(path: str) -> bool:
    """Whether a file is in S3, whose credentials the processes of a run share."""
    return path.startswith("s3://")


def parse_address(address: str, error: type[AsyncMapsError] = SourceError) -> Address:
    """Return the bucket and the key of an address; raise ``error`` if it is not valid.

    A bucket in S3 may be the ARN of an access point, or have a tenant: ``s3://tenant:bucket/key``.
    """
    scheme, separator, place = address.partition("://")
    parse = _PARSERS.get(scheme) if separator else None
    if parse is None:
        expected = "s3://bucket/key, gs://bucket/key or az://container/key"
        raise error(f"{printable(address)!r} is not the address of an object; expected {expected}")
    return parse(address, place, error)


def parse_destination(destination: str) -> Address:
    """Return the bucket and the prefix, without a slash at its end, of a destination.

    Raises:
        SettingsError: there is no bucket, or the prefix is not valid in a key.
    """
    address = parse_address(destination, SettingsError)
    prefix = address.key.strip("/")
    if prefix:
        try:
            check_name(prefix)
        except InputValidationError as error:
            raise SettingsError(f"the prefix is not valid: {error}") from error
    return address._replace(key=prefix)


def parse_account(url: str) -> tuple[str, str] | None:
    """Return the URL of an account in Azure and what is below it, percent-encoded; None for other URLs."""
    found = _ACCOUNT.fullmatch(url)
    try:
        if found is None or urlsplit(found[1]).port == 0:
            return None
    except ValueError:  # no number of a port, or no address in IPv6
        return None
    return found[1].lower(), found[2] or ""


def is_directory_bucket(bucket: str) -> bool:
    """Whether a bucket is one of S3 Express, ``name--azid--x-s3``: its listings are not in the order of the keys."""
    return bucket.endswith("--x-s3")


def quote_key(key: str) -> str:
    """Return a key as it is in a URL."""
    return quote(key, safe="/~", errors="surrogatepass")


def locator_in(folder: str, key: str) -> str:
    """Return the locator of a key below a folder, which is the start of the locators of a store."""
    return f"{folder.rstrip('/')}/{quote_key(key) if folder.startswith(_URL) else key}"


def _parse_s3(_: str, place: str, error: type[AsyncMapsError]) -> Address:
    if place.startswith("arn:"):
        return _parse_arn(place, error)
    return _parse("s3", place, _S3_BUCKET, error)


def _parse_gs(_: str, place: str, error: type[AsyncMapsError]) -> Address:
    return _parse("gs", place, _GS_BUCKET, error)


def _parse_az(_: str, place: str, error: type[AsyncMapsError]) -> Address:
    return _parse("az", place, _AZ_CONTAINER, error)


def _parse(scheme: str, place: str, names: re.Pattern[str], error: type[AsyncMapsError]) -> Address:
    bucket, _, key = place.partition("/")
    if not names.fullmatch(bucket):
        what = "container" if scheme == "az" else "bucket"
        rule = f", {_RULES[scheme]}" if scheme in _RULES else ""
        raise error(f"{bucket!r} is not a valid {what} name; expected {scheme}://{what}/prefix{rule}")
    return Address(scheme, bucket, key)


def _parse_url(address: str, _: str, error: type[AsyncMapsError]) -> Address:
    found = parse_account(address)
    if found is None:
        expected = "https://ACCOUNT.blob.core.windows.net/container/key"
        raise error(f"{printable(address)!r} is not the URL of an object in Azure; expected {expected}")
    account, below = found
    if mark := re.search("[?#]", below):
        # A signature would become a part of all keys.
        raise error(
            f"{printable(address[: -len(below) + mark.start()])!r} has more after it than a URL of an object has, from "
            f"{mark[0]!r} on: remove it; AZURE_STORAGE_SAS_TOKEN has the shared access signature"
        )
    return _parse("az", unquote(below, errors="surrogatepass"), _AZ_CONTAINER, error)._replace(account=account)


def _parse_arn(place: str, error: type[AsyncMapsError]) -> Address:
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
    return Address("s3", found[1], found["key"] or "")


_PARSERS: dict[str, Callable[[str, str, type[AsyncMapsError]], Address]] = {
    "s3": _parse_s3, "gs": _parse_gs, "az": _parse_az, "https": _parse_url, "http": _parse_url,
}  # fmt: skip
