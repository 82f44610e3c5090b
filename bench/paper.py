"""What limits a job of up to 10^9 maps, how long does it take, and what do its requests cost? Computed, not measured.

The maps lie in S3, a file each, and are shared out in parts among equal machines. A machine does as many maps a second
as its tightest limit allows: CPU, network, concurrent reads or uploads, or the process that records all outcomes. S3
takes a number of requests a second for each partition of the keys, and splits partitions under load: the table has the
partitions that the job needs, and the hours if there is only one.

Sources of the numbers:

- Amazon S3 User Guide, "Best practices design patterns: optimizing Amazon S3 performance": at least 3,500 PUT and 5,500
  GET requests a second for each partitioned prefix; 100 to 200 ms for small objects.
- Amazon S3 pricing, Standard in US East (N. Virginia): $0.005 for 1,000 PUT or LIST requests, $0.0004 for 1,000 GET
  requests. Storage and machines are not counted.
- Amazon EC2: instances such as m6i.4xlarge have 16 vCPUs and up to 12.5 Gbit/s, in each direction.
- These were noted on 2026-11-29 from public copies of the pages. Rates and prices change: look before you rely on them.
- CPU times, sizes of overlays and the rate of one parent: measured here, see ``bench/README.md``.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from bench.measure import parser
from bench.tables import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

_PUTS_S, _GETS_S = 3_500, 5_500
_LIST_KEYS = 1_000
_PUT_USD, _GET_USD = 0.005 / 1_000, 0.0004 / 1_000
_PART_MAPS, _PART_PUTS, _PART_GETS = 10_000, 3, 4
"""Of a part: its list, the note of its start and its manifest are stored; two are read, and looked for first."""
_PARENT_MAPS_S = 17_000
"""What one command records a second, with any number of lanes: the ceiling of ``bench scale``."""
_BUSY = 0.74
"""The share of two cores that a run keeps busy: 770 maps a second of 1.92 ms, see ``bench job``."""


class Kind(NamedTuple):
    """A kind of maps.

    Attributes:
        source_bytes: the bytes of a file of float32 values.
        overlay_bytes: the mean bytes of an overlay.
        cpu_s: the CPU time of a map that is read from S3.
    """

    source_bytes: int
    overlay_bytes: int
    cpu_s: float


KINDS = {
    512: Kind(512 * 512 * 4 + 128, 131_000, 0.0064),
    224: Kind(224 * 224 * 4 + 128, 25_000, 0.0015),
}
"""On 2026-11-30, on a busy machine: CPU times of ``run s3://... s3://...`` with a sink, less the start."""


class Machine(NamedTuple):
    """A machine, and the limits of the run on it.

    Attributes:
        cores: its CPUs.
        bytes_s: the bytes that it can receive a second, and send.
        latency_s: the time of a request.
        reads: the concurrent reads.
        uploads: the concurrent uploads.
    """

    cores: int = 16
    bytes_s: float = 12.5e9 / 8
    latency_s: float = 0.15
    reads: int = 64
    uploads: int = 256


class Job(NamedTuple):
    """A job on equal machines.

    Attributes:
        maps_s: the maps a second of all machines together.
        limit: what limits a machine.
        hours: the duration, with as many partitions as needed.
        partitions: the partitions of S3 that this rate needs.
        one_partition_hours: the duration with one partition.
        put_usd, get_usd, list_usd: the price of its requests.
    """

    maps_s: float
    limit: str
    hours: float
    partitions: int
    one_partition_hours: float
    put_usd: float
    get_usd: float
    list_usd: float


def limits(kind: Kind, machine: Machine) -> dict[str, float]:
    """Return the maps a second that each limit of a machine allows."""
    return {
        "CPU": machine.cores * _BUSY / kind.cpu_s,
        "network": machine.bytes_s / max(kind.source_bytes, kind.overlay_bytes),
        "reads": machine.reads / machine.latency_s,
        "uploads": machine.uploads / machine.latency_s,
        "parent": _PARENT_MAPS_S,
    }


def job(maps: int, machines: int, kind: Kind, machine: Machine) -> Job:
    """Compute a job."""
    limit, rate = min(limits(kind, machine).items(), key=lambda pair: pair[1])
    maps_s = rate * machines
    parts = ceil(maps / _PART_MAPS)
    return Job(
        maps_s=maps_s,
        limit=limit,
        hours=maps / maps_s / 3600,
        partitions=ceil(maps_s / min(_PUTS_S, _GETS_S)),
        one_partition_hours=maps / min(maps_s, _PUTS_S, _GETS_S) / 3600,
        put_usd=(maps + _PART_PUTS * parts) * _PUT_USD,
        get_usd=(maps + _PART_GETS * parts) * _GET_USD,
        list_usd=ceil(maps / _LIST_KEYS) * _PUT_USD,
    )


_COLUMNS = {
    "maps": ",", "machines": "", "maps/s": ",.0f", "limit": "", "hours": ",.2f", "partitions": "",
    "hours, 1 partition": ",.2f", "PUT $": ",.2f", "GET $": ",.2f", "LIST $": ",.2f",
}  # fmt: skip
_MEASURED = (
    # Of a table in bench/README.md, 2 cores: files to a sink. Size, CPU ms a map, maps a second.
    ("job, 512x512", 1.92, 770.2),
    ("scale, 8x8", 0.448, 1000 / 0.392),
)


def main(arguments: Sequence[str]) -> None:
    """Run ``python -m bench paper``."""
    given, default = parser("paper", __doc__), Machine()
    given.add_argument("--size", type=int, choices=[*KINDS], default=512, help="the side of a map in pixels")
    given.add_argument("--cores", type=int, default=default.cores, help="CPUs of a machine")
    given.add_argument("--gbit", type=float, default=default.bytes_s * 8e-9, help="its network, in Gbit/s")
    given.add_argument("--latency", type=float, default=default.latency_s, help="seconds of a request")
    given.add_argument("--prefetch", type=int, default=default.reads, help="concurrent reads of a machine")
    given.add_argument("--concurrency", type=int, default=default.uploads, help="concurrent uploads of a machine")
    options = given.parse_args(arguments)
    machine = Machine(options.cores, options.gbit / 8e-9, options.latency, options.prefetch, options.concurrency)
    print(jobs(options.size, machine).text())
    print(measured().text())


def jobs(size: int, machine: Machine) -> Table:
    """Return the table of all jobs with maps of this size."""
    title = (
        f"Maps of {size}x{size} float32 in S3, a file each, on machines of {machine.cores} CPUs and "
        f"{machine.bytes_s * 8e-9:g} Gbit/s, {1000 * machine.latency_s:g} ms a request, {machine.reads} reads and "
        f"{machine.uploads} uploads at a time; computed"
    )
    table = Table(title, _COLUMNS)
    for power in range(5, 10):
        for machines in (1, 4, 16, 64):
            found = job(10**power, machines, KINDS[size], machine)
            values = found._asdict()
            names = ("maps_s", "limit", "hours", "partitions", "one_partition_hours", "put_usd", "get_usd", "list_usd")
            computed = dict(zip([*_COLUMNS][2:], map(values.__getitem__, names), strict=True))
            table.add(maps=10**power, machines=machines, **computed)
    return table


def measured() -> Table:
    """Return the small end beside measured runs: the time of 10^5 maps on two cores."""
    columns = {"10^5 maps on 2 cores": "", "computed s": ",.0f", "measured s": ",.0f", "measured / computed": ".2f"}
    table = Table("Files to a sink, from the CPU time of a map and from its measured rate, without the start", columns)
    for name, cpu_ms, maps_s in _MEASURED:
        computed, found = 1e5 * cpu_ms / 1000 / (2 * _BUSY), 1e5 / maps_s
        values = (name, computed, found, found / computed)
        table.add(**dict(zip(columns, values, strict=True)))
    return table
