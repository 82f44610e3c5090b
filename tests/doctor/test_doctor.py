"""What the doctor finds in real buckets and folders, broken in one way after the other, and that nothing is left."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import shlex
import shutil
import socket
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aioboto3
import botocore.auth
import pytest

from async_maps import doctor
from async_maps.cli.findings import FindingDisplay
from async_maps.doctor import Finding, adiagnose, speed
from async_maps.doctor import s3 as s3_doctor
from async_maps.doctor.advice import iam_policy
from async_maps.doctor.browser import readable_from
from async_maps.doctor.bucket import find_bucket
from async_maps.doctor.credentials import find_credentials
from async_maps.doctor.probe import ProbeObject
from async_maps.doctor.speed import Load, judge
from async_maps.doctor.target import Target
from async_maps.errors import StoreError, TransientError
from async_maps.settings import S3Settings, Settings
from async_maps.stores.memory import MemoryStore
from tests.support.commands import invoke
from tests.support.leftovers import leaves_nothing
from tests.support.s3 import keys
from tests.support.s3_proxy import counting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_maps.demo.seaweed import S3Server

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

COM, IO = doctor.KOLENA_ORIGINS


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command in this process: its exit code, and its findings by what was asked, in their order."""

    # Between two attempts lies up to a second; and here it matters that there are figures, not which.
    monkeypatch.setattr(s3_doctor, "_ATTEMPTS", 1)
    monkeypatch.setattr(speed, "_LATENCY_PUTS", 2)
    monkeypatch.setattr(speed, "_LEVEL_S", 0.2)

    def command(*arguments: object) -> tuple[int, dict[str, Finding]]:
        code = invoke("doctor", *arguments, "--json")
        out, err = capsys.readouterr()
        secret = os.environ.get("AWS_SECRET_ACCESS_KEY")
        assert secret is None or secret not in out + err
        findings = [Finding(**json.loads(line)) for line in out.splitlines()]
        found = {finding.check: finding for finding in findings}
        assert len(found) == len(findings)
        return code, found

    return command


def on_bucket(name: str, bucket: str, **arguments: Any) -> Any:
    """One request to the server, as its owner."""

    async def request() -> Any:
        async with aioboto3.Session().client("s3") as client:
            return await getattr(client, name)(Bucket=bucket, **arguments)

    return asyncio.run(request())


def deny(bucket: str, *actions: str) -> None:
    places = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    statement = {"Effect": "Deny", "Principal": "*", "Action": actions, "Resource": places}
    on_bucket("put_bucket_policy", bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))


def levels(found: dict[str, Finding]) -> dict[str, str]:
    """What is not as it should be."""
    return {check: finding.level for check, finding in found.items() if finding.level != "ok"}


def test_of_a_bucket_that_is_as_it_should_be_everything_is_ok_and_nothing_is_left(bucket: str, ask: Any) -> None:
    code, found = ask(f"s3://{bucket}/pre fix", "--concurrency", 4)
    # How many uploads at once are enough, the load of this machine decides.
    assert (code, levels(found).keys() - {"concurrency"}) == (0, set())
    assert list(found) == [
        "credentials", "clock", "bucket", "list", "write", "read back", "content type", "overwrite", "create only",
        "browser", "versioning", "encryption", "delete", "latency", "throughput", "concurrency",
    ]  # fmt: skip
    assert found["credentials"].text.startswith("from the environment, access key ...")
    assert found["browser"].text == f"pages of {COM} and {IO} may read overlays"
    assert "PUTs/s" in found["throughput"].text
    assert "Little's law: " in found["concurrency"].text
    assert asyncio.run(keys(bucket)) == set()


@pytest.mark.parametrize(
    ("environment", "check", "said", "advice"),
    [
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "bucket", "access key is not known", "AWS_ACCESS_KEY_ID"),
        ({"AWS_SECRET_ACCESS_KEY": "other"}, "bucket", "secret key is wrong", "AWS_SECRET"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "endpoint", "127.0.0.1:9", "AWS_ENDPOINT_URL"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_PROFILE": "none"}, "configuration", "(none)", "AWS_PROFILE"),
        ({"AWS_ACCESS_KEY_ID": ""}, "credentials", "no AWS credentials found", "AWS_PROFILE"),
        ({"AWS_SESSION_TOKEN": "t", "AWS_CREDENTIAL_EXPIRATION": "2020-01-02T03:04:05Z"}, "credentials",
         "they have expired", "sign in again"),
    ],
    ids=["unknown key", "wrong secret", "nobody listens", "no such profile", "no credentials", "expired"],
)  # fmt: skip
def test_who_cannot_come_in_is_told_why_and_nothing_else_is_asked(
    environment: dict[str, str], check: str, said: str, advice: str, bucket: str, ask: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    code, found = ask(f"s3://{bucket}/x")
    assert (code, levels(found), list(found)[-1]) == (1, {check: "failure"}, check)
    assert said in found[check].text
    assert advice in found[check].advice


def test_a_bucket_that_is_not_there_is_named_with_the_command_that_makes_it(s3: S3Server, ask: Any) -> None:
    code, found = ask("s3://no-such-bucket/x")
    assert (code, levels(found)) == (1, {"bucket": "failure"})
    assert found["bucket"].text == "no-such-bucket: the bucket does not exist"
    assert found["bucket"].advice == "create it: aws s3 mb s3://no-such-bucket"


def test_a_store_that_never_answers_is_a_failure_in_bounded_time(s3: S3Server, ask: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        code, found = ask("s3://bucket/x", "--s3.read-timeout-s", 0.2)
    assert (code, levels(found)) == (1, {"endpoint": "failure"})
    assert "Read timeout" in found["endpoint"].text


def test_who_may_only_read_gets_the_policy_that_is_missing(bucket: str, ask: Any) -> None:
    deny(bucket, "s3:PutObject", "s3:DeleteObject")
    code, found = ask(f"s3://{bucket}/pre/fix")
    assert (code, levels(found)) == (1, {"write": "failure"})
    assert "AccessDenied" in found["write"].text
    said, _, policy = found["write"].advice.partition("\n")
    assert "allow s3:PutObject" in said
    write, listing = json.loads(policy)["Statement"]
    assert write["Resource"] == f"arn:aws:s3:::{bucket}/pre/fix/*"
    assert "s3:PutObject" in write["Action"]
    assert (listing["Action"], listing["Resource"]) == (["s3:ListBucket"], f"arn:aws:s3:::{bucket}")
    assert list(found)[-3:] == ["write", "versioning", "encryption"]


def test_the_policy_names_the_key_where_one_encrypts() -> None:
    key = "arn:aws-cn:kms:cn-north-1:1:key/k"
    statements = json.loads(iam_policy("arn:aws:s3:eu-west-1:1:accesspoint:name", "", kms_key=key))["Statement"]
    assert statements[0]["Resource"] == "arn:aws:s3:eu-west-1:1:accesspoint:name/object/*"
    assert statements[2] == {"Effect": "Allow", "Action": ["kms:GenerateDataKey", "kms:Decrypt"], "Resource": key}


def test_what_may_not_be_asked_for_is_no_failure_and_what_needs_it_is_left_out(bucket: str, ask: Any) -> None:
    deny(bucket, "s3:ListBucket", "s3:GetObject", "s3:GetBucketVersioning", "s3:GetEncryptionConfiguration")
    code, found = ask(f"s3://{bucket}/x", "--quick")
    assert (code, levels(found)) == (
        0,
        {
            "bucket": "unknown",
            "list": "warning",
            "read back": "warning",
            "versioning": "unknown",
            "encryption": "unknown",
        },
    )
    for check, action in [
        ("bucket", "ListBucket"),
        ("list", "ListBucket"),
        ("read back", "GetObject"),
        ("versioning", "GetBucketVersioning"),
        ("encryption", "GetEncryptionConfiguration"),
    ]:
        assert f"s3:{action}" in found[check].advice
    assert not {"overwrite", "create only", "browser", "throughput"} & set(found)
    on_bucket("delete_bucket_policy", bucket)
    assert asyncio.run(keys(bucket)) == set()


def test_what_cannot_be_removed_is_named_and_no_more_is_written(bucket: str, ask: Any) -> None:
    deny(bucket, "s3:DeleteObject")
    code, found = ask(f"s3://{bucket}/x")
    assert (code, levels(found)) == (0, {"delete": "warning"})
    assert "latency" not in found
    (left,) = asyncio.run(keys(bucket))
    assert f"s3://{bucket}/{left.removesuffix('.png')}*: DeleteObject is refused" in found["delete"].text
    said, _, command = found["delete"].advice.partition("\n")
    assert "s3:DeleteObject" in said
    mark = Path(left).stem
    assert command == f"aws s3 rm s3://{bucket}/x/ --recursive --exclude '*' --include '{mark}*'"


def test_versions_are_warned_of_and_none_of_ours_stays(bucket: str, ask: Any) -> None:
    on_bucket("put_bucket_versioning", bucket, VersioningConfiguration={"Status": "Enabled"})
    code, found = ask(f"s3://{bucket}", "--quick")
    assert (code, levels(found)) == (0, {"versioning": "warning"})
    assert "overwritten stay as old versions" in found["versioning"].text
    left = on_bucket("list_object_versions", bucket)
    assert not left.get("Versions")
    assert not left.get("DeleteMarkers")


def test_versions_that_may_not_be_removed_are_hidden_at_least(bucket: str, ask: Any) -> None:
    on_bucket("put_bucket_versioning", bucket, VersioningConfiguration={"Status": "Enabled"})
    deny(bucket, "s3:DeleteObjectVersion", "s3:ListBucketVersions")
    code, found = ask(f"s3://{bucket}/x")
    assert (code, levels(found)) == (0, {"versioning": "warning", "delete": "warning"})
    assert "ListObjectVersions is refused" in found["delete"].text
    assert "allow s3:DeleteObjectVersion and s3:ListBucketVersions" in found["delete"].advice
    assert asyncio.run(keys(bucket)) == set()


async def test_on_aws_the_browser_is_led_to_the_region(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-south-1")
    async with s3_doctor._open_client(aioboto3.Session(), Settings()) as client:
        url = await client.generate_presigned_url("get_object", {"Bucket": bucket, "Key": "k"})
    assert url.startswith(f"https://{bucket}.s3.eu-south-1.amazonaws.com/k?")


@pytest.mark.parametrize(("region", "level"), [("us-east-1", "ok"), ("eu-west-3", "warning")])
async def test_where_no_region_is_set_the_sdk_s_own_is_compared(
    region: str, level: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def head_bucket(**_: object) -> Any:
        return {"ResponseMetadata": {"HTTPHeaders": {"x-amz-bucket-region": region}}}

    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    findings: list[Finding] = []
    async with s3_doctor._open_client(aioboto3.Session(), Settings()) as client:
        monkeypatch.setattr(client, "head_bucket", head_bucket)
        assert await find_bucket(Target(client, bucket, "", "", Settings(), findings.append))
    assert (findings[-1].check, findings[-1].level) == ("bucket", level)


async def test_the_url_that_a_browser_is_given_is_in_no_finding() -> None:
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


@pytest.mark.parametrize("allowed", [[], pytest.param([COM], marks=pytest.mark.slow)])
def test_the_command_that_is_printed_lets_the_browser_in_and_keeps_other_rules(
    allowed: list[str], bucket: str, ask: Any
) -> None:
    others = [{"AllowedMethods": ["GET"], "AllowedOrigins": ["https://example.com", *allowed]}]
    on_bucket("put_bucket_cors", bucket, CORSConfiguration={"CORSRules": others})
    code, found = ask(f"s3://{bucket}/x", "--quick")
    denied = [origin for origin in (COM, IO) if origin not in allowed]
    assert (code, levels(found)) == (0, {"browser": "warning"}) if allowed else (1, {"browser": "failure"})
    assert f"pages of {' and '.join(denied)} may not read overlays" in found["browser"].text

    said, _, command = found["browser"].advice.partition("\n")
    assert "keeps the rules that are there" in said
    *start, rules = shlex.split(command)
    assert start == ["aws", "s3api", "put-bucket-cors", "--bucket", bucket, "--cors-configuration"]
    on_bucket("put_bucket_cors", bucket, CORSConfiguration=json.loads(rules))
    code, found = ask(f"s3://{bucket}/x", "--quick", "--origin", COM, "--origin", IO, "--origin", "https://example.com")
    assert (code, levels(found)) == (0, {})


def test_what_lies_between_is_seen_in_what_comes_back(
    s3: S3Server, bucket: str, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counting(s3, monkeypatch) as proxy:
        proxy.headers = {
            "Access-Control-Allow-Origin": None, "Content-Type": "text/plain", "x-amz-bucket-region": "eu-west-3",
            "x-amz-server-side-encryption": "aws:kms",
        }  # fmt: skip
        proxy.statuses = {412: 200}
        code, found = ask(f"s3://{bucket}/x", "--quick")
        assert (code, levels(found)) == (
            1, {"bucket": "warning", "content type": "warning", "create only": "warning", "browser": "failure",
                "encryption": "warning"}
        )  # fmt: skip
        assert found["bucket"].advice.startswith("set AWS_DEFAULT_REGION=eu-west-3")
        assert "comes back as text/plain" in found["content type"].text
        assert "ignores If-None-Match: --if-exists skip and error cannot be relied on" in found["create only"].text
        assert "the bucket has no rules of its own yet" in found["browser"].advice
        assert "kms:Decrypt" in found["encryption"].advice
        code, found = ask(f"s3://{bucket}/x", "--quick", "--if-exists", "skip")
        assert found["create only"].level == "failure"
        assert asyncio.run(keys(bucket)) == set()


@pytest.mark.parametrize(
    ("give", "expected", "said"),
    [
        (lambda seen: seen[-1][:-1], {"read back": "failure", "overwrite": "warning"}, "other bytes come back"),
        (lambda seen: seen[0], {"overwrite": "warning"}, "the old object comes back after it was replaced"),
    ],
    ids=["cut short", "out of a cache"],
)
def test_what_is_given_back_is_compared(
    give: Any, expected: dict[str, str], said: str, bucket: str, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    get, seen = ProbeObject._get, []

    async def get_otherwise(probe: ProbeObject) -> tuple[bytes, str]:
        data, content_type = await get(probe)
        seen.append(data)
        return give(seen), content_type

    monkeypatch.setattr(ProbeObject, "_get", get_otherwise)
    code, found = ask(f"s3://{bucket}/x", "--quick")
    assert (code, levels(found)) == (int("failure" in expected.values()), expected)
    assert said in found[next(iter(expected))].text


@pytest.mark.parametrize(
    ("minutes", "level", "said"),
    [
        (20, "failure", "20 min behind the store's; S3 allows 15"),
        pytest.param(-5, "warning", "5 min ahead of the store's", marks=pytest.mark.slow),
    ],
)
def test_a_clock_that_is_off_is_measured(
    minutes: int, level: str, said: str, s3: S3Server, bucket: str, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counting(s3, monkeypatch) as proxy:
        proxy.headers = {"Date": format_datetime(datetime.now(UTC) + timedelta(minutes=minutes), usegmt=True)}
        code, found = ask(f"s3://{bucket}/x", "--quick")
    assert (code, levels(found)) == (int(level == "failure"), {"clock": level})
    assert said in found["clock"].text
    assert "set this machine's clock" in found["clock"].advice


def test_a_server_that_refuses_the_time_is_understood(bucket: str, ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def late() -> datetime:
        return datetime.now(UTC) - timedelta(minutes=20)

    monkeypatch.setattr(botocore.auth, "get_current_datetime", late)
    code, found = ask(f"s3://{bucket}/x")
    assert (code, levels(found)) == (1, {"bucket": "failure"})
    assert "this machine's clock is wrong" in found["bucket"].text


@contextmanager
def reading_never_ends(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with counting(s3, monkeypatch) as proxy:
        proxy.gate.clear()
        yield proxy


def test_it_ends_when_its_time_is_up_and_what_it_wrote_is_gone(
    s3: S3Server, bucket: str, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_LIMIT_S", 0.7)
    with reading_never_ends(s3, monkeypatch) as proxy:
        code, found = ask(f"s3://{bucket}/x")
        assert (code, levels(found)) == (1, {"time": "failure"})
        assert [asked.method for asked in proxy.asked][-2:] == ["PUT", "DELETE"]
        assert asyncio.run(keys(bucket)) == set()


async def test_cancelled_it_removes_what_it_wrote(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with reading_never_ends(s3, monkeypatch) as proxy:
        task = asyncio.create_task(adiagnose(f"s3://{bucket}/x"))
        while not proxy.under_way:  # noqa: ASYNC110  # counted in a thread of the proxy's
            await asyncio.sleep(0.01)
        assert len(await keys(bucket)) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await keys(bucket) == set()


@pytest.mark.parametrize("measure", ["latency", "throughput"])
async def test_cancelled_under_load_no_put_is_broken_off_that_could_arrive_later(measure: str) -> None:
    began, ended = set(), set()

    class Slow(MemoryStore):
        async def put(self, key: str, data: bytes) -> str:
            began.add(key)
            await asyncio.sleep(0.1)
            ended.add(key)
            return "etag"

    store = Slow("")
    request = (
        speed.measure_latency(store, str, b"") if measure == "latency" else speed.measure_throughput(store, str, b"", 8)
    )
    task = asyncio.ensure_future(request)
    await asyncio.sleep(0.05)
    assert not ended
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == began
    assert len(began) == (1 if measure == "latency" else 8)


async def test_headers_of_the_settings_are_tried(bucket: str) -> None:
    settings = Settings(s3=S3Settings(storage_class="NO_SUCH_CLASS"))
    (failure,) = [finding for finding in await adiagnose(f"s3://{bucket}/x", settings) if finding.level == "failure"]
    assert (failure.check, failure.advice) == ("write", "choose another s3.storage_class")
    assert "InvalidStorageClass" in failure.text


@pytest.mark.parametrize(
    ("environment", "level", "said"),
    [
        ({}, "ok", "from the environment, access key ...SIBL"),
        ({"AWS_SESSION_TOKEN": "t"}, "warning", "temporary, and nothing says until when"),
        ({"AWS_SESSION_TOKEN": "t", "AWS_CREDENTIAL_EXPIRATION": "2999-01-02T03:04:05Z"}, "ok", "until 2999-01-02"),
        ({"AWS_SESSION_TOKEN": "t", "AWS_CREDENTIAL_EXPIRATION": "soon"}, "warning", "and not renewed"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_PROFILE": "mine"}, "ok", "from profile mine of the credentials file"),
    ],
)  # fmt: skip
async def test_it_says_where_credentials_come_from_and_until_when_they_last(
    environment: dict[str, str], level: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon = (datetime.now(UTC) + timedelta(minutes=30)).isoformat()
    (tmp_path / "credentials").write_text("[mine]\naws_access_key_id = VISIBLE\naws_secret_access_key = HIDDEN\n")
    base = {"AWS_ACCESS_KEY_ID": "VI-SIBL", "AWS_SECRET_ACCESS_KEY": "HIDDEN"}
    base["AWS_SHARED_CREDENTIALS_FILE"] = str(tmp_path / "credentials")
    for name, value in (base | environment).items():
        monkeypatch.setenv(name, value.replace("soon", soon)) if value else monkeypatch.delenv(name, raising=False)
    finding = await find_credentials(aioboto3.Session())
    assert finding.level == level
    assert said in finding.text
    assert "HIDDEN" not in str(finding)


@pytest.mark.parametrize(
    ("rates", "latency_s", "level", "said", "advice"),
    [
        # 64 of 100 ms each are under way at 640 a second: 32 are too few.
        ({32: 320, 64: 640, 128: 650}, 0.1, "warning", "65.0 under way", "use --concurrency 128"),
        ({32: 320, 64: 640, 128: 600}, 0.1, "warning", "64.0 under way", "use --concurrency 64"),
        ({32: 500, 64: 510}, 0.004, "ok", "32 at once are enough (Little's law: 510/s x 4.0 ms = 2.0 under way)", ""),
        ({32: 500, 64: 550}, 0.1, "ok", "32 at once are enough", ""),
    ],
)
def test_the_concurrency_is_what_little_s_law_says(
    rates: dict[int, float], latency_s: float, level: str, said: str, advice: str
) -> None:
    throughput, concurrency = judge([Load(*load, None) for load in rates.items()], latency_s, 100_000, 32)
    assert throughput.level == "ok"
    assert (concurrency.level, concurrency.advice) == (level, advice)
    assert said in concurrency.text


@pytest.mark.parametrize(
    ("error", "advice"),
    [(TransientError("SlowDown", slow_down=True), "slows down by itself"), (StoreError("gone"), "tries again")],
)
def test_a_store_that_asks_for_less_is_a_warning(error: StoreError, advice: str) -> None:
    (finding,) = judge([Load(32, 900, None), Load(64, 10, error)], 0.01, 100_000, 32)
    assert finding.level == "warning"
    assert "900 PUTs/s, 90.0 MB/s, with 32 at once; with 64 at once: " in finding.text
    assert advice in finding.advice


def test_a_folder_is_tried_and_left_as_it_was_and_kolena_cannot_read_it(tmp_path: Path, ask: Any) -> None:
    code, found = ask(tmp_path / "none" / "yet", "--files.fsync")
    assert (code, levels(found)) == (0, {"kolena": "warning"})
    assert list(found) == ["write", "space", "rename", "create only", "fsync", "kolena"]
    assert found["write"].text == f"{tmp_path} takes files, and {tmp_path}/none/yet is made when the first comes"
    assert "cannot read file://" in found["kolena"].text
    assert list(tmp_path.iterdir()) == []


def refuse_links(*_: object) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize(
    ("call", "instead", "check", "said"),
    [
        ("replace", shutil.copyfile, "rename", "replacing a file is not one step there"),
        ("link", shutil.copyfile, "create only", "a hard link has replaced a file there"),
        ("link", refuse_links, "create only", "no hard links there (Operation not permitted)"),
    ],
)
def test_a_folder_that_does_not_keep_to_posix_is_found_out(
    call: str, instead: Any, check: str, said: str, tmp_path: Path, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, call, instead)
    code, found = ask(tmp_path)
    assert (code, levels(found)) == (0, {check: "warning", "kolena": "warning"})
    assert said in found[check].text
    assert list(tmp_path.iterdir()) == []


def test_hard_links_are_needed_where_objects_are_to_be_left(
    tmp_path: Path, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refuse_links)
    code, found = ask(tmp_path, "--if-exists", "skip")
    assert (code, found["create only"].level) == (1, "failure")


def test_a_folder_with_little_room_is_warned_of(tmp_path: Path, ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = os.statvfs(tmp_path)

    class Full:
        f_bavail, f_frsize, f_files, f_favail = 10, 4096, disk.f_files, 5

    monkeypatch.setattr(os, "statvfs", lambda _: Full)
    code, found = ask(tmp_path)
    assert (code, found["space"].level) == (0, "warning")
    assert "some 0 overlays" in found["space"].text


def test_a_folder_that_cannot_be_written_is_a_failure(unprivileged: Path, ask: Any) -> None:
    closed = unprivileged / "closed"
    closed.mkdir(mode=0o555)
    code, found = ask(closed / "x")
    assert (code, levels(found)) == (1, {"write": "failure", "kolena": "warning"})
    assert f"no permission for {closed}" in found["write"].text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("gs://bucket/x", "unknown destination"),
        ("memory://x", "nothing can be found out about 'memory://x'"),
        ("s3://", "'' is not the name of a bucket"),
        ("s3://bucket/../x", "the prefix cannot be used"),
        ("out --origin https://app.kolena.com/", "is no origin; expected https://host, without a slash"),
        ("out --concurrency many", "concurrency"),
        ("", "DESTINATION"),
    ],
)
def test_a_wrong_use_is_one_sentence_and_exit_2(
    arguments: str, said: str, s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke("doctor", *arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


def test_people_get_lines_and_a_sum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("doctor", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"ok       write         {tmp_path} takes files"
    assert lines[-1] == "5 ok, 1 warning"


def test_a_terminal_gets_columns_and_what_is_to_be_copied_unbroken() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    finding = Finding("browser", "failure", "long words " * 20, "do this:\naws " + "long command " * 30)
    *table, command = FindingDisplay(Terminal()).render(finding).splitlines()
    assert command == "aws " + "long command " * 30
    assert len(table) > 3
    assert all("failure" in line for line in table[:1])
    assert "do this:" in table[-1]


def test_help_says_what_it_is_for_and_how_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("doctor", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for word in ("can a browser read it?", "--origin", "--quick", "--json", "Exit codes: 0 nothing failed"):
        assert word in text
