"""Who is to blame for a failed request: one table for object services, SDKs, connections and disks.

Uploads, sources, listings, deletes, ``verify`` and ``doctor`` judge their errors here. A map fails only by an error
of the scope :attr:`Scope.KEY`, or by the evidence that :mod:`async_maps.stages.judge` collects.
"""

from __future__ import annotations

import errno
import re
import ssl
from functools import partial
from typing import TYPE_CHECKING, Any
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
from async_maps.filesystems.codes import CODES, KMS, STATUSES, Row, passing
from async_maps.filesystems.credentials import NONE_FOUND, CredentialsError
from async_maps.filesystems.verdict import Scope, UnjudgedError, Verdict
from async_maps.machine.shortage import describe_shortage

if TYPE_CHECKING:
    from collections.abc import Callable


_KEY, _BUCKET, _CREDENTIALS, _STORE, _LINK, _DISK = Scope
_LATE = "the store did not send its whole answer in time (s3.read_timeout_s)"
_NO_TLS = (
    "the server, or the proxy before it, does not answer with TLS: write http:// instead of https:// in "
    "its address (AWS_ENDPOINT_URL, STORAGE_EMULATOR_HOST or AZURE_STORAGE_CONNECTION_STRING), or in HTTPS_PROXY"
)
_OTHER_5XX, _OTHER = passing(_STORE), Row(_BUCKET)

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
    by_status = STATUSES.get(status) or (_OTHER_5XX if status >= 500 else _OTHER)
    row = CODES.get(code) or (KMS if code.startswith("KMS.") else None)
    if row is not None and by_status.retry and not row.certain:
        # Some stores send 503 with any code.
        row = row._replace(may_pass=True, retry=True, slow_down=row.slow_down or by_status.slow_down)
    name, row = code or f"status {status}", row or by_status
    told = meaning(code) or _one_line(message) or row.words or by_status.words or "the store gives no reason"
    reason = f"refused with {name}: {told}"
    return Verdict(row.scope, row.may_pass, row.certain, row.slow_down, reason, row.retry, name, row.timed_out)


def meaning(code: str) -> str:
    """Return what an error code means for every object; empty if only the store's words say it."""
    row = CODES.get(code)
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
