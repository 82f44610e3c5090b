"""What exists before a run, and ends it or a map, is found by ``doctor`` in the words of the run."""

from __future__ import annotations

import shlex
import subprocess
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

import async_maps as am
from async_maps.doctor import folder as _folder  # noqa: F401  # a user without permissions cannot import it
from async_maps.doctor import s3 as s3_doctor
from tests.support.certificates import make_certificate
from tests.support.commands import COMMAND
from tests.support.odd_disk import odd_disk
from tests.support.odd_server import OddServer, odd_server, serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from async_maps.doctor import Finding

__all__ = ["odd_server"]


class Fault(NamedTuple):
    """The answer of the server to every request, or to the PUTs of objects; what a run and the doctor say of it."""

    status: int
    code: str
    words: str
    every: bool = False
    settings: dict[str, Any] = {}  # noqa: RUF012  # not changed


FAULTS = [
    Fault(404, "NoSuchBucket", "the bucket does not exist", every=True),
    Fault(403, "InvalidAccessKeyId", "the access key does not exist there", every=True),
    Fault(403, "SignatureDoesNotMatch", "the secret key is wrong", every=True),
    Fault(400, "ExpiredToken", "the session token has expired; run the command again with a new one", every=True),
    Fault(400, "InvalidToken", "the session token is not valid", every=True),
    Fault(403, "AllAccessDisabled", "all access to the bucket is disabled", every=True),
    Fault(403, "AccessDenied", "refused with AccessDenied: as the test says", every=True),
    Fault(503, "SlowDown", "refused with status 503: Service Unavailable", every=True),
    Fault(403, "AccessDenied", "refused with AccessDenied: as the test says"),
    Fault(400, "KMS.NotFoundException", "refused with KMS.NotFoundException: as the test says",
          settings={"server_side_encryption": "aws:kms", "kms_key_id": "none"}),
    Fault(400, "InvalidStorageClass", "refused with InvalidStorageClass: as the test says",
          settings={"storage_class": "NONE"}),
    Fault(400, "AccessControlListNotSupported", "refused with AccessControlListNotSupported: as the test says",
          settings={"acl": "private"}),
    Fault(403, "QuotaExceeded", "refused with QuotaExceeded: as the test says"),
    Fault(507, "XMinioStorageFull", "refused with XMinioStorageFull: as the test says"),
    Fault(405, "", "refused with status 405: as the test says"),
    Fault(501, "NotImplemented", "refused with NotImplemented: as the test says"),
    Fault(409, "BucketNotEmpty", "refused with BucketNotEmpty: as the test says"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_doctor, "_ATTEMPTS", 1)
    monkeypatch.setattr("async_maps.stores.s3._CHECK_WAITS_S", ())


@pytest.fixture(autouse=True)
def _secret_that_is_no_word(odd_server: OddServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # Secrets are masked in messages.
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sEcReT")


async def said_by_run(place: str | Path, settings: am.Settings) -> str:
    with pytest.raises(am.AsyncMapsError) as raised:
        await am.arun([("a", np.eye(4))], place, settings=settings)
    return str(raised.value)


async def said_by_doctor(place: str | Path, settings: am.Settings) -> list[str]:
    """Return the texts of the failures."""
    found: list[Finding] = await am.adiagnose(place, settings, quick=True, origins=())
    return [finding.text for finding in found if finding.level == "failure"]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.status} {fault.code} {fault.every}")
async def test_a_refusal_is_foretold(fault: Fault, odd_server: OddServer) -> None:
    odd_server.answers = {"PUT": (fault.status, fault.code)}
    if fault.every:
        odd_server.heads_bucket = fault.status
        body = f"<Error><Code>{fault.code}</Code><Message>as the test says</Message></Error>"
        odd_server.questions = {"list-type": (fault.status, body.encode())}
    settings = am.Settings(workers=0, s3=am.S3Settings(**fault.settings))
    assert fault.words in await said_by_run("s3://bucket/p", settings)
    (said,) = await said_by_doctor("s3://bucket/p", settings)
    assert fault.words in said


async def test_answers_that_cannot_be_read_are_foretold(odd_server: OddServer, monkeypatch: pytest.MonkeyPatch) -> None:
    read = odd_server._read

    def read_oddly(path: str, query: dict[str, list[str]]) -> tuple[int, dict[str, str], bytes]:
        status, headers, body = read(path, query)
        return status, {**headers, "Last-Modified": "yesterday"}, body

    monkeypatch.setattr(odd_server, "_read", read_oddly)
    settings = am.Settings(workers=0, s3=am.S3Settings(storage_class="GLACIER_IR", give_up_s=0.5))
    words = "the answer of the store cannot be read: Invalid timestamp"
    assert words in await said_by_run("s3://bucket/p", settings)
    (said,) = await said_by_doctor("s3://bucket/p", settings)
    assert words in said


UNREACHABLE: dict[str, Callable[[int], str]] = {
    "nobody listens": lambda _: "http://127.0.0.1:9",
    "no such name": lambda _: "http://store.invalid",
    "no TLS": lambda port: f"https://127.0.0.1:{port}",
}


@pytest.mark.parametrize("endpoint", UNREACHABLE.values(), ids=UNREACHABLE)
async def test_an_endpoint_without_answer_is_foretold(
    endpoint: Callable[[int], str], odd_server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint(odd_server.port))
    settings = am.Settings(workers=0, s3=am.S3Settings(give_up_s=1.0))
    ended = await said_by_run("s3://bucket/p", settings)
    (said,) = await said_by_doctor("s3://bucket/p", settings)
    assert ended.removeprefix("s3://bucket/p: ") in said


@pytest.mark.parametrize("endpoint", ["no url", "http://user:secret@127.0.0.1:9", "http://127.1"])
async def test_an_endpoint_that_cannot_be_used_is_foretold(
    endpoint: str, odd_server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    ended = await said_by_run("s3://bucket/p", am.Settings(workers=0))
    assert await said_by_doctor("s3://bucket/p", am.Settings()) == [ended]
    assert "secret" not in ended


async def test_a_certificate_that_is_not_trusted_is_foretold(
    odd_server: OddServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(make_certificate(tmp_path, ["localhost"])) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://localhost:{server.port}")
        ended = await said_by_run("s3://bucket/p", am.Settings(workers=0))
        (said,) = await said_by_doctor("s3://bucket/p", am.Settings())
    assert ended.removeprefix("s3://bucket/p: ") in said
    assert "certificate" in said


@pytest.mark.parametrize(
    "environment",
    [
        {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
        {"AWS_SECRET_ACCESS_KEY": ""},
        {"AWS_PROFILE": "nobody"},
        {"AWS_SESSION_TOKEN": "t", "AWS_CREDENTIAL_EXPIRATION": "2020-01-02T03:04:05Z"},
    ],
    ids=["none", "no secret", "unknown profile", "expired"],
)
async def test_credentials_that_are_missing_are_foretold(
    environment: dict[str, str], odd_server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in environment.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    ended = await said_by_run("s3://bucket/p", am.Settings(workers=0))
    (said,) = await said_by_doctor("s3://bucket/p", am.Settings())
    assert said in ended


async def test_a_folder_that_cannot_be_written_is_foretold(unprivileged: Path) -> None:
    (unprivileged / "locked").mkdir(mode=0o500)
    (unprivileged / "file").write_bytes(b"")
    for place in (unprivileged / "locked", unprivileged / "locked" / "below", unprivileged / "file"):
        ended = await said_by_run(place, am.Settings(workers=0))
        assert await said_by_doctor(place, am.Settings()) == [ended]


async def said_of_disk(place: Path, settings: am.Settings, check: str) -> Finding:
    found: list[Finding] = await am.adiagnose(place, settings, quick=True)
    return next(finding for finding in found if finding.check == check)


@pytest.mark.slow
@pytest.mark.parametrize("oddity", ["full=1", "read-only"])
async def test_a_disk_that_takes_no_file_is_foretold(oddity: str, tmp_path: Path) -> None:
    with odd_disk(tmp_path / "disk", oddity) as disk:
        ended = await said_by_run(disk / "out", am.Settings(workers=0))
        assert await said_by_doctor(disk / "out", am.Settings()) == [ended]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("oddity", "names"), [("ignores-case", "aA"), ("ignores-form", "\u00e9" + "e\u0301")], ids=["case", "form"]
)
async def test_a_disk_that_ignores_a_part_of_names_is_foretold(oddity: str, names: str, tmp_path: Path) -> None:
    with odd_disk(tmp_path / "disk", oddity) as disk:
        maps = [(name, np.eye(4)) for name in (names[:1], names[1:])]
        report = await am.arun(maps, disk / "out", settings=am.Settings(workers=0))
        said = await said_of_disk(disk / "out", am.Settings(), "names")
    assert [said.text in failure.reason for failure in report.failures] == [True]
    assert said.level == "warning"


@pytest.mark.slow
async def test_missing_hard_links_are_foretold_to_do_no_harm(tmp_path: Path) -> None:
    settings = am.Settings(workers=0, if_exists="error")
    with odd_disk(tmp_path / "disk", "no-links") as disk:
        said = await said_of_disk(disk / "out", settings, "create only")
        report = await am.arun([("a", np.eye(4))], disk / "out", settings=settings)
    assert (said.level, report.uploaded) == ("ok", 1)
    assert "without hard links" in said.text


@pytest.mark.slow
def test_a_limit_of_open_files_is_foretold(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(4))

    def said(*arguments: str) -> str:
        command = shlex.join((*COMMAND, *arguments))
        limited = ("sh", "-c", f"ulimit -n 12; exec {command}")
        done = subprocess.run(limited, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    words = "the limit of open files (ulimit -n) is 12"
    assert words in said("run", "a.npy", "out", "--workers", "0")
    assert words in said("doctor", "out", "--quick")
