"""How long does the whole job take, from maps to the store, and what does it cost in CPU time, memory and bytes?

Each contender is a whole process, measured from before the interpreter starts until it has ended. CPU time and memory
include its children's but not the server's. Slow contenders get fewer maps. The same command for one map of 32x32 is a
contender's start; "net" figures exclude it. Files are in the page cache: they are hard links to a few hundred maps.
With ``--source s3``, the sink serves them, and each contender lists and reads them with its own client.
"""

from __future__ import annotations

import math
import tempfile
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from bench import sink
from bench.data import link_maps, write_maps, write_stack
from bench.measure import BUCKET, order, parser, ratio_of, run_command, run_process
from bench.scripts import KOLENA, SCRIPTS
from bench.servers import real_server
from bench.tables import Bench

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from bench.measure import Figures, Usage
    from bench.sink import Counts

_DEFAULT = "async-maps run"
_OURS: dict[str, tuple[str, ...]] = {
    _DEFAULT: (),
    "async-maps run --workers 0": ("--workers", "0"),
    "async-maps run --workers 2": ("--workers", "2"),
    "async-maps run --png rgba": ("--png", "rgba"),
}
_SIZE, _QUICK_SIZE = 512, 224
_COUNT, _QUICK_COUNT, _REAL_COUNT = 4000, 96, 1000
_DIFFERENT, _QUICK_DIFFERENT = 400, 12
_ROUNDS = 3
_LEAST_COUNT = 100
_SCRIPTS_SIZE, _KOLENA_SIZE, _KOLENA_COUNT = 1024, 512, 2
"""The largest maps of the others: clients send larger PNGs in parts, and Kolena's example takes 5 s for 512x512."""
_SOURCES = {
    "files": ".npy files",
    "stack": "one .npy file",
    "s3": ".npy objects in the same server",
}
_COLUMNS = {
    "": "", "maps": ",", "maps/s": ",.1f", "net maps/s": ",.1f", "CPU ms/map": ",.2f", "net CPU ms/map": ",.2f",
    "start s": ".2f", "peak MB": ",.0f", "KB/map": ",.0f", "requests/map": ".2f",
    "x our time": ",.1f", "rounds": "",
}  # fmt: skip


class Contender(NamedTuple):
    """A command that does the whole job.

    Attributes:
        run: runs it over a source, with the environment variables of a server.
        maps: the number of maps that it gets.
        once: it runs in the first round only.
    """

    run: Callable[[str, Mapping[str, str]], Usage]
    maps: int
    once: bool = False


class Source:
    """The maps of a job.

    Attributes:
        place: the folder of the files.
        objects: the folder that the sink must serve; None for maps in files.

    Args:
        place: a folder for the files.
        kind: ``"files"``; ``"stack"``, all maps in one file; or ``"s3"``.
        size: the side of the maps in pixels.
        different: the maximum number of different maps.
    """

    def __init__(self, place: Path, kind: str, size: int, different: int) -> None:
        self.objects = place if kind == "s3" else None
        self.place, self._kind = place, kind
        write_maps(place / "files", different, size)
        write_maps(place / "first", 1, 32)

    def of(self, count: int) -> str:
        """Return the address of a number of maps."""
        return self._address("files", f"{count}-maps", count)

    def start(self) -> str:
        """Return the address of one map of 32x32."""
        return self._address("first", "start", 1)

    def _address(self, files: str, name: str, count: int) -> str:
        if self._kind == "stack":
            stack = self.place / f"{name}.npy"
            if not stack.exists():
                write_stack(self.place / files, stack, count)
            return str(stack)
        if not (self.place / name).exists():
            link_maps(self.place / files, self.place / name, count)
        return f"s3://{BUCKET}/{name}" if self._kind == "s3" else str(self.place / name)


def measure(
    contenders: Mapping[str, Contender],
    source: Source,
    server: sink.Sink | Mapping[str, str],
    rounds: int,
    *,
    net: bool,
) -> dict[str, dict[str, list[float]]]:
    """Run all contenders in turn, round by round.

    Args:
        contenders: the contenders by name.
        source: the maps.
        server: the sink, whose requests are counted; or the environment variables of another server.
        rounds: the number of rounds.
        net: measure the starts, without which the net figures are missing.

    Returns:
        the figures of all rounds for each contender.

    Raises:
        RuntimeError: a contender failed, or did not store each map once.
    """
    environment, counting = (server.environment(), server) if isinstance(server, sink.Sink) else (server, None)
    starts: dict[str, list[Usage]] = {name: [] for name in contenders}
    usages: dict[str, list[Usage]] = {name: [] for name in contenders}
    counted: dict[str, dict[str, list[float]]] = {name: {} for name in contenders}
    if net:
        for contender in contenders.values():  # reads files from disk and compiles, which is not measured
            contender.run(source.start(), environment)
    for turn in range(rounds):
        for name in order(contenders, turn):
            contender = contenders[name]
            if turn and contender.once:
                continue
            if net:
                starts[name].append(contender.run(source.start(), environment))
            maps = source.of(contender.maps)
            before = counting and counting.counts()
            usages[name].append(contender.run(maps, environment))
            if counting and before:
                for figure, value in _counted(before, counting.counts(), contender.maps).items():
                    counted[name].setdefault(figure, []).append(value)
    return {
        name: {**_figures(contender.maps, usages[name], starts[name]), **counted[name]}
        for name, contender in contenders.items()
    }


def _figures(count: int, usages: Sequence[Usage], starts: Sequence[Usage]) -> dict[str, list[float]]:
    figures = {
        "maps/s": [count / usage.wall_s for usage in usages],
        "CPU ms/map": [1000 * usage.cpu_s / count for usage in usages],
        "peak MB": [usage.peak_bytes / 1e6 for usage in usages],
    }
    if starts:
        wall_s, cpu_s = median(start.wall_s for start in starts), median(start.cpu_s for start in starts)
        figures |= {
            "net maps/s": [count / _net(usage.wall_s, wall_s) for usage in usages],
            "net CPU ms/map": [1000 * _net(usage.cpu_s, cpu_s) / count for usage in usages],
            "start s": [start.wall_s for start in starts],
            "start CPU s": [start.cpu_s for start in starts],
        }
    return figures


def _net(all_s: float, start_s: float) -> float:
    """Return the seconds without the start; nan if the start alone took longer, because the machine was busy."""
    return all_s - start_s if all_s > start_s else math.nan


def _counted(before: Counts, after: Counts, count: int) -> Figures:
    puts = after["puts"] - before["puts"]
    if puts != count:
        raise RuntimeError(f"{puts:,} PUTs of {count:,} maps")
    return {
        "KB/map": (after["put_bytes"] - before["put_bytes"]) / count / 1000,
        "requests/map": (after["requests"] - before["requests"]) / count,
    }


def _contender(name: str, place: Path, count: int) -> Contender:
    """Return a contender, with its share of the maps; ours keep their manifest in a folder."""

    def ours(source: str, environment: Mapping[str, str]) -> Usage:
        return run_command(source, place / "job.sqlite", *_OURS[name], environment=environment)

    def script(source: str, environment: Mapping[str, str]) -> Usage:
        return run_process("-m", "bench.scripts", name, source, BUCKET, environment=environment)

    if name in _OURS:
        return Contender(ours, max(1, count // 4) if _OURS[name] else count)
    if name == KOLENA:
        return Contender(script, _KOLENA_COUNT, once=True)
    return Contender(script, min(count, max(_LEAST_COUNT, count * 3 // 80)))


def _rows(figures: Mapping[str, dict[str, list[float]]], contenders: Mapping[str, Contender]) -> list[dict[str, Any]]:
    rows = []
    for name, found in figures.items():
        rate = "net maps/s" if "net maps/s" in found else "maps/s"
        ours, rounds = figures[_DEFAULT][rate], len(found[rate])
        slower = ratio_of(ours[:rounds], found[rate])
        rows.append({"": name, "maps": contenders[name].maps, **found, "x our time": slower, "rounds": rounds})
    return rows


class Conditions(NamedTuple):
    """Where the maps are, how many, and how the sink answers.

    Attributes:
        name: the name of the result files.
        size: the side of the maps in pixels.
        maps: the number of maps of our default command.
        different: the maximum number of different maps.
        rounds: the number of rounds.
        source: one of ``_SOURCES``.
        tls: the sink speaks TLS.
        delay_ms: the sink waits before each answer.
        net: measure the starts, too.
    """

    name: str
    size: int
    maps: int
    different: int
    rounds: int
    source: str
    tls: bool
    delay_ms: float
    net: bool

    @classmethod
    def of(cls, given: argparse.Namespace) -> Conditions:
        """Return the conditions that :func:`add_options` has read."""
        quick: bool = given.quick
        count = given.maps or (_QUICK_COUNT if quick else _COUNT)
        named = {"tls": given.tls, f"delay-{given.delay:g}": given.delay, given.source: given.source != "files",
                 f"{given.size}": given.size, f"{count}-maps": given.maps}  # fmt: skip
        return cls(
            name="-".join([name for name, is_given in named.items() if is_given]),
            size=given.size or (_QUICK_SIZE if quick else _SIZE),
            maps=count,
            different=min(count, _QUICK_DIFFERENT if quick else _DIFFERENT),
            rounds=1 if quick else given.rounds,
            source=given.source,
            tls=given.tls,
            delay_ms=given.delay,
            net=not quick,
        )

    def title(self, server: str = "a sink") -> str:
        """Return the title of a table."""
        late = f" that waits {self.delay_ms:g} ms before it answers" if self.delay_ms else ""
        maps = f"Maps of {self.size}x{self.size} float32 from {_SOURCES[self.source]}"
        return f"{maps} to {server}{' over TLS' if self.tls else ''}{late}"

    @contextmanager
    def prepared(self) -> Iterator[tuple[Source, sink.Sink]]:
        """Write the maps and run the sink during the ``with`` block."""
        with tempfile.TemporaryDirectory(prefix="async-maps-bench-") as place:
            source = Source(Path(place), self.source, self.size, self.different)
            with sink.serve(self.delay_ms / 1000, tls=self.tls, objects=source.objects) as server:
                yield source, server


def add_options(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Add the options of :class:`Conditions`, with a default for the number of rounds."""
    parser.add_argument("--tls", action="store_true", help="the sink speaks TLS")
    parser.add_argument("--delay", type=float, default=0.0, metavar="MS", help="the sink waits before each answer")
    parser.add_argument("--source", choices=_SOURCES, default="files", help="where the maps are; files by default")
    parser.add_argument("--size", type=int, metavar="PIXELS", help=f"the side of the maps; {_SIZE} by default")
    parser.add_argument("--maps", type=int, help=f"the number of maps; {_COUNT:,} by default")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"{rounds} by default")


def main(arguments: Sequence[str]) -> None:
    """Run ``python -m bench job``."""
    options = parser("job", __doc__)
    add_options(options, _ROUNDS)
    given = options.parse_args(arguments)
    conditions = Conditions.of(given)
    bench = Bench("-".join(filter(None, ("job", conditions.name))), given.quick)
    scripts = [name for name in SCRIPTS if conditions.size <= (_KOLENA_SIZE if name == KOLENA else _SCRIPTS_SIZE)]
    with conditions.prepared() as (source, server):
        names = [*([_DEFAULT] if given.quick else _OURS), *scripts]
        contenders = {name: _contender(name, source.place, conditions.maps) for name in names}
        found = measure(contenders, source, server, conditions.rounds, net=conditions.net)
        bench.table(conditions.title(), _COLUMNS).rows.extend(_rows(found, contenders))
        bench.publish()
        if conditions.name:
            return
        columns = {name: form for name, form in _COLUMNS.items() if name not in {"KB/map", "requests/map"}}
        names = [_DEFAULT, *(name for name in scripts if name != KOLENA)]
        contenders = {name: _contender(name, source.place, min(conditions.maps, _REAL_COUNT)) for name in names}
        with real_server() as environment:
            found = measure(contenders, source, environment, conditions.rounds, net=conditions.net)
        title = conditions.title("SeaweedFS on the same machine")
        bench.table(title, columns).rows.extend(_rows(found, contenders))
        bench.publish()
