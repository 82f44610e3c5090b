"""Which share of a plan a process runs: as a user or its scheduler says."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from async_maps.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping


class _Scheduler(NamedTuple):
    """The variables of an array job: the index of a process, that of the first one, and how many there are."""

    name: str
    at: str
    begin: str
    size: str


_SCHEDULERS = (
    # "Indexed Job": the index begins with 0, and the number of completions is in no variable.
    _Scheduler("Kubernetes", "JOB_COMPLETION_INDEX", "", ""),
    # sbatch: --array=3-10 begins with 3.
    _Scheduler("Slurm", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT"),
    _Scheduler("AWS Batch", "AWS_BATCH_JOB_ARRAY_INDEX", "", "AWS_BATCH_JOB_ARRAY_SIZE"),
)
_EXPECTED = "expected I/N, such as 3/8, or auto/N or auto in an array job of Kubernetes, Slurm or AWS Batch"


def share_of(text: str, variables: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return which share of how many, from 1, a text such as ``3/8`` or ``auto/8`` means.

    Raises SettingsError if it is none, or if no scheduler tells.
    """
    found = re.fullmatch(r"(\d+|auto)(?:/(\d+))?", text.strip())
    if found is None or (found[1] != "auto" and found[2] is None):
        raise SettingsError(f"part {text!r}: {_EXPECTED}")
    if found[1] != "auto":
        return _checked(text, int(found[1]), int(found[2]))
    scheduler = next((known for known in _SCHEDULERS if variables.get(known.at)), None)
    if scheduler is None:
        known = ", ".join(f"{one.at} ({one.name})" for one in _SCHEDULERS)
        raise SettingsError(f"part {text!r}: no scheduler has set one of {known}; give I/N")
    count = found[2] or variables.get(scheduler.size)
    if not count:
        raise SettingsError(f"part {text!r}: {scheduler.name} does not tell how many processes there are; give auto/N")
    try:
        first = int(variables.get(scheduler.begin) or 0)
        index, of = int(variables[scheduler.at]) - first + 1, int(count)
    except ValueError:
        raise SettingsError(f"part {text!r}: {scheduler.at}={variables[scheduler.at]!r} is no number") from None
    return _checked(text, index, of)


def _checked(text: str, index: int, count: int) -> tuple[int, int]:
    if not 1 <= index <= count:
        of = "" if text == f"{index}/{count}" else f" is {index}/{count}"
        raise SettingsError(f"part {text!r}{of}: expected 1/{count} to {count}/{count}")
    return index, count
