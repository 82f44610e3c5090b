"""The table of S3 servers in configs/README.md."""

from __future__ import annotations

from pathlib import Path

_PAGE = Path(__file__).parents[2] / "configs" / "README.md"


def features_of(server: str) -> dict[str, str]:
    """Return what a server honors according to the table, by the name of the feature."""
    section = _PAGE.read_text(encoding="utf-8").partition("### What servers honor\n")[2].partition("\n###")[0]
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if "|" in line)
    column = next(number for number, name in enumerate(head) if name.lower().startswith(server))
    return {row[0].strip("`"): row[column] for row in rows}
