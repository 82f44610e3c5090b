from __future__ import annotations

import errno
import socket
import ssl
from typing import Any

import pytest
from aiohttp import ClientOSError, ServerDisconnectedError
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    HTTPClientError,
    MetadataRetrievalError,
    NoCredentialsError,
    ReadTimeoutError,
    UnauthorizedSSOTokenError,
)
from botocore.exceptions import SSLError as SdkSSLError
from botocore.parsers import ResponseParserError

from async_maps.errors import ObjectError, StoreError, TransientError
from async_maps.filesystems.blame import answer_details, judge, judge_answer
from async_maps.filesystems.verdict import Scope, UnjudgedError, store_error

pytestmark = pytest.mark.fast

CERTAIN, UNCERTAIN, RETRIED, OF_KEY = "certain", "uncertain", "retried", "of the key"


def refused(code: str | None, status: int, message: Any = "the words", operation: str = "PutObject") -> ClientError:
    detail: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(detail, operation)


def kind_of(error: BaseException) -> str:
    verdict = judge(error)
    if verdict.retry:
        return RETRIED
    if verdict.certain:
        return CERTAIN
    return OF_KEY if verdict.scope == Scope.KEY else UNCERTAIN


@pytest.mark.parametrize(
    ("code", "status", "scope", "kind", "may_pass"),
    [
        ("NoSuchBucket", 404, Scope.BUCKET, CERTAIN, False),
        ("InvalidAccessKeyId", 403, Scope.CREDENTIALS, CERTAIN, False),
        ("ExpiredToken", 400, Scope.CREDENTIALS, CERTAIN, False),
        ("PermanentRedirect", 301, Scope.BUCKET, CERTAIN, False),
        ("RequestTimeTooSkewed", 403, Scope.CREDENTIALS, CERTAIN, False),
        ("SignatureDoesNotMatch", 403, Scope.CREDENTIALS, UNCERTAIN, False),
        ("AccessDenied", 403, Scope.CREDENTIALS, UNCERTAIN, False),
        ("", 403, Scope.CREDENTIALS, UNCERTAIN, False),
        ("KMS.NotFoundException", 400, Scope.BUCKET, UNCERTAIN, False),
        ("KMS.DisabledException", 400, Scope.BUCKET, UNCERTAIN, False),
        ("KMS.ThrottlingException", 400, Scope.STORE, RETRIED, True),
        ("InvalidStorageClass", 400, Scope.BUCKET, UNCERTAIN, False),
        ("QuotaExceeded", 403, Scope.BUCKET, UNCERTAIN, True),
        ("XMinioStorageFull", 507, Scope.STORE, UNCERTAIN, True),
        ("", 405, Scope.STORE, UNCERTAIN, False),
        ("", 409, Scope.BUCKET, UNCERTAIN, False),
        ("NotImplemented", 501, Scope.STORE, UNCERTAIN, False),
        ("", 507, Scope.STORE, UNCERTAIN, True),
        ("", 407, Scope.LINK, CERTAIN, False),
        ("SomethingNew", 400, Scope.BUCKET, UNCERTAIN, False),
        ("EntityTooLarge", 400, Scope.KEY, OF_KEY, False),
        ("", 413, Scope.KEY, OF_KEY, False),
        ("KeyTooLongError", 400, Scope.KEY, OF_KEY, False),
        ("InvalidObjectState", 403, Scope.KEY, OF_KEY, False),
        ("SlowDown", 503, Scope.STORE, RETRIED, True),
        ("InternalError", 500, Scope.STORE, RETRIED, True),
        ("RequestTimeout", 400, Scope.LINK, RETRIED, True),
        ("OperationAborted", 409, Scope.KEY, RETRIED, True),
        ("AccessDenied", 503, Scope.CREDENTIALS, RETRIED, True),
        ("", 599, Scope.STORE, RETRIED, True),
    ],
)
def test_an_answer_is_judged_by_its_code_and_its_status(
    code: str, status: int, scope: Scope, kind: str, may_pass: bool
) -> None:
    error = refused(code or str(status), status)
    assert (judge(error).scope, kind_of(error), judge(error).may_pass) == (scope, kind, may_pass)
    assert judge(error) == judge_answer(status, code, "the words")


@pytest.mark.parametrize(
    ("error", "scope", "kind", "may_pass"),
    [
        (NoCredentialsError(), Scope.CREDENTIALS, CERTAIN, False),
        (UnauthorizedSSOTokenError(), Scope.CREDENTIALS, CERTAIN, False),
        (MetadataRetrievalError(error_msg="no answer"), Scope.CREDENTIALS, RETRIED, True),
        (EndpointConnectionError(endpoint_url="http://x"), Scope.LINK, RETRIED, True),
        (ReadTimeoutError(endpoint_url="http://x"), Scope.LINK, RETRIED, True),
        (SdkSSLError(endpoint_url="http://x", error=OSError("UNEXPECTED_EOF")), Scope.LINK, RETRIED, True),
        (SdkSSLError(endpoint_url="http://x", error=OSError("certificate verify failed")), Scope.LINK, CERTAIN, False),
        (
            SdkSSLError(endpoint_url="https://x", error=OSError("[SSL: WRONG_VERSION_NUMBER]")),
            Scope.LINK,
            CERTAIN,
            False,
        ),
        (ssl.SSLError(1, "[SSL] record layer failure (_ssl.c:1000)"), Scope.LINK, CERTAIN, False),
        (ssl.SSLCertVerificationError("self-signed"), Scope.LINK, CERTAIN, False),
        (ResponseParserError("garbage"), Scope.LINK, RETRIED, True),
        (ServerDisconnectedError(), Scope.LINK, RETRIED, True),
        (ClientOSError(errno.ECONNRESET, "reset"), Scope.LINK, RETRIED, True),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), Scope.LINK, RETRIED, True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), Scope.LINK, RETRIED, True),
        (OSError(errno.EHOSTUNREACH, "no route"), Scope.LINK, RETRIED, True),
        (OSError(errno.ENOSPC, "full"), Scope.DISK, CERTAIN, True),
        (OSError(errno.EROFS, "read-only"), Scope.DISK, CERTAIN, False),
        (OSError(errno.ESTALE, "stale"), Scope.DISK, CERTAIN, True),
        (OSError(errno.EMFILE, "files"), Scope.DISK, RETRIED, True),
        (PermissionError(errno.EACCES, "denied"), Scope.KEY, OF_KEY, False),
        (StoreError("gone", may_pass=True), Scope.STORE, CERTAIN, True),
        (TransientError("later"), Scope.KEY, RETRIED, True),
        (ObjectError("refused"), Scope.KEY, OF_KEY, False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_without_an_answer_is_judged_by_its_type(
    error: BaseException, scope: Scope, kind: str, may_pass: bool
) -> None:
    assert (judge(error).scope, kind_of(error), judge(error).may_pass) == (scope, kind, may_pass)


@pytest.mark.parametrize("operation", ["AssumeRoleWithWebIdentity", "GetRoleCredentials", "CreateToken"])
def test_a_refusal_of_another_service_concerns_the_credentials(operation: str) -> None:
    verdict = judge(refused("AccessDenied", 403, operation=operation))
    assert (verdict.scope, verdict.certain) == (Scope.CREDENTIALS, True)
    assert f"{operation} is refused with AccessDenied: the words" in verdict.reason
    assert judge(refused("Throttling", 400, operation=operation)).retry


@pytest.mark.parametrize("message", [None, "", "None", "Unknown", " \n"])
@pytest.mark.parametrize("code", ["AccessDenied", "QuotaExceeded", "KMS.NotFoundException", "Odd", "403", None])
def test_an_answer_without_a_message_is_a_sentence(code: str | None, message: str | None) -> None:
    reason = judge(refused(code, 403, message)).reason
    assert "None" not in reason
    assert "Unknown" not in reason
    assert not reason.endswith((":", ": "))


def test_the_words_of_the_store_are_shown_in_one_line() -> None:
    reason = judge(refused("QuotaExceeded", 403, "Bucket\r\n\x1b[31m quota exceeded.")).reason
    assert reason == "refused with QuotaExceeded: Bucket [31m quota exceeded"
    assert len(judge(refused("Odd", 400, "x" * 10_000)).reason) < 400


def test_the_details_of_an_answer_are_read_from_its_body() -> None:
    assert answer_details(b"<?xml?><Error><Code>KMS.X</Code><Message>a &lt; b</Message></Error>") == ("KMS.X", "a < b")
    assert answer_details(b"<html>\xff busy") == ("", "")


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("SlowDown", 503, TransientError),
        ("NoSuchBucket", 404, StoreError),
        ("AccessDenied", 403, UnjudgedError),
        ("EntityTooLarge", 400, ObjectError),
    ],
)
def test_the_error_of_a_put_follows_the_verdict(code: str, status: int, kind: type[StoreError]) -> None:
    error = store_error("s3://bucket/p", judge_answer(status, code))
    assert type(error) is kind
    assert str(error).startswith(f"s3://bucket/p: refused with {code}")


def test_a_request_without_a_file_left_names_the_limit() -> None:
    error = HTTPClientError(error=OSError(errno.EMFILE, "Too many open files"))
    error.__context__ = error.kwargs["error"]
    verdict = judge(error)
    assert (verdict.scope, verdict.retry) == (Scope.DISK, True)
    assert "ulimit -n" in verdict.reason
