"""``async-maps doctor``."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from async_maps.cli.console import answer, set_verbosity
from async_maps.cli.options import OUTPUT, WHAT, Flag, GroupedSettings, Quiet, Verbose
from async_maps.doctor import KOLENA_ORIGINS, diagnose
from async_maps.masking import masked_json
from async_maps.report.ending import DONE, SOME_FAILED

if TYPE_CHECKING:
    from typing import TextIO

    from async_maps.doctor.finding import Finding, Level

_STYLES: dict[Level, str] = {"ok": "green", "warning": "yellow", "failure": "bold red", "unknown": "cyan"}


def doctor(  # noqa: PLR0913  # one argument per option
    destination: str,
    /,
    *,
    origin: Annotated[tuple[str, ...], Parameter(negative="", group=WHAT)] = KOLENA_ORIGINS,
    quick: Annotated[Flag, Parameter(group=WHAT)] = False,
    config: Annotated[Path | None, Parameter(group=WHAT)] = None,
    as_json: Annotated[Flag, Parameter("--json", group=OUTPUT)] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    settings: Annotated[GroupedSettings, Parameter(name="*", show=False)] = GroupedSettings(),  # noqa: B008  # frozen
) -> int:
    """Check whether this machine can write to a destination and browsers can read it.

    ```
    async-maps doctor s3://my-bucket/overlays
    async-maps doctor s3://my-bucket/overlays --quick --json
    ```

    Writes a few small objects and deletes them again. Each finding says what to do.

    All settings of `async-maps run` can be given: `--concurrency`, `--s3.kms-key-id`, `--if-exists`.

    Parameters
    ----------
    destination
        s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, file:///folder or a path.
    origin
        Origin of web pages that read the overlays, such as https://app.kolena.com; may be repeated.
    quick
        Do not measure the throughput.
    config
        TOML file with settings; options and environment variables take precedence.
    as_json
        Print one JSON object per line.
    """
    set_verbosity(verbose=verbose, quiet=quiet)
    printed: list[bool] = []

    def show(finding: Finding) -> None:
        if not quiet or finding.level == "failure":
            printed.append(answer(_as_json(finding) if as_json else render(finding, sys.stdout)))

    findings = diagnose(destination, settings, origins=origin, quick=quick, on_finding=show)
    if not as_json:
        counts = Counter(finding.level for finding in findings)
        printed.append(answer(", ".join(f"{counts[level]} {level}" for level in _STYLES if counts[level])))
    return DONE if all(printed) and not any(finding.level == "failure" for finding in findings) else SOME_FAILED


def _as_json(finding: Finding) -> str:
    found = finding._asdict()
    if finding.features is None:
        del found["features"]
    return masked_json(found)


def render(finding: Finding, out: TextIO | None) -> str:
    """Format a finding: a line, the advice, and then the text to copy, which is not wrapped."""
    advice, _, to_copy = finding.advice.partition("\n")
    if out is not None and out.isatty():
        lines = _row(finding, advice, out)
    else:
        lines = f"{finding.level:8} {finding.check:13} {finding.text}" + (f"\n{'':22} {advice}" if advice else "")
    return f"{lines}\n{to_copy}" if to_copy else lines


def _row(finding: Finding, advice: str, out: TextIO) -> str:
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
