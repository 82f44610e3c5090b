"""The report of a share: those of its parts together, its summary and its exit code."""

from __future__ import annotations

import pytest

import async_maps as am
from async_maps.report.failure_groups import MAX_GROUPS, FailureGroups
from async_maps.shares.part import PartDone, PartFailed, PartStopped
from async_maps.shares.report import ShareProgress

pytestmark = pytest.mark.fast


def failure(reason: str, name: str = "a") -> am.Failure:
    return am.Failure(name, f"{name}.npy", None, "read", reason)


def part_report(*reasons: str, uploaded: int = 3) -> am.Report:
    report = am.Report(uploaded=uploaded, selected=uploaded + len(reasons), uploaded_bytes=100, passed_over={".txt": 1})
    report.count([failure(reason) for reason in reasons])
    return report


def share_report() -> am.ShareReport:
    return am.ShareReport(plan="plan", part=(2, 3), parts=9, to_do=3)


def test_counts_and_failures_of_parts_are_added() -> None:
    report = share_report()
    report.count_part(PartDone(4, is_ours=True), part_report("bad", "worse"))
    report.count_part(PartDone(1, is_ours=False), part_report("bad"))
    assert (report.committed, report.done_by_others, report.parts_done) == ([4], [1], 2)
    assert (report.uploaded, report.failed, report.selected, report.uploaded_bytes) == (6, 3, 9, 200)
    assert report.passed_over == {".txt": 2}
    assert [(group.reason, group.count) for group in report.failure_groups] == [("bad", 2), ("worse", 1)]
    assert len(report.failures) == 3


def test_a_part_of_another_machine_has_counts_only() -> None:
    report = share_report()
    report.count_part(PartDone(4, is_ours=True, uploaded=5, failed=2), None)
    assert (report.uploaded, report.failed, report.selected, report.ungrouped) == (5, 2, 7, 2)
    report.count_part(PartDone(1, is_ours=True, surveyed=9), None)
    assert (report.surveyed, report.selected) == (9, 7)


def test_a_share_with_failed_maps_ends_with_0() -> None:
    report = share_report()
    report.count_part(PartDone(4, is_ours=True), part_report("bad"))
    report.end()
    assert (report.exit_code, report.complete, report.total) == (0, True, None)
    assert report.summary().splitlines()[:2] == [
        "share 2/3: 1 part committed, of 9 in the plan",
        "3 uploaded, 0 skipped, 1 failed",
    ]
    assert "the commit of the plan tells of them" in report.summary()


def test_a_share_without_parts_says_that_nothing_was_left_to_do() -> None:
    report = am.ShareReport(plan="plan", part=(2, 3), parts=9)
    report.end()
    assert report.summary().startswith("share 2/3: nothing left to do, of 9 parts in the plan\n")


def test_a_share_that_ended_before_the_plan_was_read_counts_no_parts() -> None:
    report = am.ShareReport(plan="plan", part=(2, 3))
    report.end(KeyboardInterrupt())
    assert report.summary() == "share 2/3: ended before the plan was read"


@pytest.mark.parametrize("outcome", [PartStopped(4), PartFailed(4, "its process died")])
def test_a_share_with_an_unfinished_part_ends_with_3(outcome: PartStopped | PartFailed) -> None:
    report = share_report()
    report.count_part(outcome, None)
    report.end()
    assert (report.exit_code, report.complete, report.parts_done) == (3, False, 0)
    said = "its process died; run the share again" if isinstance(outcome, PartFailed) else "run it again for the rest"
    assert said in report.summary()


def test_a_copy_does_not_change_with_its_original() -> None:
    report = share_report()
    copied = report.copy()
    report.count_part(PartDone(4, is_ours=True), part_report("bad"))
    assert (copied.committed, copied.failures, copied.failure_groups, copied.passed_over) == ([], [], [], {})
    assert type(copied) is am.ShareReport


def test_the_time_to_the_end_comes_from_the_parts() -> None:
    report = share_report()
    assert ShareProgress(report, None).eta_s is None
    report.elapsed_s = 10.0
    report.count_part(PartDone(4, is_ours=True), None)
    assert ShareProgress(report, None).eta_s == 20.0


def test_the_progress_says_that_the_plan_is_being_read() -> None:
    assert ShareProgress(am.ShareReport(plan="plan"), None).line() == "reading the plan"


def test_merged_groups_keep_their_bounds() -> None:
    groups, others = FailureGroups(), FailureGroups()
    for i in range(MAX_GROUPS):
        groups.add(failure(f"reason {chr(ord('a') + i % 26)}{chr(ord('a') + i // 26)}"))
    for name in "abc":
        others.add(failure("new", name))
        others.add(failure("reason aa", name))
    groups.merge(others)
    groups.merge(groups.copy())
    first = groups.groups()[0]
    assert len(groups.groups()) == MAX_GROUPS
    assert (first.count, len(first.examples), groups.rest) == (8, 2, 6)
    assert others.groups()[0].count == 3
