"""Failures by reason: what falls in one group, what does not, and how many groups there are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import async_maps as am
from async_maps.report import Report
from async_maps.report.failure_groups import MAX_GROUPS

if TYPE_CHECKING:
    from async_maps.outcomes import Stage

pytestmark = pytest.mark.fast

OUT_OF_RANGE = "every value must lie in [0, 1]; found {} at index {} (NaN or out of range: {} of {} values)"


def failure(reason: str, name: str = "val/0001", stage: Stage = "read", source: str = "") -> am.Failure:
    return am.Failure(name, source or f"/maps/{name}.npy", None, stage, reason)


def counts(*failures: am.Failure) -> list[int]:
    report = Report()
    report.count(failures)
    return [group.count for group in report.failure_groups]


@pytest.mark.parametrize(
    "reasons",
    [
        ["expected values in [0, 1], found 3.2 at (4, 7)", "expected values in [0, 1], found -1e-05 at (0,)"],
        [OUT_OF_RANGE.format("2.5", "(4, 7)", 1, 64), OUT_OF_RANGE.format("-inf", "(0, 0, 1)", "1,024", "4,096")],
        ["its shape is (3, 224, 224)", "its shape is (1, 3, 7, 7)", "its shape is (7,)"],
        ["found int64", "found int32"],
        ["'a b' is the overlay of 'c'", "'it is' is the overlay of \"it's\""],
        ["the name ../x is refused", "the name a//b is refused"],
        ["cannot read /data/a.npy: gone", "cannot read s3://bucket/b.npy: gone"],
        ["nothing (list.csv, line 7)", "nothing (list.csv, line 8)"],
        ["S3 allows 1,024: aaaa...", "S3 allows 1,024: bb..."],
    ],
)
def test_reasons_that_differ_in_names_numbers_and_paths_are_one_group(reasons: list[str]) -> None:
    assert counts(*map(failure, reasons)) == [len(reasons)]


def test_a_reason_that_holds_the_map_itself_is_one_group_for_all_maps() -> None:
    names = ["a b, c", "x: y", "sub folder/(1)", "日本 1"]
    assert counts(*(failure(f"the map {name} in /maps/{name}.npy is bad", name) for name in names)) == [4]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("the bucket refuses it", "the bucket allows it"),
        ("could not be read: KeyError('x')", "could not be read: OSError(5, 'x')"),
        ("the row's path is 'a'", "the row's name is 'a'"),
        ("expected (h, w), found ()", "expected (h, w), found (3,)"),
    ],
)
def test_reasons_that_differ_in_words_are_two_groups(one: str, other: str) -> None:
    assert counts(failure(one), failure(other), failure(one)) == [2, 1]


def test_a_map_that_is_called_like_a_word_of_the_reason_is_in_the_group_of_others() -> None:
    reason = "an activation map has another shape"
    assert counts(*(failure(reason, name) for name in ("shape", "map", "a", "1"))) == [4]


def test_stages_are_groups_of_their_own() -> None:
    assert counts(failure("gone", stage="read"), failure("gone", stage="upload")) == [1, 1]


def test_a_group_has_an_exact_count_and_the_first_two_in_full() -> None:
    report = Report()
    failures = [failure(OUT_OF_RANGE.format(number, "(0, 0)", 1, 4), f"{number}") for number in range(2, 5000)]
    report.count(failures)
    (group,) = report.failure_groups
    assert (group.stage, group.reason, group.count) == ("read", failures[0].reason, 4998)
    assert group.examples == failures[:2]
    assert (report.failed, report.ungrouped, len(report.failures)) == (4998, 0, 1000)


def test_the_number_of_groups_is_bounded_and_the_rest_is_counted() -> None:
    words = [f"{chr(97 + number // 26)}{chr(97 + number % 26)}" for number in range(MAX_GROUPS + 20)]
    report = Report()
    report.count([failure(f"reason {word}") for word in words for _ in range(3)])
    assert len(report.failure_groups) == MAX_GROUPS
    assert report.ungrouped == 3 * 20
    assert sum(group.count for group in report.failure_groups) + report.ungrouped == report.failed


def test_a_copied_report_stays_as_it_was() -> None:
    report = Report()
    report.count([failure("gone")])
    report.pass_over(".jpg")
    copied = report.copy()
    report.count([failure("gone"), failure("other")])
    report.pass_over(".jpg")
    assert [group.count for group in copied.failure_groups] == [1]
    assert [len(group.examples) for group in copied.failure_groups] == [1]
    assert copied.passed_over == {".jpg": 1}


def test_a_report_for_machines_has_the_groups() -> None:
    report = Report()
    report.count([failure("found 1"), failure("found 2")])
    values = json.loads(json.dumps(report.as_dict()))
    assert values["failure_groups"] == [
        {"stage": "read", "reason": "found 1", "count": 2, "examples": values["failures"]}
    ]
    assert values["ungrouped"] == 0
    assert not [name for name in values if name.startswith("_")]


@pytest.mark.timeout(20)
def test_a_long_reason_is_grouped_in_little_time() -> None:
    assert counts(failure("x" * 10**7), failure("'" * 10**5 + "\\" * 10**5)) == [1, 1]


def test_suffixes_are_counted_and_their_number_is_bounded() -> None:
    report = Report()
    for number in range(1000):
        report.pass_over(f".{number}")
    assert len(report.passed_over) == 30
    assert sum(report.passed_over.values()) == 1000
    assert report.passed_over["others"] == 971
