"""What do a map's intensities, statistics and colors cost, compared with a copy of its bytes?

The second table has every kind of range: our kernel with statistics, our kernel that only quantizes ("bare"), and NumPy
for the same results. Each uses one thread, because other maps use the other cores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numba
import numpy as np

import async_maps as am
from async_maps.render.colorize import look_up
from async_maps.render.quantize import quantize
from async_maps.render.ranges import parse_range
from async_maps.render.statistics import summarize
from bench import peers
from bench.data import KINDS, make_map
from bench.measure import interleaved, mean_of, parser, ratio_of
from bench.tables import Bench

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

_LIMIT = "np.copyto of the input"
_SIZES = (224, 512, 1024)
_MAIN_SIZE = 512
_RANGES = ("unit", "0,1", "per-map", "percentile:1,99", "symmetric")
_KOLENA_SIZE = 48


class _Work(NamedTuple):
    """The work of one contender with a map.

    Attributes:
        task: the result.
        call: the function to measure.
        share: the share of the map's pixels that it processes; the time is divided by it.
    """

    task: str
    call: Callable[[], object]
    share: float = 1.0


@numba.njit(nogil=True)
def _bare(values: Any, low: Any, factor: Any, plane: Any) -> None:
    for i in range(values.size):
        plane[i] = np.uint8(np.rint(min(max((values[i] - low) * factor, low), factor)))


def bare(values: NDArray[np.float32], plane: NDArray[np.uint8]) -> None:
    """Quantize without statistics."""
    _bare(values.reshape(-1), np.float32(0), np.float32(255), plane.reshape(-1))


def with_numpy(values: NDArray[np.float32], value_range: str) -> None:
    """Compute the same intensities and statistics, as NumPy users write them."""
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


def contenders(values: NDArray[np.float32]) -> dict[str, _Work]:
    """Return our kernels and the others for one map."""
    import cv2
    from matplotlib import colormaps

    cv2.setNumThreads(1)
    jet = colormaps["jet"]
    table, copy = am.Settings().table(), np.empty_like(values)
    plane, pixels = np.empty(values.shape, np.uint8), np.empty((*values.shape, 4), np.uint8)
    quantize(values, plane)
    own_plane = plane.copy()

    def quantized_and_looked_up() -> None:
        quantize(values, own_plane)
        look_up(own_plane, table, pixels)

    found = {
        _LIMIT: _Work("copy", lambda: np.copyto(copy, values)),
        "async_maps quantize": _Work("intensities", lambda: quantize(values, own_plane)),
        "NumPy rint, astype": _Work("intensities", lambda: peers.numpy_intensities(values)),
        "async_maps quantize, summarize": _Work(
            "... and statistics", lambda: summarize(own_plane, quantize(values, own_plane))
        ),
        "NumPy, the same": _Work("... and statistics", lambda: with_numpy(values, "unit")),
        "async_maps look_up": _Work("bytes to RGBA", lambda: look_up(plane, table, pixels)),
        "NumPy table[plane]": _Work("bytes to RGBA", lambda: table[plane]),
        "OpenCV applyColorMap": _Work("bytes to BGR", lambda: cv2.applyColorMap(plane, cv2.COLORMAP_JET)),
        "OpenCV applyColorMap, cvtColor, alpha": _Work("bytes to BGRA", lambda: peers.opencv_bgra(plane)),
        "matplotlib jet(bytes=True)": _Work("bytes to RGBA", lambda: jet(plane, bytes=True)),
        "async_maps quantize, look_up": _Work("floats to RGBA", quantized_and_looked_up),
        "async_maps colorize_activation_map": _Work("floats to RGBA", lambda: am.colorize_activation_map(values)),
    }
    if peers.HAS_KOLENA:
        from kolena.workflow.visualization import colorize_activation_map

        small = make_map(0, _KOLENA_SIZE)
        found[f"Kolena colorize_activation_map ({_KOLENA_SIZE}x{_KOLENA_SIZE}, times pixels)"] = _Work(
            "floats to RGBA", lambda: colorize_activation_map(small), small.size / values.size
        )
    return found


def against_peers(bench: Bench, rounds: int) -> None:
    """Make the first table: milliseconds at each size, and the ratio to a copy."""
    times: dict[int, dict[str, list[float]]] = {}
    tasks: dict[str, str] = {}
    for size in _SIZES:
        by_kind = []
        for index in range(len(KINDS)):
            works = contenders(make_map(index, size))
            tasks = {name: work.task for name, work in works.items()}
            measured = interleaved({name: work.call for name, work in works.items()}, rounds)
            by_kind.append({
                name: [time / work.share for time in measured[name]] for name, work in works.items()
            })  # fmt: skip
        times[size] = {name: mean_of([kind[name] for kind in by_kind]) for name in tasks}
    columns = {"": "", "makes": ""} | {f"ms at {size}": ".3f" for size in _SIZES} | {"x copyto": ".1f"}
    table = bench.table(f"A float32 map, mean of {len(KINDS)} kinds, one thread, {rounds} rounds", columns)
    limit = times[_MAIN_SIZE][_LIMIT]
    for name, task in tasks.items():
        table.add(
            **{"": name, "makes": task},
            **{f"ms at {size}": times[size][name] for size in _SIZES},
            **{"x copyto": ratio_of(times[_MAIN_SIZE][name], limit)},
        )
    bench.publish()


def each_range(bench: Bench, rounds: int) -> None:
    """Make the second table: every kind of map and of range."""
    columns = {"": "", "range": "", "bare": ".3f", "quantize": ".3f", "count": ".3f", "both": ".3f", "NumPy": ".2f",
               "times": ".1f"}  # fmt: skip
    table = bench.table(f"ms for a {_MAIN_SIZE}x{_MAIN_SIZE} float32 map under each range, {rounds} rounds", columns)
    for index, kind in enumerate(KINDS):
        values = make_map(index, _MAIN_SIZE)
        for name in _RANGES:
            ours = _in_range(values, name, rounds)
            both = [quantized + counted for quantized, counted in zip(ours["quantize"], ours["count"], strict=True)]
            table.add(**{"": kind, "range": name, **ours, "both": both, "times": ratio_of(ours["NumPy"], both)})
    bench.publish()


def _in_range(values: NDArray[np.float32], name: str, rounds: int) -> dict[str, list[float]]:
    plane, value_range = np.empty(values.shape, np.uint8), parse_range(name)
    measured = quantize(values, plane, value_range)
    works: dict[str, Callable[[], object]] = {
        "bare": lambda: bare(values, plane),
        "quantize": lambda: quantize(values, plane, value_range),
        "count": lambda: summarize(plane, measured),
        "NumPy": lambda: with_numpy(values, name),
    }
    return interleaved(works, rounds)


def main(arguments: Sequence[str]) -> None:
    """Run ``python -m bench kernel``."""
    options = parser("kernel", __doc__).parse_args(arguments)
    bench = Bench("kernel", options.quick)
    against_peers(bench, 2 if options.quick else 5)
    each_range(bench, 2 if options.quick else 9)
