"""Is a revision faster than another one?

Both are copied to a temporary folder with the bench of this working tree, so that the same code measures them. A
revision whose requirements differ from those of the working tree gets a virtual environment. Then both do the job (or
another bench) in turns, and each round gives a ratio.
"""

from __future__ import annotations

import io
import json
import math
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

from bench import job
from bench.measure import Code, order, parser, ratio_of, run_command
from bench.tables import Bench, results

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench.measure import Usage

_ROUNDS = 5
_JOB = "job"
_EXTRAS = ("bench", "demo", "uvloop")
_NOT_COPIED = shutil.ignore_patterns("__pycache__", "results")
_COLUMNS = {"": "", "before": ",.3f", "after": ",.3f", "after / before": ".3f", "quartiles": ""}


def check_out(revision: str | None, folder: Path) -> Code:
    """Copy a revision, with the bench of the working tree, to a new folder.

    Args:
        revision: a revision of git; None for the working tree.
        folder: the folder to create.

    Returns:
        the folder and the interpreter for it.

    Raises:
        SystemExit: git does not know the revision, or it needs packages that cannot be installed.
    """
    folder.mkdir()
    if revision is None:
        shutil.copytree("async_maps", folder / "async_maps", ignore=_NOT_COPIED)
    else:
        archive = subprocess.run(["git", "archive", revision], capture_output=True, check=False)
        if archive.returncode:
            raise SystemExit(f"git archive {revision}: {archive.stderr.decode().strip()}")
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(folder, filter="data")
    python = sys.executable
    if revision is not None and requirements(folder) != requirements(Path()):
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        python = str(folder / "venv/bin/python")
        if subprocess.run([python, "-m", "pip", "install", "--quiet", f"{folder}[bench]"], check=False).returncode:
            raise SystemExit(f"the requirements of {revision} cannot be installed")
    shutil.rmtree(folder / "bench", ignore_errors=True)
    shutil.copytree("bench", folder / "bench", ignore=_NOT_COPIED)
    return Code(folder, python)


def requirements(folder: Path) -> list[str]:
    """Return the packages that a checkout needs in a bench."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    return sorted([*project["dependencies"], *(name for extra in _EXTRAS for name in optional.get(extra, []))])


def figures_of(tables: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the figures in the tables of a bench: the median of each, by table, row and name.

    Numbers that are measured are floats or have a spread. Text and integers are the labels of the row. Ratios of
    contenders ("x our CPU") are left out.
    """
    found = {}
    for number, table in enumerate(tables, 1):
        for row in table["rows"]:
            labels = [str(value) for name, value in row.items() if isinstance(value, str | int) and name != "rounds"]
            for name, value in row.items():
                if isinstance(value, dict | float) and not name.startswith("x "):
                    figure = value["median"] if isinstance(value, dict) else value
                    found[f"{number}: {', '.join([*labels, name])}"] = figure
    return found


def _jobs(codes: Mapping[str, Code], conditions: job.Conditions) -> dict[str, dict[str, list[float]]]:
    with conditions.prepared() as (source, server):
        contenders = {
            side: job.Contender(_command(code, source.place), conditions.maps) for side, code in codes.items()
        }
        found = job.measure(contenders, source, server, conditions.rounds, net=conditions.net)
    for figures in found.values():
        for rate in ("net maps/s", "maps/s"):
            if rate in figures:
                figures[f"{rate.removesuffix('maps/s')}ms/map"] = [1000 / value for value in figures.pop(rate)]
    return found


def _command(code: Code, place: Path) -> Callable[[str, Mapping[str, str]], Usage]:
    def run(source: str, environment: Mapping[str, str]) -> Usage:
        return run_command(source, place / "compare.sqlite", environment=environment, code=code)

    return run


def _benches(codes: Mapping[str, Code], name: str, rounds: int, *, quick: bool) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {side: {} for side in codes}
    for turn in range(rounds):
        for side in order(codes, turn):
            code = codes[side]
            command = [code.python, "-m", "bench", name, *(["--quick"] if quick else [])]
            subprocess.run(command, cwd=code.folder, stdout=subprocess.DEVNULL, check=True)
            document = json.loads((code.folder / results(quick=quick) / f"{name}.json").read_text())
            for figure, value in figures_of(document["tables"]).items():
                found[side].setdefault(figure, []).append(value)
    return found


def compared(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """Return a row of the table for the figures of all rounds, without rounds that a busy machine has spoiled (nan)."""
    ratios = ratio_of(after, before)
    rounds = [number for number, ratio in enumerate(ratios) if not math.isnan(ratio)]
    row: dict[str, Any] = {
        name: [values[number] for number in rounds] or None
        for name, values in {"before": before, "after": after, "after / before": ratios}.items()
    }
    if len(rounds) > 1:
        low, _, high = quantiles(row["after / before"], method="inclusive")
        row["quartiles"] = f"{low:.3f} to {high:.3f}"
    return row


def main(arguments: Sequence[str]) -> None:
    """Run ``python -m bench compare``."""
    options = parser("compare", __doc__)
    options.add_argument("before", metavar="REV", help="a revision of git")
    options.add_argument("after", nargs="?", metavar="OTHER", help="another revision; the working tree by default")
    options.add_argument(
        "--bench", default=_JOB, metavar="NAME", help="a bench in place of the job; only --rounds applies"
    )
    job.add_options(options, _ROUNDS)
    given = options.parse_args(arguments)
    conditions = job.Conditions.of(given)
    bench = Bench("compare", given.quick)
    with tempfile.TemporaryDirectory(prefix="async-maps-bench-") as folder:
        sides = {"before": given.before, "after": given.after}
        codes = {side: check_out(revision, Path(folder) / side) for side, revision in sides.items()}
        if given.bench == _JOB:
            what, found = conditions.title(), _jobs(codes, conditions)
        else:
            what, found = f"bench {given.bench}", _benches(codes, given.bench, conditions.rounds, quick=given.quick)
    title = f"{given.before} and {given.after or 'the working tree'}, {conditions.rounds} rounds. {what}"
    table = bench.table(title, _COLUMNS)
    before, after = found["before"], found["after"]
    for figure in before:
        if figure in after:
            table.add(**{"": figure, **compared(before[figure], after[figure])})
    bench.publish()
