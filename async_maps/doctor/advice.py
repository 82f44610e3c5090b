"""Advice for findings: an IAM policy, CORS rules, and what to do about an error code."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from async_maps.settings import S3Settings

_SIGN_IN = "sign in again (aws sso login), or set new temporary keys"
_BY_CODE = {
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID or the profile, and that AWS_ENDPOINT_URL is the key's server",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY or the profile; if the secret is lost, create a new key",
    "ExpiredToken": _SIGN_IN,
    "InvalidToken": _SIGN_IN,
    "TokenRefreshRequired": _SIGN_IN,
    "RequestTimeTooSkewed": "set this machine's clock: timedatectl set-ntp true",
    "PermanentRedirect": "set AWS_DEFAULT_REGION to the bucket's region",
    "AuthorizationHeaderMalformed": "set AWS_DEFAULT_REGION to the bucket's region",
    "InvalidStorageClass": "choose another s3.storage_class",
}


def for_code(code: str) -> str:
    """Return what to do about an error of S3 (Amazon S3 API reference, "Error responses")."""
    return _BY_CODE.get(code, "see the store's message")


def iam_policy(
    bucket: str, prefix: str, *, partition: str = "aws", kms_key: str | None = None, more: Sequence[str] = ()
) -> str:
    """Return the least IAM policy for a run, ``--if-exists``, readers and these checks, as one line of JSON.

    The bucket is a name or an access point's ARN. The key is a KMS id or ARN, ``*`` if unknown, or None without KMS.
    ``more`` has the further actions that the settings need.
    """
    is_arn = bucket.startswith("arn:")
    place = bucket if is_arn else f"arn:{partition}:s3:::{bucket}"
    objects = f"{place}/object" if is_arn else place
    below = f"{objects}/{prefix}/*" if prefix else f"{objects}/*"
    statements = [
        _allow(["s3:PutObject", *more, "s3:GetObject", "s3:DeleteObject"], below),
        _allow(["s3:ListBucket"], place),
    ]
    if kms_key is not None:
        key = kms_key if kms_key.startswith("arn:") else f"arn:{partition}:kms:*:*:key/{kms_key}"
        statements.append(_allow(["kms:GenerateDataKey", "kms:Decrypt"], key))
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def actions_of_headers(s3: S3Settings) -> list[str]:
    """Return the actions that PutObject needs for its headers, besides ``s3:PutObject``."""
    needed = {"s3:PutObjectTagging": s3.tagging, "s3:PutObjectAcl": s3.acl}
    return [action for action, asked in needed.items() if asked]


def put_cors_command(bucket: str, rules: Sequence[Any], origins: Sequence[str]) -> str:
    """Return the command that allows these origins to read objects, and keeps the given rules of the bucket."""
    ours = {"AllowedOrigins": list(origins), "AllowedMethods": ["GET", "HEAD"], "AllowedHeaders": ["*"],
            "MaxAgeSeconds": 3600}  # fmt: skip
    configuration = json.dumps({"CORSRules": [*rules, ours]})
    return f"aws s3api put-bucket-cors --bucket {shlex.quote(bucket)} --cors-configuration {shlex.quote(configuration)}"


def _allow(actions: list[str], resource: str) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": actions, "Resource": resource}
