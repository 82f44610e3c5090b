"""How runs end: the exit code of every error, and the JSON of reports."""

from __future__ import annotations

import errno
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import async_maps as am
from async_maps import errors
from async_maps.report.ending import DONE, SOME_FAILED, STOPPED_EARLY, WRONG_USE, exit_code
from async_maps.verify.verification import Verification
from tests.support.documents import table
from tests.support.reports import check_report, schema

pytestmark = pytest.mark.fast

PAGE = "configs/README.md"
CLASSES: dict[str, type[am.AsyncMapsError]] = {
    name: item for name, item in vars(errors).items() if isinstance(item, type) and issubclass(item, am.AsyncMapsError)
}


def made(kind: type[am.AsyncMapsError], **attributes: object) -> am.AsyncMapsError:
    error = kind.__new__(kind, "a reason")
    am.AsyncMapsError.__init__(error, "a reason")
    vars(error).update(attributes)
    return error


def codes_of(kind: type[am.AsyncMapsError]) -> set[int]:
    return {exit_code(made(kind, _may_pass=may_pass)) for may_pass in (False, True)}


def test_the_page_has_the_exit_code_of_every_error() -> None:
    documented = {
        name.strip(): {int(code) for code in row[0].split(" or ")}
        for row in table(PAGE, "Exit code")
        for name in row[1].partition(":")[0].split(",")
    }
    assert documented == {name: codes_of(kind) for name, kind in CLASSES.items()}


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        (ConnectionResetError("reset"), STOPPED_EARLY),
        (TimeoutError(), STOPPED_EARLY),
        (OSError(errno.ENOSPC, "full"), STOPPED_EARLY),
        (OSError(errno.ESTALE, "stale"), STOPPED_EARLY),
        (am.SourceError("the source is down", may_pass=True), STOPPED_EARLY),
        (PermissionError(errno.EACCES, "no"), WRONG_USE),
        (FileNotFoundError(errno.ENOENT, "none"), WRONG_USE),
        (ValueError("wrong"), WRONG_USE),
    ],
)
def test_the_cause_says_whether_an_error_may_pass(cause: Exception, code: int) -> None:
    error = am.SourceError("cannot be listed")
    setting = am.SettingsError("the file cannot be written")
    error.__cause__ = setting.__cause__ = cause
    assert exit_code(error) == exit_code(setting) == code
    outer = am.ManifestError("cannot be used")
    outer.__cause__ = error
    assert exit_code(outer) == code


def test_a_refusal_in_mid_run_may_pass() -> None:
    for report in (am.Report(), am.Report(uploaded=1), Verification(), Verification(listed=1)):
        code = STOPPED_EARLY if report.has_reached_store else WRONG_USE
        assert exit_code(made(am.StoreError, report=report)) == code
        # What the user wrote stays wrong.
        assert exit_code(made(am.SourceError, report=report)) == WRONG_USE
        assert exit_code(made(am.SettingsError, report=report)) == WRONG_USE


def test_other_errors_and_interruptions_have_codes() -> None:
    assert exit_code(RuntimeError("a bug")) == SOME_FAILED
    assert exit_code(KeyboardInterrupt()) == 130


def test_a_report_ends_with_the_error_that_is_given_to_it() -> None:
    report, error = am.Report(uploaded=3, selected=5), am.StoreError("gone", may_pass=True)
    report.end(error)
    assert error.report is report
    found = check_report(json.loads(json.dumps(report.as_dict())))
    assert (found["complete"], found["error"]) == (False, {"kind": "StoreError", "message": "gone"})
    assert found["exit_code"] == STOPPED_EARLY


def test_a_drained_run_is_not_complete() -> None:
    report = am.Report(drained=True)
    report.end()
    assert (report.complete, report.exit_code, report.error) == (False, STOPPED_EARLY, None)


def test_the_schema_has_every_key_of_a_report() -> None:
    ending = schema()["$defs"]["ending"]["properties"].keys()
    for kind, report in (("run", am.ShareReport()), ("verify", Verification())):
        assert report.as_dict().keys() == ending | schema()["$defs"][kind]["properties"].keys()
    assert am.Report().as_dict().keys() == ending | {*schema()["$defs"]["run"]["required"]}


def test_a_limited_run_does_not_know_the_total(tmp_path: Path) -> None:
    maps = [(str(i), np.eye(4)) for i in range(5)]
    settings = am.Settings(workers=0)
    for limit, total in ((None, 5), (3, None), (5, None), (6, 5)):
        report = am.run(maps, am.MemoryStore(), settings=settings, limit=limit)
        assert check_report(report.as_dict())["total"] == total
        assert (report.selected, report.done, report.complete, report.exit_code) == (min(5, limit or 5),) * 2 + (
            True,
            DONE,
        )


@pytest.mark.parametrize("dry_run", [False, True])
def test_every_error_of_a_run_has_a_report(tmp_path: Path, dry_run: bool) -> None:
    call: Any = am.dry_run if dry_run else am.run
    (tmp_path / "file").touch()
    for source, destination in ((tmp_path / "none", tmp_path / "out"), ([], "gs://x"), ([], tmp_path / "file")):
        with pytest.raises(am.AsyncMapsError) as raised:
            call(source, destination, settings=am.Settings(workers=0))
        found = check_report(raised.value.report.as_dict())
        assert (found["complete"], found["exit_code"]) == (False, WRONG_USE)
        assert found["error"] == {"kind": type(raised.value).__name__, "message": str(raised.value)}
        assert found["settings"]["workers"] == 0


def test_the_time_of_a_run_that_failed_goes_to_its_end() -> None:
    seen = []

    def source() -> Any:
        yield "a", np.eye(4)
        seen.append(am.Report())
        while not seen[0].elapsed_s:
            seen[0].tick()
        raise am.SourceError("the end")

    with suppress(am.SourceError):
        am.run(source(), am.MemoryStore(), settings=am.Settings(workers=0))
    with pytest.raises(am.SourceError) as raised:
        am.run(source(), am.MemoryStore(), settings=am.Settings(workers=0))
    report = raised.value.report
    assert report.ended_at is not None
    assert report.elapsed_s == pytest.approx((report.ended_at - report.started_at).total_seconds(), abs=0.1)
