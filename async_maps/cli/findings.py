"""Findings as a person reads them: a tidy table on a terminal, else plain lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from rich.console import Console

    from async_maps.doctor.finding import Finding

_STYLES = {"ok": "green", "warning": "yellow", "failure": "bold red", "unknown": "cyan"}


class FindingDisplay:
    """Renders one finding after the other.

    Args:
        out: where the text will be written.
    """

    def __init__(self, out: TextIO) -> None:
        from rich.console import Console

        self._console = Console(file=out, highlight=False) if out.isatty() else None

    def render(self, finding: Finding) -> str:
        """The finding as text: a line, the advice below it, and then what is to be copied, unbroken."""
        advice, _, to_copy = finding.advice.partition("\n")
        lines = _row(self._console, finding, advice) if self._console else _plain(finding, advice)
        return f"{lines}\n{to_copy}" if to_copy else lines


def _row(console: Console, finding: Finding, advice: str) -> str:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(width=7)
    table.add_column(width=13)
    table.add_column(ratio=1)
    table.add_row(Text(finding.level, _STYLES[finding.level]), finding.check, Text(finding.text))
    if advice:
        table.add_row("", "", Text(advice, "dim"))
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _plain(finding: Finding, advice: str) -> str:
    line = f"{finding.level:8} {finding.check:13} {finding.text}"
    return f"{line}\n{'':22} {advice}" if advice else line


def summary(findings: Sequence[Finding]) -> str:
    """How many there are of each level."""
    counts = {level: sum(finding.level == level for finding in findings) for level in _STYLES}
    return ", ".join(f"{count} {level}" for level, count in counts.items() if count)
