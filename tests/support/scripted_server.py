"""A server on loopback with answers set by the test. Like Amazon S3, it returns the checksum of a PUT."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CHECKSUM = re.compile(rb"\r\nx-amz-checksum-crc32:[^\r]*", re.IGNORECASE)
"""The header of a PUT, with the line break before it."""


class Scripted:
    """A server that answers PUTs with the given statuses, then with 200.

    Attributes:
        answers: the statuses of the next direct requests; 0 closes the connection.
        to_all: whether requests of the SDK get these statuses too.
        direct: the headers of the direct requests.
        sdk: the headers of the SDK's requests.
        bodies: the bodies of all requests by path.
    """

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.to_all = False
        self.direct: list[dict[str, str]] = []
        self.sdk: list[dict[str, str]] = []
        self.bodies: dict[str, bytes] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
                if "expect" in headers:
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.bodies[lines[0].split()[1]] = body
                mine = "amz-sdk-invocation-id" not in headers
                (self.direct if mine else self.sdk).append(headers)
                status = self.answers.pop(0) if (mine or self.to_all) and self.answers else 200
                if not status:
                    return
                checksum = b"".join(CHECKSUM.findall(head))
                writer.write(b'HTTP/1.1 %d x\r\nETag: "tag"%b\r\nContent-Length: 0\r\n\r\n' % (status, checksum))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scripted]:
    scripted = Scripted()
    async with await asyncio.start_server(scripted.serve, "127.0.0.1", 0, limit=2**24) as listening:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        yield scripted
