"""Requests have no forged lines, and answers are read as they were sent, however they are split."""

from __future__ import annotations

import io
import re
from http.client import HTTPException, HTTPResponse
from typing import Any, NamedTuple

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from async_maps.filesystems.http_messages import AnswerError, AnswerParser, request_head
from tests.support.properties import examples

pytestmark = pytest.mark.fast

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"
CONTROLS = [chr(code) for code in (*range(9), *range(10, 32), 127)]


def parse(data: bytes, *, ends: bool = False) -> AnswerParser:
    answer = AnswerParser()
    answer.feed(data)
    if ends:
        answer.feed_end()
    return answer


# Requests -----------------------------------------------------------------------------------------------------------


def test_a_head_has_its_headers_in_order() -> None:
    head = request_head("PUT", "/bucket/a%20b?x-id=1", {"Host": "h:1", "x-amz-meta-a": "b\tc é"})
    assert head == "PUT /bucket/a%20b?x-id=1 HTTP/1.1\r\nHost: h:1\r\nx-amz-meta-a: b\tc é\r\n\r\n".encode()


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
def test_control_characters_are_refused_everywhere(control: str) -> None:
    with pytest.raises(ValueError, match="the value of the header x has a control character"):
        request_head("PUT", "/", {"x": f"secret{control}"})
    with pytest.raises(ValueError, match="no name of a header"):
        request_head("PUT", "/", {f"x{control}": ""})
    for method, target in ((f"PUT{control}", "/"), ("PUT", f"/{control}")):
        with pytest.raises(ValueError, match="the target of a request"):
            request_head(method, target, {})


@pytest.mark.parametrize("name", ["", "a b", "a:", "é"])
def test_a_name_that_is_no_token_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a header"):
        request_head("PUT", "/", {name: ""})


@pytest.mark.parametrize("target", ["/a b", "/é", "/\x85"])
def test_a_target_that_is_not_percent_encoded_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="the target of a request"):
        request_head("PUT", target, {})


# Answers ------------------------------------------------------------------------------------------------------------


class Sent(NamedTuple):
    """An answer as bytes, and what it says."""

    data: bytes
    status: int
    headers: dict[str, str]
    body: bytes
    ends: bool


@st.composite
def answers(draw: st.DrawFn) -> Sent:
    status = draw(st.sampled_from([200, 204, 304, 400, 412, 503]))
    names = st.text("abcdef-", min_size=1, max_size=8).map(lambda name: f"x-{name}")
    values = st.text("ab:,;=é ", max_size=6)
    headers = draw(st.dictionaries(names, values.map(str.strip), max_size=2))
    body = b"" if status in {204, 304} else draw(st.binary(max_size=40))
    framing = draw(st.sampled_from(["length", "chunks", "end"])) if body else "length"
    lines = {name.upper(): value for name, value in headers.items()}
    if framing == "length":
        lines["Content-Length"] = str(len(body))
        framed = body
    elif framing == "chunks":
        lines["Transfer-Encoding"] = "chunked"
        size = draw(st.integers(1, 40))
        parts = [body[start : start + size] for start in range(0, len(body), size)]
        trailer = draw(st.sampled_from([b"", b"x-amz-trailer: a\r\n"]))
        framed = b"".join(b"%X;e=1\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n" + trailer + b"\r\n"
    else:
        framed = body
    before = b"HTTP/1.1 100 Continue\r\n\r\n" * draw(st.integers(0, 2))
    head = f"HTTP/1.1 {status} Some reason\r\n" + "".join(f"{name}:  {value}\r\n" for name, value in lines.items())
    said = {name.lower(): value for name, value in lines.items()}
    return Sent(before + head.encode() + b"\r\n" + framed, status, said, body, framing == "end")


@examples(50)
@given(answers(), st.data())
def test_an_answer_is_the_same_however_it_is_split(sent: Sent, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(sent.data) - 1), max_size=6)))
    answer = AnswerParser()
    for start, end in zip([0, *cuts], [*cuts, len(sent.data)], strict=True):
        assert not answer.is_complete
        answer.feed(sent.data[start:end])
    if sent.ends:
        assert not answer.is_complete
        answer.feed_end()
    assert answer.is_complete
    assert (answer.status, answer.headers, answer.body) == (sent.status, sent.headers, sent.body)
    assert (answer.keeps_alive, answer.has_leftover) == (not sent.ends, False)


@examples(15)
@given(answers())
def test_no_part_of_an_answer_is_complete(sent: Sent) -> None:
    for end in range(len(sent.data)):
        answer = parse(sent.data[:end])
        assert not answer.is_complete
        if not sent.ends or end < sent.data.rindex(b"\r\n\r\n") + 4:
            with pytest.raises(AnswerError):
                answer.feed_end()


class _Socket:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def judged(data: bytes) -> tuple[int, bytes]:
    """Return the status and the body as Python's own client reads them."""
    socket: Any = _Socket(data)
    answer = HTTPResponse(socket, method="PUT")
    answer.begin()
    return answer.status, answer.read()


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(answers()).data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 3))
        extra = draw(
            st.binary(max_size=3)
            | st.sampled_from(
                [b"\r\n", b"\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b" ", b"0\r\n\r\n"]
            )
        )
        data[at : at + length] = extra
    return bytes(data)


@examples(80)
@given(spoiled())
def test_a_spoiled_answer_is_refused_or_read_as_pythons_client_does(data: bytes) -> None:
    # http.client does not remove blanks at the end of a value, and does not chunk then.
    assume(not re.search(rb"chunked[ \t]+\r\n", data, re.IGNORECASE))
    try:
        answer = parse(data)
        if not answer.is_complete:
            answer.feed_end()
    except AnswerError:
        return
    try:
        theirs = judged(data)
    except (HTTPException, ValueError) as error:
        raise AssertionError(f"http.client refuses it: {error!r}") from error
    assert (answer.status, answer.body) == theirs


@examples(50)
@given(st.binary(max_size=200))
def test_garbage_is_no_answer(data: bytes) -> None:
    with pytest.raises(AnswerError):
        parse(data, ends=True)


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 2\r\nContent-Length: 3",
        b"Content-Length: 2\r\nContent-Length: 2",
        b"Content-Length: 2, 3",
        b"Content-Length: -2",
        b"Content-Length: +2",
        b"Content-Length: 0x2",
        b"Content-Length: \xb2",
        b"Content-Length:",
        b"Content-Length: 2\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: identity",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"Content-Length: 9999999999",
    ],
)
def test_unclear_lengths_are_refused(head: bytes) -> None:
    with pytest.raises(AnswerError, match=r"length of the answer is not clear|too long"):
        parse(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\nab")


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx : a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\n\r\n",
        b"HTTP/1.1 200 OK\nx: a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabcd",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nbad trailer\r\n",
        b"\x15\x03\x01",
    ],
)
def test_what_is_not_http_is_refused_before_its_end(start: bytes) -> None:
    with pytest.raises(AnswerError):
        parse(start)


@pytest.mark.parametrize(
    "endless",
    [
        b"HTTP/1.1 200 OK\r\n" + b"x: a\r\n" * 20_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1;" + b"a" * 9000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + (b"100000\r\n" + bytes(2**20) + b"\r\n") * 17,
        b"HTTP/1.1 200 OK\r\n\r\n" + bytes(17 * 2**20),
    ],
    ids=["head", "chunk size", "chunks", "body"],
)
def test_an_endless_answer_is_refused(endless: bytes) -> None:
    with pytest.raises(AnswerError, match="too long"):
        parse(endless)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\n", True),
        (b"HTTP/1.1 200\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: Close\r\n", False),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n", True),
    ],
)
def test_the_server_says_whether_the_connection_stays(head: bytes, expected: bool) -> None:
    assert parse(head + b"Content-Length: 0\r\n\r\n").keeps_alive == expected


def test_blanks_around_a_value_are_no_part_of_it() -> None:
    assert parse(b"HTTP/1.1 200 OK\r\nETag: \t a b \t\r\nx:\r\nContent-Length: 0\r\n\r\n").headers == {
        "etag": "a b", "x": "", "content-length": "0",
    }  # fmt: skip


@pytest.mark.parametrize("step", [1, 7, 100])
@pytest.mark.parametrize(("limit", "body"), [(0, b""), (3, b"012"), (10, b"0123456789"), (None, b"0123456789")])
def test_a_limited_body_ends_there(limit: int | None, body: bytes, step: int) -> None:
    answer, data = AnswerParser(lambda _: limit), b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789"
    for start in range(0, len(data), step):
        answer.feed(data[start : start + step])
    assert (answer.is_complete, bytes(answer.body), answer.keeps_alive) == (True, body, len(body) == 10)


def test_bytes_after_an_answer_are_leftover() -> None:
    answer = parse(OK + b"H")
    assert (answer.is_complete, answer.body, answer.has_leftover) == (True, b"ab", True)
