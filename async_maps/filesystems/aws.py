"""The configuration and the errors of the AWS SDK's clients: the same for sources and destinations."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from botocore.exceptions import CredentialRetrievalError, NoCredentialsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from botocore.exceptions import ClientError

    from async_maps.settings import S3Settings

STORE_CODES = {
    "NoSuchBucket": "the bucket does not exist",
    "InvalidAccessKeyId": "the access key is not known there",
    "SignatureDoesNotMatch": "the secret key is wrong",
    "ExpiredToken": "the session token has expired; run it again with a new one",
    "InvalidToken": "the session token is not valid",
    "TokenRefreshRequired": "the session token has expired",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "PermanentRedirect": "the bucket lies in another region",
    "AuthorizationHeaderMalformed": "the bucket lies in another region",
    "AccountProblem": "there is a problem with the account",
}
"""Error codes that concern the store, not one object (Amazon S3 API reference, "Error responses")."""

TRANSIENT_STATUSES = {408, 429, 500, 502, 503, 504}
SLOW_DOWN_STATUSES = {429, 503}
"""Statuses after which the same request may pass, and those by which a server asks for fewer requests."""

TRANSIENT_CODES = {
    "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded", "ServiceUnavailable",
    "InternalError", "OperationAborted", "ConditionalRequestConflict",
    # The bytes that arrived differ from those that were sent.
    "RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch",
}  # fmt: skip
"""Codes after which the same request may pass, with any status."""

_SDK_ATTEMPTS = 5
"""Between two attempts the SDK waits for up to 20 s, and ignores successes elsewhere: more attempts take minutes."""


def client_options(settings: S3Settings, connections: int, attempts: int | None = None) -> dict[str, Any]:
    """The configuration of a client with a maximum number of connections.

    Without ``attempts`` it has those of the settings, :data:`_SDK_ATTEMPTS` at most.
    """
    return {
        "max_pool_connections": connections,
        "connect_timeout": settings.connect_timeout_s,
        "read_timeout": settings.read_timeout_s,
        "retries": {"mode": "standard", "total_max_attempts": attempts or min(settings.max_attempts, _SDK_ATTEMPTS)},
        # Trailing checksums break several S3-compatible stores; our PUTs have a checksum in a header.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "parameter_validation": False,
        "user_agent_extra": "async-maps",
    }


def url_options(client: Any) -> dict[str, Any] | None:
    """The ``s3`` configuration of a client whose presigned URLs lead to its region; None if this client's do.

    Left to itself botocore signs for AWS's global host, which redirects to the region of a new bucket, where the
    signature does not fit, and knows no regions that have to be enabled.
    """
    s3: dict[str, Any] = client.meta.config.s3 or {}
    if "amazonaws.com" not in client.meta.endpoint_url or s3.get("addressing_style", "auto") != "auto":
        return None
    return {**s3, "addressing_style": "virtual"}


@contextmanager
def translate_credential_errors() -> Iterator[None]:
    """Turn the bare RuntimeError that botocore raises for expired credentials into a CredentialRetrievalError."""
    try:
        yield
    except RuntimeError as error:
        if "credentials are still expired" not in str(error):
            raise
        raise CredentialRetrievalError(
            provider="the AWS environment", error_msg="they have expired; sign in again, or set new ones"
        ) from error


def identity(destination: str, endpoint: str) -> str:
    """A bucket and prefix, distinct from those of the same name at another endpoint."""
    # The hosts of AWS's regions share their buckets; any other server has its own.
    return destination if "amazonaws.com" in endpoint else f"{destination} at {endpoint}"


def refusal(error: ClientError) -> tuple[str, int, str]:
    """The code of an error, its HTTP status, and a sentence for it."""
    detail = error.response.get("Error", {})
    code, message = str(detail.get("Code", "")), str(detail.get("Message", ""))
    reason = STORE_CODES.get(code, message.rstrip("."))
    return code, error.response["ResponseMetadata"]["HTTPStatusCode"], f"refused with {code}: {reason}"


def unreachable(error: Exception) -> str:
    """A sentence for the error of a request that got no answer."""
    if isinstance(error, NoCredentialsError):
        return "no AWS credentials found: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    return str(error) or type(error).__name__
