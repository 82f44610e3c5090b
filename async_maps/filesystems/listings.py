"""Parses the pages of ListObjectsV2, exactly as the AWS SDK, in a tenth of its time.

What is not a plain page is left to the SDK's parser, which also has the words for errors.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_plus
from xml.parsers import expat

from async_maps.filesystems.answers import Object, modified, required

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_PARSED = "async_maps_objects"
_PAGE = "ListBucketResult"
_FIELDS = {"Key", "Size", "ETag", "LastModified"}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?Z", re.ASCII)
"""The times that Python reads as the SDK does; the SDK reads others too."""
_ROOT, _ENTRY, _FIELD = 1, 2, 3
"""Depths of elements."""


class Page(NamedTuple):
    """A part of a listing.

    Attributes:
        objects: its objects.
        folders: the common prefixes of other objects, if the request has a delimiter.
    """

    objects: list[Object]
    folders: list[str]

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Page:
        """Return the page in the SDK's answer to ListObjectsV2.

        Raises:
            InaccessibleError: the server has left out a key, a size or a prefix.
        """
        objects = answer.get(_PARSED)
        if objects is None:
            objects = [
                Object(
                    required(entry, "Key"), required(entry, "Size"), entry.get("ETag", "").strip('"'), modified(entry)
                )
                for entry in answer.get("Contents", [])
            ]
        return cls(objects, [required(entry, "Prefix") for entry in answer.get("CommonPrefixes", [])])


def parse_quickly(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: object) -> None:
    """Parse the objects of an answer, and leave the rest of its body to the SDK: a handler of ``before-parse``."""
    if response_dict["status_code"] == 200 and (found := parse_objects(response_dict["body"])) is not None:
        customized_response_dict[_PARSED], response_dict["body"] = found


def parse_objects(body: bytes) -> tuple[list[Object], bytes] | None:
    """Parse a page.

    Args:
        body: the XML of the answer.

    Returns:
        The objects, and the body without them; None if it is not a plain page.
    """
    page = _Parser()
    try:
        page.parse(body)
        objects = [_parsed(entry, is_encoded=page.is_encoded) for entry in page.entries]
    except (expat.ExpatError, ValueError, LookupError):
        return None
    return objects, body[: page.begin] + body[page.end :]


def _object_of(entry: Mapping[str, Any]) -> Object:
    key, size = required(entry, "Key"), required(entry, "Size")
    return Object(key, size, entry.get("ETag", "").strip('"'), modified(entry))


def _parsed(entry: dict[str, str], *, is_encoded: bool) -> Object:
    key, time = entry["Key"], entry.get("LastModified")
    if time is not None and not _TIME.fullmatch(time):
        raise ValueError(time)
    return Object(
        unquote_plus(key) if is_encoded else key,
        int(entry["Size"]),
        entry.get("ETag", "").strip('"'),
        None if time is None else datetime.fromisoformat(time).timestamp(),
    )


class _Parser:
    """Finds the entries of a page.

    Attributes:
        entries: the texts of the known elements of each entry, by name.
        begin: the position of the first entry in the body.
        end: the position behind the last entry.
    """

    def __init__(self) -> None:
        self.entries: list[dict[str, str]] = []
        self.begin = self.end = 0
        self._encoding: str | None = None
        self._entry: dict[str, str] | None = None
        self._is_past_entries = False
        self._depth = 0
        self._name = ""
        self._texts: list[str] = []

    @property
    def is_encoded(self) -> bool:
        """Whether the keys are percent-encoded."""
        return self._encoding == "url"

    def parse(self, body: bytes) -> None:
        """Parse the page; raise ExpatError or ValueError if it is not a plain one."""
        # As the SDK, which ignores the encoding in the declaration.
        parser = self._expat = expat.ParserCreate("utf-8")
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._texts.append
        parser.StartDoctypeDeclHandler = self._refuse
        parser.Parse(body, True)
        if self.entries:
            self.end = body.index(b">", self.end) + 1

    def _start(self, name: str, _: object) -> None:
        self._depth += 1
        if self._depth == _ENTRY:
            self._begin_entry(name)
        elif (self._depth == _ROOT and name != _PAGE) or (self._depth > _FIELD and self._name in _FIELDS):
            self._refuse()
        self._name = name
        self._texts.clear()

    def _begin_entry(self, name: str) -> None:
        if name != "Contents":
            self._is_past_entries = bool(self.begin)
        elif self._is_past_entries:
            # The entries must be side by side, to be cut out.
            self._refuse()
        else:
            self._entry = {}
            self.begin = self.begin or self._expat.CurrentByteIndex

    def _end(self, name: str) -> None:
        if self._depth == _FIELD and self._entry is not None and name in _FIELDS:
            if name in self._entry:
                self._refuse()
            self._entry[name] = "".join(self._texts)
        elif self._depth == _ENTRY:
            if self._entry is not None:
                self.entries.append(self._entry)
                self._entry, self.end = None, self._expat.CurrentByteIndex
            elif name == "EncodingType":
                if self._encoding is not None:
                    self._refuse()
                self._encoding = "".join(self._texts)
        self._depth -= 1
        self._texts.clear()

    def _refuse(self, *_: object) -> None:
        raise ValueError("not a plain page")
