"""What does a PUT cost the client, and how many does one process make per second?

Every client is a separate process that measures its PUTs without its start, except for s5cmd, which is a command. The
sink keeps nothing and uses little CPU time. The floor is one blocking socket, which signs and checks nothing. SeaweedFS
is a real store and uses part of the cores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from bench import sink
from bench.clients import BOTO3, CLIENTS, FLOOR, OF_CLOUDS
from bench.measure import by_turns, parser, ratio_of
from bench.servers import real_server
from bench.tables import Bench

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.tables import Table

_CONCURRENCY = 32
_BOTO3_THREADS = 16
_DELAY_S = 0.03
_MAIN_KB = 60
_SIZES_KB = (5, _MAIN_KB, 131)
_COLUMNS = {"": "", "KB": "", "CPU ms/PUT": ".3f", "x our CPU": ".2f", "PUT/s": ",.0f"}


class _Effort(NamedTuple):
    """The number of turns of a measurement, and the seconds of each turn."""

    rounds: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.rounds} rounds of {self.seconds} s"


def main(arguments: Sequence[str]) -> None:
    """``python -m bench put``."""
    flags = parser("put", __doc__)
    flags.add_argument("--store", choices=["s3", *OF_CLOUDS], default="s3", help="gs, az: beside the vendor's client")
    options = flags.parse_args(arguments)
    bench = Bench("put" if options.store == "s3" else f"put-{options.store}", options.quick)
    effort = _Effort(1, 0.1) if options.quick else _Effort(3, 0.3)
    if options.store != "s3":
        _measure_cloud(bench, options.store, effort)
        return
    concurrent = f"{_CONCURRENCY} concurrent"
    same = dict.fromkeys(CLIENTS, _CONCURRENCY)
    signing = {name: count for name, count in same.items() if name != FLOOR}
    # In a quick run, SeaweedFS is the server over HTTP.
    for tls in (True,) if options.quick else (False, True):
        title = f"PUTs to a sink{' over TLS' if tls else ''}, {concurrent} (boto3: {_BOTO3_THREADS} threads), {effort}"
        table = bench.table(title, _COLUMNS)
        with sink.serve(tls=tls) as server:
            for kilobytes in (_MAIN_KB,) if options.quick else _SIZES_KB:
                _compare(table, server.environment(), {**same, BOTO3: _BOTO3_THREADS}, kilobytes, effort)
        bench.publish()
    if not options.quick:
        title = f"PUTs to a sink that waits {1000 * _DELAY_S:.0f} ms before it answers, {concurrent}, {effort}"
        with sink.serve(_DELAY_S) as server:
            _compare(bench.table(title, _COLUMNS), server.environment(), signing, _MAIN_KB, effort)
        bench.publish()
    with real_server() as environment:
        title = f"PUTs to SeaweedFS on the same machine, {concurrent}, {effort}"
        _compare(bench.table(title, _COLUMNS), environment, signing, _MAIN_KB, effort)
        bench.publish()


def _measure_cloud(bench: Bench, store: str, effort: _Effort) -> None:
    """Compare our client of another cloud with the vendor's, by PUTs to a sink that answers as this cloud."""
    table = bench.table(f"PUTs to a sink that answers as {store}://, {_CONCURRENCY} concurrent, {effort}", _COLUMNS)
    with sink.serve() as server:
        _compare(table, server.environment(), dict.fromkeys(OF_CLOUDS[store], _CONCURRENCY), _MAIN_KB, effort)
    bench.publish()


def _compare(
    table: Table, environment: Mapping[str, str], concurrency: Mapping[str, int], kilobytes: int, effort: _Effort
) -> None:
    """Add a row for each client, with its number of concurrent PUTs."""
    commands = {
        name: ("-m", "bench.clients", name, str(kilobytes), str(count), str(effort.seconds))
        for name, count in concurrency.items()
    }
    found = by_turns(commands, effort.rounds, environment)
    ours = found[next(iter(concurrency))]
    for name, figures in found.items():
        table.add(**{
            "": name, "KB": kilobytes, **figures,
            "x our CPU": ratio_of(figures["CPU ms/PUT"], ours["CPU ms/PUT"]),
        })  # fmt: skip
