"""The messages of HTTP/1.1: the head of a request as bytes, and answers from bytes. No input or output."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    Limit: TypeAlias = Callable[["AnswerParser"], int | None]
    """Returns how many bytes of an answer's body to read, when its head is known; None for all."""

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NO_TARGET = re.compile(r"[^\x21-\x7e]")
_CONTROLS = bytes({*range(0x20), 0x7F} - {0x09})
_STATUS_LINE = re.compile(r"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\x00-\x08\x0a-\x1f\x7f]*)?")
_LENGTH = re.compile("[0-9]{1,15}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\x00\r\n]*)?")
_START = b"HTTP/1."
_LONGEST_HEAD = 64 * 2**10
_LONGEST_LINE = 4 * 2**10
_LONGEST_BODY = 16 * 2**20
_WITHOUT_BODY = {204, 304}


class AnswerError(ConnectionError):
    """The bytes that a server sent are not a whole answer of HTTP/1.1."""


def request_head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    """Return the request line and the headers, with the empty line at their end.

    Raises:
        ValueError: a character is not allowed there. The message has no value, which may be secret.
    """
    if _NO_TARGET.search(target) or not _is_name(method):
        raise ValueError("the target of a request has a character that HTTP does not allow")
    for name in headers:
        if not _is_name(name):
            raise ValueError(f"{name!r} is no name of a header of HTTP")
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    head = f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode()
    # Faster than to search each value.
    if len(head) - len(head.translate(None, _CONTROLS)) != len(b"\r\n") * (len(headers) + 2):
        controls = set(_CONTROLS.decode())
        name = next(name for name, value in headers.items() if not controls.isdisjoint(value))
        raise ValueError(f"the value of the header {name} has a control character")
    return head


@lru_cache(maxsize=256)
def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def read_all(_: AnswerParser) -> None:
    """Set no limit to the body of an answer."""


class AnswerParser:
    """Reads one answer from pieces of any size. Answers 1xx before it are skipped.

    Args:
        limit: limits the body. An answer with a longer Content-Length ends there; its connection is not used again.

    Attributes:
        status: the HTTP status.
        headers: the values by name in lower case; several values of a name are joined with commas.
        body: the body, without the frame of chunks.
        is_complete: whether the answer has ended.
        keeps_alive: whether the server accepts another request on the connection.
        has_begun: whether a byte has come.
    """

    def __init__(self, limit: Limit = read_all) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body: bytes | bytearray = b""
        self._limit = limit
        self.is_complete = self.keeps_alive = self.has_begun = False
        self._received = bytearray()
        self._chunks = bytearray()
        self._length = self._missing = 0
        self._pieces: list[bytes | bytearray] = []
        # A function, as a method of this object would be a reference to itself.
        self._step: Callable[[AnswerParser], bool] = AnswerParser._read_head

    @property
    def has_leftover(self) -> bool:
        """Whether bytes came after the end of the answer."""
        return self.is_complete and bool(self._received)

    def feed(self, data: bytes) -> None:
        """Read the next bytes.

        Raises:
            AnswerError: they are not HTTP, contradict each other, or are too many.
        """
        self.has_begun = True
        if self._pieces and len(data) < self._missing:
            # Of a long body, only the pieces are kept until it is whole.
            self._pieces.append(data)
            self._missing -= len(data)
            return
        self._received += data
        while not self.is_complete and self._step(self):
            pass

    def feed_end(self) -> None:
        """Note that the server has closed the connection.

        Raises:
            AnswerError: the answer is not complete.
        """
        if self._step is AnswerParser._read_to_end:
            self._end(self._take(len(self._received)))
        if not self.is_complete:
            amid = "amid its answer" if self.has_begun else "without an answer"
            raise AnswerError(f"the server closed the connection {amid}")

    def _read_head(self) -> bool:
        if not self._received.startswith(_START[: len(self._received)]):
            raise AnswerError("the server does not answer with HTTP/1.1")
        head = self._take_to(b"\r\n\r\n", _LONGEST_HEAD)
        if head is None:
            return False
        first, *lines = head.decode("utf-8", "surrogateescape").split("\r\n")
        found = _STATUS_LINE.fullmatch(first)
        if found is None:
            raise AnswerError("the first line of the answer is not HTTP/1.1")
        status = int(found[2])
        headers = _parse_headers(lines)
        if 100 <= status < 200:
            if status == 101:
                raise AnswerError("the server changes to another protocol")
            return True
        self.status, self.headers = status, headers
        options = headers.get("connection", "").lower()
        self.keeps_alive = "close" not in options if found[1] == "1" else "keep-alive" in options
        self._choose_body(found[1])
        return True

    def _choose_body(self, minor: str) -> None:
        coding, length = self.headers.get("transfer-encoding"), self.headers.get("content-length")
        if coding is not None and (length is not None or coding.lower() != "chunked" or minor == "0"):
            raise AnswerError("the length of the answer is not clear: it has a Transfer-Encoding that does not fit")
        if length is not None:
            if not _LENGTH.fullmatch(length):
                raise AnswerError("the length of the answer is not clear: its Content-Length is no number, or several")
            self._length = int(length)
            most = self._limit(self)
            if most is not None and most < self._length:
                self._length, self.keeps_alive = most, False
            self._check_size(self._length)
        if self.status in _WITHOUT_BODY or (length is not None and not self._length):
            self._end(b"")
        elif coding is not None:
            self._step = AnswerParser._read_chunk_size
        elif length is not None:
            self._missing = self._length
            self._step = AnswerParser._read_body
        else:
            self.keeps_alive = False
            self._step = AnswerParser._read_to_end

    def _read_body(self) -> bool:
        piece = self._take(self._missing)
        self._missing -= len(piece)
        self._pieces.append(piece)
        if self._missing:
            return False
        self._end(piece if len(self._pieces) == 1 else b"".join(self._pieces))
        self._pieces.clear()
        return True

    def _read_to_end(self) -> bool:
        self._check_size(len(self._received))
        return False

    def _read_chunk_size(self) -> bool:
        line = self._take_to(b"\r\n", _LONGEST_LINE)
        if line is None:
            return False
        found = _CHUNK_SIZE.fullmatch(line)
        if found is None:
            raise AnswerError("a chunk of the answer has no size")
        self._length = int(found[1], 16)
        self._check_size(len(self._chunks) + self._length)
        self._step = AnswerParser._read_chunk if self._length else AnswerParser._read_trailer
        return True

    def _read_chunk(self) -> bool:
        if len(self._received) < self._length + 2:
            return False
        self._chunks += self._take(self._length)
        if self._take(2) != b"\r\n":
            raise AnswerError("a chunk of the answer does not end")
        self._step = AnswerParser._read_chunk_size
        return True

    def _read_trailer(self) -> bool:
        line = self._take_to(b"\r\n", _LONGEST_LINE)
        if line is None:
            return False
        if not line:
            self._end(self._chunks)
        else:
            _parse_headers([line.decode("utf-8", "surrogateescape")])
        return True

    def _end(self, body: bytes | bytearray) -> None:
        self.body = body
        self.is_complete = True

    def _take(self, size: int) -> bytearray:
        # A copy, which is aligned in memory: an array may lie in it.
        taken = self._received[:size]
        del self._received[:size]
        return taken

    def _take_to(self, mark: bytes, longest: int) -> bytearray | None:
        end = self._received.find(mark, 0, longest)
        if end < 0:
            if len(self._received) >= longest:
                raise AnswerError("the head of the answer is too long")
            return None
        taken = self._take(end)
        del self._received[: len(mark)]
        return taken

    def _check_size(self, size: int) -> None:
        if size > _LONGEST_BODY:
            raise AnswerError("the answer is too long")


def _parse_headers(lines: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        before, colon, after = line.partition(":")
        if not colon or not _is_name(before) or "\0" in after or "\r" in after or "\n" in after:
            raise AnswerError("the answer has a header that is not HTTP")
        name, value = before.lower(), after.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers
