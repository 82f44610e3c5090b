from __future__ import annotations

import random

import pytest

from async_maps.filesystems.blame import judge_answer
from async_maps.filesystems.verdict import Verdict
from async_maps.stages.judge import FEW, Case, Judge, Ruling

pytestmark = pytest.mark.fast

BUSY, ERROR = judge_answer(503, "SlowDown"), judge_answer(500)
DENIED, QUOTA = judge_answer(403, "AccessDenied"), judge_answer(403, "QuotaExceeded")


class Court:
    """A judge in virtual time."""

    def __init__(self, max_attempts: int = 10, give_up_s: float = 300.0) -> None:
        self.now = 100.0
        self.judge = Judge(max_attempts=max_attempts, give_up_s=give_up_s, clock=lambda: self.now)

    def accept(self) -> None:
        """Let another object pass."""
        case = Case()
        self.now += 0.01
        self.judge.begin(case)
        self.judge.accepted(case)
        self.judge.close(case)

    def fail(self, case: Case, verdict: Verdict = ERROR) -> Ruling:
        self.now += 0.01
        self.judge.begin(case)
        return self.judge.failed(case, verdict)

    def refuse(self, case: Case, verdict: Verdict = DENIED) -> Ruling:
        self.now += 0.01
        self.judge.begin(case)
        self.judge.refused(case, verdict)
        self.now += 0.01
        return self.judge.rule(case)


@pytest.mark.parametrize("verdict", [ERROR, BUSY])
def test_an_object_that_fails_while_others_pass_is_to_blame_after_max_attempts(verdict: Verdict) -> None:
    court, case = Court(), Case()
    court.accept()
    rulings = []
    for _ in range(11):
        rulings.append(court.fail(case, verdict))
        court.accept()
    assert rulings == [*[Ruling.RETRY] * 10, Ruling.BLAME]


def test_failures_while_nothing_passes_do_not_count() -> None:
    court, case = Court(give_up_s=1e6), Case()
    court.accept()
    rulings = [court.fail(case) for _ in range(200)]
    assert set(rulings) == {Ruling.RETRY}
    court.accept()
    # Only the last of them may have been made when the store was back.
    assert court.fail(case) is Ruling.RETRY
    assert case.counted == 1


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 10, 12), (0.25, 14, 22), (0.5, 26, 38)])
def test_an_object_gets_more_attempts_if_others_fail_often(share: float, least: int, most: int) -> None:
    court, case, chance = Court(), Case(), random.Random(1)  # noqa: S311  # seeded
    for _ in range(400):
        (court.fail(Case()) if chance.random() < share else court.accept())
    attempts = 1
    while court.fail(case) is not Ruling.BLAME:
        attempts += 1
        for _ in range(20):
            (court.fail(Case()) if chance.random() < share else court.accept())
        court.accept()
    assert least <= attempts <= most


def test_the_failures_of_the_last_minute_count() -> None:
    court, case = Court(), Case()
    court.accept()
    for _ in range(500):
        court.fail(Case())
    court.now += 62
    for _ in range(10):
        court.accept()
        assert court.fail(case) is Ruling.RETRY
        court.accept()
    assert court.fail(case) is Ruling.BLAME


def test_objects_that_always_fail_do_not_excuse_each_other() -> None:
    court, cases = Court(), [Case() for _ in range(8)]
    court.accept()
    blamed: set[Case] = set()
    for _ in range(60):
        for case in set(cases) - blamed:
            if court.fail(case) is Ruling.BLAME:
                blamed.add(case)
                court.judge.close(case)
        court.now += 5
        court.accept()  # the control
    assert blamed == set(cases)


def test_a_store_is_down_after_give_up_s_without_an_accepted_object() -> None:
    court, case = Court(give_up_s=60.0), Case()
    court.accept()
    court.now += 1000  # without a request
    assert court.fail(case) is Ruling.RETRY
    court.now += 59
    assert court.fail(case) is Ruling.RETRY
    court.now += 1
    assert court.fail(case) is Ruling.DOWN
    court.accept()
    assert court.fail(case) is Ruling.RETRY


def test_an_object_in_a_store_that_has_accepted_nothing_is_alone_after_max_attempts() -> None:
    court, case = Court(max_attempts=3, give_up_s=1e6), Case()
    assert [court.fail(case) for _ in range(3)] == [Ruling.RETRY, Ruling.RETRY, Ruling.ALONE]


def test_requests_to_slow_down_cost_no_attempt_of_the_first_object() -> None:
    court, case = Court(max_attempts=3, give_up_s=1e6), Case()
    assert {court.fail(case, BUSY) for _ in range(50)} == {Ruling.RETRY}


def test_the_control_is_asked_only_if_nothing_else_has_passed() -> None:
    court, case = Court(), Case()
    court.accept()
    for _ in range(3):
        assert not court.judge.needs_control(case)
        court.fail(case)
    assert court.judge.needs_control(case)
    court.accept()
    assert not court.judge.needs_control(case)


def test_the_time_of_the_first_failure_is_shown_after_a_few_seconds() -> None:
    court, case = Court(), Case()
    court.accept()
    court.fail(case)
    assert court.judge.waiting_since == ""
    court.now += 5
    assert court.judge.waiting_since
    court.accept()
    assert court.judge.waiting_since == ""


# Refusals -----------------------------------------------------------------------------------------------------------


def test_a_refused_object_is_to_blame_if_others_pass_before_and_after_it() -> None:
    court, case, other = Court(), Case(), Case()
    court.judge.begin(other)
    assert court.refuse(case) is Ruling.WAIT
    court.accept()
    assert court.judge.rule(case) is Ruling.RETRY
    assert court.refuse(case) is Ruling.WAIT
    court.accept()
    assert court.judge.rule(case) is Ruling.BLAME


def test_an_attempt_that_began_before_the_refusal_is_no_evidence() -> None:
    court, case, other = Court(), Case(), Case()
    court.judge.begin(other)
    court.refuse(case)
    court.judge.accepted(other)
    assert court.judge.rule(case) is Ruling.WAIT


def test_a_refused_object_that_is_alone_needs_the_control() -> None:
    court, case = Court(), Case()
    court.accept()
    assert court.refuse(case) is Ruling.CONTROL


def test_a_few_refusals_with_one_code_need_the_control_before_others_have_an_answer() -> None:
    court, under_way = Court(), Case()
    court.accept()
    court.judge.begin(under_way)
    assert court.refuse(Case(), QUOTA) is Ruling.WAIT
    assert [court.refuse(Case()) for _ in range(FEW)] == [*[Ruling.WAIT] * (FEW - 1), Ruling.CONTROL]


def test_objects_of_a_refused_prefix_are_tried_again_after_the_control() -> None:
    court, cases = Court(), [Case() for _ in range(FEW)]
    for case in cases:
        court.refuse(case)
    assert court.judge.are_all_refused(cases[0])
    court.accept()
    assert {court.judge.rule(case) for case in cases} == {Ruling.RETRY}
    for case in cases:
        court.refuse(case)
    court.accept()
    assert {court.judge.rule(case) for case in cases} == {Ruling.BLAME}
