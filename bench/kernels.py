"""From values to intensities: our kernels with what they count, the same without, and NumPy, on one core.

"bare" is a kernel that only quantises, as it would be without statistics. NumPy's figure is for the same results.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from typing import TYPE_CHECKING

import numba
import numpy as np

from async_maps.quantise import quantise, summarise
from async_maps.ranges import parse_range
from bench.data import KINDS, make_map

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from numpy.typing import NDArray

_RANGES = ("unit", "0,1", "per-map", "percentile:1,99", "symmetric")


@numba.njit(nogil=True)
def _bare(values: Any, low: Any, factor: Any, plane: Any) -> None:
    for i in range(values.size):
        plane[i] = np.uint8(np.rint(min(max((values[i] - low) * factor, low), factor)))


def bare(values: NDArray[np.float32], plane: NDArray[np.uint8]) -> None:
    """Only quantise."""
    _bare(values.reshape(-1), np.float32(0), np.float32(255), plane.reshape(-1))


def with_numpy(values: NDArray[np.float32], value_range: str) -> None:
    """The same intensities and statistics, as NumPy users write them."""
    wide = values.astype(np.float64)
    low, high = 0.0, 1.0
    if value_range == "per-map":
        low, high = wide.min(), wide.max()
    elif value_range.startswith("percentile"):
        low, high = np.percentile(wide, [1, 99])
    elif value_range == "symmetric":
        high = np.abs(wide).max()
        low = -high
    plane = np.rint(np.clip((wide - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    _ = np.isfinite(wide).all(), wide.min(), wide.max(), wide.mean(), (plane >= 128).mean()
    shares = np.bincount(plane.ravel(), minlength=256) / plane.size
    _ = -(shares[shares > 0] * np.log2(shares[shares > 0])).sum()
    _ = plane.sum(0) @ np.arange(plane.shape[1]), plane.sum(1) @ np.arange(plane.shape[0])


def milliseconds(work: Callable[[], object], rounds: int) -> float:
    """The median of so many rounds, after one to warm up."""
    work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def main(arguments: Sequence[str]) -> None:
    """``python -m bench kernels``."""
    parser = argparse.ArgumentParser(prog="python -m bench kernels", description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="pixels a side (512)")
    parser.add_argument("--rounds", type=int, default=200, help="calls of each, of which the median counts (200)")
    options = parser.parse_args(arguments)
    figures: dict[str, Any] = {}
    for index, kind in enumerate(KINDS):
        values = make_map(index, options.size)
        plane = np.empty(values.shape, np.uint8)
        figures[kind] = {"bare": milliseconds(lambda: bare(values, plane), options.rounds)}  # noqa: B023  # called here
        for name in _RANGES:
            value_range = parse_range(name)
            measured = quantise(values, plane, value_range)
            figures[kind][name] = {
                "quantise": milliseconds(lambda: quantise(values, plane, value_range), options.rounds),  # noqa: B023
                "count": milliseconds(lambda: summarise(plane, measured), options.rounds),  # noqa: B023
                "numpy": milliseconds(lambda: with_numpy(values, name), max(options.rounds // 10, 3)),  # noqa: B023
            }
    print(json.dumps({"size": options.size, "cores": os.cpu_count(), "machine": platform.platform(), "ms": figures}))
    print(f"\nms a map of {options.size}x{options.size} float32, one core\n")
    print(f"{'':14}{'range':18}{'bare':>8}{'quantise':>10}{'count':>8}{'both':>8}{'NumPy':>8}{'ratio':>7}")
    for kind, found in figures.items():
        for name in _RANGES:
            ours = found[name]
            both = ours["quantise"] + ours["count"]
            print(
                f"{kind:14}{name:18}{found['bare']:8.3f}{ours['quantise']:10.3f}{ours['count']:8.3f}{both:8.3f}"
                f"{ours['numpy']:8.2f}{ours['numpy'] / both:7.1f}"
            )
