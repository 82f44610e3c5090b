"""The lanes of ``python -m bench scale``: rate, CPU time of a map, and the part of the parent, which is the ceiling.

Each contender keeps its pipeline and its lanes open, so that no start is measured, and the rounds are interleaved.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import async_maps as am
from async_maps.concurrency.loop import fastest_loop
from bench import sink
from bench.measure import BUCKET, by_turns, cpu_s, ratio_of, take_turns

if TYPE_CHECKING:
    from bench.measure import Figures
    from bench.tables import Bench

LANES = (1, 2, 4)
_SIDE = 14
_COUNT, _QUICK_COUNT = 20_000, 500
_ROUNDS = 5
_COLUMNS = {
    "lanes": "", "maps/s": ",.0f", "x one": ".2f", "CPU ms/map": ".3f", "CPU x one": ".3f", "parent CPU ms/map": ".3f",
    "its loop ms/map": ".3f", "ceiling maps/s": ",.0f",
}  # fmt: skip


def add_table(bench: Bench, delay_s: float) -> None:
    """Measure lanes with a sink that answers after a delay, and print the table."""
    count, rounds = (_QUICK_COUNT, 1) if bench.quick else (_COUNT, _ROUNDS)
    with tempfile.TemporaryDirectory(prefix="async-maps-bench-") as name, sink.serve(delay_s) as server:
        np.save(Path(name) / "maps.npy", np.random.default_rng(1).random((count, _SIDE, _SIDE), np.float32))
        contenders = {str(lanes): ("-m", "bench.lanes", str(lanes), name) for lanes in LANES}
        found = by_turns(contenders, rounds, server.environment())
    first = found[str(LANES[0])]
    title = (
        f"Lanes: {count:,} maps of {_SIDE}x{_SIDE} in one .npy, with a manifest, to a sink that answers after "
        f"{1000 * delay_s:.0f} ms, {rounds} rounds"
    )
    table = bench.table(title, _COLUMNS)
    for lanes, figures in found.items():
        table.add(**{
            "lanes": lanes,
            **figures,
            "x one": ratio_of(figures["maps/s"], first["maps/s"]),
            "CPU x one": ratio_of(figures["CPU ms/map"], first["CPU ms/map"]),
            "ceiling maps/s": [1000 / ms for ms in figures["parent CPU ms/map"]],
        })  # fmt: skip
    bench.publish()


async def _contender(lanes: int, place: Path) -> None:
    settings = am.Settings(processes=lanes, workers=lanes)
    async with am.Pipeline(f"s3://{BUCKET}/run", settings=settings) as pipeline:
        await take_turns(partial(_turn, pipeline, place, f"{lanes}.sqlite"))


async def _turn(pipeline: am.Pipeline, place: Path, name: str) -> Figures:
    manifest = place / name
    manifest.unlink(missing_ok=True)
    # The first run starts the lanes.
    await pipeline.run(place / "maps.npy", manifest=manifest, limit=LANES[-1])
    started, all_s, parent_s, loop_s = time.perf_counter(), cpu_s(), time.process_time(), time.thread_time()
    report = await pipeline.run(place / "maps.npy", manifest=manifest)
    count = report.uploaded
    return {
        "maps/s": count / (time.perf_counter() - started),
        "CPU ms/map": 1000 * (cpu_s() - all_s) / count,
        "parent CPU ms/map": 1000 * (time.process_time() - parent_s) / count,
        "its loop ms/map": 1000 * (time.thread_time() - loop_s) / count,
    }


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        runner.run(_contender(int(sys.argv[1]), Path(sys.argv[2])))
