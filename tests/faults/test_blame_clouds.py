"""Who is blamed in Google Cloud Storage and Azure: the rows of the table of blame that apply there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

import async_maps as am
from tests.support.blame import (
    ALL,
    BAD,
    FOR_EVER,
    NAMES,
    PATIENT,
    PERSISTENT,
    SETTINGS,
    SUB,
    Ended,
    Job,
    exit_code_of,
    refusing,
)
from tests.support.clouds import azure, azurite_url, cloud, gcs_server, stand_in
from tests.support.maps import npy, random_map
from tests.support.s3_proxy import Refusal

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.clouds import Cloud

__all__ = ["azure", "azurite_url", "cloud", "gcs_server", "stand_in"]

pytestmark = pytest.mark.slow

RESET = Refusal(0)
REFUSALS = {
    "gs": {
        "no bucket": Refusal(404, "notFound", "The specified bucket does not exist."),
        "no token": Refusal(401, "authError", "Invalid Credentials"),
        "too large": Refusal(413, "uploadTooLarge", "too large"),
        "broken": Refusal(500, "backendError", "sorry"),
        "full": Refusal(403, "quotaExceeded", "10 GB are used"),
    },
    "az": {
        "no bucket": Refusal(404, "ContainerNotFound", "The specified container does not exist."),
        "no token": Refusal(401, "InvalidAuthenticationInfo", "Invalid Credentials"),
        "too large": Refusal(413, "RequestBodyTooLarge", "too large"),
        "broken": Refusal(500, "OperationTimedOut", "sorry"),
        "full": Refusal(507),
    },
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("async_maps.stages.rate_limiter._LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr("async_maps.stages.pacing._LEAST_PER_S", 50.0)
    monkeypatch.setattr("async_maps.filesystems.services.filesystem._LONGEST_WAIT_S", 0.05)


@pytest.fixture
def job(maps: Path, cloud: Cloud) -> Job:
    return Job(maps, f"{cloud.address}/p")


def refusal_of(cloud: Cloud, name: str) -> Refusal:
    known = {"denied": cloud.denied, "busy": cloud.busy, "reset": RESET, "405": Refusal(405)}
    return (known | REFUSALS[cloud.scheme])[name]


# Destinations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["start", "mid-run"])
@pytest.mark.parametrize("name", ["denied", "busy", "broken", "reset", "too large", "full", "405"])
def test_a_refused_object_is_blamed_and_the_others_are_done(name: str, moment: str, cloud: Cloud, job: Job) -> None:
    job.settings = PATIENT
    job.add(NAMES)
    refusal = refusal_of(cloud, name)
    # It is the eighth, and four are under way at most.
    cloud.refuse_with(refusing(refusal, BAD, after=4 if moment == "mid-run" else 0))
    for _ in range(2):  # also when it is run again
        ended = job.run()
        assert ended[:3] == (1, 11, 1), ended
        words = r"reset|disconnected|closed" if name == "reset" else f"refused with {refusal.code or 'status'}"
        assert re.search(f"^bad .*: upload: .*({words})", ended.words, re.IGNORECASE)


@pytest.mark.parametrize("name", ["denied", "busy"])
def test_the_objects_of_a_refused_prefix_are_blamed_and_the_others_are_done(name: str, cloud: Cloud, job: Job) -> None:
    job.settings = PATIENT
    job.add(NAMES)
    cloud.refuse_with(refusing(refusal_of(cloud, name), SUB))
    for _ in range(2):
        assert job.run()[:3] == (1, 8, 4)


@pytest.mark.parametrize(
    ("name", "at_start", "in_mid_run"),
    [("denied", 2, 3), ("no bucket", 2, 3), ("no token", 2, 3), ("full", 3, 3), ("405", 2, 3)],
)
@pytest.mark.parametrize("moment", ["start", "mid-run"])
def test_a_refusal_of_all_objects_ends_the_run_and_blames_none(
    name: str, at_start: int, in_mid_run: int, moment: str, cloud: Cloud, job: Job
) -> None:
    job.add(NAMES)
    refusal = refusal_of(cloud, name)
    cloud.refuse_with(refusing(refusal, ALL, after=5 if moment == "mid-run" else 0))
    expected = in_mid_run if moment == "mid-run" else at_start
    if expected == 2:
        job.settings = PATIENT
    ended = job.run()
    assert ended.done <= 5
    assert (ended.exit_code, ended.failed) == (expected, 0), ended
    assert f"refused with {refusal.code or 'status'}" in ended.words
    cloud.refuse_with(lambda *_: None)
    assert job.run()[:3] == (0, 12, 0)


@pytest.mark.parametrize("name", ["busy", "broken", "reset"])
@pytest.mark.parametrize("times", [30, FOR_EVER])
def test_an_outage_blames_no_map(name: str, times: int, cloud: Cloud, job: Job) -> None:
    job.add(NAMES)
    if times != FOR_EVER:
        job.settings = PATIENT
    cloud.refuse_with(refusing(refusal_of(cloud, name), ALL, after=5, times=times))
    ended = job.run()
    if times == FOR_EVER:
        assert ended[:3] == (3, 5, 0), ended
        assert re.search(r"the store has accepted nothing for \d+ s: .* run the same command again", ended.words)
        cloud.refuse_with(lambda *_: None)
        ended = job.run()
    assert ended[:3] == (0, 12, 0), ended


# Sources ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(cloud: Cloud) -> str:
    for number, name in enumerate(NAMES):
        cloud.upload(f"maps/{name}.npy", npy(random_map(number, (8, 8))))
    return f"{cloud.address}/maps/"


def run_of(source: str, job: Job) -> Ended:
    job.folder = source  # type: ignore[assignment]
    return job.run()


def refusing_reads(refusal: Refusal, what: str, *, times: int = FOR_EVER, after: int = 7) -> Any:
    """Refuse GETs of objects, after some have passed."""
    refuse, passed = refusing(refusal, what, times=times, method="GET"), 0

    def refuse_reads(method: str, path: str, query: str) -> Refusal | None:
        nonlocal passed
        is_listing = "maxresults" in query.lower()
        passed += method == "GET" and not is_listing
        return None if is_listing or passed <= after else refuse(method, path, query)

    return refuse_reads


@pytest.mark.parametrize("name", ["denied", "busy", "reset"])
def test_an_object_of_the_source_that_is_refused_is_blamed(name: str, cloud: Cloud, source: str, job: Job) -> None:
    job.settings = PATIENT
    cloud.refuse_with(refusing_reads(refusal_of(cloud, name), "/maps/bad.npy", after=0))
    ended = run_of(source, job)
    assert ended[:3] == (1, 11, 1), ended
    assert re.search("^bad .*: (read|source): ", ended.words)


@pytest.mark.parametrize("name", ["busy", "broken", "reset"])
@pytest.mark.parametrize("times", [30, FOR_EVER])
def test_an_outage_of_the_source_blames_no_map(name: str, times: int, cloud: Cloud, source: str, job: Job) -> None:
    if times != FOR_EVER:
        job.settings = PERSISTENT
    cloud.refuse_with(refusing_reads(refusal_of(cloud, name), "/maps/", times=times))
    ended = run_of(source, job)
    if times == FOR_EVER:
        assert (ended.exit_code, ended.failed) == (3, 0), ended
        cloud.refuse_with(lambda *_: None)
        ended = job.run()
    assert ended[:3] == (0, 12, 0), ended


def test_a_source_that_is_refused_in_mid_run_blames_no_map(cloud: Cloud, source: str, job: Job) -> None:
    cloud.refuse_with(refusing_reads(cloud.denied, "/maps/"))
    ended = run_of(source, job)
    # 2 if no map was uploaded before.
    assert ended.exit_code in {2, 3}, ended
    assert ended.failed == 0
    assert f"refused with {cloud.denied.code}: not for you" in ended.words


# Other commands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "what", "times", "code", "words"),
    [
        ("busy", "", 2, 0, "12 of 12"),
        ("reset", "", 2, 0, "12 of 12"),
        ("busy", "", FOR_EVER, 3, "refused with"),
        ("denied", BAD, FOR_EVER, 1, "1 unreadable"),
        ("no token", "", FOR_EVER, 2, "the token is missing, or not valid there"),
    ],
)
def test_verify_names_no_object_for_the_fault_of_the_store(
    name: str, what: str, times: int, code: int, words: str, cloud: Cloud, job: Job
) -> None:
    job.add(NAMES)
    assert job.run()[:3] == (0, 12, 0)
    cloud.refuse_with(refusing(refusal_of(cloud, name), what, times=times, method="GET"))
    settings = SETTINGS if times == FOR_EVER else PATIENT
    ended = exit_code_of(lambda: am.verify_locators(job.manifest, settings=settings, deep=True))
    assert ended[0] == code, ended
    assert re.search(words, ended[1]), ended
