"""How many small maps a second does one run store if the store answers late? Does that cost more CPU time?

Maps of 14x14 go to a sink that answers after 30 ms: with the default concurrency, which grows, and with fixed ones.
``--against FOLDER`` runs the code of another checkout too; the rounds of all contenders are interleaved.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench import sink
from bench.measure import BUCKET, Usage, parser, ratio_of, run_process
from bench.tables import Bench

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SIDE, _ANSWER_S = 14, 0.03
_COUNT, _QUICK_COUNT = 20_000, 500
_ROUNDS = 5
_COLUMNS = {
    "s": ".1f", "net maps/s": ",.0f", "net CPU ms/map": ".3f", "x first maps/s": ".2f", "x first CPU": ".3f",
    "connections": ",.0f", "peak MB": ",.0f",
}  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Run ``python -m bench latency``."""
    options = parser("latency", __doc__)
    options.add_argument("--against", type=Path, help="the folder of another checkout")
    options.add_argument("--delay", type=float, default=_ANSWER_S, help="seconds before each answer of the sink")
    options.add_argument("--rounds", type=int, default=_ROUNDS, help="rounds of each contender")
    given = options.parse_args(arguments)
    count, rounds = (_QUICK_COUNT, 1) if given.quick else (_COUNT, given.rounds)
    here = Path.cwd()
    contenders = {"the defaults": (here, ()), "--concurrency 32": (here, ("--concurrency", "32"))}
    if given.against is not None:
        contenders = {f"the defaults of {given.against.name}": (given.against.resolve(), ()), **contenders}
    figures: dict[str, dict[str, list[float]]] = {name: {} for name in contenders}
    with tempfile.TemporaryDirectory(prefix="async-maps-bench-") as name, sink.serve(given.delay) as server:
        place = Path(name)
        values = np.random.default_rng(1).random((count, _SIDE, _SIDE), np.float32)
        np.save(place / "maps.npy", values)
        np.save(place / "start.npy", values[:1])
        for _ in range(rounds):
            for contender, (code, flags) in contenders.items():
                found = figures[contender]
                start = _run(code, place, "start.npy", flags, server.environment())
                before = server.counts()["connections"]
                whole = _run(code, place, "maps.npy", flags, server.environment())
                connections = server.counts()["connections"] - before
                seconds, cpu_s = whole.wall_s - start.wall_s, whole.cpu_s - start.cpu_s
                found.setdefault("s", []).append(whole.wall_s)
                found.setdefault("net maps/s", []).append(count / seconds)
                found.setdefault("net CPU ms/map", []).append(1000 * cpu_s / count)
                found.setdefault("connections", []).append(connections)
                found.setdefault("peak MB", []).append(whole.peak_bytes / 1e6)
    bench = Bench("latency", given.quick)
    title = (
        f"{count:,} maps of {_SIDE}x{_SIDE} to a sink that answers after {1e3 * given.delay:.0f} ms, {rounds} rounds"
    )
    table = bench.table(title, {"": "", **_COLUMNS})
    first = next(iter(figures.values()))
    for contender, found in figures.items():
        ratios = {
            "x first maps/s": ratio_of(found["net maps/s"], first["net maps/s"]),
            "x first CPU": ratio_of(found["net CPU ms/map"], first["net CPU ms/map"]),
        }
        table.add(**{"": contender, **found, **ratios})
    bench.publish()


def _run(code: Path, place: Path, source: str, flags: Sequence[str], environment: Mapping[str, str]) -> Usage:
    manifest = place / "m.sqlite"
    manifest.unlink(missing_ok=True)
    # Without -P, Python would import the code of the current folder.
    return run_process(
        "-P", "-m", "async_maps", "run", str(place / source), f"s3://{BUCKET}/run", "--manifest", str(manifest),
        "--progress", "none", *flags, environment={**environment, "PYTHONPATH": str(code)},
    )  # fmt: skip
