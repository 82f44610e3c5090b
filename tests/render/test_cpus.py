"""Other CPUs, which QEMU emulates, make the same bitmaps and the same PNGs: the parts of a plan run on any machine."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from async_maps.render.kernel_cache import baseline_cpu
from async_maps.render.warm import warm_cache

if TYPE_CHECKING:
    from pathlib import Path

QEMU = shutil.which("qemu-x86_64")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(QEMU is None or platform.machine() != "x86_64", reason="needs qemu-x86_64, of qemu-user"),
]
# Prints the CRC-32 of the scanlines of each map, and of its PNG at each level; then how the kernels were loaded.
PROGRAM = """
import json, sys, zlib
sys.path[:] = json.loads(sys.argv[1])
import numpy as np
from async_maps.render import deflate_kernels, kernels
from async_maps.render.colorize import look_up
from async_maps.render.kernel_cache import loaded
from async_maps.render.png import deflate, write_palette, write_rgba
from async_maps.render.quantize import quantize
from async_maps.render.ranges import parse_range
from async_maps.render.scanlines import room_bytes, scanline_bytes, write_scanlines

table = np.random.default_rng(0).integers(0, 256, (256, 4), np.uint8)
for shape in ((1, 1), (3, 5), (14, 14), (63, 70), (224, 224), (400, 301)):
    y, x = (np.arange(n) / n for n in shape)
    smooth = np.outer(4 * y * (1 - y), x * x)
    noise = np.random.default_rng(shape[0]).random(shape)
    for values in (smooth, noise):
        for dtype, given in (("f2", "unit"), ("f4", "unit"), ("f8", "unit"), ("f4", "0.1,0.7"), ("f8", "per-map")):
            plane, pixels = np.empty(shape, np.uint8), np.empty((*shape, 4), np.uint8)
            quantize(values.astype(dtype), plane, parse_range(given))
            look_up(plane, table, pixels)
            for image in (plane, pixels):
                room = np.empty(room_bytes(*shape, image[0, 0].size), np.uint8)
                scanlines = room[: scanline_bytes(*shape, image[0, 0].size)]
                write_scanlines(image, room)
                print(shape, dtype, given, f"{zlib.crc32(scanlines):08x}", end="")
                for level in range(3):
                    stream = deflate(scanlines, level)
                    png = write_palette(stream, shape, table) if image is plane else write_rgba(stream, shape)
                    print(f" {zlib.crc32(png):08x}", end="")
                size = write_scanlines(image, room, compress=True)
                print(f" {size} {zlib.crc32(room[:size]):08x}", end="")
                print()
print(loaded([kernels, deflate_kernels]).compiled)
"""


def encoded(*emulator: str) -> list[str]:
    """Run the program on this CPU or an emulated one. The kernels must be in the cache: to compile takes minutes."""
    command = [*emulator, os.path.realpath(sys.executable), "-c", PROGRAM, json.dumps(sys.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *lines, compiled = done.stdout.splitlines()
    assert (len(lines), compiled) == (100, "0")
    return lines


def test_emulated_cpus_make_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "")
    found = {}
    # One without AVX and one with AVX2: both numba and ISA-L have other code for them.
    for emulated, cpu in (("Nehalem", "nehalem"), ("Haswell", baseline_cpu())):
        warm_cache(cpu)
        monkeypatch.setenv("NUMBA_CPU_NAME", cpu)
        found[emulated] = encoded(str(QEMU), "-cpu", emulated)
    assert found["Nehalem"] == found["Haswell"] == encoded()
