"""Messages between our own processes: the length in four bytes, then the value in the format of ``marshal``.

Both ends are the same interpreter. A process that decodes untrusted files sends JSON instead
(:mod:`async_maps.sources.wire`), because a damaged message can crash :func:`marshal.loads`.
"""

from __future__ import annotations

import marshal
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import StreamReader
    from typing import Any

_LENGTH_BYTES = 4


def frame(value: Any) -> bytes:
    """Return a value as a message.

    Args:
        value: None, or bool, int, float, str, bytes, and tuples, lists and dicts of them. NumPy's scalars and arrays
            arrive as bytes: convert them before.

    Raises:
        ValueError: an object in it has another type. A named tuple is one: convert it to a plain tuple.
        OverflowError: the message has 4 GiB or more.
    """
    body = marshal.dumps(value)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def read_message(file: IO[bytes]) -> Any:
    """Read the next message of a blocking file; raise EOFError if the file ends before or inside a message."""
    return marshal.loads(_read(file, int.from_bytes(_read(file, _LENGTH_BYTES), "big")))  # noqa: S302  # our own


async def receive_message(reader: StreamReader) -> Any:
    """Read the next message of a stream; raise EOFError if the stream ends before or inside a message."""
    size = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
    return marshal.loads(await reader.readexactly(size))  # noqa: S302  # our own


def _read(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError(f"the input ended after {len(data):,} of {size:,} bytes")
    return data
