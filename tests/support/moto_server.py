"""A second S3 server, moto, for ``pytest --s3-server moto``. It checks no signatures and keeps objects in memory."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from async_maps.demo.seaweed import S3Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_START_S = 60.0


@contextmanager
def serve(folder: Path) -> Iterator[S3Server]:
    """Run moto on loopback during the ``with`` block; its log is in the folder."""
    log = folder / "moto.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"], stdout=output, stderr=output
        ) as process,
    ):
        try:
            yield S3Server(_address(process, log), secrets.token_hex(10), secrets.token_hex(20), process.pid)
        finally:
            process.kill()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until the server prints its address."""
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if " * Running on " in line:
                return line.partition(" * Running on ")[2].strip()
        time.sleep(0.05)
    raise AssertionError(f"moto did not start: {log.read_text()}")
