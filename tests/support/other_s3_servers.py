"""Other S3 servers than SeaweedFS, for ``pytest --s3-server``: moto checks no signatures; s3rver ignores conditions."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from async_maps.demo.seaweed import S3Server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_START_S = 60.0


@contextmanager
def moto(folder: Path) -> Iterator[S3Server]:
    """Run moto on loopback; it keeps objects in memory."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with _started(command, " * Running on ", folder) as (url, pid):
        yield S3Server(url, secrets.token_hex(10), secrets.token_hex(20), pid)


@contextmanager
def s3rver(folder: Path) -> Iterator[S3Server]:
    """Run the command ``s3rver`` of npm on loopback."""
    command = ["s3rver", "--directory", str(folder / "objects"), "--address", "127.0.0.1", "--port", "0"]
    with _started(command, "S3rver listening on ", folder) as (address, pid):
        # The server has one account, whose id and secret are the same.
        yield S3Server(f"http://{address}", "S3RVER", "S3RVER", pid)


@contextmanager
def _started(command: Sequence[str], listening: str, folder: Path) -> Iterator[tuple[str, int]]:
    """Run a server, whose log is in the folder; yield the address that it prints after these words, and its pid."""
    log = folder / "server.log"
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            deadline = time.monotonic() + _START_S
            while process.poll() is None and time.monotonic() < deadline:
                for line in log.read_text().splitlines():
                    if listening in line:
                        yield line.partition(listening)[2].strip(), process.pid
                        return
                time.sleep(0.05)
            raise AssertionError(f"{command[0]} did not start: {log.read_text()}")
        finally:
            process.kill()
