"""A server on loopback that answers each method with the bytes that the test gives."""

from __future__ import annotations

import socketserver
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest


class Terse:
    """Closes each connection after its answer.

    Attributes:
        answers: the answers by method; of a list, each is given once, the last one again.
        heads: the heads of the requests.
    """

    def __init__(self) -> None:
        self.answers: dict[str, list[bytes]] = {}
        self.heads: list[bytes] = []


@contextmanager
def terse(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terse]:
    """Run the server; every AWS client of this process uses it."""
    server = Terse()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            head = b""
            while not head.endswith(b"\r\n\r\n") and (line := self.rfile.readline()):
                head += line
            server.heads.append(head)
            given = server.answers[head.split(b" ", 1)[0].decode()]
            self.wfile.write(given.pop(0) if len(given) > 1 else given[0])

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as listening, monkeypatch.context() as patch:
        serving = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, name="terse-server")
        serving.start()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{listening.server_address[1]}",
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        try:
            yield server
        finally:
            listening.shutdown()
            serving.join()
