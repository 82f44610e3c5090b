"""The files of a folder as the objects of a bucket, for the sink: GetObject, HeadObject, HeadBucket and ListObjectsV2.

The keys are the paths below the folder. Listings are kept, so the files must not change.
"""

from __future__ import annotations

import bisect
import os
import time
from email.utils import formatdate
from functools import cache
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_PAGE = 1000
_PAGE_XML = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<Prefix>{prefix}</Prefix><KeyCount>{count}</KeyCount><MaxKeys>{most}</MaxKeys><IsTruncated>{more}</IsTruncated>"
    "{token}{entries}</ListBucketResult>"
)
_ENTRY_XML = (
    "<Contents><Key>{key}</Key><LastModified>{modified}</LastModified><ETag>&quot;{etag}&quot;</ETag>"
    "<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
)


class Answer(NamedTuple):
    """An answer of HTTP: the status, the headers but those of the connection, and the body."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes


class Bucket:
    """The objects of a bucket.

    Args:
        folder: the folder of the files; the bucket is empty if it is none.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._keys = cache(self._read_keys)
        self._entry = cache(self._make_entry)

    def get(self, path: str, range_: str) -> Answer:
        """Answer GetObject, HeadObject or HeadBucket.

        Args:
            path: the path of the request, ``/bucket/key``.
            range_: its Range header, ``bytes=first-last``; empty without one.
        """
        key = unquote(path).lstrip("/").partition("/")[2]
        if not key:
            return Answer(200, {}, b"")
        try:
            file = (self._folder / key).open("rb", buffering=0)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return Answer(404, {}, b"<Error><Code>NoSuchKey</Code></Error>")
        with file:
            status = os.fstat(file.fileno())
            first, last = 0, status.st_size - 1
            if range_:
                start, _, end = range_.removeprefix("bytes=").partition("-")
                first, last = int(start), min(last, int(end or last))
            file.seek(first)
            body = file.read(last + 1 - first)
        headers = {
            b"ETag": b'"%b"' % _etag(status).encode(),
            b"Last-Modified": formatdate(status.st_mtime, usegmt=True).encode(),
            b"Content-Type": b"application/octet-stream",
            b"Accept-Ranges": b"bytes",
        }
        if not range_:
            return Answer(200, headers, body)
        return Answer(206, {**headers, b"Content-Range": b"bytes %d-%d/%d" % (first, last, status.st_size)}, body)

    def page(self, query: str) -> Answer:
        """Answer ListObjectsV2, by the query of the request."""
        asked = {name: values[0] for name, values in parse_qs(query).items()}
        prefix, most = asked.get("prefix", ""), min(_PAGE, int(asked.get("max-keys", _PAGE)))
        keys = self._keys(prefix)
        # The token is the last key of the page before.
        after = asked.get("continuation-token") or asked.get("start-after") or ""
        begin = bisect.bisect_right(keys, after) if after else 0
        page = keys[begin : begin + most]
        more = begin + most < len(keys)
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        found = "".join(map(self._entry, page))
        listing = _PAGE_XML.format(
            prefix=escape(prefix), count=len(page), most=most, more=str(more).lower(), token=token, entries=found
        )
        return Answer(200, {b"Content-Type": b"application/xml"}, listing.encode())

    def _read_keys(self, prefix: str) -> list[str]:
        top = self._folder / prefix.rpartition("/")[0]
        files = (path.relative_to(self._folder).as_posix() for path in top.rglob("*") if path.is_file())
        return sorted(key for key in files if key.startswith(prefix))

    def _make_entry(self, key: str) -> str:
        status = (self._folder / key).stat()
        modified = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(status.st_mtime))
        return _ENTRY_XML.format(key=escape(key), modified=modified, etag=_etag(status), size=status.st_size)


def _etag(status: os.stat_result) -> str:
    return f"{status.st_ino:016x}{status.st_size:016x}"
