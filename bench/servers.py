"""The servers of the benches: SeaweedFS on loopback with a bucket, and servers that can be killed and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from async_maps.demo import seaweed
from bench import sink
from bench.measure import BUCKET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def real_server() -> Iterator[dict[str, str]]:
    """Run a server during the ``with`` block. Yields the environment variables for AWS clients."""
    with (
        tempfile.TemporaryDirectory(prefix="async-maps-bench-") as folder,
        seaweed.serve(Path(folder)) as server,
        seaweed.in_environment(server),
    ):
        asyncio.run(seaweed.create_bucket(server, BUCKET))
        yield server.environment()


class Server(Protocol):
    """A server that can be killed and started again."""

    def environment(self) -> dict[str, str]:
        """Return the environment variables for AWS clients."""

    def restart(self) -> None:
        """Kill the server and start it at the same address with the same objects."""

    def close(self) -> None:
        """Stop the server."""

    def check_options(self) -> list[str]:
        """Return the options with which ``bench.check`` finds the objects."""

    def plan_address(self, folder: Path, name: str) -> str:
        """Return the address of a plan: in the bucket, or in the folder if the server keeps no objects."""


class LoggingSink:
    """A sink with a log of all PUTs.

    Args:
        log: the file of the log.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._running = ExitStack()
        self._sink = self._running.enter_context(sink.serve(log=log))
        self.environment, self.close = self._sink.environment, self._running.close

    def restart(self) -> None:
        """Kill the sink and start it at the same address with the same log."""
        os.kill(self._sink.pid, signal.SIGKILL)
        self._running.close()
        port = urlsplit(self._sink.url).port or 0
        self._sink = self._running.enter_context(sink.serve(log=self._log, port=port))

    def check_options(self) -> list[str]:
        """Return the options with which ``bench.check`` finds the objects."""
        return ["--log", str(self._log)]

    def plan_address(self, folder: Path, name: str) -> str:
        """Return the address of a plan in the folder."""
        return str(folder / name)


class SeaweedFS:
    """A real S3 server with a bucket.

    Args:
        folder: the folder for its data.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running = ExitStack()
        self.server = self._running.enter_context(seaweed.serve(folder))
        asyncio.run(seaweed.create_bucket(self.server, BUCKET))
        self.environment, self.close = self.server.environment, self._running.close

    def restart(self) -> None:
        """Kill the server and start it at the same address with the same objects."""
        self._running.close()
        self.server = self._running.enter_context(seaweed.serve(self._folder, like=self.server))

    def check_options(self) -> list[str]:
        """Return the options with which ``bench.check`` finds the objects: it lists them."""
        return []

    def plan_address(self, folder: Path, name: str) -> str:
        """Return the address of a plan in the bucket."""
        return f"s3://{BUCKET}/{name}"


RESTARTABLE: dict[str, Callable[[Path], Server]] = {"sink": LoggingSink, "seaweedfs": SeaweedFS}
"""The servers that can be killed, by name."""
