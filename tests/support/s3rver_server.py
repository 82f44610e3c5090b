"""A third S3 server, s3rver of npm, for ``pytest --s3-server s3rver``. It ignores conditions and checksums."""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from async_maps.demo.seaweed import S3Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_START_S = 60.0
_LISTENING = "S3rver listening on "


@contextmanager
def serve(folder: Path) -> Iterator[S3Server]:
    """Run the command ``s3rver`` of PATH on loopback during the ``with`` block; its log is in the folder."""
    log = folder / "s3rver.log"
    command = ["s3rver", "--directory", str(folder / "objects"), "--address", "127.0.0.1", "--port", "0"]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            # The server has one account, whose id and secret are the same.
            yield S3Server(f"http://{_address(process, log)}", "S3RVER", "S3RVER", process.pid)
        finally:
            process.kill()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until the server prints its address."""
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if line.startswith(_LISTENING):
                return line.removeprefix(_LISTENING).strip()
        time.sleep(0.05)
    raise AssertionError(f"s3rver did not start: {log.read_text()}")
