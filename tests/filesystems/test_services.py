"""The services' requests, signatures, answers and set-up, without a server."""

from __future__ import annotations

import base64
import json
import time
from email.utils import formatdate, parsedate_to_datetime

import pytest

from async_maps.errors import SettingsError
from async_maps.filesystems.answers import Object
from async_maps.filesystems.blame import judge_answer
from async_maps.filesystems.services.azure import BlobStorage
from async_maps.filesystems.services.azure_account import Account
from async_maps.filesystems.services.azure_keys import _rank, authorization
from async_maps.filesystems.services.gcs import CloudStorage
from async_maps.filesystems.services.proxies import proxy_for
from async_maps.filesystems.services.service import Answer, ObjectHeaders
from async_maps.filesystems.services.xml import parse_xml
from async_maps.filesystems.verdict import Scope

pytestmark = [pytest.mark.fast]

URL = "https://account1.blob.core.windows.net"
KEY = base64.b64encode(b"secret key of the account").decode()
PLAIN = ObjectHeaders("image/png", None, {})
MD5 = "05mEggjai4CjBq8P1iuwPw=="
"""Of the bytes "pixels"."""
GCS = CloudStorage("https://storage.googleapis.com", None, len)
AZURE = BlobStorage(Account(URL, base64.b64decode(KEY)))


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCOUNT", "KEY", "SAS_TOKEN", "CONNECTION_STRING"):
        monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)


# The account in Azure -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"ACCOUNT": "account1"}, Account(URL)),
        ({"ACCOUNT": "account1", "KEY": KEY}, Account(URL, base64.b64decode(KEY))),
        ({"ACCOUNT": "account1", "SAS_TOKEN": "?sv=1&sig=a%3D"}, Account(URL, sas="sv=1&sig=a%3D")),
        (
            {"CONNECTION_STRING": f"DefaultEndpointsProtocol=HTTPS;AccountName=account1;AccountKey={KEY};"},
            Account(URL, base64.b64decode(KEY)),
        ),
        (
            {"ACCOUNT": "another", "CONNECTION_STRING": "AccountName=a11;EndpointSuffix=core.usgovcloudapi.net"},
            Account("https://a11.blob.core.usgovcloudapi.net"),
        ),
        (
            {"CONNECTION_STRING": f"BlobEndpoint={URL}/;SharedAccessSignature=sv=1&sig=a%3D"},
            Account(URL, sas="sv=1&sig=a%3D"),
        ),
        (
            {"CONNECTION_STRING": f"AccountName=dev;AccountKey={KEY};BlobEndpoint=http://127.0.0.1:10000/dev"},
            Account("http://127.0.0.1:10000/dev", base64.b64decode(KEY)),
        ),
    ],
)
def test_the_account_is_that_of_the_environment(
    variables: dict[str, str], expected: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
    assert Account.from_environment() == expected


def test_development_storage_is_the_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "UseDevelopmentStorage=true")
    found = Account.from_environment()
    assert (found.url, found.name, found.is_emulator) == (
        "http://127.0.0.1:10000/devstoreaccount1", "devstoreaccount1", True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({}, "az:// needs the storage account: set AZURE_STORAGE_ACCOUNT, or AZURE_STORAGE_CONNECTION_STRING"),
        (
            {"ACCOUNT": "My_Account"},
            "AZURE_STORAGE_ACCOUNT: expected 3 to 24 lower-case letters and digits, found 'My_",
        ),
        ({"ACCOUNT": "account1", "KEY": "no key"}, "AZURE_STORAGE_KEY: expected the key in base 64"),
        ({"CONNECTION_STRING": "secret"}, "AZURE_STORAGE_CONNECTION_STRING: expected AccountName=..."),
        (
            {"CONNECTION_STRING": f"BlobEndpoint=http://127.0.0.1:99999/dev;AccountKey={KEY}"},
            "AZURE_STORAGE_CONNECTION_STRING: expected ",
        ),
        (
            {"CONNECTION_STRING": f"BlobEndpoint=http://[::1:::]:80/dev;AccountKey={KEY}"},
            "AZURE_STORAGE_CONNECTION_STRING: expected ",
        ),
        ({"CONNECTION_STRING": "BlobEndpoint=https://x.com/?sig=secret"}, "AZURE_STORAGE_CONNECTION_STRING: expected "),
        (
            {"CONNECTION_STRING": "AccountName=abc;AccountKey=secret!"},
            "AccountKey in AZURE_STORAGE_CONNECTION_STRING: ",
        ),
    ],
)
def test_an_incomplete_account_is_refused_without_its_secrets(
    variables: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
    with pytest.raises(SettingsError) as raised:
        Account.from_environment()
    assert str(raised.value).startswith(sentence)
    assert "secret" not in str(raised.value)


def test_a_key_is_used_for_its_own_account_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "account1")
    monkeypatch.setenv("AZURE_STORAGE_KEY", KEY)
    assert Account.from_environment(URL).key
    other = Account.from_environment("https://another.blob.core.windows.net")
    assert (other.url, other.key) == ("https://another.blob.core.windows.net", b"")


def test_a_key_is_not_shown() -> None:
    assert KEY not in repr(AZURE._account)
    assert "secret" not in repr(Account(URL, b"secret", "sig=secret"))


# Signatures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("PUT", "/maps/a%20b/%C3%A9%25.png", {"Content-Length": "6", "Content-Type": "image/png", "Content-MD5": MD5}),
        ("GET", "/maps/a.png", {"x-ms-range": "bytes=0-9", "Content-Length": "0"}),
        ("GET", "/maps?restype=container&comp=list&prefix=a%20b%2F%C3%A9&maxresults=5000&delimiter=%2F", {}),
        ("PUT", "/maps/a.png", {"If-None-Match": "*", "Content-Length": "10", "x-ms-meta-run": "7"}),
    ],
)
@pytest.mark.parametrize("url", [URL, "http://127.0.0.1:10000/devstoreaccount1"])
def test_a_signature_is_that_of_the_vendors_library(url: str, method: str, path: str, headers: dict[str, str]) -> None:
    policies = pytest.importorskip(
        "azure.storage.blob._shared.authentication", reason="the package azure-storage-blob is not installed"
    )
    transport = pytest.importorskip("azure.core.pipeline.transport")
    pipeline = pytest.importorskip("azure.core.pipeline")
    sent = {**headers, "x-ms-version": "2021-12-02", "x-ms-date": "Mon, 30 Nov 2026 05:00:00 GMT"}
    account = Account(url, base64.b64decode(KEY))
    request = transport.HttpRequest(method, f"{url}{path}", headers=dict(sent))
    context = pipeline.PipelineContext(transport.RequestsTransport())
    policies.SharedKeyCredentialPolicy(account.name, KEY).on_request(pipeline.PipelineRequest(request, context))
    assert authorization(account, method, f"{url}{path}", sent) == request.headers["Authorization"]


def test_a_request_is_authorized_by_the_best_proof_there_is() -> None:
    request = AZURE.find("maps", "a")
    assert AZURE.authorize(request, "").headers["Authorization"].startswith("SharedKey account1:")
    with_token = BlobStorage(Account(URL))
    assert with_token.tokens is not None
    assert with_token.authorize(request, "token").headers["Authorization"] == "Bearer token"
    signed = BlobStorage(Account(URL, sas="sv=1&sig=x"))
    assert signed.authorize(request, "").url == f"{URL}/maps/a?sv=1&sig=x"
    assert signed.authorize(signed.listing("maps", ""), "").url.endswith("&sv=1&sig=x")
    assert signed.locator("maps", "a") == f"{URL}/maps/a"


def test_a_wrong_clock_is_corrected_by_the_answer() -> None:
    service = BlobStorage(Account(URL, b"key"))
    ahead = time.time() - 1800
    skewed = Answer(403, {"Date": formatdate(ahead, usegmt=True)})
    wrong = service.authorize(service.find("maps", "a"), "")
    assert service.renews(skewed, wrong, "")
    # Another request was sent before the time was corrected.
    assert service.renews(skewed, wrong, "")
    right = service.authorize(service.find("maps", "a"), "")
    assert abs(parsedate_to_datetime(right.headers["x-ms-date"]).timestamp() - ahead) < 60
    # The time is right now, so it is not the reason.
    assert not service.renews(skewed, right, "")
    assert not service.renews(Answer(404, {"Date": "Mon, 30 Nov 2026 05:00:00 GMT"}), wrong, "")
    assert not service.renews(Answer(403, {}), wrong, "")


def test_a_shared_access_signature_has_no_time_to_correct(caplog: pytest.LogCaptureFixture) -> None:
    service = BlobStorage(Account(URL, sas="sv=1&sig=x"))
    skewed = Answer(403, {"Date": formatdate(time.time() - 1800, usegmt=True)})
    assert not service.renews(skewed, service.authorize(service.find("maps", "a"), ""), "")
    assert not caplog.messages


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.blob.attacker.com",
        "https://account1.blob.core.windows.net.evil.com",
        "https://127.0.0.1:4430/account1",
        "https://localhost/account1",
    ],
)
def test_no_token_is_sent_to_a_server_that_the_environment_does_not_name(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variables in ({}, {"ACCOUNT": "account1"}, {"ACCOUNT": "account1", "KEY": KEY}):
        for name, value in variables.items():
            monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
        with pytest.raises(SettingsError, match="is no server of Azure, so no token is sent to it"):
            Account.from_environment(url)
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"BlobEndpoint={url}")
    assert Account.from_environment(url) == Account.from_environment() == Account(url)


@pytest.mark.parametrize("host", ["http://127.0.0.1:99999", "http://[::1", "ftp://host", "http://"])
def test_a_wrong_address_of_an_emulator_is_refused(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("google.auth", reason="the package google-auth is not installed")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", host)
    with pytest.raises(SettingsError, match="STORAGE_EMULATOR_HOST: expected http://host:port"):
        CloudStorage.from_environment()


def test_the_proxy_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    assert proxy_for(URL) is None
    monkeypatch.setenv("HTTPS_PROXY", "me:secret@host:3128")
    assert proxy_for(URL) == "http://me:secret@host:3128"
    assert proxy_for("http://127.0.0.1:9023") is None
    monkeypatch.setenv("NO_PROXY", ".core.windows.net")
    assert proxy_for(URL) is None
    for wrong in ("http://me:secret@host:99999", "socks5://host:1", "http://"):
        monkeypatch.setenv("HTTPS_PROXY", wrong)
        with pytest.raises(SettingsError, match=r"^HTTPS_PROXY: expected http://host:port$"):
            proxy_for("https://storage.googleapis.com")


def test_no_token_is_sent_without_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = URL.replace("https:", "http:")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "account1")
    with pytest.raises(SettingsError, match="tokens are not sent without TLS"):
        Account.from_environment(plain)
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"BlobEndpoint={plain}")
    with pytest.raises(SettingsError, match="tokens are not sent without TLS"):
        Account.from_environment()
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"BlobEndpoint={plain};AccountKey={KEY}")
    assert Account.from_environment().url == plain


@pytest.mark.parametrize("url", ["https://another1.blob.core.windows.net", "https://a.z12.blob.storage.azure.net"])
def test_another_account_of_azure_gets_no_key_of_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "account1")
    monkeypatch.setenv("AZURE_STORAGE_KEY", KEY)
    url = url.replace("/a.z", "/another1.z")
    assert Account.from_environment(url) == Account(url)


def test_headers_are_sorted_as_the_vendors_library_sorts_them() -> None:
    vendors = pytest.importorskip("azure.storage.blob._shared.authentication", reason="azure-storage-blob is missing")
    names = [
        f"x-ms-{name}"
        for name in (
            "date",
            "version",
            "blob-type",
            "blob-cache-control",
            "meta-a1",
            "meta-a_1",
            "meta-a",
            "meta-ab",
            "meta-_",
        )
    ]
    expected = [name for name, _ in vendors._storage_header_sort([(name, "") for name in names])]
    assert sorted(names, key=_rank) == expected


def test_folders_of_a_hierarchical_namespace_are_no_objects() -> None:
    blob = "<Blob><Name>{}</Name><Properties><Content-Length>{}</Content-Length>{}</Properties></Blob>"
    folder, file = blob.format("x.zarr", 0, "<ResourceType>directory</ResourceType>"), blob.format("x.zarr/0", 5, "")
    body = f"<EnumerationResults><Blobs>{folder}{file}</Blobs><NextMarker/></EnumerationResults>"
    page, after = AZURE.page(Answer(200, {}, body.encode()))
    assert ([found.key for found in page.objects], after) == (["x.zarr/0"], "")


def test_a_policy_of_google_cloud_is_no_object_that_exists() -> None:
    for reason, exists in (("conditionNotMet", True), ("orgPolicyConstraintFailed", False)):
        body = json.dumps({"error": {"message": "no", "errors": [{"reason": reason}]}}).encode()
        assert GCS.exists(Answer(412, {}, body)) == exists


# Requests and answers -----------------------------------------------------------------------------------------------


def test_a_put_to_google_cloud_has_the_checksums_and_the_bytes() -> None:
    headers = ObjectHeaders("image/png", "no-cache", {"run": "7"})
    request = GCS.put("bucket", "a b/é?.png", b"pixels", headers, create_only=True)
    assert request.url == (
        "https://storage.googleapis.com/upload/storage/v1/b/bucket/o"
        "?uploadType=multipart&name=a%20b%2F%C3%A9%3F.png&ifGenerationMatch=0"
    )
    mark = request.headers["Content-Type"].partition("boundary=")[2]
    _, properties, data, end = request.body.split(b"--" + mark.encode())
    assert json.loads(properties.partition(b"\r\n\r\n")[2]) == {
        "name": "a b/é?.png", "contentType": "image/png", "md5Hash": MD5, "crc32c": "AAAABg==",
        "cacheControl": "no-cache", "metadata": {"run": "7"},
    }  # fmt: skip
    assert (data.partition(b"\r\n\r\n")[2], end) == (b"pixels\r\n", b"--\r\n")


@pytest.mark.parametrize(
    ("told", "tag"),
    [
        ({"md5Hash": MD5, "crc32c": "AAAABg==", "size": "6"}, "d399848208da8b80a306af0fd62bb03f"),
        ({"crc32c": "AAAABg==", "size": "6"}, ""),
        ({"md5Hash": MD5, "crc32c": "AAAABw==", "size": "6"}, None),
        ({"md5Hash": "1B2M2Y8AsgTpgAmY7PhCfg==", "crc32c": "AAAABg==", "size": "6"}, None),
        ({"md5Hash": MD5, "crc32c": "AAAABg==", "size": "7"}, None),
        ({"md5Hash": MD5, "size": "6"}, None),
        ({}, None),
        ([], None),
        ("<html>", None),
    ],
)
def test_both_checksums_prove_an_object_in_google_cloud(told: object, tag: str | None) -> None:
    body = told.encode() if isinstance(told, str) else json.dumps(told).encode()
    request = GCS.put("bucket", "a", b"pixels", PLAIN, create_only=False)
    assert GCS.proof(Answer(200, {}, body), request) == tag


@pytest.mark.parametrize(
    ("headers", "tag"),
    [
        ({"Content-MD5": MD5}, "d399848208da8b80a306af0fd62bb03f"),
        ({"Content-MD5": "1B2M2Y8AsgTpgAmY7PhCfg=="}, None),
        ({}, None),
    ],
)
def test_the_md5_proves_a_blob(headers: dict[str, str], tag: str | None) -> None:
    request = AZURE.put("maps", "a", b"pixels", PLAIN, create_only=False)
    assert AZURE.proof(Answer(201, headers), request) == tag


def test_a_put_to_azure_has_the_md5_and_the_condition() -> None:
    headers = ObjectHeaders("image/png", "no-cache", {"run": "7"})
    request = AZURE.put("maps", "a b/é?.png", b"pixels", headers, create_only=True)
    assert request.url == f"{URL}/maps/a%20b/%C3%A9%3F.png"
    assert dict(request.headers) == {
        "Content-Type": "image/png", "Content-MD5": MD5, "x-ms-blob-type": "BlockBlob",
        "x-ms-blob-cache-control": "no-cache", "x-ms-meta-run": "7", "If-None-Match": "*",
    }  # fmt: skip
    assert "If-None-Match" not in AZURE.put("maps", "a", b"", PLAIN, create_only=False).headers


def test_a_listing_of_azure_is_understood() -> None:
    body = f"""\ufeff<?xml version="1.0" encoding="utf-8"?><EnumerationResults ContainerName="maps"><Blobs>
    <Blob><Name>a &amp; b.png</Name><Properties><Last-Modified>Mon, 30 Nov 2026 05:00:00 GMT</Last-Modified>
    <Etag>0x8D</Etag><Content-Length>6</Content-Length><Content-MD5>{MD5}</Content-MD5></Properties></Blob>
    <Blob><Name Encoded="true">%EF%BF%BEx</Name><Properties><Etag>"0x8E"</Etag><Content-Length>7</Content-Length>
    <Content-MD5 /></Properties></Blob><BlobPrefix><Name>folder/</Name></BlobPrefix></Blobs>
    <NextMarker>next</NextMarker></EnumerationResults>""".encode()
    page, after = AZURE.page(Answer(200, {}, body))
    assert page.objects == [
        Object("a & b.png", 6, "d399848208da8b80a306af0fd62bb03f", 1796014800.0),
        Object("\ufffex", 7, "0x8E", None),
    ]
    assert (page.folders, after) == (["folder/"], "next")


def test_a_listing_with_a_document_type_is_refused() -> None:
    for body in (b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", b"<a>", b"{}", b""):
        with pytest.raises(ValueError, match="the answer"):
            parse_xml(body)


@pytest.mark.parametrize(
    ("status", "reason", "message", "code", "scope", "certain", "retry"),
    [
        (404, "notFound", "The specified bucket does not exist.", "notFound", Scope.BUCKET, True, False),
        (404, "notFound", "No such object: b/k", "noSuchObject", Scope.KEY, False, False),
        (400, "invalid", 'Provided MD5 hash "x" doesn\'t match calculated', "hashMismatch", Scope.LINK, False, True),
        (400, "invalid", "Invalid argument.", "invalid", Scope.BUCKET, False, False),
        (401, "authError", "Invalid Credentials", "authError", Scope.CREDENTIALS, True, False),
        (403, "forbidden", "no access", "forbidden", Scope.CREDENTIALS, False, False),
        (429, "rateLimitExceeded", "slower", "rateLimitExceeded", Scope.STORE, False, True),
        (503, "backendError", "again", "backendError", Scope.STORE, False, True),
        (403, "quotaExceeded", "full", "quotaExceeded", Scope.BUCKET, False, False),
    ],
)
def test_a_refusal_of_google_cloud_is_judged(
    status: int, reason: str, message: str, code: str, scope: Scope, certain: bool, retry: bool
) -> None:
    body = json.dumps({"error": {"code": status, "message": message, "errors": [{"reason": reason}]}}).encode()
    refusal = GCS.refusal(Answer(status, {}, body))
    assert refusal == (code, message)
    verdict = judge_answer(status, *refusal)
    assert (verdict.scope, verdict.certain, verdict.retry) == (scope, certain, retry)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b'{"error": "x"}', b'{"error": {"errors": [3]}}'])
def test_an_odd_refusal_of_google_cloud_has_no_code(body: bytes) -> None:
    assert GCS.refusal(Answer(500, {}, body))[0] == ""


@pytest.mark.parametrize(
    ("status", "code", "scope", "certain", "retry"),
    [
        (404, "ContainerNotFound", Scope.BUCKET, True, False),
        (404, "BlobNotFound", Scope.KEY, False, False),
        (400, "Md5Mismatch", Scope.LINK, False, True),
        (403, "AuthenticationFailed", Scope.CREDENTIALS, False, False),
        (403, "AuthorizationPermissionMismatch", Scope.CREDENTIALS, False, False),
        (401, "InvalidAuthenticationInfo", Scope.CREDENTIALS, True, False),
        (503, "ServerBusy", Scope.STORE, False, True),
        (500, "OperationTimedOut", Scope.STORE, False, True),
        (409, "BlobImmutableDueToPolicy", Scope.KEY, False, False),
        (409, "ContainerBeingDeleted", Scope.BUCKET, False, True),
    ],
)
def test_a_refusal_of_azure_is_judged(status: int, code: str, scope: Scope, certain: bool, retry: bool) -> None:
    body = f"<Error><Code>{code}</Code><Message>Sorry.\nRequestId:1\nTime:2</Message></Error>".encode()
    for answer in (Answer(status, {}, body), Answer(status, {"x-ms-error-code": code})):
        verdict = judge_answer(status, *AZURE.refusal(answer))
        assert (verdict.scope, verdict.certain, verdict.retry) == (scope, certain, retry)
        assert "RequestId" not in verdict.reason
