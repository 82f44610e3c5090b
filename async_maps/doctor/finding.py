"""The result of one check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, TypeAlias

Level: TypeAlias = Literal["ok", "warning", "failure", "unknown"]
"""``ok``; ``warning``: it works, with a problem; ``failure``: a run or its readers will fail; ``unknown``: the check
was not possible."""


class Finding(NamedTuple):
    """The result of one check.

    Attributes:
        check: the name of the check.
        level: the severity.
        text: the result.
        advice: what to do, or empty; the lines after the first are to be copied, such as a command.
        features: of the check ``features``, what the server honors of S3, each "yes", "no", "refused" or "unknown".
    """

    check: str
    level: Level
    text: str
    advice: str = ""
    features: Mapping[str, str] | None = None


OnFinding: TypeAlias = Callable[[Finding], object]
"""Called with each finding."""
