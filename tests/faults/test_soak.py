"""A million maps in one job that is killed: none is lost, none is uploaded twice, and memory stays flat."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.lib.format import open_memmap

import async_maps as am
from async_maps.manifest.manifest import Manifest
from tests.support.commands import done_rows, start
from tests.support.maps import decode
from tests.support.memory import MIB, pss
from tests.support.processes import worker_pids_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="asks Linux for the memory of a process"),
    pytest.mark.alone,
]

BLOCK = 10_000
SAMPLES = 500


def blocks(count: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Return the maps of 14x14 pixels in blocks, each with the number of its first map."""
    for first in range(0, count, BLOCK):
        yield first, np.random.default_rng(first).integers(0, 256, (BLOCK, 14, 14), np.uint8)


@contextmanager
def running(*command: object) -> Iterator[subprocess.Popen[str]]:
    """Run the command, and kill it at the end of a failed test."""
    process = start(*command)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(30_000, marks=pytest.mark.slow),
        pytest.param(1_000_000, marks=[pytest.mark.long, pytest.mark.timeout(3_000)]),
    ],
)
def test_a_large_job_killed_twice_is_completed_in_flat_memory(count: int, tmp_path: Path) -> None:
    source, out, manifest = tmp_path / "maps.npy", tmp_path / "out", str(tmp_path / "m.sqlite")
    stack = open_memmap(source, mode="w+", dtype=np.uint8, shape=(count, 14, 14))
    for first, arrays in blocks(count):
        stack[first : first + BLOCK] = arrays
    stack.flush()
    del stack
    command = ("run", source, out, "--manifest", manifest, "--progress", "none", "--key", "{index:07}.png")
    began = time.monotonic()

    for share in (0.1, 0.4):
        with running(*command) as process:
            while done_rows(manifest) < share * count:
                assert process.poll() is None, process.communicate()
                time.sleep(0.2)
            os.killpg(process.pid, signal.SIGKILL)
    recorded = done_rows(manifest)
    assert share * count <= recorded < count

    sizes: list[int] = []
    with running(*command) as process:
        while process.poll() is None:
            sizes.append(pss(process.pid) + sum(map(pss, worker_pids_of(process.pid))))
            time.sleep(0.2)
        printed, errors = process.communicate()
        assert process.returncode == 0, errors
    assert f"{count - recorded:,} uploaded, {recorded:,} skipped, 0 failed" in printed
    with Manifest(manifest, read_only=True) as opened:
        assert opened.counts() == {"done": count}
    # A killed process may leave the temporary files of the uploads in flight, at most 32, and nothing else.
    names = sorted(os.listdir(out))
    hidden = sum(name.startswith(".") for name in names)
    assert hidden <= 2 * 32
    are_exactly_the_overlays = names[hidden:] == [f"{index:07}.png" for index in range(count)]
    assert are_exactly_the_overlays, (len(names), names[hidden : hidden + 3], names[-3:])
    some = set(random.Random(1).sample(range(count), SAMPLES))  # noqa: S311  # seeded on purpose
    for first, arrays in blocks(count):
        for index in some.intersection(range(first, first + BLOCK)):
            expected = am.colorize_activation_map(arrays[index - first])
            assert np.array_equal(decode((out / f"{index:07}.png").read_bytes()), expected)
    # The first half has the start, and a busy machine takes long for that.
    fifth, half = len(sizes) // 5, len(sizes) // 2
    early, late = median(sizes[half : half + fifth]), median(sizes[-fifth:])
    print(  # noqa: T201  # README's
        f"{count:,} maps, 2 kills, {time.monotonic() - began:.0f} s: {(late - early) / MIB:+.1f} MiB, "
        f"{max(sizes) / MIB:.0f} MiB at the most"
    )
    assert late < early + 8 * MIB

    with running(*command) as process:
        assert f"0 uploaded, {count:,} skipped, 0 failed" in process.communicate()[0]
    # pytest keeps the folders of its last runs, and this is 4 GB.
    shutil.rmtree(out)
