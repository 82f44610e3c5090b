"""Every provider of credentials, at the start and in the middle of a run: the sentence, the exit code, the rows."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.filesystems import providers
from async_maps.filesystems.credentials import CredentialsError, SharedCredentials, shared_credentials
from tests.support.aws_services import PROVIDERS, SECRETS, Mode, Services, serving
from tests.support.commands import done_rows, invoke, only_error
from tests.support.maps import random_map
from tests.support.pipelines import until
from tests.support.s3 import upload
from tests.support.s3_proxy import Asked, counting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from async_maps.demo.seaweed import S3Server

SETTINGS = am.Settings(workers=0, s3=am.S3Settings(give_up_s=0.5))


@pytest.fixture
def services(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Services]:
    """The stand-ins; no secret of theirs may be printed, and no traceback."""
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(providers, "_READ_TIMEOUT_S", 0.5)
    monkeypatch.setattr(providers, "_ATTEMPTS", 1)
    monkeypatch.setattr(providers, "_PROCESS_TIMEOUT_S", 1.0)
    monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0.01)
    monkeypatch.chdir(tmp_path)
    with serving(s3, tmp_path / "home") as running:
        yield running
    printed = "".join(capfd.readouterr())
    for secret in (s3.secret_key, *SECRETS.values(), "client-secret", "refresh-secret", "source-secret"):
        assert secret not in printed
    assert "Traceback" not in printed


def set_mode(services: Services, mode: Mode) -> None:
    services.mode = mode
    services.set_program()


def expire(shared: SharedCredentials) -> None:
    """Let the time of the credentials run out."""
    found = shared.found
    shared._found = found._replace(expires_at=0.0)


def a_map(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    np.save(folder / "a.npy", random_map(1))
    return folder


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_credentials_are_renewed_once_for_all_maps(
    provider: str, services: Services, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    services.use(provider, monkeypatch)
    shared = shared_credentials()
    async with am.Pipeline(f"s3://{bucket}/x", settings=SETTINGS) as pipeline:
        await pipeline.put("first", random_map(1))
        assert services.count() == 1
        expire(shared)
        receipts = [outcome async for outcome in pipeline.stream((f"m{i}", random_map(i)) for i in range(40))]
        assert services.count() == 2
    assert all(isinstance(receipt, am.Receipt) for receipt in receipts)
    assert len(receipts) == 40


START: dict[tuple[str, Mode], tuple[int, str]] = {
    ("web_identity", "refused"): (2, "AssumeRoleWithWebIdentity is refused with AccessDenied: not for you"),
    ("web_identity", "busy"): (3, "AssumeRoleWithWebIdentity is refused with ServiceUnavailable"),
    ("web_identity", "garbage"): (2, "(a role, by web identity): the answer"),
    ("web_identity", "silent"): (3, "Read timeout"),
    ("assume_role", "refused"): (2, "AssumeRole is refused with AccessDenied: not for you"),
    ("assume_role", "busy"): (3, "AssumeRole is refused with ServiceUnavailable"),
    ("assume_role", "garbage"): (2, "(a role, by profile tested): the answer"),
    ("assume_role", "silent"): (3, "Read timeout"),
    ("sso", "refused"): (2, "the sign-on has expired: run `aws sso login --profile tested`"),
    ("sso", "busy"): (3, "GetRoleCredentials is refused with ServiceUnavailable"),
    ("sso", "garbage"): (2, "(a role, by the single sign-on of profile tested): the answer"),
    ("sso", "silent"): (3, "Read timeout"),
    ("imds", "refused"): (2, "no AWS credentials found"),
    ("imds", "busy"): (2, "no AWS credentials found"),
    ("imds", "garbage"): (2, "no AWS credentials found"),
    ("imds", "silent"): (2, "no AWS credentials found"),
    ("ecs", "refused"): (2, "non 200 response 403"),
    ("ecs", "busy"): (3, "non 200 response 503"),
    ("ecs", "garbage"): (2, "Unable to parse JSON"),
    ("ecs", "silent"): (3, "Received error when attempting to retrieve container metadata"),
    ("process", "refused"): (2, "credential_process failed with exit code 4: not for you"),
    ("process", "busy"): (2, "credential_process failed with exit code 3: no connection"),
    ("process", "garbage"): (2, "(from the credential_process of profile tested): the answer"),
    ("process", "silent"): (3, "credential_process did not end within 1 s"),
}


@pytest.mark.parametrize(("provider", "mode"), START, ids=["-".join(case) for case in START])
def test_a_run_without_credentials_ends_with_one_sentence(
    provider: str,
    mode: Mode,
    services: Services,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("async_maps.stores.s3._CHECK_WAITS_S", ())
    services.use(provider, monkeypatch)
    set_mode(services, mode)
    if mode == "silent":
        monkeypatch.setenv("AWS_METADATA_SERVICE_TIMEOUT", "1")
        monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.TIMEOUT_SECONDS", 0.3)
    code = invoke("run", a_map(Path("maps")), f"s3://{bucket}/x", "--workers", 0)
    printed = capfd.readouterr()
    expected, words = START[provider, mode]
    assert words in only_error(printed), printed.err
    assert code == expected
    assert len(printed.err.splitlines()) == 2, "the error, and how to find the problem"
    assert done_rows("async-maps.sqlite") == 0


def _no_program(services: Services, _: pytest.MonkeyPatch) -> None:
    (services.folder / "program").unlink()


def _no_token_file(services: Services, _: pytest.MonkeyPatch) -> None:
    (services.folder / "token").unlink()


def _signed_off(services: Services, _: pytest.MonkeyPatch) -> None:
    services.sign_on(datetime.now(UTC) - timedelta(hours=1))
    set_mode(services, "refused")


def _login(services: Services, _: pytest.MonkeyPatch) -> None:
    (services.folder / "config").write_text("[profile tested]\nlogin_session = arn:aws:iam::123456789012:user/me\n")


def _expired(_: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "source-secret")
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "2020-01-02T03:04:05Z")


def _no_secret(_: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")


@pytest.mark.parametrize(
    ("provider", "fault", "words"),
    [
        ("process", _no_program, "program: No such file or directory"),
        ("web_identity", _no_token_file, "token: No such file or directory"),
        ("sso", _signed_off, "the sign-on has expired: run `aws sso login --profile tested`"),
        ("process", _login, "profile tested signs in with `aws login`, which the installed botocore cannot read"),
        ("mfa", None, "the role needs an MFA code, and there is no terminal to ask for it"),
        ("imds", _expired, "the AWS credentials have expired: sign in again, or set new ones"),
        ("imds", _no_secret, "missing: AWS_SECRET_ACCESS_KEY"),
    ],
    ids=["no program", "no token file", "signed off", "aws login", "mfa", "expired", "half a key"],
)
@pytest.mark.parametrize("progress", ["log", "json"])
def test_credentials_that_must_be_changed_are_one_sentence(
    provider: str,
    fault: Callable[[Services, pytest.MonkeyPatch], None] | None,
    words: str,
    progress: str,
    services: Services,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    services.use(provider, monkeypatch)
    if fault is not None:
        fault(services, monkeypatch)
    code = invoke("run", a_map(Path("maps")), f"s3://{bucket}/x", "--workers", 0, "--progress", progress)
    printed = capfd.readouterr()
    assert words in printed.err
    assert "traceback" not in printed.err.lower()
    assert code == 2


COMMANDS = {
    "verify": ("verify", "m.sqlite"),
    "doctor": ("doctor", "s3://{bucket}/x"),
    "presign": ("export", "m.sqlite", "table.csv", "--presign", "1"),
    "source": ("run", "s3://{bucket}/maps/", "out", "--workers", "0"),
    "dry run": ("run", "maps", "s3://{bucket}/x", "--dry-run"),
    "one file": ("run", "s3://{bucket}/maps/a.npy", "out", "--workers", "0"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("mode", "code"), [("refused", 2), ("busy", 3)])
def test_every_command_says_that_credentials_are_refused(
    command: str,
    mode: Mode,
    code: int,
    services: Services,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert invoke("run", a_map(Path("maps")), f"s3://{bucket}/x", "--manifest", "m.sqlite", "--workers", 0) == 0
    capfd.readouterr()
    services.use("web_identity", monkeypatch)
    set_mode(services, mode)
    ended = invoke(*(part.format(bucket=bucket) for part in COMMANDS[command]))
    printed = "".join(capfd.readouterr())
    refused = {"refused": "AccessDenied: not for you", "busy": "ServiceUnavailable"}[mode]
    assert f"AssumeRoleWithWebIdentity is refused with {refused}" in printed
    assert ended == (1 if command == "doctor" else code), printed
    assert services.count() <= 3


async def test_a_renewal_that_fails_for_a_while_loses_nothing(
    services: Services, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    services.use("web_identity", monkeypatch)
    shared, settings = shared_credentials(), am.Settings(workers=0)
    async with am.Pipeline(f"s3://{bucket}/x", settings=settings) as pipeline:
        await pipeline.put("first", random_map(1))
        expire(shared)
        set_mode(services, "busy")
        maps = [pipeline.put_nowait(f"m{i}", random_map(i)) for i in range(30)]
        await until(lambda: services.count() >= 3)
        set_mode(services, "good")
        receipts = await asyncio.gather(*maps)
    assert len({receipt.locator for receipt in receipts}) == 30


async def test_put_raises_a_store_error_for_credentials(
    services: Services, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    services.use("web_identity", monkeypatch)
    shared = shared_credentials()
    async with am.Pipeline(f"s3://{bucket}/x", settings=SETTINGS) as pipeline:
        await pipeline.put("a", random_map(1))
        expire(shared)
        set_mode(services, "refused")
        with pytest.raises(am.StoreError, match=r"could not be renewed.*AccessDenied: not for you") as refused:
            await pipeline.put("b", random_map(2))
        assert refused.value.may_pass


def test_a_source_that_loses_its_credentials_blames_no_map(
    services: Services, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = a_map(Path("maps")) / "a.npy"
    upload(bucket, {f"maps/{i:02}.npy": maps.read_bytes() for i in range(40)})
    services.use("web_identity", monkeypatch)

    class Losing(list[Asked]):
        def append(self, asked: Asked) -> None:
            super().append(asked)
            # Each map is read while it is listed.
            if len(self) == 20:
                set_mode(services, "refused")
                expire(shared)

    with counting(s3, monkeypatch) as proxy:
        shared, proxy.asked = shared_credentials(), Losing()
        with pytest.raises(am.StoreError, match=r"could not be renewed.*AccessDenied: not for you") as failed:
            am.run(f"s3://{bucket}/maps/", "out", settings=SETTINGS, manifest="m.sqlite")
    assert failed.value.report.failed == 0
    assert failed.value.report.exit_code == 3


def test_the_process_that_decodes_files_uses_the_same_credentials(
    services: Services, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File("a.h5", "w") as file:
        file["map"] = random_map(1)
    upload(bucket, {"maps/a.h5": Path("a.h5").read_bytes()})
    services.use("web_identity", monkeypatch)
    report = am.run(f"s3://{bucket}/maps/", "out", settings=SETTINGS)
    assert (report.uploaded, report.failed) == (1, 0)
    assert services.count() == 1


def test_a_role_asks_for_its_mfa_code_on_a_terminal(
    services: Services, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    services.use("mfa", monkeypatch)
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return "123456"

    monkeypatch.setattr(providers, "_has_terminal", lambda: True)
    monkeypatch.setattr("getpass.getpass", ask)
    shared = shared_credentials()
    assert shared.get().access_key
    assert len(asked) == 1
    expire(shared)
    with pytest.raises(CredentialsError, match="an MFA code, which is asked for only at the start"):
        shared.get()
    assert len(asked) == 1


async def test_leaving_a_pipeline_ends_a_program_that_hangs(
    services: Services, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "_PROCESS_TIMEOUT_S", 600.0)
    services.use("process", monkeypatch)
    set_mode(services, "silent")
    opening = asyncio.create_task(am.Pipeline(f"s3://{bucket}/x", settings=SETTINGS).__aenter__())
    await until(lambda: services.count() > 0)
    assert services.is_running()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await until(lambda: not services.is_running())


async def test_leaving_a_pipeline_leaves_the_program_that_another_waits_for(
    services: Services, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "_PROCESS_TIMEOUT_S", 600.0)
    services.use("process", monkeypatch)
    set_mode(services, "held")
    shared, pipeline = shared_credentials(), am.Pipeline(f"s3://{bucket}/b", settings=am.Settings(workers=0))
    left = asyncio.create_task(am.Pipeline(f"s3://{bucket}/a", settings=SETTINGS).__aenter__())
    staying = asyncio.create_task(pipeline.__aenter__())
    await until(lambda: services.count() > 0 and len(shared.clients) == 2)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    set_mode(services, "good")
    await staying
    await pipeline.__aexit__(None, None, None)
    assert (services.count(), len(shared.clients)) == (1, 0)


MIDDLE: list[tuple[str, Mode]] = [
    ("web_identity", "refused"), ("web_identity", "busy"), ("assume_role", "silent"), ("assume_role", "garbage"),
    ("sso", "refused"), ("imds", "refused"), ("ecs", "busy"), ("process", "refused"), ("process", "silent"),
]  # fmt: skip


@pytest.mark.parametrize(("provider", "mode"), MIDDLE, ids=["-".join(case) for case in MIDDLE])
async def test_a_renewal_that_fails_blames_no_map(
    provider: str, mode: Mode, services: Services, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    services.use(provider, monkeypatch)
    shared = shared_credentials()

    async def source() -> AsyncIterator[tuple[str, Any]]:
        for i in range(30):
            if i == 20:
                expire(shared)
                set_mode(services, mode)
            yield f"m{i}", random_map(i)

    with pytest.raises(am.StoreError, match="the AWS credentials could not be renewed") as failed:
        async with am.Pipeline(f"s3://{bucket}/x", settings=SETTINGS) as pipeline:
            await pipeline.run(source(), manifest="m.sqlite")
    report = failed.value.report
    assert report.failed == 0
    assert report.exit_code == 3
    assert services.count() < 12, "not once a map"
