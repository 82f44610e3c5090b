"""The doctor's findings about folders, credentials and load, and its output."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from async_maps import doctor
from async_maps.cli.doctor import render
from async_maps.doctor import Finding, speed
from async_maps.doctor.advice import actions_of_headers, iam_policy
from async_maps.doctor.browser import readable_from
from async_maps.doctor.credentials import find_credentials
from async_maps.doctor.speed import Load, judge
from async_maps.errors import StoreError, TransientError
from async_maps.filesystems.sessions import AsyncSession
from async_maps.settings import S3Settings
from async_maps.stores.memory import MemoryStore
from tests.support.commands import invoke
from tests.support.findings import levels
from tests.support.leftovers import leaves_nothing
from tests.support.pipelines import until

pytestmark = [pytest.mark.fast, pytest.mark.usefixtures(leaves_nothing.__name__)]

COM, IO = doctor.KOLENA_ORIGINS


def test_the_iam_policy_has_the_actions_of_the_headers() -> None:
    more = actions_of_headers(S3Settings(acl="private", tagging={"a": "b"}))
    first = json.loads(iam_policy("bucket", "", more=more))["Statement"][0]
    assert first["Action"][:3] == ["s3:PutObject", "s3:PutObjectTagging", "s3:PutObjectAcl"]
    assert actions_of_headers(S3Settings()) == []


def test_the_iam_policy_names_the_kms_key() -> None:
    key = "arn:aws-cn:kms:cn-north-1:1:key/k"
    statements = json.loads(iam_policy("arn:aws:s3:eu-west-1:1:accesspoint:name", "", kms_key=key))["Statement"]
    assert statements[0]["Resource"] == "arn:aws:s3:eu-west-1:1:accesspoint:name/object/*"
    assert statements[2] == {"Effect": "Allow", "Action": ["kms:GenerateDataKey", "kms:Decrypt"], "Resource": key}


async def test_no_finding_contains_the_presigned_url() -> None:
    async def talk_nonsense(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"nonsense\r\n\r\n")
        writer.close()

    class Client:
        async def generate_presigned_url(self, *_: object) -> str:
            return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/k?X-Amz-Security-Token=SECRET"

    async with await asyncio.start_server(talk_nonsense, "127.0.0.1") as server:
        finding = await readable_from(Client(), "bucket", "k", [COM])  # type: ignore[arg-type]
    assert finding.level == "unknown"
    assert "ClientResponseError" in finding.text
    assert "SECRET" not in str(finding)


@pytest.mark.parametrize("measure", ["latency", "throughput"])
async def test_cancelling_a_measurement_waits_for_its_puts(measure: str) -> None:
    began, ended = set(), set()
    gate = asyncio.Event()

    class Slow(MemoryStore):
        async def put(self, key: str, data: bytes) -> str:
            began.add(key)
            await gate.wait()
            ended.add(key)
            return "etag"

    store = Slow("")
    request = (
        speed.measure_latency(store, str, b"") if measure == "latency" else speed.measure_throughput(store, str, b"", 8)
    )
    task = asyncio.ensure_future(request)
    await until(lambda: len(began) == (1 if measure == "latency" else 8))
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == began
    assert len(began) == (1 if measure == "latency" else 8)


@pytest.mark.parametrize(
    ("environment", "level", "said"),
    [
        ({}, "ok", "from the environment, access key ...SIBL"),
        ({"AWS_SESSION_TOKEN": "t"}, "warning", "temporary, expiry unknown"),
        ({"AWS_SESSION_TOKEN": "t", "AWS_CREDENTIAL_EXPIRATION": "2999-01-02T03:04:05Z"}, "ok", "until 2999-01-02"),
        ({"AWS_SESSION_TOKEN": "t", "AWS_CREDENTIAL_EXPIRATION": "soon"}, "warning", "not renewed"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_PROFILE": "mine"}, "ok", "from profile mine of the credentials file"),
    ],
)  # fmt: skip
async def test_the_source_and_expiry_of_credentials_are_reported(
    environment: dict[str, str], level: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon = (datetime.now(UTC) + timedelta(minutes=30)).isoformat()
    (tmp_path / "credentials").write_text("[mine]\naws_access_key_id = VISIBLE\naws_secret_access_key = HIDDEN\n")
    base = {"AWS_ACCESS_KEY_ID": "VI-SIBL", "AWS_SECRET_ACCESS_KEY": "HIDDEN"}
    base["AWS_SHARED_CREDENTIALS_FILE"] = str(tmp_path / "credentials")
    for name, value in (base | environment).items():
        monkeypatch.setenv(name, value.replace("soon", soon)) if value else monkeypatch.delenv(name, raising=False)
    finding = await find_credentials(AsyncSession().credentials)
    assert finding.level == level
    assert said in finding.text
    assert "HIDDEN" not in str(finding)


@pytest.mark.parametrize(
    ("rates", "latency_s", "level", "said", "advice"),
    [
        # At 640 a second and 100 ms each, 64 are in flight: 32 are too few.
        ({32: 320, 64: 640, 128: 650}, 0.1, "warning", "65.0 in flight", "use --concurrency 128"),
        ({32: 320, 64: 640, 128: 600}, 0.1, "warning", "64.0 in flight", "use --concurrency 64"),
        (
            {32: 500, 64: 510},
            0.004,
            "ok",
            "32 concurrent uploads are enough (Little's law: 510/s x 4.0 ms = 2.0 in flight)",
            "",
        ),
        ({32: 500, 64: 550}, 0.1, "ok", "32 concurrent uploads are enough", ""),
    ],
)
def test_the_advised_concurrency_follows_littles_law(
    rates: dict[int, float], latency_s: float, level: str, said: str, advice: str
) -> None:
    throughput, concurrency = judge([Load(*load, None) for load in rates.items()], latency_s, 100_000, 32)
    assert throughput.level == "ok"
    assert (concurrency.level, concurrency.advice) == (level, advice)
    assert said in concurrency.text


def test_a_concurrency_that_grows_by_itself_needs_no_advice() -> None:
    loads = [Load(32, 320, None), Load(64, 640, None), Load(128, 650, None)]
    _, concurrency = judge(loads, 0.1, 100_000, 32, grows=True)
    assert (concurrency.level, concurrency.advice) == ("ok", "")
    assert "a run starts with 32 concurrent uploads and grows to about 128" in concurrency.text


@pytest.mark.parametrize(
    ("error", "advice"),
    [(TransientError("SlowDown", slow_down=True), "slows down automatically"), (StoreError("gone"), "retries")],
)
def test_a_store_that_fails_under_load_is_a_warning(error: StoreError, advice: str) -> None:
    (finding,) = judge([Load(32, 900, None), Load(64, 10, error)], 0.01, 100_000, 32)
    assert finding.level == "warning"
    assert "900 PUTs/s, 90.0 MB/s, with 32 concurrent uploads; with 64: " in finding.text
    assert advice in finding.advice


@pytest.mark.runs
def test_a_folder_is_checked_and_left_unchanged(tmp_path: Path, ask: Any) -> None:
    code, found = ask(tmp_path / "none" / "yet", "--files.fsync")
    assert (code, levels(found)) == (0, {"kolena": "warning"})
    assert list(found) == ["machine", "kernels", "write", "space", "rename", "create only", "names", "fsync", "kolena"]
    assert found["write"].text == f"{tmp_path} is writable; {tmp_path}/none/yet will be created with the first file"
    assert "cannot read file://" in found["kolena"].text
    assert list(tmp_path.iterdir()) == []


def refuse_links(*_: object, **__: object) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


def copy(one: str, other: str, **_: object) -> None:
    shutil.copyfile(one, other)


@pytest.mark.runs
@pytest.mark.parametrize(
    ("call", "check", "said"),
    [
        ("replace", "rename", "files are not replaced atomically"),
        ("link", "create only", "a new file replaced an existing one"),
    ],
)
def test_a_folder_without_posix_semantics_is_a_warning(
    call: str, check: str, said: str, tmp_path: Path, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, call, copy)
    code, found = ask(tmp_path)
    assert (code, levels(found)) == (0, {check: "warning", "kolena": "warning"})
    assert said in found[check].text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.runs
def test_missing_hard_links_are_told(tmp_path: Path, ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refuse_links)
    code, found = ask(tmp_path, "--if-exists", "skip")
    assert (code, levels(found)) == (0, {"kolena": "warning"})
    assert "without hard links" in found["create only"].text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.runs
def test_a_folder_with_little_space_is_a_warning(tmp_path: Path, ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = os.statvfs(tmp_path)

    class Full:
        f_bavail, f_frsize, f_files, f_favail = 10, 4096, disk.f_files, 5

    monkeypatch.setattr(os, "statvfs", lambda _: Full)
    code, found = ask(tmp_path)
    assert (code, found["space"].level) == (0, "warning")
    assert "about 0 overlays" in found["space"].text


@pytest.mark.runs
def test_a_folder_that_cannot_be_written_is_a_failure(unprivileged: Path, ask: Any) -> None:
    closed = unprivileged / "closed"
    closed.mkdir(mode=0o555)
    code, found = ask(closed / "x")
    # Whether that user has a cache of kernels depends on the machine.
    assert (code, {**levels(found), "kernels": "ok"}) == (
        1,
        {"write": "failure", "kolena": "warning", "kernels": "ok"},
    )
    assert f"no permission for {closed}" in found["write"].text


@pytest.mark.runs
def test_the_command_prints_lines_and_a_total(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("doctor", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok       machine       ")
    assert lines[2] == f"ok       write         {tmp_path} is writable"
    assert lines[-1] == "8 ok, 1 warning"


def test_a_terminal_gets_columns_and_an_unbroken_command() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    finding = Finding("browser", "failure", "long words " * 20, "do this:\naws " + "long command " * 30)
    *table, command = render(finding, Terminal()).splitlines()
    assert command == "aws " + "long command " * 30
    assert len(table) > 3
    assert all("failure" in line for line in table[:1])
    assert "do this:" in table[-1]


@pytest.mark.runs
def test_help_names_the_options_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("doctor", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for word in ("browsers can read it", "--origin", "--quick", "--json", "Exit codes: 0 no check failed"):
        assert word in text
