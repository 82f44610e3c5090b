"""``async-maps doctor``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from async_maps.cli.console import answer
from async_maps.cli.options import DONE, SOME_FAILED, UNLISTED_SETTINGS_GROUP
from async_maps.doctor import KOLENA_ORIGINS, diagnose
from async_maps.settings import Settings

if TYPE_CHECKING:
    from async_maps.doctor import Finding


def doctor(  # noqa: PLR0913  # likewise
    destination: str,
    /,
    *,
    origin: Annotated[tuple[str, ...], Parameter(negative="")] = KOLENA_ORIGINS,
    quick: Annotated[bool, Parameter(negative="")] = False,
    as_json: Annotated[bool, Parameter("--json", negative="")] = False,
    config: Path | None = None,
    settings: Annotated[Settings, Parameter(name="*", group=UNLISTED_SETTINGS_GROUP)] = Settings(),  # noqa: B008  # frozen
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
    from async_maps.cli.findings import FindingDisplay, summary

    display = FindingDisplay(sys.stdout)
    printed = True

    def show(finding: Finding) -> None:
        nonlocal printed
        printed &= answer(json.dumps(finding._asdict()) if as_json else display.render(finding))

    findings = diagnose(destination, settings, origins=origin, quick=quick, on_finding=show)
    if not as_json:
        printed &= answer(summary(findings))
    return DONE if printed and not any(finding.level == "failure" for finding in findings) else SOME_FAILED
