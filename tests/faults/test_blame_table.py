"""Who is blamed: each fault at each moment, for each command, over a real socket.

A proxy in front of the S3 server refuses requests. 12 maps are to be uploaded, in ``bad`` or ``sub/`` if the fault
concerns some of them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

import async_maps as am
from async_maps.manifest.manifest import Manifest
from async_maps.sources import open_source
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
from tests.support.maps import npy, random_map
from tests.support.s3 import delete, upload
from tests.support.s3_proxy import Proxy, Refusal, counting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from async_maps.demo.seaweed import S3Server

pytestmark = pytest.mark.slow

DENIED = Refusal(403, "AccessDenied", "not for you")
SIGNATURE = Refusal(403, "SignatureDoesNotMatch", "another signature")
KMS = Refusal(400, "KMS.DisabledException", "the key is disabled")
QUOTA = Refusal(403, "QuotaExceeded", "10 GB are used")
FULL = Refusal(507, "XMinioStorageFull", "the drive is full")
MOMENTS = ["start", "mid-run", pytest.param("rerun", marks=pytest.mark.long)]
BUSY, BROKEN, RESET = Refusal(503, "SlowDown", "less"), Refusal(500, "InternalError", "sorry"), Refusal(0)


@pytest.fixture
def proxy(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setattr("async_maps.stages.rate_limiter._LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr("async_maps.stages.pacing._LEAST_PER_S", 50.0)
    with counting(s3, monkeypatch) as proxy:
        yield proxy


@pytest.fixture
def place(bucket: str) -> str:
    return f"s3://{bucket}/p"


@pytest.fixture
def job(maps: Path, place: str) -> Job:
    return Job(maps, place)


# Faults of one object, or of some ---------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (DENIED, r"refused with AccessDenied: not for you"),
        (SIGNATURE, r"refused with SignatureDoesNotMatch"),
        (BUSY, r"refused with SlowDown: less .after \d+ attempts"),
        (BROKEN, r"refused with InternalError: sorry .after \d+ attempts"),
        (RESET, r"(reset|disconnected|closed).* .after \d+ attempts"),
        (KMS, r"refused with KMS.DisabledException: the key is disabled"),
        (QUOTA, r"refused with QuotaExceeded: 10 GB are used"),
        (Refusal(400, "EntityTooLarge"), r"refused with EntityTooLarge: the store takes no PNG of this size"),
        (Refusal(405), r"refused with status 405: Method Not Allowed"),
    ],
    ids=lambda value: f"{value.status} {value.code}" if isinstance(value, Refusal) else "",
)
def test_a_refused_object_is_blamed_and_the_others_are_done(
    refusal: Refusal, words: str, moment: str, proxy: Proxy, job: Job
) -> None:
    job.settings = PATIENT
    if moment == "rerun":
        job.add(NAMES[:-1])
        assert job.run()[:3] == (0, 11, 0)
    job.add(NAMES)
    # It is the eighth, and four are under way at most.
    proxy.refuse = refusing(refusal, BAD, after=4 if moment == "mid-run" else 0)
    for _ in range(2):  # also when it is run again
        ended = job.run()
        assert ended[:3] == (1, 11, 1), ended
        assert re.search(f"^bad .*: upload: .*{words}", ended.words)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("refusal", [DENIED, SIGNATURE, BUSY, KMS], ids=lambda refusal: refusal.code)
def test_the_objects_of_a_refused_prefix_are_blamed_and_the_others_are_done(
    refusal: Refusal, moment: str, proxy: Proxy, job: Job
) -> None:
    job.settings = PATIENT
    if moment == "rerun":
        job.add([name for name in NAMES if "sub/" not in name])
        assert job.run()[:3] == (0, 8, 0)
    job.add(NAMES)
    proxy.refuse = refusing(refusal, SUB, after=3 if moment == "mid-run" else 0)
    for _ in range(2):
        ended = job.run()
        assert ended[:3] == (1, 8, 4), ended
        assert ended.words.count(f"refused with {refusal.code}") == 4


# Faults of the store, the credentials and the link ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refusal", "at_start", "in_mid_run", "words"),
    [
        (DENIED, 2, 3, "refused with AccessDenied: not for you"),
        (SIGNATURE, 2, 3, "refused with SignatureDoesNotMatch: the secret key is wrong"),
        (Refusal(403, "InvalidAccessKeyId"), 2, 3, "refused with InvalidAccessKeyId: the access key does not exist"),
        (Refusal(400, "ExpiredToken"), 2, 3, "the session token has expired; run the command again with a new one"),
        (Refusal(404, "NoSuchBucket"), 2, 3, "refused with NoSuchBucket: the bucket does not exist"),
        (KMS, 2, 3, "refused with KMS.DisabledException: the key is disabled"),
        (Refusal(400, "InvalidStorageClass", "None"), 2, 3, "refused with InvalidStorageClass: "),
        (Refusal(405), 2, 3, "refused with status 405: Method Not Allowed"),
        (Refusal(409), 2, 3, "refused with status 409: "),
        (Refusal(501, "NotImplemented"), 2, 3, "refused with NotImplemented: the store does not support"),
        (QUOTA, 3, 3, "refused with QuotaExceeded: 10 GB are used"),
        (FULL, 3, 3, "refused with XMinioStorageFull: the drive is full"),
        (Refusal(507), 3, 3, "refused with status 507: Insufficient Storage"),
    ],
    ids=lambda value: f"{value.status} {value.code}" if isinstance(value, Refusal) else "",
)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_refusal_of_all_objects_ends_the_run_and_blames_none(
    refusal: Refusal, at_start: int, in_mid_run: int, words: str, moment: str, proxy: Proxy, job: Job
) -> None:
    done = {"start": 0, "mid-run": 5, "rerun": 1}[moment]
    if moment == "rerun":
        job.add(NAMES[:1])
        assert job.run()[:3] == (0, 1, 0)
    job.add(NAMES)
    proxy.refuse = refusing(refusal, ALL, after=5 if moment == "mid-run" else 0)
    expected = in_mid_run if moment == "mid-run" else at_start
    if expected == 2:
        job.settings = PATIENT
    ended = job.run()
    # A run that ends may leave the answers of the others.
    assert ended.done <= done
    assert (ended.exit_code, ended.failed) == (expected, 0), ended
    assert words in ended.words
    proxy.refuse = lambda *_: None
    assert job.run()[:3] == (0, 12, 0)


@pytest.mark.parametrize("refusal", [BUSY, BROKEN, RESET, Refusal(502)], ids=lambda refusal: str(refusal.status))
@pytest.mark.parametrize("times", [30, FOR_EVER])
def test_an_outage_blames_no_map(refusal: Refusal, times: int, proxy: Proxy, job: Job) -> None:
    job.add(NAMES)
    if times != FOR_EVER:
        job.settings = PATIENT
    proxy.refuse = refusing(refusal, ALL, after=5, times=times)
    ended = job.run()
    if times == FOR_EVER:
        assert ended[:3] == (3, 5, 0), ended
        assert re.search(r"the store has accepted nothing for \d+ s: .* run the same command again", ended.words)
        proxy.refuse = lambda *_: None
        ended = job.run()
    assert ended[:3] == (0, 12, 0), ended


# A source in S3 -----------------------------------------------------------------------------------------------------


@pytest.fixture
def source(bucket: str) -> str:
    upload(bucket, {f"maps/{name}.npy": npy(random_map(number, (8, 8))) for number, name in enumerate(NAMES)})
    return f"s3://{bucket}/maps/"


def run_of(source: object, job: Job) -> Ended:
    job.folder = source  # type: ignore[assignment]
    return job.run()


@pytest.fixture(params=["while it is listed", "after it was listed"])
def read(request: pytest.FixtureRequest, source: str) -> object:
    """The source, whose maps are read while it is listed, or its maps, which are read by the stage for that."""
    return source if request.param == "while it is listed" else list(open_source(source))


def refusing_reads(refusal: Refusal, what: str, *, times: int = FOR_EVER, after: int = 7) -> Any:
    """Refuse GETs of objects, after some have passed."""
    refuse, passed = refusing(refusal, what, times=times, method="GET"), 0

    def refuse_reads(method: str, path: str, query: str) -> Refusal | None:
        nonlocal passed
        if method == "GET" and "list-type" not in query:
            passed += 1
        return None if "list-type" in query or passed <= after else refuse(method, path, query)

    return refuse_reads


@pytest.mark.parametrize("refusal", [DENIED, BUSY, RESET], ids=lambda refusal: str(refusal.status))
def test_an_object_of_the_source_that_is_refused_is_blamed(
    refusal: Refusal, proxy: Proxy, source: str, job: Job, tmp_path: Path
) -> None:
    job.settings = PATIENT
    proxy.refuse = refusing_reads(refusal, "/maps/bad.npy", after=0)
    ended = run_of(source, job)
    assert ended[:3] == (1, 11, 1), ended
    assert re.search("^bad .*: (read|source): ", ended.words)


@pytest.mark.parametrize("refusal", [BUSY, BROKEN, RESET], ids=lambda refusal: str(refusal.status))
@pytest.mark.parametrize("times", [30, FOR_EVER])
def test_an_outage_of_the_source_blames_no_map(
    refusal: Refusal, times: int, proxy: Proxy, read: object, job: Job
) -> None:
    if times != FOR_EVER:
        job.settings = PERSISTENT
    proxy.refuse = refusing_reads(refusal, "/maps/", times=times)
    ended = run_of(read, job)
    if times == FOR_EVER:
        assert (ended.exit_code, ended.failed) == (3, 0), ended
        proxy.refuse = lambda *_: None
        ended = job.run()
    assert ended[:3] == (0, 12, 0), ended


def test_a_source_that_is_refused_in_mid_run_blames_no_map(proxy: Proxy, read: object, job: Job) -> None:
    proxy.refuse = refusing_reads(DENIED, "/maps/")
    ended = run_of(read, job)
    # 2 if no map was uploaded before.
    assert ended.exit_code in {2, 3}, ended
    assert ended.failed == 0
    assert "refused with AccessDenied: not for you" in ended.words


@pytest.mark.parametrize("refusal", [DENIED, BUSY, RESET], ids=lambda refusal: str(refusal.status))
def test_a_source_that_cannot_be_listed_blames_no_map(refusal: Refusal, proxy: Proxy, source: str, job: Job) -> None:
    proxy.refuse = refusing_reads(refusal, "/maps/", after=0)
    with pytest.raises(am.AsyncMapsError) as raised:
        am.run(source, job.place, settings=SETTINGS, manifest=job.manifest)
    assert raised.value.report.exit_code == (2 if refusal is DENIED else 3)
    assert raised.value.report.failed == 0


# put ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refusal", "what", "first", "kind"),
    [
        (DENIED, BAD, True, am.MapFailedError),
        (BUSY, BAD, True, am.MapFailedError),
        (RESET, BAD, True, am.MapFailedError),
        (KMS, BAD, True, am.MapFailedError),
        (Refusal(400, "EntityTooLarge"), BAD, False, am.MapFailedError),
        (DENIED, BAD, False, am.StoreError),
        (BROKEN, BAD, False, am.StoreError),
        (RESET, BAD, False, am.StoreError),
        (DENIED, ALL, True, am.StoreError),
        (BUSY, ALL, True, am.StoreError),
        (QUOTA, ALL, True, am.StoreError),
        (RESET, ALL, True, am.StoreError),
        (Refusal(403, "InvalidAccessKeyId"), BAD, True, am.StoreError),
    ],
    ids=lambda value: getattr(value, "code", None) or str(getattr(value, "status", "")),
)
async def test_put_raises_map_failed_only_for_the_map_that_is_to_blame(
    refusal: Refusal, what: str, first: bool, kind: type[am.AsyncMapsError], proxy: Proxy, place: str
) -> None:
    async with am.Pipeline(place, settings=PATIENT if kind is am.MapFailedError else SETTINGS) as pipeline:
        if first:
            await pipeline.put("good", random_map(1))
        proxy.refuse = refusing(refusal, what)
        with pytest.raises(kind) as raised:
            await pipeline.put("bad", random_map(2))
        assert isinstance(raised.value, am.MapFailedError) == (kind is am.MapFailedError)
        proxy.refuse = lambda *_: None
        # The pipeline goes on.
        await pipeline.put("bad", random_map(2))
        assert pipeline.statistics().failed == (kind is am.MapFailedError)


# Other commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(proxy: Proxy, job: Job) -> Job:
    """A job whose overlays are stored."""
    job.add(NAMES)
    assert job.run()[:3] == (0, 12, 0)
    return job


@pytest.mark.parametrize(
    ("refusal", "what", "times", "code", "words"),
    [
        (BUSY, "", 2, 0, "12 of 12"),
        (RESET, "", 2, 0, "12 of 12"),
        (BUSY, "", FOR_EVER, 3, "refused with SlowDown: less"),
        (RESET, "", FOR_EVER, 3, "[Cc]onnection|closed"),
        (DENIED, BAD, FOR_EVER, 1, "1 unreadable"),
        (Refusal(403, "InvalidAccessKeyId"), "", FOR_EVER, 2, "the access key does not exist there"),
    ],
    ids=str,
)
def test_verify_names_no_object_for_the_fault_of_the_store(
    refusal: Refusal, what: str, times: int, code: int, words: str, proxy: Proxy, stored: Job
) -> None:
    proxy.refuse = refusing(refusal, what, times=times, method="GET")
    settings = SETTINGS if times == FOR_EVER else PATIENT
    found = exit_code_of(lambda: am.verify_locators(stored.manifest, settings=settings, deep=True))
    assert found[0] == code, found
    assert re.search(words, found[1]), found


@pytest.mark.parametrize(
    ("refusal", "what", "times", "code"),
    [(BUSY, BAD, 3, 0), (DENIED, BAD, FOR_EVER, None), (QUOTA, ALL, FOR_EVER, 3), (BROKEN, ALL, FOR_EVER, 3)],
    ids=str,
)
def test_repair_keeps_the_rows_that_the_store_does_not_let_it_repair(
    refusal: Refusal, what: str, times: int, code: int | None, proxy: Proxy, stored: Job
) -> None:
    delete(stored.place.removeprefix("s3://").partition("/")[0], "p/bad.png")
    proxy.refuse = refusing(refusal, what, times=times)
    settings = SETTINGS if times == FOR_EVER else PATIENT
    found = exit_code_of(lambda: am.repair_overlays(stored.manifest, settings=settings))
    assert code is None or found[0] == code, found
    proxy.refuse = lambda *_: None
    again = exit_code_of(lambda: am.repair_overlays(stored.manifest, settings=SETTINGS))
    assert again[0] == 0, again
    assert exit_code_of(lambda: am.verify_locators(stored.manifest, settings=SETTINGS))[0] == 0


@pytest.mark.parametrize(
    ("refusal", "times", "code"), [(BUSY, 1, 0), (BUSY, FOR_EVER, 3), (RESET, FOR_EVER, 3)], ids=str
)
def test_prune_forgets_no_row_whose_overlay_it_could_not_delete(
    refusal: Refusal, times: int, code: int, proxy: Proxy, stored: Job
) -> None:
    (stored.folder / "bad.npy").unlink()
    proxy.refuse = refusing(refusal, "", times=times, method="POST")

    settings = SETTINGS if times == FOR_EVER else PATIENT

    def prune() -> am.Report:
        return am.run(stored.folder, stored.place, settings=settings, manifest=stored.manifest, prune="objects")

    found = exit_code_of(prune)
    assert found[0] == code, found
    proxy.refuse = lambda *_: None
    assert exit_code_of(prune)[0] == 0
    with Manifest(stored.manifest, read_only=True) as opened:
        assert opened.counts() == {"done": 11}


@pytest.mark.parametrize(
    "refusal", [DENIED, SIGNATURE, KMS, QUOTA, FULL, BROKEN, Refusal(405)], ids=lambda refusal: refusal.code
)
def test_doctor_finds_what_refuses_every_object(refusal: Refusal, proxy: Proxy, place: str) -> None:
    proxy.refuse = refusing(refusal, "/p/")
    findings = am.diagnose(place, SETTINGS, origins=(), quick=True)
    (write,) = (finding for finding in findings if finding.check in {"write", "store"} and finding.level == "failure")
    name = refusal.code or f"status {refusal.status}"
    assert f"refused with {name}: " in write.text
    assert "None" not in write.text
