"""Groups failures by reason, in bounded memory."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from async_maps.outcomes import Failure, Stage

MAX_GROUPS = 50
"""The maximum number of groups; failures with further reasons are only counted."""
_EXAMPLES = 2
_SHORTEST_NAME = 3
_FOLDED = "*"
_QUOTED = re.compile(r"""(?<!\w)(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|`[^`]*`)(?!\w)""")
_WORD = re.compile(r"[^\s()\[\]{},;]+")
_VARIABLE = re.compile(r"\d|/|\.\.\.$|^\W*(?:nan|inf)\W*$", re.IGNORECASE)
"""Matches in words that are a number, a path, a name with digits or a truncated text."""
_SEVERAL = re.compile(r"\*(?:,?\s*\*)*,?")
_MAX_REASON = 2000


@dataclass(slots=True)
class FailureGroup:
    """Failures of one stage whose reasons differ only in names, numbers, paths and quoted values.

    Attributes:
        stage: the stage that failed.
        reason: the reason of the first failure.
        count: the number of failures.
        examples: the first two failures.
    """

    stage: Stage
    reason: str
    count: int = 0
    examples: list[Failure] = field(default_factory=list)


class FailureGroups:
    """The groups of a run's failures, in the order of their first failures.

    Attributes:
        rest: the number of failures in none of the groups, because there are :data:`MAX_GROUPS` already.
    """

    def __init__(self) -> None:
        self.rest = 0
        self._groups: dict[tuple[Stage, str], FailureGroup] = {}

    def add(self, failure: Failure) -> None:
        """Count a failure."""
        key = failure.stage, pattern_of(failure)
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= MAX_GROUPS:
                self.rest += 1
                return
            group = self._groups[key] = FailureGroup(failure.stage, failure.reason)
        group.count += 1
        if len(group.examples) < _EXAMPLES:
            group.examples.append(failure)

    def merge(self, other: FailureGroups) -> None:
        """Count the failures of other groups."""
        self.rest += other.rest
        for key, found in other._groups.items():
            group = self._groups.get(key)
            if group is None and len(self._groups) >= MAX_GROUPS:
                self.rest += found.count
            elif group is None:
                self._groups[key] = replace(found, examples=found.examples[:])
            else:
                group.count += found.count
                group.examples += found.examples[: _EXAMPLES - len(group.examples)]

    def copy(self) -> FailureGroups:
        """Return a copy of the current state."""
        copied = FailureGroups()
        copied.rest = self.rest
        copied._groups = dict(zip(self._groups, self.groups(), strict=True))
        return copied

    def groups(self) -> list[FailureGroup]:
        """Return copies of the groups."""
        return [replace(group, examples=group.examples[:]) for group in self._groups.values()]


def pattern_of(failure: Failure) -> str:
    """Replace the parts of a reason that differ between maps: name, source, quoted values, numbers and paths."""
    reason = failure.reason[:_MAX_REASON]
    for own in sorted((failure.name, failure.source), key=len, reverse=True):
        # Not plain words: a map may be called "shape", which is also a word in reasons.
        if len(own) >= _SHORTEST_NAME and not own.isalpha():
            reason = reason.replace(own, _FOLDED)
    return _SEVERAL.sub(_FOLDED, _WORD.sub(_folded, _QUOTED.sub(_FOLDED, reason)))


def _folded(found: re.Match[str]) -> str:
    return _FOLDED if _VARIABLE.search(found[0]) else found[0]
