"""What the error codes and HTTP statuses of object services mean: whom each concerns, and whether it may pass."""

from __future__ import annotations

from typing import NamedTuple

from async_maps.filesystems.verdict import Scope


class Row(NamedTuple):
    """What a code or a status means; see :class:`~async_maps.filesystems.verdict.Verdict`."""

    scope: Scope
    words: str = ""
    """Shown if the store gives none, or in place of the store's: of certain rows, and of those with ``in_place``."""
    certain: bool = False
    may_pass: bool = False
    retry: bool = False
    slow_down: bool = False
    in_place: bool = False
    timed_out: bool = False


def passing(scope: Scope, words: str = "", *, slow_down: bool = False, timed_out: bool = False) -> Row:
    """Return the row of a failure that is retried."""
    return Row(scope, words, may_pass=True, retry=True, slow_down=slow_down, timed_out=timed_out)


_KEY, _BUCKET, _CREDENTIALS, _STORE, _LINK, _ = Scope
_BUSY = passing(_STORE, slow_down=True)
_FULL = "the store has no space left for this bucket"
_REGION = Row(_BUCKET, "the bucket is in another region", certain=True)
_BAD_TOKEN = Row(_CREDENTIALS, "the session token is not valid", certain=True)
_EXPIRED = Row(_CREDENTIALS, "the session token has expired; run the command again with a new one", certain=True)
_UNKNOWN_KEY = Row(_CREDENTIALS, "the access key does not exist there", certain=True)

CODES: dict[str, Row] = {
    # Certain for all objects.
    "NoSuchBucket": Row(_BUCKET, "the bucket does not exist", certain=True),
    "InvalidBucketName": Row(_BUCKET, "the bucket's name is not valid there", certain=True),
    "NoSuchAccessPoint": Row(_BUCKET, "the access point does not exist", certain=True),
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "InvalidAccessKeyId": _UNKNOWN_KEY,
    "InvalidClientTokenId": _UNKNOWN_KEY,
    "UnrecognizedClientException": _UNKNOWN_KEY,
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": Row(_CREDENTIALS, "the session token has expired", certain=True),
    "InvalidToken": _BAD_TOKEN,
    "InvalidTokenId": _BAD_TOKEN,
    "RequestTimeTooSkewed": Row(_CREDENTIALS, "this machine's clock is wrong", certain=True),
    "AccountProblem": Row(_CREDENTIALS, "there is a problem with the account", certain=True),
    "AllAccessDisabled": Row(_BUCKET, "all access to the bucket is disabled", certain=True),
    "NotSignedUp": Row(_CREDENTIALS, "the account has no subscription to this service", certain=True),
    "UserSuspended": Row(_CREDENTIALS, "the user is suspended", certain=True),
    "InvalidPayer": Row(_CREDENTIALS, "the account may not be charged", certain=True),
    # Perhaps for this object alone: several objects must show it.
    "AccessDenied": Row(_CREDENTIALS),
    "AllAccessDenied": Row(_CREDENTIALS),
    "Forbidden": Row(_CREDENTIALS),
    "InvalidSecurity": Row(_CREDENTIALS),
    "SignatureDoesNotMatch": Row(_CREDENTIALS, "the secret key is wrong", in_place=True),
    "InvalidStorageClass": Row(_BUCKET),
    "InvalidEncryptionAlgorithmError": Row(_BUCKET),
    "InvalidArgument": Row(_BUCKET),
    "InvalidRequest": Row(_BUCKET),
    "MissingSecurityHeader": Row(_BUCKET),
    "NotImplemented": Row(_STORE),
    "MethodNotAllowed": Row(_STORE),
    "QuotaExceeded": Row(_BUCKET, "the quota is used up", may_pass=True),
    "QuotaExceededException": Row(_BUCKET, "the quota is used up", may_pass=True),
    "XMinioAdminBucketQuotaExceeded": Row(_BUCKET, "the quota of the bucket is used up", may_pass=True),
    "XMinioStorageFull": Row(_STORE, _FULL, may_pass=True),
    "InsufficientStorage": Row(_STORE, _FULL, may_pass=True),
    "InsufficientCapacity": Row(_STORE, _FULL, may_pass=True),
    "TooManyObjects": Row(_BUCKET, may_pass=True),
    # This object alone.
    "EntityTooLarge": Row(_KEY, "the store takes no PNG of this size"),
    "EntityTooSmall": Row(_KEY),
    "KeyTooLong": Row(_KEY, "the key is too long for the store"),
    "KeyTooLongError": Row(_KEY, "the key is too long for the store"),
    "InvalidObjectName": Row(_KEY),
    "XMinioInvalidObjectName": Row(_KEY),
    "XMinioParentIsObject": Row(_KEY),
    "XMinioObjectExistsAsDirectory": Row(_KEY),
    "InvalidURI": Row(_KEY),
    "InvalidObjectState": Row(_KEY, "the object is archived, and must be restored first"),
    "NoSuchKey": Row(_KEY, "the object does not exist"),
    "NoSuchVersion": Row(_KEY, "the object does not exist"),
    "PreconditionFailed": Row(_KEY),
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
        passing(_STORE),
    ),
    "OperationAborted": passing(_KEY),
    "ConditionalRequestConflict": passing(_KEY),
    "TemporaryRedirect": passing(_BUCKET),
    "RequestTimeout": passing(_LINK, timed_out=True),
    # The received bytes differ from the sent ones.
    **dict.fromkeys(
        (
            "IncompleteBody", "BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch",
            "XAmzContentChecksumMismatch",
        ),
        passing(_LINK),
    ),
}  # fmt: skip
"""Error codes: Amazon S3 API reference, "Error responses"; those of MinIO and Ceph are in their sources."""

_NO_BUCKET = Row(_BUCKET, "the bucket does not exist", certain=True)
_NO_OBJECT = Row(_KEY, "the object does not exist")
_WRONG_PROOF = "the account, its key, its signature or the token is wrong or expired, or this machine's clock is wrong"
_NO_TOKEN = Row(_CREDENTIALS, "the token is missing, or not valid there", certain=True)

CODES |= {
    # Google Cloud Storage JSON API reference, "HTTP status and error codes for JSON": the reasons. "noSuchObject" and
    # "hashMismatch" are ours: the service gives "notFound" and "invalid" as reasons of several problems.
    "notFound": _NO_BUCKET,
    "required": _NO_TOKEN,
    "authError": _NO_TOKEN,
    "accountDisabled": Row(_CREDENTIALS, "the billing account of the bucket is disabled", certain=True),
    "userProjectMissing": Row(_BUCKET),
    "forbidden": Row(_CREDENTIALS),
    "insufficientPermissions": Row(_CREDENTIALS),
    "invalid": Row(_BUCKET),
    "quotaExceeded": Row(_BUCKET, "the quota is used up", may_pass=True),
    "noSuchObject": _NO_OBJECT,
    "conditionNotMet": Row(_KEY),
    "retentionPolicyNotMet": Row(_KEY),
    "objectUnderActiveHold": Row(_KEY),
    "uploadTooLarge": Row(_KEY, "the store takes no PNG of this size"),
    "rateLimitExceeded": _BUSY,
    "userRateLimitExceeded": _BUSY,
    "backendError": passing(_STORE),
    "internalError": passing(_STORE),
    "uploadBrokenConnection": passing(_LINK),
    "hashMismatch": passing(_LINK),
    # Azure Blob Storage REST API reference, "Status and error codes", and those of all storage services.
    "ContainerNotFound": Row(_BUCKET, "the container does not exist", certain=True),
    "ContainerDisabled": Row(_BUCKET, "the container is disabled", certain=True),
    "AccountIsDisabled": Row(_CREDENTIALS, "the account is disabled", certain=True),
    "NoAuthenticationInformation": _NO_TOKEN,
    "InvalidAuthenticationInfo": _NO_TOKEN,
    "AuthenticationFailed": Row(_CREDENTIALS, _WRONG_PROOF, in_place=True),
    "AuthorizationFailure": Row(_CREDENTIALS),
    "AuthorizationPermissionMismatch": Row(_CREDENTIALS),
    "InsufficientAccountPermissions": Row(_CREDENTIALS),
    "KeyBasedAuthenticationNotPermitted": Row(_CREDENTIALS, "the account allows no keys: use a token", certain=True),
    "PublicAccessNotPermitted": Row(_CREDENTIALS, "the account allows no access without credentials", certain=True),
    "InvalidResourceName": Row(_BUCKET),
    "ResourceNotFound": Row(_BUCKET),
    "InvalidHeaderValue": Row(_BUCKET),
    "BlobNotFound": _NO_OBJECT,
    "BlobAlreadyExists": Row(_KEY),
    "BlobArchived": Row(_KEY, "the object is archived, and must be restored first"),
    "BlobImmutableDueToLegalHold": Row(_KEY),
    "BlobImmutableDueToPolicy": Row(_KEY),
    "ConditionNotMet": Row(_KEY),
    "InvalidBlobType": Row(_KEY),
    "InvalidUri": Row(_KEY),
    "LeaseIdMissing": Row(_KEY, "the object is leased"),
    "OutOfRangeInput": Row(_KEY),
    "RequestBodyTooLarge": Row(_KEY, "the store takes no PNG of this size"),
    "ContainerBeingDeleted": passing(_BUCKET),
    "ServerBusy": _BUSY,
    "OperationTimedOut": passing(_STORE, timed_out=True),
    "InvalidMd5": passing(_LINK),
    "Md5Mismatch": passing(_LINK),
}


KMS = Row(_BUCKET)
"""Codes that start with ``KMS.``: the key of ``s3.kms_key_id``, or of the bucket."""

STATUSES: dict[int, Row] = {
    301: Row(_BUCKET, "the bucket is in another region"),
    401: Row(_CREDENTIALS, "the credentials are missing, or not valid there"),
    403: Row(_CREDENTIALS, "no permission"),
    404: Row(_BUCKET, "not found"),
    405: Row(_STORE, "the store does not allow this request"),
    407: Row(_LINK, "the proxy asks for a user and a password", certain=True),
    408: passing(_LINK, "the store did not get the request in time", timed_out=True),
    409: Row(_BUCKET, "in conflict with the state of the store"),
    410: Row(_BUCKET, "gone"),
    412: Row(_KEY, "a condition of the request is not met"),
    413: Row(_KEY, "the store, or a proxy before it, takes no PNG of this size"),
    414: Row(_KEY, "the key is too long for the store"),
    416: Row(_KEY, "the object has no such bytes"),
    423: Row(_KEY, "the object is locked"),
    425: passing(_STORE),
    429: _BUSY,
    500: passing(_STORE, "an internal error of the store"),
    501: Row(_STORE, "the store does not support this request"),
    502: passing(_LINK, "the proxy before the store got no answer"),
    503: passing(_STORE, "the store is not available", slow_down=True),
    504: passing(_LINK, "the proxy before the store got no answer in time", timed_out=True),
    505: Row(_STORE, "the store does not support this version of HTTP"),
    507: Row(_STORE, _FULL, may_pass=True),
    509: _BUSY,
}
"""HTTP statuses, for codes that are not in the other table."""
