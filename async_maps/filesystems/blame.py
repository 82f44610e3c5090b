"""Who is to blame for a failed request: one table for S3, the SDK, connections and disks.

Uploads, sources, listings, deletes, ``verify`` and ``doctor`` judge their errors here. A map fails only by an error
of the scope :attr:`Scope.KEY`, or by the evidence that :mod:`async_maps.stages.judge` collects.
"""

from __future__ import annotations

import errno
import re
import ssl
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.sax.saxutils import unescape

from botocore.exceptions import (
    BotoCoreError,
    ChecksumError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from botocore.parsers import ResponseParserError

from async_maps.errors import WHOLE_DISK, AsyncMapsError, ObjectError, StoreError, TransientError
from async_maps.filesystems.credentials import NONE_FOUND, CredentialsError
from async_maps.filesystems.verdict import Scope, UnjudgedError, Verdict
from async_maps.machine.shortage import describe_shortage

if TYPE_CHECKING:
    from collections.abc import Callable


class _Row(NamedTuple):
    scope: Scope
    words: str = ""
    """Shown if the store gives none, or in place of the store's: of certain rows, and of those with ``in_place``."""
    certain: bool = False
    may_pass: bool = False
    retry: bool = False
    slow_down: bool = False
    in_place: bool = False
    timed_out: bool = False


def _passing(scope: Scope, words: str = "", *, slow_down: bool = False, timed_out: bool = False) -> _Row:
    """Return the row of a failure that is retried."""
    return _Row(scope, words, may_pass=True, retry=True, slow_down=slow_down, timed_out=timed_out)


_KEY, _BUCKET, _CREDENTIALS, _STORE, _LINK, _DISK = Scope
_BUSY = _passing(_STORE, slow_down=True)
_LATE = "the store did not send its whole answer in time (s3.read_timeout_s)"
_NO_TLS = (
    "the server, or the proxy before it, does not answer with TLS: write http:// instead of https:// in "
    "AWS_ENDPOINT_URL, or in HTTPS_PROXY"
)
_FULL = "the store has no space left for this bucket"
_REGION = _Row(_BUCKET, "the bucket is in another region", certain=True)
_BAD_TOKEN = _Row(_CREDENTIALS, "the session token is not valid", certain=True)
_EXPIRED = _Row(_CREDENTIALS, "the session token has expired; run the command again with a new one", certain=True)
_UNKNOWN_KEY = _Row(_CREDENTIALS, "the access key does not exist there", certain=True)

_CODES: dict[str, _Row] = {
    # Certain for all objects.
    "NoSuchBucket": _Row(_BUCKET, "the bucket does not exist", certain=True),
    "InvalidBucketName": _Row(_BUCKET, "the bucket's name is not valid there", certain=True),
    "NoSuchAccessPoint": _Row(_BUCKET, "the access point does not exist", certain=True),
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "InvalidAccessKeyId": _UNKNOWN_KEY,
    "InvalidClientTokenId": _UNKNOWN_KEY,
    "UnrecognizedClientException": _UNKNOWN_KEY,
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _Row(_CREDENTIALS, "the session token has expired", certain=True),
    "InvalidToken": _BAD_TOKEN,
    "InvalidTokenId": _BAD_TOKEN,
    "RequestTimeTooSkewed": _Row(_CREDENTIALS, "this machine's clock is wrong", certain=True),
    "AccountProblem": _Row(_CREDENTIALS, "there is a problem with the account", certain=True),
    "AllAccessDisabled": _Row(_BUCKET, "all access to the bucket is disabled", certain=True),
    "NotSignedUp": _Row(_CREDENTIALS, "the account has no subscription to this service", certain=True),
    "UserSuspended": _Row(_CREDENTIALS, "the user is suspended", certain=True),
    "InvalidPayer": _Row(_CREDENTIALS, "the account may not be charged", certain=True),
    # Perhaps for this object alone: several objects must show it.
    "AccessDenied": _Row(_CREDENTIALS),
    "AllAccessDenied": _Row(_CREDENTIALS),
    "Forbidden": _Row(_CREDENTIALS),
    "InvalidSecurity": _Row(_CREDENTIALS),
    "SignatureDoesNotMatch": _Row(_CREDENTIALS, "the secret key is wrong", in_place=True),
    "InvalidStorageClass": _Row(_BUCKET),
    "InvalidEncryptionAlgorithmError": _Row(_BUCKET),
    "InvalidArgument": _Row(_BUCKET),
    "InvalidRequest": _Row(_BUCKET),
    "MissingSecurityHeader": _Row(_BUCKET),
    "NotImplemented": _Row(_STORE),
    "MethodNotAllowed": _Row(_STORE),
    "QuotaExceeded": _Row(_BUCKET, "the quota is used up", may_pass=True),
    "QuotaExceededException": _Row(_BUCKET, "the quota is used up", may_pass=True),
    "XMinioAdminBucketQuotaExceeded": _Row(_BUCKET, "the quota of the bucket is used up", may_pass=True),
    "XMinioStorageFull": _Row(_STORE, _FULL, may_pass=True),
    "InsufficientStorage": _Row(_STORE, _FULL, may_pass=True),
    "InsufficientCapacity": _Row(_STORE, _FULL, may_pass=True),
    "TooManyObjects": _Row(_BUCKET, may_pass=True),
    # This object alone.
    "EntityTooLarge": _Row(_KEY, "the store takes no PNG of this size"),
    "EntityTooSmall": _Row(_KEY),
    "KeyTooLong": _Row(_KEY, "the key is too long for the store"),
    "KeyTooLongError": _Row(_KEY, "the key is too long for the store"),
    "InvalidObjectName": _Row(_KEY),
    "XMinioInvalidObjectName": _Row(_KEY),
    "XMinioParentIsObject": _Row(_KEY),
    "XMinioObjectExistsAsDirectory": _Row(_KEY),
    "InvalidURI": _Row(_KEY),
    "InvalidObjectState": _Row(_KEY, "the object is archived, and must be restored first"),
    "NoSuchKey": _Row(_KEY, "the object does not exist"),
    "NoSuchVersion": _Row(_KEY, "the object does not exist"),
    "PreconditionFailed": _Row(_KEY),
    # Retried.
    **dict.fromkeys(
        (
            "SlowDown", "SlowDownRead", "SlowDownWrite", "Throttling", "ThrottlingException", "ThrottledException",
            "TooManyRequests", "TooManyRequestsException", "RequestLimitExceeded", "RequestThrottled",
            "RequestThrottledException", "BandwidthLimitExceeded", "LimitExceededException", "ServiceUnavailable",
            "PriorRequestNotComplete", "XMinioServerBusy", "KMS.ThrottlingException",
        ),
        _BUSY,
    ),
    **dict.fromkeys(
        (
            "InternalError", "InternalFailure", "XMinioBackendDown", "XMinioServerNotInitialized",
            "XMinioReadQuorum", "XMinioWriteQuorum", "KMS.InternalException", "KMS.KMSInternalException",
            "KMS.DependencyTimeoutException", "KMS.KeyUnavailableException",
        ),
        _passing(_STORE),
    ),
    "OperationAborted": _passing(_KEY),
    "ConditionalRequestConflict": _passing(_KEY),
    "TemporaryRedirect": _passing(_BUCKET),
    "RequestTimeout": _passing(_LINK, timed_out=True),
    # The received bytes differ from the sent ones.
    **dict.fromkeys(
        (
            "IncompleteBody", "BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch",
            "XAmzContentChecksumMismatch",
        ),
        _passing(_LINK),
    ),
}  # fmt: skip
"""Error codes: Amazon S3 API reference, "Error responses"; those of MinIO and Ceph are in their sources."""

_KMS = _Row(_BUCKET)
"""Codes that start with ``KMS.``: the key of ``s3.kms_key_id``, or of the bucket."""

_STATUSES: dict[int, _Row] = {
    301: _Row(_BUCKET, "the bucket is in another region"),
    401: _Row(_CREDENTIALS, "the credentials are missing, or not valid there"),
    403: _Row(_CREDENTIALS, "no permission"),
    404: _Row(_BUCKET, "not found"),
    405: _Row(_STORE, "the store does not allow this request"),
    407: _Row(_LINK, "the proxy asks for a user and a password", certain=True),
    408: _passing(_LINK, "the store did not get the request in time", timed_out=True),
    409: _Row(_BUCKET, "in conflict with the state of the store"),
    410: _Row(_BUCKET, "gone"),
    412: _Row(_KEY, "a condition of the request is not met"),
    413: _Row(_KEY, "the store, or a proxy before it, takes no PNG of this size"),
    414: _Row(_KEY, "the key is too long for the store"),
    416: _Row(_KEY, "the object has no such bytes"),
    423: _Row(_KEY, "the object is locked"),
    425: _passing(_STORE),
    429: _BUSY,
    500: _passing(_STORE, "an internal error of the store"),
    501: _Row(_STORE, "the store does not support this request"),
    502: _passing(_LINK, "the proxy before the store got no answer"),
    503: _passing(_STORE, "the store is not available", slow_down=True),
    504: _passing(_LINK, "the proxy before the store got no answer in time", timed_out=True),
    505: _Row(_STORE, "the store does not support this version of HTTP"),
    507: _Row(_STORE, _FULL, may_pass=True),
    509: _BUSY,
}
"""HTTP statuses, for codes that are not in the other table."""

_OTHER_5XX, _OTHER = _passing(_STORE), _Row(_BUCKET)

_SIGN_IN_OPERATIONS = {
    "AssumeRole", "AssumeRoleWithSAML", "AssumeRoleWithWebIdentity", "GetCallerIdentity", "GetFederationToken",
    "GetSessionToken", "GetRoleCredentials", "CreateToken", "CreateTokenWithIAM", "CreateOAuth2Token",
    "RegisterClient", "StartDeviceAuthorization", "GetCredentialsForIdentity",
}  # fmt: skip
"""Operations of STS, SSO and their like, by which the SDK gets credentials in the middle of a request to S3."""

_NETWORK = {
    errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN,
    errno.ETIMEDOUT, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.EPROTO,
}  # fmt: skip
_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EBUSY, errno.EINTR}

_MOST_WORDS = 300
_CODE, _MESSAGE = (re.compile(rf"<{tag}>(.*?)</{tag}>", re.DOTALL) for tag in ("Code", "Message"))


def judge(error: BaseException) -> Verdict:
    """Judge the error of a request or of a call of the operating system."""
    if _is_certificate(error):
        return _certain(_LINK, error)
    if _is_without_tls(error):
        return _certain(_LINK, error)._replace(reason=_NO_TLS)
    # aiohttp is not imported for this: it is slow.
    if type(error).__module__.startswith("aiohttp"):
        return _link(error)
    for kinds, verdict in _ERRORS:
        if isinstance(error, kinds):
            return verdict(error)
    return Verdict(_KEY, may_pass=False, certain=False, slow_down=False, reason=_words(error))


def judge_answer(status: int, code: str = "", message: str = "") -> Verdict:
    """Judge an answer by its HTTP status, and the error code and message in its body."""
    code = "" if code.isdigit() else code
    by_status = _STATUSES.get(status) or (_OTHER_5XX if status >= 500 else _OTHER)
    row = _CODES.get(code) or (_KMS if code.startswith("KMS.") else None)
    if row is not None and by_status.retry and not row.certain:
        # Some stores send 503 with any code.
        row = row._replace(may_pass=True, retry=True, slow_down=row.slow_down or by_status.slow_down)
    name, row = code or f"status {status}", row or by_status
    told = meaning(code) or _one_line(message) or row.words or by_status.words or "the store gives no reason"
    reason = f"refused with {name}: {told}"
    return Verdict(row.scope, row.may_pass, row.certain, row.slow_down, reason, row.retry, name, row.timed_out)


def meaning(code: str) -> str:
    """Return what an error code means for every object; empty if only the store's words say it."""
    row = _CODES.get(code)
    return row.words if row is not None and (row.certain or row.in_place) else ""


def answer_details(body: bytes) -> tuple[str, str]:
    """Return the error code and the message in the XML body of an answer; empty if they are not there."""
    text = body.decode("utf-8", "replace")
    code, message = (unescape(found[1].strip()) if (found := tag.search(text)) else "" for tag in (_CODE, _MESSAGE))
    return code, message


def _judge_refusal(error: ClientError) -> Verdict:
    detail: Any = error.response.get("Error") or {}
    code, message = str(detail.get("Code") or ""), str(detail.get("Message") or "")
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
    # Without a message, some servers send "None"; without a code, the SDK says "Unknown".
    verdict = judge_answer(status, "" if code == "Unknown" else code, "" if message in {"None", "Unknown"} else message)
    if error.operation_name not in _SIGN_IN_OPERATIONS:
        return verdict
    reason = f"the credentials cannot be renewed: {error.operation_name} is {verdict.reason}"
    return verdict._replace(scope=_CREDENTIALS, certain=not verdict.retry, reason=reason)


def _judge_credentials(error: CredentialsError) -> Verdict:
    certain = not error.retry
    return Verdict(_CREDENTIALS, error.may_pass, certain, slow_down=False, reason=_words(error), retry=error.retry)


def _judge_ours(error: AsyncMapsError) -> Verdict:
    if isinstance(error, UnjudgedError):
        return error.verdict
    every = isinstance(error, StoreError) and not isinstance(error, ObjectError)
    found = Verdict(_STORE if every else _KEY, error.may_pass, every, slow_down=False, reason=_words(error))
    if isinstance(error, TransientError):
        return found._replace(retry=True, slow_down=error.slow_down, timed_out=error.timed_out)
    return found


def _judge_system(error: OSError) -> Verdict:
    number, reason = error.errno, error.strerror or _words(error)
    if number is None or number in _NETWORK or type(error).__name__ in {"gaierror", "herror"}:
        return _link(error)
    if number in _SHORTAGES:
        return _link(error)._replace(scope=_DISK, reason=describe_shortage(error) or reason)
    every = number in WHOLE_DISK
    return Verdict(
        _DISK if every else _KEY, every and number != errno.EROFS, certain=every, slow_down=False, reason=reason
    )


def _certain(scope: Scope, error: BaseException) -> Verdict:
    return Verdict(scope, may_pass=False, certain=True, slow_down=False, reason=_words(error))


def _link(error: BaseException) -> Verdict:
    late = isinstance(error, TimeoutError | ConnectTimeoutError | ReadTimeoutError)
    # botocore's words are a URL, or "None".
    reason = _LATE if type(error) is ReadTimeoutError else _words(error)
    found = Verdict(_LINK, may_pass=True, certain=False, slow_down=False, reason=reason, retry=True, timed_out=late)
    shortage = describe_shortage(error)
    return found if shortage is None else found._replace(scope=_DISK, reason=shortage)


def _is_certificate(error: BaseException) -> bool:
    """Whether the server's certificate is not trusted; other errors of TLS may be those of a broken connection."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return True
    text = f"{type(error).__name__} {error}".lower()
    return "ssl" in text and "certificate" in text


def _is_without_tls(error: BaseException) -> bool:
    """Whether a server of plain HTTP was asked with TLS; OpenSSL has a name for it in each version."""
    text = f"{type(error).__name__} {error}".lower().replace("_", " ")
    return "ssl" in text and any(name in text for name in ("wrong version number", "record layer failure", "ssl: http"))


def _words(error: BaseException) -> str:
    return _one_line(str(error)) or type(error).__name__


def _one_line(text: str) -> str:
    shown = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split()).rstrip(".")
    return shown if len(shown) <= _MOST_WORDS else f"{shown[: _MOST_WORDS - 3]}..."


_ERRORS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], Callable[[Any], Verdict]], ...] = (
    (ClientError, _judge_refusal),
    (AsyncMapsError, _judge_ours),
    (CredentialsError, _judge_credentials),
    (NoCredentialsError, lambda error: _certain(_CREDENTIALS, error)._replace(reason=NONE_FOUND)),
    (MetadataRetrievalError, lambda error: _link(error)._replace(scope=_CREDENTIALS)),
    (
        (PartialCredentialsError, CredentialRetrievalError, TokenRetrievalError, SSOError, ProfileNotFound),
        partial(_certain, _CREDENTIALS),
    ),
    # A request that got no whole answer, or that of a proxy, which cannot be parsed.
    ((NoConnectionError, HTTPClientError, IncompleteReadError, ChecksumError, FlexibleChecksumError), _link),
    ((ResponseParserError, ConnectionError, TimeoutError, ssl.SSLError), _link),
    # The configuration, or the parameters of every request.
    (BotoCoreError, partial(_certain, _BUCKET)),
    (OSError, _judge_system),
)
"""The first that fits counts."""
