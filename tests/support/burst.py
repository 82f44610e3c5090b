"""Concurrent HTTP clients in a separate process, so that their memory is not counted as the service's.

``python -m tests.support.burst URL COUNT SIDE`` posts COUNT maps to ``URL/burst/NUMBER`` and prints the answers.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
import time
from typing import NamedTuple

import aiohttp
import numpy as np


class Answer(NamedTuple):
    """The answer to one request.

    Attributes:
        name: the name of the map.
        status: the HTTP status.
        retry_after: the header Retry-After; None without it.
        text: the body.
        seconds: the time since the start of the burst.
    """

    name: str
    status: int
    retry_after: str | None
    text: str
    seconds: float


async def burst(url: str, count: int, side: int) -> list[Answer]:
    """Post all maps concurrently, each over its own connection."""
    bodies = []
    for kind in range(4):
        body = io.BytesIO()
        np.save(body, np.random.default_rng(kind).random((side, side), np.float32))
        bodies.append(body.getvalue())
    started = time.monotonic()

    async def post(number: int) -> Answer:
        name = f"burst/{number}"
        async with session.post(f"{url}/{name}", data=bodies[number % 4]) as answer:
            text = await answer.text()
            retry_after = answer.headers.get("Retry-After")
            return Answer(name, answer.status, retry_after, text, time.monotonic() - started)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        return await asyncio.gather(*(post(number) for number in range(count)))


if __name__ == "__main__":
    _, url, count, side = sys.argv
    print(json.dumps(asyncio.run(burst(url, int(count), int(side)))))  # noqa: T201  # for the parent process
