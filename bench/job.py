"""How long does the whole job take, from .npy files to the store, and what does it cost in CPU time, memory and bytes?

Each contender is a whole process, measured from before the interpreter starts until it has ended. CPU time and memory
include its children's but not the server's. Slow contenders get fewer maps. The same command for one map of 32x32 is a
contender's start; "net" figures exclude it. Files are in the page cache: they are hard links to a few hundred maps.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench import sink
from bench.data import link_maps, write_maps
from bench.measure import BUCKET, parser, ratio_of, run_command, run_process
from bench.scripts import SCRIPTS
from bench.servers import real_server
from bench.tables import Bench

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, TypeAlias

    from bench.measure import Figures, Usage
    from bench.sink import Counts

    Row: TypeAlias = dict[str, Any]

_OURS: dict[str, tuple[str, ...]] = {
    "async-maps run": (),
    "async-maps run --workers 0": ("--workers", "0"),
    "async-maps run --workers 2": ("--workers", "2"),
    "async-maps run --png rgba": ("--png", "rgba"),
}
_COLUMNS = {
    "": "", "maps": ",", "maps/s": ",.1f", "net maps/s": ",.1f", "CPU ms/map": ",.2f", "net CPU ms/map": ",.2f",
    "start s": ".2f", "peak MB": ",.0f", "KB/map": ",.0f", "x our time": ",.1f", "rounds": "",
}  # fmt: skip


class Amounts(NamedTuple):
    """The number of maps of each contender, and of rounds. A contender with 0 maps does not run.

    Attributes:
        size: pixels a side.
        files: different maps.
        default: maps for our default command.
        ours: maps for our other commands.
        scripts: maps for the scripts.
        kolena: maps for Kolena's example, which runs in the first round only.
        rounds: the number of rounds.
    """

    size: int
    files: int
    default: int
    ours: int
    scripts: int
    kolena: int
    rounds: int

    def of(self, name: str) -> int:
        """Return the number of maps of a contender."""
        if name in SCRIPTS:
            return self.kolena if name.startswith("Kolena") else self.scripts
        return self.ours if _OURS[name] else self.default

    def names(self, turn: int) -> list[str]:
        """Return the contenders of a round."""
        every = [name for name in (*_OURS, *SCRIPTS) if self.of(name)]
        return [name for name in every if turn == 0 or not name.startswith("Kolena")]


_SINK = Amounts(512, 400, 4000, 1000, 150, 2, 3)
_REAL = Amounts(512, 400, 1000, 0, 100, 0, 3)
_QUICK = Amounts(224, 12, 96, 48, 24, 1, 1)
_QUICK_REAL = Amounts(224, 12, 96, 0, 24, 0, 1)


class _Contest:
    """Runs every contender in turn.

    Args:
        place: a folder for the maps and the manifests.
        amounts: the number and size of the maps.
    """

    def __init__(self, place: Path, amounts: Amounts) -> None:
        self._place = place
        self._starts: dict[str, Usage] = {}
        write_maps(place / "files", amounts.files, amounts.size)
        write_maps(place / "start", 1, 32)

    def start(self, amounts: Amounts, environment: Mapping[str, str]) -> None:
        """Measure how long each contender takes to start."""
        # The last of two counts, so that reading files from disk and compiling is not measured.
        for _ in range(2):
            for name in amounts.names(0):
                self._starts[name] = self._run(name, self._place / "start", environment)

    def run(self, amounts: Amounts, environment: Mapping[str, str], server: sink.Sink | None = None) -> list[Row]:
        """Run all rounds. Returns a row for each contender."""
        figures: dict[str, list[Figures]] = {}
        for turn in range(amounts.rounds):
            for name in amounts.names(turn):
                before = server.counts() if server else None
                usage = self._run(name, self._maps(amounts.of(name)), environment)
                figures.setdefault(name, []).append(self._figures(name, amounts.of(name), usage))
                if server and before:
                    figures[name][-1]["KB/map"] = _kilobytes(before, server.counts(), amounts.of(name))
        rate = [found["net maps/s"] for found in figures[next(iter(_OURS))]]
        rows = []
        for name, found in figures.items():
            by_figure = {figure: [each[figure] for each in found] for figure in found[0]}
            slower = ratio_of(rate[: len(found)], by_figure["net maps/s"])
            rows.append(
                {"": name, "maps": amounts.of(name), **by_figure, "x our time": slower, "rounds": len(found)}
            )  # fmt: skip
        return rows

    def _maps(self, count: int) -> Path:
        folder = self._place / f"{count}-maps"
        if not folder.exists():
            link_maps(self._place / "files", folder, count)
        return folder

    def _run(self, name: str, folder: Path, environment: Mapping[str, str]) -> Usage:
        if name in SCRIPTS:
            return run_process("-m", "bench.scripts", name, str(folder), BUCKET, environment=environment)
        return run_command(folder, self._place / "job.sqlite", *_OURS[name], environment=environment)

    def _figures(self, name: str, count: int, usage: Usage) -> Figures:
        start = self._starts.get(name)
        wall_s, cpu_s = (start.wall_s, start.cpu_s) if start else (0.0, 0.0)
        return {
            "maps/s": count / usage.wall_s,
            "net maps/s": count / _net(usage.wall_s, wall_s),
            "CPU ms/map": 1000 * usage.cpu_s / count,
            "net CPU ms/map": 1000 * _net(usage.cpu_s, cpu_s) / count,
            "start s": wall_s,
            "peak MB": usage.peak_bytes / 1e6,
        }


def _net(all_s: float, start_s: float) -> float:
    """Return the seconds without the start; nan if the start alone took longer, because the machine was busy."""
    return all_s - start_s if all_s > start_s else math.nan


def _kilobytes(before: Counts, after: Counts, count: int) -> float:
    puts = after["puts"] - before["puts"]
    if puts != count:
        raise RuntimeError(f"{puts:,} PUTs of {count:,} maps")
    return (after["put_bytes"] - before["put_bytes"]) / count / 1000


def main(arguments: Sequence[str]) -> None:
    """Run ``python -m bench job``."""
    options = parser("job", __doc__).parse_args(arguments)
    amounts, fewer = (_QUICK, _QUICK_REAL) if options.quick else (_SINK, _REAL)
    bench = Bench("job", options.quick)
    what = f"Maps of {amounts.size}x{amounts.size} float32 from .npy files to"
    with tempfile.TemporaryDirectory(prefix="async-maps-bench-") as place:
        contest = _Contest(Path(place), amounts)
        with sink.serve() as server:
            if not options.quick:
                contest.start(amounts, server.environment())
            bench.table(f"{what} a sink", _COLUMNS).rows.extend(contest.run(amounts, server.environment(), server))
        bench.publish()
        with real_server() as environment:
            columns = {name: form for name, form in _COLUMNS.items() if name != "KB/map"}
            bench.table(f"{what} SeaweedFS on the same machine", columns).rows.extend(contest.run(fewer, environment))
        bench.publish()
