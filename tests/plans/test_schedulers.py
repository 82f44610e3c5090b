"""Shares of a plan, as users and schedulers name them."""

from __future__ import annotations

import pytest

import async_maps as am
from async_maps.plans.schedulers import share_of

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("text", "variables", "share"),
    [
        ("3/8", {}, (3, 8)),
        ("auto/8", {"JOB_COMPLETION_INDEX": "0"}, (1, 8)),
        ("auto/8", {"JOB_COMPLETION_INDEX": "7"}, (8, 8)),
        ("auto", {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_COUNT": "8"}, (3, 8)),
        ("auto/4", {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "8"}, (1, 4)),
        ("auto", {"AWS_BATCH_JOB_ARRAY_INDEX": "9", "AWS_BATCH_JOB_ARRAY_SIZE": "10"}, (10, 10)),
    ],
)
def test_a_share_is_what_the_user_or_the_scheduler_says(
    text: str, variables: dict[str, str], share: tuple[int, int]
) -> None:
    assert share_of(text, variables) == share


@pytest.mark.parametrize(
    ("text", "variables", "reason"),
    [
        ("3", {}, "expected I/N, such as 3/8"),
        ("", {}, "expected I/N"),
        ("0/8", {}, "'0/8': expected 1/8 to 8/8"),
        ("9/8", {}, "part '9/8': expected"),
        ("1/0", {}, "part '1/0': expected"),
        ("auto/8", {}, r"no scheduler has set one of JOB_COMPLETION_INDEX \(Kubernetes\)"),
        ("auto", {"JOB_COMPLETION_INDEX": "0"}, "Kubernetes does not tell how many processes there are; give auto/N"),
        ("auto/8", {"JOB_COMPLETION_INDEX": "8"}, "is 9/8"),
        ("auto/8", {"SLURM_ARRAY_TASK_ID": "a"}, "SLURM_ARRAY_TASK_ID='a' is no number"),
    ],
)
def test_a_share_that_is_none_is_refused(text: str, variables: dict[str, str], reason: str) -> None:
    with pytest.raises(am.SettingsError, match=reason):
        share_of(text, variables)
