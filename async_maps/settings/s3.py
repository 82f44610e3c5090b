"""The settings of object services: the headers of the objects, and the retries and timeouts of the client."""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

from pydantic import Field, PositiveFloat, PositiveInt, field_validator
from pydantic_core import PydanticCustomError

from async_maps.settings.model import Model

CannedAcl: TypeAlias = Literal[
    "private", "public-read", "public-read-write", "authenticated-read", "aws-exec-read", "bucket-owner-read",
    "bucket-owner-full-control",
]  # fmt: skip
"""Who may read the objects; see :attr:`S3Settings.acl`."""

HEADERS = {
    "cache_control", "metadata", "tagging", "storage_class", "acl", "server_side_encryption", "kms_key_id",
    "bucket_key", "request_payer",
}  # fmt: skip
"""The settings for the headers of the objects."""

_MAX_TAGS, _MAX_TAG_NAME, _MAX_TAG_VALUE = 10, 128, 256
"""The limits of S3 for an object (Amazon S3 User Guide, "Categorizing your storage using tags")."""


class S3Settings(Model, frozen=True):
    """Headers of the objects, and the retries and timeouts of the client.

    Google Cloud and Azure use ``cache_control``, ``metadata``, ``max_attempts`` and the time limits. The other settings
    are for S3 only.
    """

    cache_control: str | None = None
    """Cache-Control header of each object, such as "public, max-age=86400"."""
    metadata: dict[str, str] = Field(default_factory=dict)
    """User metadata of each object, a value for each name; in a command --s3.metadata.NAME VALUE."""
    tagging: dict[str, str] = Field(default_factory=dict)
    """Tags of each object, at most ten, in a command --s3.tagging.NAME VALUE; they need s3:PutObjectTagging."""
    storage_class: str | None = None
    """Storage class of each object, such as STANDARD_IA."""
    acl: CannedAcl | None = None
    """Canned ACL of each object, such as bucket-owner-full-control; it needs s3:PutObjectAcl."""
    server_side_encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    """Server-side encryption of each object."""
    kms_key_id: str | None = None
    """KMS key to encrypt with."""
    bucket_key: bool | None = None
    """Encrypt with a key of the bucket that KMS derives, so that KMS gets fewer requests."""
    request_payer: Literal["requester"] | None = None
    """requester: these credentials pay for all requests, sources included, as Requester Pays buckets demand."""
    client: Literal["direct", "sdk"] = "direct"
    """direct sends the SDK's PUTs and GETs with less CPU time, and leaves errors to the SDK; sdk sends all with it."""
    max_attempts: PositiveInt = 10
    """Attempts per request while others succeed, or more if others fail too; random waits between them grow."""
    give_up_s: PositiveFloat = 300.0
    """Seconds without a successful request after which the run ends; run it again when the store is back."""
    connect_timeout_s: PositiveFloat = 5.0
    """Seconds to wait for a connection."""
    read_timeout_s: PositiveFloat = 60.0
    """Longest time in seconds in which no byte of a request or its answer moves."""

    @field_validator("cache_control", "metadata", "storage_class", "kms_key_id")
    @classmethod
    def _fit_for_headers(cls, value: str | dict[str, str] | None) -> str | dict[str, str] | None:
        names, texts = (value.keys(), value.values()) if isinstance(value, dict) else ((), (value or "",))
        if not all(re.fullmatch(r"[\w.-]+", name, re.ASCII) for name in names):
            raise PydanticCustomError("header", "names should be letters, digits, '.', '_' and '-', as in HTTP headers")
        if len({name.lower() for name in names}) < len(names):
            raise PydanticCustomError("header", "names should differ in more than their case, as in HTTP headers")
        if not all(text.isascii() and text.isprintable() for text in texts):
            raise PydanticCustomError("header", "input should be printable ASCII, because it becomes an HTTP header")
        return value

    @field_validator("tagging")
    @classmethod
    def _fit_for_tags(cls, tags: dict[str, str]) -> dict[str, str]:
        if len(tags) > _MAX_TAGS:
            raise PydanticCustomError("tags", "input should have at most 10 tags, as S3 allows")
        for name, value in tags.items():
            if not (1 <= len(name) <= _MAX_TAG_NAME and len(value) <= _MAX_TAG_VALUE):
                raise PydanticCustomError("tags", "names should have 1 to 128 characters, and values at most 256")
            if not (name + value).isprintable():
                raise PydanticCustomError("tags", "names and values should be printable text on one line")
        return tags
