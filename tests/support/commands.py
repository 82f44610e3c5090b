"""The command, in this process and in one of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import async_maps as am
from async_maps.cli import app as cli
from async_maps.manifest.manifest import Manifest

if TYPE_CHECKING:
    from _pytest.capture import CaptureResult

COMMAND = [sys.executable, "-m", "async_maps"]


def invoke(*arguments: object) -> int:
    """The command in this process; its exit code."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def only_error(output: CaptureResult[str]) -> str:
    """The one error that the command has printed, without a traceback."""
    (line,) = (line for line in output.err.splitlines() if line.startswith("async-maps: error: "))
    assert "Traceback" not in output.err
    return line


def start(*arguments: object) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a shell starts it."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def done_rows(path: str) -> int:
    """How many maps a manifest lists as done; 0 while there is no manifest that can be read."""
    if not Path(path).exists():
        return 0
    try:
        with Manifest(path, read_only=True) as manifest:
            return manifest.counts().get("done", 0)
    except am.ManifestError:
        return 0
