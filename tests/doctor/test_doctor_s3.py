"""The doctor's findings about an S3 destination."""

from __future__ import annotations

import asyncio
import json
import shlex
import socket
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aioboto3
import pytest

from async_maps import doctor
from async_maps.doctor import Finding, adiagnose
from async_maps.doctor import s3 as s3_doctor
from async_maps.doctor.bucket import find_bucket
from async_maps.doctor.probe import ProbeObject
from async_maps.doctor.target import Target
from async_maps.filesystems.credentials import shared_credentials
from async_maps.filesystems.sessions import AsyncSession
from async_maps.settings import S3Settings, Settings
from tests.support.commands import invoke
from tests.support.findings import levels
from tests.support.leftovers import leaves_nothing
from tests.support.s3 import keys
from tests.support.s3_proxy import counting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_maps.demo.seaweed import S3Server

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

COM, IO = doctor.KOLENA_ORIGINS


def on_bucket(name: str, bucket: str, **arguments: Any) -> Any:
    """Send one request to the server as the owner of the bucket."""

    async def request() -> Any:
        async with aioboto3.Session().client("s3") as client:
            return await getattr(client, name)(Bucket=bucket, **arguments)

    return asyncio.run(request())


def deny(bucket: str, *actions: str) -> None:
    places = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    statement = {"Effect": "Deny", "Principal": "*", "Action": actions, "Resource": places}
    on_bucket("put_bucket_policy", bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))


def test_a_good_bucket_has_only_ok_findings_and_no_leftovers(bucket: str, ask: Any) -> None:
    code, found = ask(f"s3://{bucket}/pre fix", "--concurrency", 4)
    # The concurrency that is enough depends on the load of this machine.
    assert (code, levels(found).keys() - {"concurrency"}) == (0, set())
    assert list(found) == [
        "machine", "kernels", "credentials", "clock", "bucket", "list", "write", "read back", "content type",
        "overwrite", "create only", "browser", "versioning", "encryption", "delete", "features", "latency",
        "throughput", "concurrency",
    ]  # fmt: skip
    assert found["credentials"].text.startswith("from the environment, access key ...")
    assert found["browser"].text == f"pages of {COM} and {IO} may read overlays"
    assert "PUTs/s" in found["throughput"].text
    assert "Little's law: " in found["concurrency"].text
    assert asyncio.run(keys(bucket)) == set()


@pytest.mark.seaweedfs
@pytest.mark.parametrize(
    ("environment", "check", "said", "advice"),
    [
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "bucket", "access key does not exist", "AWS_ACCESS_KEY_ID"),
        ({"AWS_SECRET_ACCESS_KEY": "other"}, "bucket", "secret key is wrong", "AWS_SECRET"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "endpoint", "127.0.0.1:9", "AWS_ENDPOINT_URL"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_PROFILE": "none"}, "configuration", "(none)", "AWS_PROFILE"),
        ({"AWS_ACCESS_KEY_ID": ""}, "credentials", "no AWS credentials found", "AWS_PROFILE"),
        ({"AWS_SESSION_TOKEN": "t", "AWS_CREDENTIAL_EXPIRATION": "2020-01-02T03:04:05Z"}, "credentials",
         "have expired: sign in again", "sign in again"),
    ],
    ids=["unknown key", "wrong secret", "nobody listens", "no such profile", "no credentials", "expired"],
)  # fmt: skip
def test_a_failed_connection_is_the_last_finding(
    environment: dict[str, str], check: str, said: str, advice: str, bucket: str, ask: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    code, found = ask(f"s3://{bucket}/x")
    assert (code, levels(found), list(found)[-1]) == (1, {check: "failure"}, check)
    assert said in found[check].text
    assert advice in found[check].advice


def test_a_missing_bucket_is_named_with_the_command_to_create_it(s3: S3Server, ask: Any) -> None:
    code, found = ask("s3://no-such-bucket/x")
    assert (code, levels(found)) == (1, {"bucket": "failure"})
    assert found["bucket"].text == "no-such-bucket: the bucket does not exist"
    assert found["bucket"].advice == "create it: aws s3 mb s3://no-such-bucket"


def test_a_store_that_never_answers_is_a_failure_in_bounded_time(s3: S3Server, ask: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        code, found = ask("s3://bucket/x", "--s3.read-timeout-s", 0.2)
    assert (code, levels(found)) == (1, {"endpoint": "failure"})
    assert "no byte has moved for" in found["endpoint"].text


@pytest.mark.seaweedfs
def test_a_denied_write_is_answered_with_the_missing_policy(bucket: str, ask: Any) -> None:
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


@pytest.mark.seaweedfs
def test_denied_reads_are_warnings_and_skip_dependent_checks(bucket: str, ask: Any) -> None:
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


def test_an_object_that_cannot_be_deleted_is_named(bucket: str, ask: Any) -> None:
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


def test_versioning_is_a_warning_and_no_version_is_left(bucket: str, ask: Any) -> None:
    on_bucket("put_bucket_versioning", bucket, VersioningConfiguration={"Status": "Enabled"})
    code, found = ask(f"s3://{bucket}", "--quick")
    assert (code, levels(found)) == (0, {"versioning": "warning"})
    assert "overwritten overlays are kept as old versions" in found["versioning"].text
    left = on_bucket("list_object_versions", bucket)
    assert not left.get("Versions")
    assert not left.get("DeleteMarkers")


@pytest.mark.seaweedfs
def test_versions_that_cannot_be_deleted_get_a_delete_marker(bucket: str, ask: Any) -> None:
    on_bucket("put_bucket_versioning", bucket, VersioningConfiguration={"Status": "Enabled"})
    deny(bucket, "s3:DeleteObjectVersion", "s3:ListBucketVersions")
    code, found = ask(f"s3://{bucket}/x")
    assert (code, levels(found)) == (0, {"versioning": "warning", "delete": "warning"})
    assert "ListObjectVersions is refused" in found["delete"].text
    assert "allow s3:DeleteObjectVersion and s3:ListBucketVersions" in found["delete"].advice
    assert asyncio.run(keys(bucket)) == set()


async def test_a_presigned_url_on_aws_names_the_region(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-south-1")
    async with s3_doctor._open_client(AsyncSession(), Settings()) as client:
        url = await client.generate_presigned_url("get_object", {"Bucket": bucket, "Key": "k"})
    assert url.startswith(f"https://{bucket}.s3.eu-south-1.amazonaws.com/k?")


@pytest.mark.parametrize(("region", "level"), [("us-east-1", "ok"), ("eu-west-3", "warning")])
async def test_the_bucket_region_is_compared_with_the_sdks_default(
    region: str, level: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def head_bucket(**_: object) -> Any:
        return {"ResponseMetadata": {"HTTPHeaders": {"x-amz-bucket-region": region}}}

    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    findings: list[Finding] = []
    async with s3_doctor._open_client(AsyncSession(), Settings()) as client:
        monkeypatch.setattr(client, "head_bucket", head_bucket)
        assert await find_bucket(Target(client, bucket, "", "", Settings(), findings.append))
    assert (findings[-1].check, findings[-1].level) == ("bucket", level)


@pytest.mark.seaweedfs
@pytest.mark.parametrize("allowed", [[], pytest.param([COM], marks=pytest.mark.slow)])
def test_the_printed_cors_command_works_and_keeps_other_rules(allowed: list[str], bucket: str, ask: Any) -> None:
    others = [{"AllowedMethods": ["GET"], "AllowedOrigins": ["https://example.com", *allowed]}]
    on_bucket("put_bucket_cors", bucket, CORSConfiguration={"CORSRules": others})
    code, found = ask(f"s3://{bucket}/x", "--quick")
    denied = [origin for origin in (COM, IO) if origin not in allowed]
    assert (code, levels(found)) == ((0, {"browser": "warning"}) if allowed else (1, {"browser": "failure"}))
    assert f"pages of {' and '.join(denied)} may not read overlays" in found["browser"].text

    said, _, command = found["browser"].advice.partition("\n")
    assert "keeps the bucket's existing rules" in said
    *start, rules = shlex.split(command)
    assert start == ["aws", "s3api", "put-bucket-cors", "--bucket", bucket, "--cors-configuration"]
    on_bucket("put_bucket_cors", bucket, CORSConfiguration=json.loads(rules))
    code, found = ask(f"s3://{bucket}/x", "--quick", "--origin", COM, "--origin", IO, "--origin", "https://example.com")
    assert (code, levels(found)) == (0, {})


def test_changes_by_a_proxy_are_found(s3: S3Server, bucket: str, ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert "text/plain, not image/png" in found["content type"].text
        assert "ignores If-None-Match, which --if-exists skip and error need" in found["create only"].text
        assert "the bucket has no rules yet" in found["browser"].advice
        assert "kms:Decrypt" in found["encryption"].advice
        code, found = ask(f"s3://{bucket}/x", "--quick", "--if-exists", "skip")
        assert found["create only"].level == "failure"
        assert asyncio.run(keys(bucket)) == set()


@pytest.mark.parametrize(
    ("give", "expected", "said"),
    [
        (lambda seen: seen[-1][:-1], {"read back": "failure", "overwrite": "warning"}, "the object has other bytes"),
        (lambda seen: seen[0], {"overwrite": "warning"}, "a GET after the overwrite returns the old object"),
    ],
    ids=["cut short", "out of a cache"],
)
def test_the_object_read_back_is_compared(
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
        (20, "warning", "20 min behind the store's; S3 allows 15"),
        pytest.param(-5, "warning", "5 min ahead of the store's", marks=pytest.mark.slow),
    ],
)
def test_a_wrong_clock_is_measured(
    minutes: int, level: str, said: str, s3: S3Server, bucket: str, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counting(s3, monkeypatch) as proxy:
        proxy.headers = {"Date": format_datetime(datetime.now(UTC) + timedelta(minutes=minutes), usegmt=True)}
        code, found = ask(f"s3://{bucket}/x", "--quick")
    assert (code, levels(found)) == (0, {"clock": level})
    assert said in found["clock"].text
    assert "set this machine's clock" in found["clock"].advice


@pytest.mark.seaweedfs
def test_a_wrong_clock_is_corrected_by_the_store(bucket: str, ask: Any) -> None:
    # The same object as long as it is held.
    shared = shared_credentials()
    shared.clock.offset_s = -1200.0
    code, found = ask(f"s3://{bucket}/x", "--quick")
    assert (code, levels(found)) == (0, {})
    assert shared.clock.offset_s == 0


@contextmanager
def hanging_reads(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with counting(s3, monkeypatch) as proxy:
        proxy.gate.clear()
        yield proxy


def test_the_doctor_ends_at_its_time_limit_and_deletes_its_object(
    s3: S3Server, bucket: str, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_LIMIT_S", 2.5)
    with hanging_reads(s3, monkeypatch) as proxy:
        code, found = ask(f"s3://{bucket}/x")
        assert (code, levels(found)) == (1, {"time": "failure"})
        assert [asked.method for asked in proxy.asked][-2:] == ["PUT", "DELETE"]
        assert asyncio.run(keys(bucket)) == set()


async def test_a_cancelled_doctor_deletes_its_object(
    s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hanging_reads(s3, monkeypatch) as proxy:
        task = asyncio.create_task(adiagnose(f"s3://{bucket}/x"))
        while not proxy.under_way:  # noqa: ASYNC110  # counted in a thread of the proxy's
            await asyncio.sleep(0.01)
        assert len(await keys(bucket)) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await keys(bucket) == set()


async def test_headers_of_the_settings_are_checked(bucket: str) -> None:
    settings = Settings(s3=S3Settings(storage_class="NO_SUCH_CLASS"))
    (failure,) = [finding for finding in await adiagnose(f"s3://{bucket}/x", settings) if finding.level == "failure"]
    assert (failure.check, failure.advice) == ("write", "choose another s3.storage_class")
    assert "InvalidStorageClass" in failure.text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("ftp://bucket/x", "unknown address"),
        ("memory://x", "'memory://x' cannot be checked"),
        ("s3://", "'' is not a valid bucket name"),
        ("s3://bucket/../x", "the prefix is not valid"),
        ("out --origin https://app.kolena.com/", "is not an origin; expected https://host, without a slash"),
        ("out --concurrency many", "concurrency"),
        ("", "DESTINATION"),
    ],
)
def test_wrong_arguments_exit_with_2(
    arguments: str, said: str, s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke("doctor", *arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
