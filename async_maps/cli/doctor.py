"""``async-maps doctor``."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from async_maps.cli.console import answer
from async_maps.cli.options import DONE, SETTINGS_GROUP, SOME_FAILED, Flag
from async_maps.doctor import KOLENA_ORIGINS, diagnose
from async_maps.settings import Settings

if TYPE_CHECKING:
    from typing import TextIO

    from async_maps.doctor.finding import Finding, Level

_STYLES: dict[Level, str] = {"ok": "green", "warning": "yellow", "failure": "bold red", "unknown": "cyan"}


def doctor(  # noqa: PLR0913  # one argument a flag
    destination: str,
    /,
    *,
    origin: Annotated[tuple[str, ...], Parameter(negative="")] = KOLENA_ORIGINS,
    quick: Flag = False,
    as_json: Annotated[bool, Parameter("--json", negative="")] = False,
    config: Path | None = None,
    settings: Annotated[Settings, Parameter(name="*", group=SETTINGS_GROUP, show=False)] = Settings(),  # noqa: B008  # frozen
) -> int:
    """Can this machine write there, and can a browser read it? Each answer says what to do.

    Tries with small objects of its own, and removes them. Takes every setting that async-maps run takes, too, as flag,
    variable or file. Exit codes: 0 nothing failed (there may be warnings), 1 a failure, 2 wrong use.

    Parameters
    ----------
    destination
        s3://bucket/prefix, file:///folder or a plain path.
    origin
        Pages of this origin, such as https://app.kolena.com, are to read the overlays; may be repeated.
    quick
        Leave out the throughput.
    as_json
        A JSON object a line.
    config
        Settings from this TOML file; flags and environment go before it.
    """
    printed: list[bool] = []

    def show(finding: Finding) -> None:
        printed.append(answer(json.dumps(finding._asdict()) if as_json else render(finding, sys.stdout)))

    findings = diagnose(destination, settings, origins=origin, quick=quick, on_finding=show)
    if not as_json:
        counts = Counter(finding.level for finding in findings)
        printed.append(answer(", ".join(f"{counts[level]} {level}" for level in _STYLES if counts[level])))
    return DONE if all(printed) and not any(finding.level == "failure" for finding in findings) else SOME_FAILED


def render(finding: Finding, out: TextIO) -> str:
    """The finding as text: a line, the advice below it, and then what is to be copied, unbroken."""
    advice, _, to_copy = finding.advice.partition("\n")
    if out.isatty():
        lines = _row(finding, advice, out)
    else:
        lines = f"{finding.level:8} {finding.check:13} {finding.text}" + (f"\n{'':22} {advice}" if advice else "")
    return f"{lines}\n{to_copy}" if to_copy else lines


def _row(finding: Finding, advice: str, out: TextIO) -> str:
    """A row of the table that a terminal shows."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(width=7)
    table.add_column(width=13)
    table.add_column(ratio=1)
    table.add_row(Text(finding.level, _STYLES[finding.level]), finding.check, Text(finding.text))
    if advice:
        table.add_row("", "", Text(advice, "dim"))
    console = Console(file=out, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
