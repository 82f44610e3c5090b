"""What the answers of object services say, also those of servers that leave out parts of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from async_maps.filesystems.filesystem import InaccessibleError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_CONTENT_RANGE = re.compile(r"bytes\s+(\d+)-(\d+)/(\d+|\*)", re.IGNORECASE)


class Object(NamedTuple):
    """An object in a listing.

    The size is in bytes, the ETag without quotes, and the time of the last change in seconds since 1970, if known.
    """

    key: str
    size: int
    etag: str
    modified: float | None = None

    @property
    def fingerprint(self) -> str:
        """The size and ETag, or the time of the last change, as text; they change when the object does."""
        return f"{self.size}-{self.etag or int(self.modified or 0)}"


class Range(NamedTuple):
    """A part of an object.

    ``size`` is the size of the whole object in bytes. The ETag includes its quotes; it is empty if the server has none.
    ``encryption`` is the server-side encryption, such as ``aws:kms``; empty if the response does not say.
    """

    data: bytes | bytearray
    size: int
    etag: str
    content_type: str = ""
    encryption: str = ""
    modified: float | None = None

    @classmethod
    def of(cls, data: bytes | bytearray, size: int, answer: Mapping[str, Any]) -> Range:
        """Return the part that an answer to GetObject or HeadObject tells of."""
        encryption, content_type = answer.get("ServerSideEncryption", ""), answer.get("ContentType", "")
        return cls(data, size, answer.get("ETag", ""), content_type, encryption, modified(answer))


class Extent(NamedTuple):
    """The bytes of an object that an answer holds: the first one, their number, and that of the whole object.

    A number is None if the answer does not tell it, as with chunks.
    """

    start: int
    length: int | None
    size: int | None


def extent(answer: Mapping[str, Any], asked_from: int) -> Extent:
    """Return the bytes in the answer to a GetObject with a range.

    Raises:
        InaccessibleError: the answer contradicts itself.
    """
    length: int | None = answer.get("ContentLength")
    found = _CONTENT_RANGE.match(answer.get("ContentRange", ""))
    if found is None:
        # With status 200, it is the whole object: the server knows no ranges.
        is_part = answer["ResponseMetadata"]["HTTPStatusCode"] == 206
        return Extent(asked_from, length, None) if is_part else Extent(0, length, length)
    first, last = int(found[1]), int(found[2])
    if length is not None and length != last - first + 1:
        raise InaccessibleError(
            f"the server's answer contradicts itself: Content-Length {length}, but Content-Range {found[0]}"
        )
    return Extent(first, last - first + 1, None if found[3] == "*" else int(found[3]))


def ends_by_itself(answer: Mapping[str, Any]) -> bool:
    """Whether the end of a body without Content-Length cannot be taken for a broken connection."""
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    return "chunked" in headers.get("transfer-encoding", "").lower()


def required(entry: Mapping[str, Any], name: str) -> Any:
    """Return an element of an answer.

    Raises:
        InaccessibleError: the server has left it out.
    """
    if (value := entry.get(name)) is None:
        raise InaccessibleError(f"the server's answer has no {name}")
    return value


def modified(answer: Mapping[str, Any]) -> float | None:
    """Return the time of the last change in seconds since 1970, if the answer tells it."""
    found = answer.get("LastModified")
    return None if found is None else float(found.timestamp())
