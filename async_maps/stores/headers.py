"""The headers of PutObject, and those that its answers must have."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from isal import isal_zlib

from async_maps.filesystems.blame import judge

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from botocore.exceptions import ClientError

    from async_maps.settings import S3Settings

STORAGE_CLASS = "x-amz-storage-class"
_ENCRYPTION = "x-amz-server-side-encryption"
_ASKED = {
    _ENCRYPTION: ("ServerSideEncryption", "s3.server_side_encryption"),
    f"{_ENCRYPTION}-aws-kms-key-id": ("SSEKMSKeyId", "s3.kms_key_id"),
    f"{_ENCRYPTION}-bucket-key-enabled": ("BucketKeyEnabled", "s3.bucket_key"),
    STORAGE_CLASS: ("StorageClass", "s3.storage_class"),
}
"""Headers of answers, each with the argument of PutObject and the setting that ask for it."""
_NOT_OF_HEADERS = {401, 403, 404, 408, 409, 412, 413, 414, 425, 429}
"""Refusals that have another cause than a header that is not supported."""


def object_headers(
    settings: S3Settings, *, create_only: bool = False, content_type: str = "image/png"
) -> dict[str, Any]:
    """Return the arguments that all PutObject requests share."""
    headers = {
        "ContentType": content_type,
        "CacheControl": settings.cache_control,
        "Metadata": dict(settings.metadata) or None,
        "Tagging": urlencode(settings.tagging, quote_via=quote) or None,
        "StorageClass": settings.storage_class,
        "ACL": settings.acl,
        "ServerSideEncryption": settings.server_side_encryption,
        "SSEKMSKeyId": settings.kms_key_id,
        "BucketKeyEnabled": settings.bucket_key,
        "IfNoneMatch": "*" if create_only else None,
    }
    return {name: value for name, value in headers.items() if value is not None}


def crc32(data: bytes) -> str:
    """Return the CRC-32 in base 64, as in the header of a request."""
    return base64.b64encode(isal_zlib.crc32(data).to_bytes(4, "big")).decode()


def md5(data: bytes) -> str:
    """Return the MD5 in base 64, as in the header Content-MD5."""
    return base64.b64encode(md5_digest(data)).decode()


def md5_digest(data: bytes) -> bytes:
    """Return the MD5."""
    return hashlib.md5(data, usedforsecurity=False).digest()


def asked_headers(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers that answers must have after PUTs with these arguments."""
    asked = {header: arguments.get(argument) for header, (argument, _) in _ASKED.items()}
    return {
        header: str(value).lower() if isinstance(value, bool) else str(value)
        for header, value in asked.items()
        if value is not None and not (header.endswith("key-id") and "alias/" in value)
    }


def not_kept(header: str, asked: str, found: str) -> str:
    """Return the sentence for a header that an answer does not have as it was asked."""
    return f"the store does not keep {_ASKED[header][1]} {asked}: {found} in its answer"


def unknown_storage_class(asked: str, reason: str) -> str:
    """Return the sentence for a storage class that cannot be looked up."""
    return f"whether the store keeps s3.storage_class {asked} is not known: HeadObject is {reason}"


def advice_for(header: str) -> str:
    """Return what to do about a header that is not kept."""
    return f"change or remove {_ASKED[header][1]}, or choose another store"


def refused_crc32(reason: str) -> str:
    """Return the sentence for a store that refuses the checksum and accepts Content-MD5."""
    return f"a PUT with x-amz-checksum-crc32 is {reason}; PUTs send Content-MD5 instead"


def may_refuse_header(error: ClientError) -> bool:
    """Whether a PUT may be refused because of a header that the store does not support."""
    status, verdict = http_status(error), judge(error)
    is_possible = (400 <= status < 500 and status not in _NOT_OF_HEADERS) or status == 501
    return is_possible and not (verdict.retry or verdict.certain)


def is_kept(header: str, asked: str, found: str | None) -> bool:
    """Whether an answer with this header, or None without it, keeps what was asked for."""
    if header.endswith("key-id"):
        # The answer has the key's ARN, or nothing on some servers; the request may have its id.
        return found is None or found.endswith(asked) or asked.endswith(found)
    if header == STORAGE_CLASS:
        found = found or "STANDARD"
    elif header.endswith("key-enabled"):
        found = found or "false"
    return found == asked


def http_status(error: ClientError) -> int:
    """Return the HTTP status of a refused request."""
    return error.response["ResponseMetadata"]["HTTPStatusCode"]
