"""How many small maps a second does one run store if the store answers late? Does that cost more CPU time?

Maps of 14x14 go to a sink that answers after 30 ms: with the default concurrency, which grows, and with fixed ones. The
rounds of all contenders are interleaved.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench import sink
from bench.measure import parser, ratio_of, run_command
from bench.tables import Bench

if TYPE_CHECKING:
    from collections.abc import Sequence

_SIDE, _DELAY_MS = 14, 30.0
_COUNT, _QUICK_COUNT = 20_000, 500
_ROUNDS = 5
_COLUMNS = {
    "s": ".1f", "net maps/s": ",.0f", "net CPU ms/map": ".3f", "x first maps/s": ".2f", "x first CPU": ".3f",
    "connections": ",.0f", "peak MB": ",.0f",
}  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Run ``python -m bench latency``."""
    options = parser("latency", __doc__)
    options.add_argument(
        "--delay", type=float, default=_DELAY_MS, metavar="MS", help="the sink waits before each answer"
    )
    options.add_argument("--rounds", type=int, default=_ROUNDS, help="rounds of each contender")
    given = options.parse_args(arguments)
    count, rounds = (_QUICK_COUNT, 1) if given.quick else (_COUNT, given.rounds)
    contenders: dict[str, tuple[str, ...]] = {"the defaults": (), "--concurrency 32": ("--concurrency", "32")}
    figures: dict[str, dict[str, list[float]]] = {name: {} for name in contenders}
    with tempfile.TemporaryDirectory(prefix="async-maps-bench-") as name, sink.serve(given.delay / 1000) as server:
        place = Path(name)
        values = np.random.default_rng(1).random((count, _SIDE, _SIDE), np.float32)
        np.save(place / "maps.npy", values)
        np.save(place / "start.npy", values[:1])
        for _ in range(rounds):
            for contender, flags in contenders.items():
                found = figures[contender]
                manifest, environment = place / "m.sqlite", server.environment()
                start = run_command(place / "start.npy", manifest, *flags, environment=environment)
                before = server.counts()["connections"]
                whole = run_command(place / "maps.npy", manifest, *flags, environment=environment)
                connections = server.counts()["connections"] - before
                seconds, cpu_s = whole.wall_s - start.wall_s, whole.cpu_s - start.cpu_s
                found.setdefault("s", []).append(whole.wall_s)
                found.setdefault("net maps/s", []).append(count / seconds)
                found.setdefault("net CPU ms/map", []).append(1000 * cpu_s / count)
                found.setdefault("connections", []).append(connections)
                found.setdefault("peak MB", []).append(whole.peak_bytes / 1e6)
    bench = Bench("latency", given.quick)
    title = f"{count:,} maps of {_SIDE}x{_SIDE} to a sink that answers after {given.delay:.0f} ms, {rounds} rounds"
    table = bench.table(title, {"": "", **_COLUMNS})
    first = next(iter(figures.values()))
    for contender, found in figures.items():
        ratios = {
            "x first maps/s": ratio_of(found["net maps/s"], first["net maps/s"]),
            "x first CPU": ratio_of(found["net CPU ms/map"], first["net CPU ms/map"]),
        }
        table.add(**{"": contender, **found, **ratios})
    bench.publish()
