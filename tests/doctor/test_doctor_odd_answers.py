"""Servers that answer optional questions with nothing, a refusal or garbage get findings, never a traceback."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import async_maps as am
from async_maps.doctor import s3 as s3_doctor
from tests.support.odd_server import OddServer, odd_server

if TYPE_CHECKING:
    from async_maps.doctor import Finding

__all__ = ["odd_server"]

OPTIONAL = ("list-type", "versioning", "encryption", "cors")
NOT_NUMBERS = (
    b"<A><CORSRule><MaxAgeSeconds>soon</MaxAgeSeconds></CORSRule><Contents><Size>big</Size></Contents>"
    b"<MaxKeys>x</MaxKeys><Rule><BucketKeyEnabled>?</BucketKeyEnabled></Rule></A>"
)


@pytest.fixture(autouse=True)
def _one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_doctor, "_ATTEMPTS", 1)


async def findings() -> dict[str, Finding]:
    found = await am.adiagnose("s3://bucket/p", am.Settings(concurrency=1), quick=True)
    return {finding.check: finding for finding in found}


@pytest.mark.parametrize(
    "answer",
    [
        (200, b""),
        (204, b""),
        (200, b"<A/>"),
        (200, b"<A><Rule/><CORSRule/><Contents/></A>"),
        (200, b"<A><Rule>text</Rule><Rule><ApplyServerSideEncryptionByDefault/></Rule></A>"),
    ],
    ids=["nothing", "204", "no rules", "empty rules", "odd rules"],
)
async def test_answers_without_rules_mean_that_there_are_none(answer: tuple[int, bytes], odd_server: OddServer) -> None:
    odd_server.questions = dict.fromkeys(OPTIONAL, answer)
    found = await findings()
    assert {found[check].level for check in ("list", "versioning", "encryption")} == {"ok"}
    assert "CORSRules" in found["browser"].advice


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((404, b""), "status 404"),
        ((405, b"<html>"), "status 405"),
        ((501, b"<Error><Code>NotImplemented</Code></Error>"), "refused with NotImplemented"),
        ((400, b"\xff"), "status 400"),
        ((500, b""), "status 500"),
        ((301, b""), "status 301"),
        ((200, b"<html><p>Welcome<br></html>"), "refused"),
        ((200, b'{"a": 1}'), "refused"),
    ],
    ids=["404", "405", "501", "400", "500", "301", "HTML", "JSON"],
)
async def test_questions_that_a_server_does_not_answer_are_no_lack_of_permission(
    answer: tuple[int, bytes], said: str, odd_server: OddServer
) -> None:
    odd_server.questions = dict.fromkeys(OPTIONAL, answer)
    found = await findings()
    assert [found[check].level for check in ("list", "versioning", "encryption")] == ["warning", "unknown", "unknown"]
    for check in ("list", "versioning", "encryption"):
        assert said in found[check].text
        assert "permission" not in found[check].text
    assert said in found["browser"].advice
    assert found["write"].level == "ok"


async def test_text_in_place_of_numbers_is_named(odd_server: OddServer) -> None:
    odd_server.questions = dict.fromkeys(OPTIONAL, (200, NOT_NUMBERS))
    found = await findings()
    assert "the answer of the store cannot be read" in found["list"].text
    assert "the answer of the store cannot be read" in found["browser"].advice
    assert found["encryption"].level in {"ok", "unknown"}


async def test_a_finding_repeats_no_secret(odd_server: OddServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sEcReT")
    answer = b"<Error><Code>Odd</Code><Message>you signed with sEcReT</Message></Error>"
    odd_server.questions = dict.fromkeys(OPTIONAL, (400, answer))
    found = await findings()
    for text in (found["list"].text, found["browser"].advice):
        assert "refused with Odd: you signed with ***" in text


async def test_a_bucket_that_is_redirected_to_no_region_is_asked_once(odd_server: OddServer) -> None:
    odd_server.heads_bucket = 301
    found = await findings()
    assert (found["bucket"].level, found["write"].level) == ("ok", "ok")
    odd_server.asked.clear()
    report = await am.arun([("a", np.eye(4))], "s3://bucket/p", settings=am.Settings(workers=0))
    assert report.uploaded == 1
    assert sum(asked.method == "HEAD" for asked in odd_server.asked) == 1
