"""What is found out, one thing at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

Level: TypeAlias = Literal["ok", "warning", "failure", "unknown"]
"""Fine; works, but look at it; a run or its readers will fail; could not be asked."""


class Finding(NamedTuple):
    """The answer to one question.

    Attributes:
        check: what was asked, in a word or two.
        level: how it stands.
        text: what was found.
        advice: what to do, if anything; lines after the first are to be copied as they are.
    """

    check: str
    level: Level
    text: str
    advice: str = ""


OnFinding: TypeAlias = Callable[[Finding], object]
"""Takes each finding when it is made."""
