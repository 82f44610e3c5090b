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

from async_maps.render import kernels

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

KERNELS = (
    "quantize_float32", "quantize_float64", "quantize_float16",
    "scale_float32", "scale_float64", "count", "describe", "sketch", "look_up", "replace", "filter_rows",
)  # fmt: skip
SOURCE = Path(kernels.__file__)

needs_compiler = pytest.mark.skipif(
    not hasattr(kernels.count, "signatures"), reason="NUMBA_DISABLE_JIT is set: the kernels are plain Python"
)

# Run beside a copy of kernels.py. Says how each kernel came to be: hits and misses of its cache, or "none" without one.
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


# What they compute


def _key(value: float, dtype: str) -> int:
    """An integer that is ordered as floats are, minus zero before zero."""
    bits = int(np.array(value, dtype).view(f"i{dtype[1]}"))
    return bits if bits >= 0 else bits ^ (2 ** (8 * int(dtype[1]) - 1) - 1)


def _arrays(dtype: str, elements: st.SearchStrategy[float]) -> st.SearchStrategy[NDArray[Any]]:
    return hnp.arrays(dtype, st.sampled_from([1, 2, 69, 4095, 4096, 4097, 8200]), elements=elements)


@pytest.mark.parametrize(("dtype", "kernel"), [("f4", kernels.quantize_float32), ("f8", kernels.quantize_float64)])
def test_values_in_range_are_quantized_as_numpy_does_in_their_dtype(dtype: str, kernel: Callable[..., float]) -> None:
    @settings(max_examples=60, deadline=None)
    @given(_arrays(dtype, st.floats(0, 1, width=8 * int(dtype[1]))))  # type: ignore[arg-type]
    def check(values: NDArray[Any]) -> None:
        plane, keys = np.full(values.size, 99, np.uint8), np.empty(2, np.int64)
        total = kernel(values, values.view(f"i{dtype[1]}"), plane, keys)
        np.testing.assert_array_equal(plane, np.rint(values * 255).astype(np.uint8))
        assert total == pytest.approx(values.sum(dtype=np.float64), rel=1e-12)
        assert keys.tolist() == [_key(values.min(), dtype), _key(values.max(), dtype)] or 0 in values

    check()


@pytest.mark.parametrize(("dtype", "kernel"), [("f4", kernels.quantize_float32), ("f8", kernels.quantize_float64)])
def test_extremes_are_told_whatever_the_values_and_nan_lies_beyond_infinity(
    dtype: str, kernel: Callable[..., float]
) -> None:
    @settings(max_examples=100, deadline=None)
    @given(_arrays(dtype, st.floats(width=8 * int(dtype[1]))))  # type: ignore[arg-type]
    def check(values: NDArray[Any]) -> None:
        keys = np.empty(2, np.int64)
        kernel(values, values.view(f"i{dtype[1]}"), np.empty(0, np.uint8), keys)
        expected = sorted(_key(value, dtype) for value in values)
        assert keys.tolist() == [expected[0], expected[-1]]
        infinity = _key(np.inf, dtype)
        assert (keys[0] > _key(-np.inf, dtype) and keys[1] < infinity) == bool(np.isfinite(values).all())

    check()


def test_float16_bits_become_what_the_tables_say() -> None:
    bits = np.random.default_rng(1).permutation(65_536).astype(np.uint16).view(np.int16)
    table = np.random.default_rng(2).integers(0, 256, 65_536).astype(np.uint8)
    values = np.random.default_rng(3).random(65_536, np.float32)
    plane, keys = np.empty(bits.size, np.uint8), np.empty(2, np.int64)
    total = kernels.quantize_float16(bits, table, values, plane, keys)
    np.testing.assert_array_equal(plane, table[bits.view(np.uint16)])
    assert total == pytest.approx(values.sum(dtype=np.float64))
    assert keys.tolist() == [-(2**15), 2**15 - 1]


@pytest.mark.parametrize(("dtype", "kernel"), [("f4", kernels.scale_float32), ("f8", kernels.scale_float64)])
def test_values_are_scaled_and_clipped_in_float64(dtype: str, kernel: Callable[..., None]) -> None:
    @settings(max_examples=60, deadline=None)
    @given(_arrays(dtype, st.floats(-4, 4, width=8 * int(dtype[1]))), st.floats(-3, 0), st.floats(0.1, 3))  # type: ignore[arg-type]
    def check(values: NDArray[Any], low: float, high: float) -> None:
        plane, factor = np.empty(values.size, np.uint8), 255 / (high - low)
        kernel(values, 0.5, low * 0.5, factor * 2, plane)
        wide = values.astype(np.float64)
        np.testing.assert_array_equal(plane, np.rint(np.clip((wide * 0.5 - low * 0.5) * (factor * 2), 0, 255)))

    check()


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (3, 4), (17, 33)])
def test_intensities_are_counted_added_up_and_replaced(shape: tuple[int, int]) -> None:
    plane = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    histogram = np.ones(256, np.int64)
    columns, rows = np.zeros(shape[1], np.uint32), np.full(shape[0], 9, np.uint32)
    kernels.count(plane.reshape(-1), histogram, columns, rows)
    np.testing.assert_array_equal(histogram, 1 + np.bincount(plane.reshape(-1), minlength=256))
    np.testing.assert_array_equal(columns, plane.sum(0))
    np.testing.assert_array_equal(rows, plane.sum(1))
    table = np.random.default_rng(2).integers(0, 256, 256).astype(np.uint8)
    replaced = plane.reshape(-1).copy()
    kernels.replace(table, replaced)
    np.testing.assert_array_equal(replaced, table[plane.reshape(-1)])


def test_a_histogram_and_sums_are_described_as_numpy_does() -> None:
    plane = np.random.default_rng(1).integers(0, 256, (17, 33))
    histogram = np.bincount(plane.reshape(-1), minlength=256)
    found = np.empty(5)
    kernels.describe(histogram, plane.sum(0).astype(np.uint32), plane.sum(1).astype(np.uint32), found)
    shares = histogram[histogram > 0] / plane.size
    center = [(plane.sum(axis) * np.arange(plane.shape[1 - axis])).sum() / plane.sum() for axis in (0, 1)]
    expected = [plane.size, (plane >= 128).sum(), -(shares * np.log2(shares)).sum(), *center]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    kernels.describe(np.zeros(256, np.int64), np.zeros(2, np.uint32), np.zeros(3, np.uint32), found)
    np.testing.assert_array_equal(found, [0, 0, 0, np.nan, np.nan])


def test_values_are_counted_by_the_leading_bits_of_their_keys() -> None:
    values = np.array([-np.finfo(float).max, -2.0, -1.5, -1.0, -0.0, 0.0, 1e-320, 1.0, 1.5, 2.0, np.finfo(float).max])
    counts = np.zeros(2**12, np.int64)
    kernels.sketch(values.view(np.int64), 52, counts)
    # Sign and exponent only: 1.0 and 1.5 share a bin.
    assert counts[counts > 0].tolist() == [1, 1, 2, 1, 2, 2, 1, 1]
    assert counts[2**11] == 2


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
    kernels.quantize_float32(values, values.view(np.int32), plane, np.empty(2, np.int64))
    plane.flags.writeable = False
    pixels = np.empty(9, np.uint32)
    kernels.look_up(plane, table, pixels)
    np.testing.assert_array_equal(pixels, plane)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (40, 33)])
@pytest.mark.parametrize("noisy", [True, False])
def test_rows_are_filtered_up_unless_they_are_noise(shape: tuple[int, int], noisy: bool) -> None:
    rng = np.random.default_rng(1)
    # Noise of few values: differences of it have more. A ramp has the same difference throughout.
    ramp = (np.arange(shape[0])[:, None] * 3 + np.arange(shape[1])) % 256
    rows = (rng.integers(0, 9, shape) if noisy else ramp).astype(np.uint8)
    lines = np.full((shape[0], shape[1] + 1), 99, np.uint8)
    kernels.filter_rows(rows.reshape(-1), shape[1], lines.reshape(-1))
    none = noisy and shape[1] > 1 and shape[0] > 1
    assert set(lines[:, 0].tolist()) == ({0} if none else {2}) or min(shape) == 1
    unfiltered = np.cumsum(lines[:, 1:], 0, np.uint8) if lines[0, 0] else lines[:, 1:]
    np.testing.assert_array_equal(unfiltered, rows)


# How they are compiled


@needs_compiler
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_releases_the_interpreter_lock(name: str) -> None:
    assert getattr(kernels, name).targetoptions["nogil"] is True


@needs_compiler
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_has_one_signature_and_never_compiles_another(name: str) -> None:
    kernel = getattr(kernels, name)
    assert len(kernel.signatures) == 1
    with pytest.raises(TypeError, match="No matching definition"):
        kernel(*[np.zeros(4, np.int64)] * len(kernel.signatures[0]))
    assert len(kernel.signatures) == 1


@needs_compiler
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
@pytest.mark.slow
def test_a_damaged_cache_is_no_hindrance(place: Place, suffix: str, damage: str) -> None:
    files = place.files(suffix)
    assert len(files) == len(KERNELS)
    rubbish = np.random.default_rng(1).bytes(2**20)
    for file in files:
        whole = file.read_bytes()
        file.write_bytes({"empty": b"", "torn": whole[: len(whole) // 2], "garbage": rubbish[: len(whole)]}[damage])
    assert place.run() == dict.fromkeys(KERNELS, "none")


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_cache_that_fills_the_disk_is_no_hindrance(tmp_path: Path) -> None:
    place = Place(tmp_path)
    # The folder can be written to when numba tries it, and every file that it then writes fails.
    (place.code / "program.py").write_text(FULL_DISK + PROGRAM)
    assert place.run() == dict.fromkeys(KERNELS, "none")


@pytest.mark.slow
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
