"""The memory of all processes does not grow with the size of a stack."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from numpy.lib.format import open_memmap

import async_maps as am
from tests.support.memory import MIB, held

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="asks Linux for the memory of a process"),
    pytest.mark.alone,
]


def sparse_npy(folder: Path, count: int) -> Path:
    """Write a sparse file of 262 KB for each map."""
    path = folder / "stack.npy"
    stack = open_memmap(path, mode="w+", dtype=np.float32, shape=(count, 256, 256))
    stack[::1000, ::8, ::8] = np.random.default_rng(0).random((count // 1000, 32, 32))
    stack.flush()
    return path


def one_zarr_array(folder: Path, count: int) -> Path:
    """Write one array of all maps with 64 maps in each chunk."""
    path = folder / "stack.zarr"
    array: Any = zarr.create_array(path, shape=(count, 64, 64), chunks=(64, 64, 64), dtype="f4")
    for start in range(0, count, 64):
        block = np.random.default_rng(start).random((min(64, count - start), 64, 64), np.float32)
        array[start : start + 64] = block
    return path


@pytest.mark.parametrize(
    "count", [pytest.param(6_000, marks=pytest.mark.slow), pytest.param(20_000, marks=pytest.mark.long)]
)
@pytest.mark.parametrize("make", [sparse_npy, one_zarr_array])
@pytest.mark.parametrize("value_range", ["unit", "dataset:1,99"])
def test_memory_stays_flat_through_a_large_stack(
    make: Callable[[Path, int], Path], value_range: str, count: int, tmp_path: Path
) -> None:
    source = make(tmp_path, count)
    samples: list[tuple[int, int]] = []
    # Held by earlier tests and the server that they started.
    before = held()

    def sample(progress: am.Progress) -> None:
        samples.append((progress.report.uploaded, held() - before))

    report = am.run(
        source,
        tmp_path / "out",
        settings=am.Settings(range=value_range, workers=2),
        manifest=tmp_path / "m",
        on_progress=sample,
    )
    assert (report.uploaded, report.failed) == (count, 0)
    early = max(size for uploaded, size in samples if uploaded < count * 0.3)
    late = max(size for uploaded, size in samples if uploaded > count * 0.7)
    print(f"{source.name}, {value_range}: {early / MIB:.0f} MiB at first, {late / MIB:.0f} at the end")  # noqa: T201  # README's
    assert late < early + 50 * MIB
    assert late < 400 * MIB
