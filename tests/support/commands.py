"""Run the command, in this process or a separate one."""

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
    """Run the command in this process and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def only_error(output: CaptureResult[str]) -> str:
    """Return the only error of the command, and check that there is no traceback."""
    (line,) = (line for line in output.err.splitlines() if line.startswith("async-maps: error: "))
    assert "Traceback" not in output.err
    return line


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start the command in its own process group, as a shell does."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def done_rows(path: str) -> int:
    """Return the number of done maps in a manifest; 0 without a readable manifest."""
    if not Path(path).exists():
        return 0
    try:
        with Manifest(path, read_only=True) as manifest:
            return manifest.counts().get("done", 0)
    except am.ManifestError:
        return 0
