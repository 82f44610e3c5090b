"""Ctrl-C in a script ends the run; the manifest has the uploaded maps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.leftovers import leaves_nothing

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)


INTERRUPTED = """
import sys
import numpy as np
import async_maps as am

def maps():
    n = 0
    while True:
        yield f"{n}", np.full((8, 8), 255, np.uint8)
        n += 1
        if n == 5000:  # more than can be in flight
            print("running", flush=True)

try:
    am.run(maps(), "memory://", settings=am.Settings(workers=int(sys.argv[1])), manifest=sys.argv[2])
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_ends_a_script_and_keeps_the_manifest(workers: int, tmp_path: Path) -> None:
    manifest = tmp_path / "m.sqlite"
    # A shell starts background commands with SIGINT ignored.
    hearing = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    with subprocess.Popen(
        [sys.executable, "-c", hearing + INTERRUPTED, str(workers), str(manifest)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as script:  # fmt: skip
        assert script.stdout is not None
        assert script.stdout.readline() == "running\n"
        os.kill(script.pid, signal.SIGINT)
        out, err = script.communicate(timeout=60)
    assert (script.returncode, out, err) == (0, "interrupted\n", "")
    assert len(_done(manifest)) > 0


def _done(manifest: Path) -> list[str]:
    from async_maps.manifest.manifest import Manifest

    with Manifest(manifest, read_only=True) as opened:
        return [str(name) for name, *_ in opened.rows()]
