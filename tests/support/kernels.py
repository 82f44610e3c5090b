"""Processes that load the kernels from a copy of the package, with a cache of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import async_maps
from async_maps.render.kernel_cache import Loaded

COUNT = 15
"""The kernels that every run needs."""
FEW = 2
"""The kernels that reduce channels, which take a fraction of the time to compile."""

# Prints how the kernels were loaded, after checking two of them.
PROGRAM = """
import json, sys
import numpy as np

if "together" in sys.argv:
    print("ready", flush=True)
    sys.stdin.readline()
from async_maps.render import deflate_kernels, kernels
from async_maps.render.kernel_cache import loaded

keys = np.empty(2, np.int64)
for dtype, bits, quantize in (("f4", "i4", kernels.quantize_float32), ("f8", "i8", kernels.quantize_float64)):
    values = np.linspace(0, 1, 10_007, dtype=dtype)
    plane = np.empty(values.size, np.uint8)
    total = quantize(values, values.view(bits), plane, keys, 0.0)
    assert (plane == np.rint(values * 255).astype(np.uint8)).all()
    assert abs(total - values.sum(dtype="f8")) < 1e-6
    assert (keys == values[[0, -1]].view(bits)).all()
table = np.arange(256, dtype=np.uint32) * 65_537
pixels = np.empty(1_000, np.uint32)
kernels.look_up(plane[:1_000], table, pixels)
assert (pixels == table[plane[:1_000]]).all()
print(json.dumps(loaded([kernels, deflate_kernels])))
"""
FEW_PROGRAM = """
import json, sys

if "together" in sys.argv:
    print("ready", flush=True)
    sys.stdin.readline()
from async_maps.render import channel_kernels
from async_maps.render.kernel_cache import loaded

print(json.dumps(loaded([channel_kernels])))
"""


class Place:
    """A copy of the package and a cache folder, for processes that use both; they load all kernels, or a few."""

    def __init__(self, folder: Path, code: Path | None = None, *, few: bool = False) -> None:
        self.cache = folder / "cache"
        self.program = "few.py" if few else "program.py"
        self.code = code or folder / "code"
        if code is None:
            shutil.copytree(
                Path(async_maps.__file__).parent, self.code / "async_maps", ignore=shutil.ignore_patterns("__pycache__")
            )
            (self.code / "program.py").write_text(PROGRAM)
            (self.code / "few.py").write_text(FEW_PROGRAM)
        # No folder beside the module.
        (self.code / "async_maps/render/__pycache__").write_text("")
        ours = {n: v for n, v in os.environ.items() if not n.startswith(("NUMBA_", "PYTHON", "COV", "XDG_"))}
        self.environment = {
            **ours,
            "NUMBA_CACHE_DIR": str(self.cache),
            "HOME": str(folder / "no such folder"),
            "PYTHONPATH": str(self.code),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        (folder / "no such folder").write_text("")

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start Python in the folder of the place."""
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=self.code,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def load(self) -> tuple[int, int]:
        """Load the kernels in a new process; return the number of kernels that were compiled and found."""
        found = finish(self.start(self.program))
        return found["compiled"], found["found"]

    def problem(self) -> str:
        """Load the kernels; return what is wrong with the cache."""
        return str(finish(self.start(self.program))["problem"])

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run the command."""
        process = self.start("-m", "async_maps", *map(str, arguments))
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def files(self) -> list[Path]:
        """Return the cache's files."""
        return sorted(self.cache.rglob("*.kernel"))


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait until the process succeeds and return how it loaded the kernels."""
    out, err = process.communicate(input="go\n", timeout=300)
    assert (process.returncode, err) == (0, "")
    return Loaded(*json.loads(out.splitlines()[-1]))._asdict()
