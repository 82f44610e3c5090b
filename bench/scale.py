"""Do the time and memory of a map stay the same with many maps, and how long does a finished run take to resume?

The maps are tiny, so that listing, messages, signing and the manifest take most of the time. For each number of maps,
the command runs with a manifest to a sink, then again with nothing to do. The plot is ``bench/results/scale.png``.
Further tables compare one process with lanes (``bench/lanes.py``), and plans of different sizes (``bench/plans.py``).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import lanes, plans, sink
from bench.data import link_maps, write_maps
from bench.measure import parser, run_command
from bench.tables import Bench, results

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_COUNTS = (1_000, 10_000, 50_000, 200_000)
_QUICK_COUNTS = (200, 1_000)
_SIZE = 8
_FILES = 400
_COLUMNS = {
    "maps": ",", "s": ".1f", "ms/map": ".3f", "net ms/map": ".3f", "net CPU ms/map": ".3f", "peak MB": ",.0f",
    "manifest bytes/map": ",.0f", "resume s": ".2f", "resume peak MB": ",.0f", "resume requests": ",",
}  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Run ``python -m bench scale``."""
    given = parser("scale", __doc__)
    given.add_argument(
        "--delay", type=float, default=30.0, metavar="MS", help="a sink for lanes waits before each answer"
    )
    options = given.parse_args(arguments)
    bench = Bench("scale", options.quick)
    table = bench.table(f"Maps of {_SIZE}x{_SIZE} float32 from .npy files to a sink, with a manifest", _COLUMNS)
    with tempfile.TemporaryDirectory(prefix="async-maps-bench-") as name, sink.serve() as server:
        place = Path(name)
        write_maps(place / "files", _FILES, _SIZE)
        write_maps(place / "start", 1, _SIZE)
        for _ in range(1 if options.quick else 2):
            start = run_command(place / "start", place / "start.sqlite", environment=server.environment())
        for count in _QUICK_COUNTS if options.quick else _COUNTS:
            link_maps(place / "files", place / str(count), count, per_folder=1000)
            manifest = place / f"{count}.sqlite"
            whole = run_command(place / str(count), manifest, environment=server.environment())
            table.add(**{
                "maps": count,
                "s": whole.wall_s,
                "ms/map": 1000 * whole.wall_s / count,
                "net ms/map": 1000 * (whole.wall_s - start.wall_s) / count,
                "net CPU ms/map": 1000 * (whole.cpu_s - start.cpu_s) / count,
                "peak MB": whole.peak_bytes / 1e6,
                "manifest bytes/map": manifest.stat().st_size / count,
                **_resumed(place / str(count), manifest, server),
            })  # fmt: skip
    bench.publish()
    plot(table.rows, results(quick=options.quick) / "scale.png")
    for delay_s in (0.0, options.delay / 1000):
        lanes.add_table(bench, delay_s)
    plans.add_table(bench)


def _resumed(folder: Path, manifest: Path, server: sink.Sink) -> dict[str, Any]:
    before = server.counts()["requests"]
    again = run_command(folder, manifest, environment=server.environment(), resume=True)
    return {
        "resume s": again.wall_s,
        "resume peak MB": again.peak_bytes / 1e6,
        "resume requests": server.counts()["requests"] - before,
    }


def plot(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw the time of a map and the peak of memory against the number of maps."""
    from matplotlib.figure import Figure

    counts = [row["maps"] for row in rows]
    figure = Figure(figsize=(7, 3), layout="constrained")
    for axes, (what, unit) in zip(
        figure.subplots(1, 2), (("net ms/map", "ms a map, start not counted"), ("peak MB", "MB (PSS) at the peak")),
        strict=True,
    ):  # fmt: skip
        axes.plot(counts, [row[what] for row in rows], marker="o", color="#1f4e9e")
        axes.set(xscale="log", xlabel="maps", ylabel=unit, ylim=(0, 1.3 * max(row[what] for row in rows)))
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)
