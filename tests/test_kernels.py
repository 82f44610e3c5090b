from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from async_maps import kernels

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

KERNELS = ("quantise_float32", "quantise_float64", "quantise_float16", "look_up")
SOURCE = Path(kernels.__file__)

# Run beside a copy of kernels.py. Says how each kernel came to be: hits and misses of its cache, or "none" without one.
PROGRAM = """
import sys
import numpy as np
import numba

if "together" in sys.argv:
    print("ready", flush=True)
    sys.stdin.readline()
import kernels

for dtype, quantise in ((np.float32, kernels.quantise_float32), (np.float64, kernels.quantise_float64)):
    values = np.linspace(0, 1, 10_007, dtype=dtype)
    plane = np.empty(values.size, np.uint8)
    assert quantise(values, plane)
    assert (plane == np.rint(values * 255).astype(np.uint8)).all()
    values[5_000] = np.nan
    assert not quantise(values, plane)
bits = np.arange(1_000, dtype=np.uint16)
assert kernels.quantise_float16(bits, (np.arange(65_536) % 256).astype(np.uint16), plane[:1_000])
assert (plane[:1_000] == (bits % 256).astype(np.uint8)).all()
table = np.arange(256, dtype=np.uint32) * 65_537
pixels = np.empty(1_000, np.uint32)
kernels.look_up(plane[:1_000], table, pixels)
assert (pixels == table[plane[:1_000]]).all()

for name in ("quantise_float32", "quantise_float64", "quantise_float16", "look_up"):
    kernel = getattr(kernels, name)
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


# What they compute


@pytest.mark.parametrize(("dtype", "kernel"), [("f4", kernels.quantise_float32), ("f8", kernels.quantise_float64)])
def test_values_in_range_are_quantised_as_numpy_does_in_their_dtype(dtype: str, kernel: Callable[..., bool]) -> None:
    @settings(max_examples=60, deadline=None)
    @given(hnp.arrays(dtype, st.integers(0, 70), elements=st.floats(0, 1, width=8 * int(dtype[1]))))  # type: ignore[arg-type]
    def check(values: NDArray[Any]) -> None:
        plane = np.full(values.size, 99, np.uint8)
        assert kernel(values, plane) is True
        np.testing.assert_array_equal(plane, np.rint(values * 255).astype(np.uint8))

    check()


@pytest.mark.parametrize(("dtype", "kernel"), [("f4", kernels.quantise_float32), ("f8", kernels.quantise_float64)])
def test_values_out_of_range_are_told(dtype: str, kernel: Callable[..., bool]) -> None:
    @settings(max_examples=100, deadline=None)
    @given(hnp.arrays(dtype, st.integers(0, 20), elements=st.floats(width=8 * int(dtype[1]))))  # type: ignore[arg-type]
    def check(values: NDArray[Any]) -> None:
        good = bool(((values >= 0) & (values <= 1)).all())
        assert kernel(values, np.empty(values.size, np.uint8)) is good

    check()


def test_float16_bits_become_what_the_table_says() -> None:
    bits = np.random.default_rng(1).permutation(65_536).astype(np.uint16)
    table = np.random.default_rng(2).integers(0, 256, 65_536).astype(np.uint16)
    plane = np.empty(bits.size, np.uint8)
    assert kernels.quantise_float16(bits, table, plane) is True
    np.testing.assert_array_equal(plane, table[bits])


@pytest.mark.parametrize("position", [0, 1, 777, 65_535])
@pytest.mark.parametrize("others", [0, 255])
def test_one_float16_that_the_table_refuses_is_told(position: int, others: int) -> None:
    bits = np.arange(65_536, dtype=np.uint16)
    table = np.full(65_536, others, np.uint16)
    table[position] = 256
    plane = np.empty(65_535, np.uint8)
    assert kernels.quantise_float16(bits, table, np.empty(bits.size, np.uint8)) is False
    assert kernels.quantise_float16(np.delete(bits, position), table, plane) is True
    assert (plane == others).all()


def test_each_byte_is_looked_up() -> None:
    plane = np.random.default_rng(1).integers(0, 256, 10_007).astype(np.uint8)
    table = np.random.default_rng(2).integers(0, 2**32, 256).astype(np.uint32)
    pixels = np.zeros(plane.size, np.uint32)
    kernels.look_up(plane, table, pixels)
    np.testing.assert_array_equal(pixels, table[plane])


def test_inputs_may_be_read_only() -> None:
    values, table = np.linspace(0, 1, 9, dtype=np.float32), np.arange(256, dtype=np.uint32)
    values.flags.writeable = table.flags.writeable = False
    plane = np.empty(9, np.uint8)
    assert kernels.quantise_float32(values, plane)
    plane.flags.writeable = False
    pixels = np.empty(9, np.uint32)
    kernels.look_up(plane, table, pixels)
    np.testing.assert_array_equal(pixels, plane)


# How they are compiled


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_releases_the_interpreter_lock(name: str) -> None:
    assert getattr(kernels, name).targetoptions["nogil"] is True


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_has_one_signature_and_never_compiles_another(name: str) -> None:
    kernel = getattr(kernels, name)
    assert len(kernel.signatures) == 1
    with pytest.raises(TypeError, match="No matching definition"):
        kernel(*[np.zeros(4, np.int64)] * len(kernel.signatures[0]))
    assert len(kernel.signatures) == 1


def test_every_kernel_is_tested_here() -> None:
    found = {name for name in vars(kernels) if hasattr(getattr(kernels, name), "signatures")}
    assert found == set(KERNELS)


# Their cache on disk, which may be in any state


class Place:
    """A copy of the kernels, and processes that use it with a cache folder of their own."""

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
        """Start a process that imports the kernels, checks each and prints what its cache did."""
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
        """One such process, from start to end."""
        return finish(self.start())

    def files(self, suffix: str) -> list[Path]:
        """The cache's files: ``.nbi`` is an index, ``.nbc`` machine code."""
        return sorted(self.cache.rglob(f"*{suffix}"))


def finish(process: subprocess.Popen[str]) -> dict[str, str]:
    """What a process printed, once it has ended well."""
    out, err = process.communicate(input="go\n", timeout=100)
    assert (process.returncode, err) == (0, "")
    return dict(line.split() for line in out.splitlines() if line != "ready")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place whose cache has been filled; not to be changed."""
    place = Place(tmp_path_factory.mktemp("filled"))
    assert place.run() == dict.fromkeys(KERNELS, "0-1")
    return place


@pytest.fixture
def place(filled: Place, tmp_path: Path) -> Place:
    """The same code, with a copy of its filled cache."""
    copy = Place(tmp_path, filled.code)
    shutil.copytree(filled.cache, copy.cache)
    return copy


def test_kernels_come_from_the_cache_the_second_time(filled: Place) -> None:
    assert len(filled.files(".nbi")) == len(filled.files(".nbc")) == len(KERNELS)
    assert filled.run() == dict.fromkeys(KERNELS, "1-0")


@pytest.mark.parametrize(
    ("suffix", "damage"), [(".nbi", "empty"), (".nbi", "garbage"), (".nbc", "torn"), (".nbc", "garbage")]
)
def test_a_damaged_cache_is_no_hindrance(place: Place, suffix: str, damage: str) -> None:
    files = place.files(suffix)
    assert len(files) == len(KERNELS)
    rubbish = np.random.default_rng(1).bytes(2**20)
    for file in files:
        whole = file.read_bytes()
        file.write_bytes({"empty": b"", "torn": whole[: len(whole) // 2], "garbage": rubbish[: len(whole)]}[damage])
    assert place.run() == dict.fromkeys(KERNELS, "none")


def test_a_cache_that_no_file_can_be_put_into_is_no_hindrance(tmp_path: Path) -> None:
    # Permissions stop no root. Below a plain file, nobody makes a folder: so for all of numba's places.
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


def test_a_cache_that_fills_the_disk_is_no_hindrance(tmp_path: Path) -> None:
    place = Place(tmp_path)
    # The folder can be written to when numba tries it, and every file that it then writes fails.
    (place.code / "program.py").write_text(FULL_DISK + PROGRAM)
    assert place.run() == dict.fromkeys(KERNELS, "none")


def test_processes_that_fill_one_cache_at_once_all_get_the_right_kernels(tmp_path: Path) -> None:
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
