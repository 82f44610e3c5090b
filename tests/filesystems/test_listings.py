"""Pages of listings are parsed as the AWS SDK parses them, or left to it."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape

import botocore.session
import pytest
from botocore.handlers import decode_list_object_v2
from botocore.parsers import ResponseParserError, create_parser
from hypothesis import example, given
from hypothesis import strategies as st

from async_maps.filesystems.listings import Page, parse_objects, parse_quickly
from tests.support.properties import examples

pytestmark = pytest.mark.fast

_SHAPE: Any = botocore.session.Session().get_service_model("s3").operation_model("ListObjectsV2").output_shape
TIME = "2026-11-29T12:00:07.123Z"


def by_the_sdk(body: bytes, quickly: bool = False) -> tuple[Page, dict[str, Any]]:
    """Return the page, and the SDK's answer, by its parser alone or by ours before it."""
    response: dict[str, Any] = {"status_code": 200, "headers": {}, "body": body}
    more: dict[str, Any] = {}
    if quickly:
        parse_quickly(response, more)
    parsed = create_parser("rest-xml").parse(response, _SHAPE)
    parsed.update(more)
    decode_list_object_v2(parsed, {"encoding_type_auto_set": True})
    return Page.of(parsed), parsed


def entry(**fields: object) -> str:
    return f"<Contents>{''.join(f'<{name}>{value}</{name}>' for name, value in fields.items())}</Contents>"


def page(*parts: str, before: str = "") -> bytes:
    return (
        f'{before}<ListBucketResult xmlns="http://s3.amazonaws.com/doc/">{"".join(parts)}</ListBucketResult>'.encode()
    )


def others(answer: dict[str, Any]) -> str:
    shown = {name: value for name, value in answer.items() if name not in {"Contents", "async_maps_objects"}}
    # Of repeated elements, the SDK returns the nodes.
    return re.sub(" at 0x[0-9a-f]+", "", repr(shown))


_KEYS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"))
_TIMES = st.sampled_from(
    [TIME, "2026-11-29T12:00:07Z", "2026-11-29T12:00:07", "Sun, 29 Nov 2026 12:00:07 GMT", "1764417607", "0000", ""]
)
_FIELDS = st.fixed_dictionaries(
    {
        "Key": _KEYS.map(escape) | _KEYS.map(quote),
        "Size": st.integers(0).map(str) | st.sampled_from([" 7 ", "1_0", ""]),
    },
    optional={
        "ETag": st.sampled_from(["&quot;abc&quot;", '"abc"', "abc", "", "<![CDATA[a&b]]>", "a<!-- c -->b"]),
        "LastModified": _TIMES,
        "StorageClass": st.just("STANDARD"),
        "Owner": st.just("<ID>1</ID><DisplayName>d</DisplayName>"),
        "ChecksumAlgorithm": st.just("CRC32"),
        "Other": st.just("<Key>k</Key>"),
    },
)
_PARTS = st.one_of(
    _FIELDS.map(lambda fields: entry(**fields)),
    st.sampled_from(
        [
            "<EncodingType>url</EncodingType>", "<IsTruncated>true</IsTruncated>", "\n  ", "<!-- c -->",
            "<NextContinuationToken>a&amp;b</NextContinuationToken>", "<Name>b</Name>", "<Prefix/>",
            "<CommonPrefixes><Prefix>a/</Prefix></CommonPrefixes>",
        ]
    ),
)  # fmt: skip


@examples(100)
@given(parts=st.lists(_PARTS, max_size=6), before=st.sampled_from(["", '<?xml version="1.0"?>\n', "\ufeff"]))
@example(parts=[entry(Key="a", Size=1, LastModified=TIME), "<EncodingType>url</EncodingType>"], before="")
def test_a_page_is_parsed_as_by_the_sdk(parts: list[str], before: str) -> None:
    body = page(*parts, before=before)
    try:
        expected, answer = by_the_sdk(body)
    except Exception as error:  # noqa: BLE001  # the SDK's errors stay as they are
        with pytest.raises(type(error), match=re.escape(str(error))):
            by_the_sdk(body, quickly=True)
        return
    found, rest = by_the_sdk(body, quickly=True)
    assert found == expected
    assert others(rest) == others(answer)


@examples(100)
@given(data=st.data())
def test_a_damaged_page_is_left_to_the_sdk(data: st.DataObject) -> None:
    body = page(
        entry(Key="a%2Fb", Size=1, ETag="&quot;e&quot;", LastModified=TIME) * 2, "<IsTruncated>true</IsTruncated>"
    )
    place = data.draw(st.integers(0, len(body)))
    damaged = body[:place] + data.draw(st.binary(max_size=8)) + body[place + data.draw(st.integers(0, 8)) :]
    found = parse_objects(damaged)
    if found is not None:
        expected, answer = by_the_sdk(damaged)
        quick, rest = by_the_sdk(damaged, quickly=True)
        assert quick == expected
        assert others(rest) == others(answer)


PLAIN = entry(Key="a&amp;b%2F", Size=1, ETag="&quot;e&quot;", LastModified=TIME, Owner="<ID>1</ID>")


@pytest.mark.parametrize(
    "body",
    [
        page(PLAIN, PLAIN, "<EncodingType>url</EncodingType>", "<KeyCount>2</KeyCount>"),
        page("<KeyCount>0</KeyCount>"),
        page("\n  ", PLAIN, "\n  ", PLAIN, "\n", before='<?xml version="1.0" encoding="UTF-8"?>\n'),
    ],
)
def test_plain_pages_are_not_left_to_the_sdk(body: bytes) -> None:
    found = parse_objects(body)
    assert found is not None
    assert len(found[0]) == body.count(b"<Contents>")
    assert b"Contents" not in found[1]
    assert by_the_sdk(body, quickly=True)[0] == by_the_sdk(body)[0]


@pytest.mark.parametrize(
    "body",
    [
        page(PLAIN)[:-1],
        page(PLAIN, "<Name>b</Name>", PLAIN),
        page(entry(Key="a<b/>c", Size=1)),
        page(entry(Key="a", Size=1).replace("</Size>", "</Size><Size>2</Size>")),
        page(entry(Key="a")),
        page(entry(Size=1)),
        page(entry(Key="a", Size="x")),
        page(entry(Key="a", Size=1, LastModified="yesterday")),
        page(PLAIN).replace(b"ListBucketResult", b"Error"),
        page(PLAIN, before="<!DOCTYPE a [<!ENTITY b 'c'>]>"),
        page(PLAIN).replace(b"Key>", b"s3:Key>"),
        b"",
        b"<html>",
        b"{}",
    ],
)
def test_other_pages_are_left_to_the_sdk(body: bytes) -> None:
    response: dict[str, Any] = {"status_code": 200, "body": body}
    more: dict[str, Any] = {}
    parse_quickly(response, more)
    assert response["body"] == body
    assert not more


def test_an_error_with_status_200_is_the_sdks() -> None:
    with pytest.raises(ResponseParserError):
        by_the_sdk(b"<ListBucketResult><Contents>", quickly=True)
