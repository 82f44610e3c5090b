"""What does a PNG cost in time and bytes, and do two threads make twice as many?

Each encoder gets the pixels in its own layout and makes the file in memory. The peers' defaults are those that scripts
use. Level 1 is Pillow's fastest. The second table compares our palette and compact PNGs with ISA-L at level 1 over the
same scanlines, in CPU time, for each kind of map.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import async_maps as am
from async_maps.render.colorize import look_up, replace
from async_maps.render.png import deflate, write_palette, write_rgba
from async_maps.render.quantize import quantize
from async_maps.render.scanlines import room_bytes, scanline_bytes, write_scanlines
from async_maps.workers.worker import Recipe
from bench import peers
from bench.data import KINDS, make_map, upsampled_cam
from bench.measure import interleaved, mean_of, parser, ratio_of
from bench.tables import Bench

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

_SIZE = 512
_THREADS = (1, 2)
_SIDES = ("ours", "ISA-L")
_PALETTE, _COMPACT, _RGBA = "async_maps palette", "async_maps compact", "async_maps rgba"
_PILLOW, _OPENCV = "Pillow RGBA, default", "OpenCV imencode RGBA, default"


def ours(
    plane: NDArray[np.uint8], pixels: NDArray[np.uint8], *, compress: bool = True
) -> dict[str, Callable[[], bytes]]:
    """Return our three kinds of PNG, from intensities and from RGBA pixels; all by ISA-L unless ``compress`` is set."""
    recipe = Recipe(am.Settings().table(), "compact")
    collapsed = plane.copy()

    def compact() -> bytes:
        replace(collapsed, recipe.collapse)
        return palette(collapsed)

    def palette(intensities: NDArray[np.uint8]) -> bytes:
        return write_palette(stream_of(intensities, compress=compress), plane.shape, recipe.table)

    return {
        _PALETTE: lambda: palette(plane),
        _COMPACT: compact,
        _RGBA: lambda: write_rgba(stream_of(pixels), plane.shape),
    }


def stream_of(pixels: NDArray[np.uint8], *, compress: bool = True) -> tuple[bytes | memoryview, ...]:
    """Return the zlib stream of an image, by our kernels where that is worthwhile, or by ISA-L."""
    size = *pixels.shape[:2], pixels[0, 0].size
    room = np.empty(room_bytes(*size), np.uint8)
    stream = write_scanlines(pixels, room, compress=compress)
    return (room[:stream].data,) if stream else deflate(room[: scanline_bytes(*size)], 1)


def contenders(values: NDArray[np.float32]) -> dict[str, Callable[[], bytes]]:
    """Return our encoders and the others for one map."""
    table = am.Settings().table()
    plane, pixels = _rendered(values)
    bgra = np.ascontiguousarray(pixels[..., [2, 1, 0, 3]])
    return {
        **ours(plane, pixels),
        _PILLOW: lambda: am.encode_png(pixels, "RGBA").getvalue(),
        "Pillow RGBA, level 1": lambda: peers.pillow_rgba_png(pixels, 1),
        "Pillow P and tRNS, level 1": lambda: peers.pillow_palette_png(plane, table, 1),
        _OPENCV: lambda: peers.opencv_png(bgra),
    }


def _rendered(values: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the intensities and the RGBA pixels of a map."""
    plane, pixels = np.empty(values.shape, np.uint8), np.empty((*values.shape, 4), np.uint8)
    quantize(values, plane)
    look_up(plane, am.Settings().table(), pixels)
    return plane, pixels


def against_peers(bench: Bench, rounds: int) -> None:
    """Make the first table: time and bytes for each kind of map, and their means."""
    columns = {"": "", **{f"{kind}, ms": ".2f" for kind in KINDS}, "mean ms": ".2f", "x palette": ".1f",
               "x rgba": ".1f", **{f"{kind}, KB": ",.0f" for kind in KINDS}, "mean KB": ",.0f",
               "bytes / Pillow's": ".2f"}  # fmt: skip
    table = bench.table(f"A PNG of {_SIZE}x{_SIZE} pixels, one thread, {rounds} rounds", columns)
    works = {kind: contenders(make_map(index, _SIZE)) for index, kind in enumerate(KINDS)}
    sizes = {kind: {name: len(work()) / 1000 for name, work in found.items()} for kind, found in works.items()}
    times = {kind: interleaved(found, rounds) for kind, found in works.items()}
    names = list(works[KINDS[0]])
    mean_ms = {name: mean_of([times[kind][name] for kind in KINDS]) for name in names}
    mean_kb = {name: sum(sizes[kind][name] for kind in KINDS) / len(KINDS) for name in names}
    for name in names:
        table.add(**{
            "": name,
            **{f"{kind}, ms": times[kind][name] for kind in KINDS},
            **{f"{kind}, KB": sizes[kind][name] for kind in KINDS},
            "mean ms": mean_ms[name],
            "mean KB": mean_kb[name],
            "x palette": ratio_of(mean_ms[name], mean_ms[_PALETTE]),
            "x rgba": ratio_of(mean_ms[name], mean_ms[_RGBA]),
            "bytes / Pillow's": mean_kb[name] / mean_kb[_PILLOW],
        })  # fmt: skip
    bench.publish()


def against_isal(bench: Bench, rounds: int, maps: int) -> None:
    """Make the second table: time and bytes of several maps of each kind, and of the kinds of the mix together."""
    columns = {"": "", "PNG": "", "ms": ".3f", "ISA-L ms": ".3f", "x ISA-L's time": ".2f", "KB": ",.1f",
               "ISA-L KB": ",.1f", "x ISA-L's bytes": ".3f", "x of one map": ".3f"}  # fmt: skip
    title = f"PNGs beside ISA-L level 1, {maps} maps of {_SIZE}x{_SIZE} of each kind, CPU time, {rounds} rounds"
    table = bench.table(title, columns)
    kinds: dict[str, list[NDArray[np.float32]]] = {kind: [] for kind in KINDS}
    for index in range(maps * len(KINDS)):
        kinds[KINDS[index % len(KINDS)]].append(make_map(index, _SIZE))
    upsampled = [upsampled_cam(index) for index in range(maps)]
    for name in (_PALETTE, _COMPACT):
        found = {kind: [_beside_isal(values, name, rounds) for values in several] for kind, several in kinds.items()}
        found["mean of these"] = [pair for several in found.values() for pair in several]
        found["cam of 14x14, upsampled to 224x224"] = [_beside_isal(values, name, rounds) for values in upsampled]
        for kind, pairs in found.items():
            ours_ms, isal_ms = (mean_of([pair.times[side] for pair in pairs]) for side in _SIDES)
            ours_kb, isal_kb = (fmean(pair.kilobytes[side] for pair in pairs) for side in _SIDES)
            table.add(**{
                "": kind, "PNG": name.split()[-1],
                "ms": ours_ms, "ISA-L ms": isal_ms, "x ISA-L's time": ratio_of(ours_ms, isal_ms),
                "KB": ours_kb, "ISA-L KB": isal_kb, "x ISA-L's bytes": ours_kb / isal_kb,
                "x of one map": max(pair.kilobytes["ours"] / pair.kilobytes["ISA-L"] for pair in pairs),
            })  # fmt: skip
    bench.publish()


class _Pair(NamedTuple):
    """The milliseconds of all rounds and the kilobytes of a map's PNG, by our writer and by ISA-L."""

    times: dict[str, list[float]]
    kilobytes: dict[str, float]


def _beside_isal(values: NDArray[np.float32], name: str, rounds: int) -> _Pair:
    plane, pixels = _rendered(values)
    works = {side: ours(plane, pixels, compress=side != "ISA-L")[name] for side in _SIDES}
    return _Pair(
        interleaved(works, rounds, time.thread_time), {side: len(work()) / 1000 for side, work in works.items()}
    )


def in_threads(bench: Bench, rounds: int, seconds: float) -> None:
    """Make the third table: whether threads scale, or the interpreter lock stops them."""
    columns = {"": "", **{f"PNG/s, threads: {count}": ",.0f" for count in _THREADS}, "x one": ".2f"}
    table = bench.table(f"PNGs of {_SIZE}x{_SIZE} in threads, kinds by turns, {rounds} rounds", columns)
    works = [contenders(make_map(index, _SIZE)) for index in range(len(KINDS))]
    rates: dict[str, dict[int, list[float]]] = {
        name: {count: [] for count in _THREADS} for name in (_PALETTE, _COMPACT, _RGBA, _OPENCV)
    }
    for _ in range(rounds):
        for name, by_count in rates.items():
            for count, found in by_count.items():
                found.append(_rate([work[name] for work in works], count, seconds))
    for name, by_count in rates.items():
        one, two = (by_count[count] for count in _THREADS)
        table.add(**{"": name, **{f"PNG/s, threads: {count}": by_count[count] for count in _THREADS},
                     "x one": ratio_of(two, one)})  # fmt: skip
    bench.publish()


def _rate(works: Sequence[Callable[[], bytes]], threads: int, seconds: float) -> float:
    """Return the calls per second of all threads together."""
    deadline = time.perf_counter() + seconds

    def one(_: int) -> float:
        done, started = 0, time.perf_counter()
        while time.perf_counter() < deadline:
            works[done % len(works)]()
            done += 1
        return done / (time.perf_counter() - started)

    with ThreadPoolExecutor(threads) as executor:
        return sum(executor.map(one, range(threads)))


def main(arguments: Sequence[str]) -> None:
    """Run ``python -m bench encode``."""
    options = parser("encode", __doc__).parse_args(arguments)
    bench = Bench("encode", options.quick)
    against_peers(bench, 1 if options.quick else 5)
    against_isal(bench, *((1, 1) if options.quick else (5, 4)))
    in_threads(bench, *((1, 0.1) if options.quick else (4, 0.3)))
