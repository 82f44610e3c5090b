from __future__ import annotations

import asyncio
import io
from typing import Any, NamedTuple

import pytest

from async_maps.concurrency.messages import frame, read_message, receive_message

pytestmark = pytest.mark.fast

VALUES = [
    None,
    (),
    ("text", 1, -(2**70), 0.1, float("inf"), True, None, b"\0\xff"),
    {"é": [True, ("a", ("b",))]},
    "\udcff",  # a byte of a file name that is not UTF-8
    "x" * 300_000,  # more than the buffer of a stream
]


class Pair(NamedTuple):
    name: str
    size: int


def stream(content: bytes) -> asyncio.StreamReader:
    """Return a stream that ends after this content."""
    reader = asyncio.StreamReader()
    reader.feed_data(content)
    reader.feed_eof()
    return reader


def types(value: Any) -> Any:
    """Return the types of a value and of all values in it."""
    if isinstance(value, dict):
        return types(list(value.items()))
    return (type(value), *map(types, value)) if isinstance(value, tuple | list) else type(value)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{value!r:.20}")
async def test_a_message_restores_the_value_and_its_types(value: Any) -> None:
    found = read_message(io.BytesIO(frame(value)))
    assert found == value
    assert types(found) == types(value)
    assert await receive_message(stream(frame(value))) == value


async def test_messages_are_read_one_after_another() -> None:
    content = b"".join(map(frame, VALUES))
    file, reader = io.BytesIO(content), stream(content)
    assert [read_message(file) for _ in VALUES] == VALUES
    assert [await receive_message(reader) for _ in VALUES] == VALUES


@pytest.mark.parametrize("size", range(len(frame(("a", 1)))))
async def test_a_message_that_is_cut_is_an_end_of_file(size: int) -> None:
    content = frame(("a", 1))[:size]
    with pytest.raises(EOFError):
        read_message(io.BytesIO(content))
    with pytest.raises(EOFError):
        await receive_message(stream(content))


@pytest.mark.parametrize("value", [Pair("a", 1), [Pair("a", 1)], io.BytesIO(), Pair], ids=lambda value: f"{value!r:.9}")
def test_objects_are_refused_by_the_sender(value: Any) -> None:
    with pytest.raises(ValueError, match="unmarshallable"):
        frame(value)
