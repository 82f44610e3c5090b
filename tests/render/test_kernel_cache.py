"""Compiled kernels are cached on disk, and work in every state of that cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from async_maps.render import kernels

KERNELS = (
    "quantize_float32", "quantize_float64", "quantize_float16",
    "scale_float32", "scale_float64", "count", "describe", "sketch", "look_up", "replace", "filter_rows",
)  # fmt: skip
SOURCE = Path(kernels.__file__)


# Runs beside a copy of kernels.py. Prints the cache hits and misses of each kernel, or "none" without a cache.
PROGRAM = """
import sys
import numpy as np
import numba

if "together" in sys.argv:
    print("ready", flush=True)
    sys.stdin.readline()
import kernels

keys = np.empty(2, np.int64)
for dtype, bits, quantize in (("f4", "i4", kernels.quantize_float32), ("f8", "i8", kernels.quantize_float64)):
    values = np.linspace(0, 1, 10_007, dtype=dtype)
    plane = np.empty(values.size, np.uint8)
    total = quantize(values, values.view(bits), plane, keys)
    assert (plane == np.rint(values * 255).astype(np.uint8)).all()
    assert abs(total - values.sum(dtype="f8")) < 1e-6
    assert (keys == values[[0, -1]].view(bits)).all()
bits = np.arange(1_000, dtype=np.int16)
intensities = (np.arange(65_536) % 256).astype(np.uint8)
kernels.quantize_float16(bits, intensities, np.zeros(65_536, np.float32), plane[:1_000], keys)
assert (plane[:1_000] == (bits % 256).astype(np.uint8)).all()
table = np.arange(256, dtype=np.uint32) * 65_537
pixels = np.empty(1_000, np.uint32)
kernels.look_up(plane[:1_000], table, pixels)
assert (pixels == table[plane[:1_000]]).all()

for name, kernel in vars(kernels).items():
    if not hasattr(kernel, "stats"):
        continue
    hits, misses = (sum(counts.values()) for counts in (kernel.stats.cache_hits, kernel.stats.cache_misses))
    print(name, "none" if kernel.stats.cache_path is None else f"{hits}-{misses}")
"""

FULL_DISK = """
import errno
from numba.core import caching

def full(self, path):
    raise OSError(errno.ENOSPC, "No space left on device")

assert callable(caching.IndexDataCacheFile._open_for_write)
caching.IndexDataCacheFile._open_for_write = full
"""


class Place:
    """A copy of the kernels and a cache folder, for processes that use both."""

    def __init__(self, folder: Path, code: Path | None = None) -> None:
        self.cache = folder / "cache"
        self.code = code or folder / "code"
        if code is None:
            self.code.mkdir()
            shutil.copy(SOURCE, self.code / "kernels.py")
            (self.code / "program.py").write_text(PROGRAM)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "PYTHON", "COV"))},
            "NUMBA_CACHE_DIR": str(self.cache),
            "PYTHONWARNINGS": "error",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a process that imports the kernels, checks each and prints its cache hits and misses."""
        return subprocess.Popen(
            [sys.executable, "program.py", *arguments],
            cwd=self.code,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self) -> dict[str, str]:
        """Run one process to its end."""
        return finish(self.start())

    def files(self, suffix: str) -> list[Path]:
        """Return the cache's files: ``.nbi`` is an index, ``.nbc`` machine code."""
        return sorted(self.cache.rglob(f"*{suffix}"))


def finish(process: subprocess.Popen[str]) -> dict[str, str]:
    """Wait until the process succeeds and return the kernels and their cache counts."""
    out, err = process.communicate(input="go\n", timeout=100)
    assert (process.returncode, err) == (0, "")
    return dict(line.split() for line in out.splitlines() if line != "ready")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place with a full cache; tests must not change it."""
    place = Place(tmp_path_factory.mktemp("filled"))
    assert place.run() == dict.fromkeys(KERNELS, "0-1")
    return place


@pytest.fixture
def place(filled: Place, tmp_path: Path) -> Place:
    """The same code, with a copy of its filled cache."""
    copy = Place(tmp_path, filled.code)
    shutil.copytree(filled.cache, copy.cache)
    return copy


def test_a_second_process_loads_the_kernels_from_the_cache(filled: Place) -> None:
    assert len(filled.files(".nbi")) == len(filled.files(".nbc")) == len(KERNELS)
    assert filled.run() == dict.fromkeys(KERNELS, "1-0")


@pytest.mark.parametrize(
    ("suffix", "damage"), [(".nbi", "empty"), (".nbi", "garbage"), (".nbc", "torn"), (".nbc", "garbage")]
)
@pytest.mark.slow
def test_kernels_work_with_a_damaged_cache(place: Place, suffix: str, damage: str) -> None:
    files = place.files(suffix)
    assert len(files) == len(KERNELS)
    rubbish = np.random.default_rng(1).bytes(2**20)
    for file in files:
        whole = file.read_bytes()
        file.write_bytes({"empty": b"", "torn": whole[: len(whole) // 2], "garbage": rubbish[: len(whole)]}[damage])
    assert place.run() == dict.fromkeys(KERNELS, "none")


@pytest.mark.slow
def test_kernels_work_without_a_writable_cache_folder(tmp_path: Path) -> None:
    # Permissions do not stop root, but nobody can create a folder below a plain file.
    place = Place(tmp_path)
    obstacle = tmp_path / "obstacle"
    obstacle.touch()
    (place.code / "__pycache__").touch()
    place.environment |= {
        "NUMBA_CACHE_DIR": str(obstacle / "cache"),
        "HOME": str(obstacle / "home"),
        "XDG_CACHE_HOME": str(obstacle / "xdg"),
    }
    assert place.run() == dict.fromkeys(KERNELS, "none")


@pytest.mark.slow
def test_kernels_work_when_the_cache_disk_is_full(tmp_path: Path) -> None:
    place = Place(tmp_path)
    # numba's check of the folder succeeds; each file that it writes later fails.
    (place.code / "program.py").write_text(FULL_DISK + PROGRAM)
    assert place.run() == dict.fromkeys(KERNELS, "none")


@pytest.mark.slow
def test_concurrent_processes_can_fill_one_cache(tmp_path: Path) -> None:
    place = Place(tmp_path)
    processes = [place.start("together") for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    found = [finish(process) for process in processes]
    assert all(each.keys() == set(KERNELS) and set(each.values()) <= {"0-1", "1-0"} for each in found)
    assert place.run() == dict.fromkeys(KERNELS, "1-0")
