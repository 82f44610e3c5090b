"""S3, and whatever speaks its protocol, through aioboto3. Runs on the event loop.

Credentials, region, endpoint, proxies and certificates come from the AWS environment and files, as for every AWS tool.
"""

from __future__ import annotations

import base64
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import aioboto3
from aiobotocore.config import AioConfig
from aiohttp import ClientError as AiohttpError
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from isal import isal_zlib

from async_maps.aws import BUCKET, STORE_CODES, client_options, refusal, unreachable
from async_maps.errors import InputValidationError, ObjectError, SettingsError, StoreError
from async_maps.names import check_name
from async_maps.stores.direct import DirectSession

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable
    from typing import Any

    from aiobotocore.credentials import AioCredentials
    from types_aiobotocore_s3 import S3Client

    from async_maps.settings import S3Settings, Settings


@asynccontextmanager
async def open_s3(bucket: str, prefix: str, settings: Settings) -> AsyncIterator[S3Store]:
    """One client for the whole run.

    Raises:
        SettingsError: no bucket, or an AWS configuration that makes no sense.
        StoreError: the client cannot be made.
    """
    if not re.fullmatch(BUCKET, bucket):
        raise SettingsError(f"{bucket!r} is not the name of a bucket; expected s3://bucket/prefix")
    if prefix:
        try:
            check_name(prefix)
        except InputValidationError as error:
            raise SettingsError(f"the prefix cannot be used: {error}") from error
    direct: list[DirectSession] = []

    def http_session(*arguments: Any, **options: Any) -> DirectSession:
        direct.append(DirectSession(*arguments, **options))
        return direct[-1]

    options = client_options(settings.s3, settings.concurrency)
    if settings.s3.client == "direct":
        options["http_session_cls"] = http_session
    try:
        session = aioboto3.Session()
        context = session.client("s3", config=AioConfig(**options))
        client = await context.__aenter__()
    except (BotoCoreError, ValueError) as error:
        raise SettingsError(f"the AWS configuration cannot be used: {error}") from error
    try:
        # The stubs take it for boto3's, which does not wait.
        credentials = await cast("Awaitable[AioCredentials | None]", session.get_credentials())
        found = (direct[0], credentials) if direct and credentials else None
        yield S3Store(client, bucket, prefix, settings.s3, found)
    finally:
        await context.__aexit__(None, None, None)


class S3Store:
    """Puts objects under a prefix of a bucket.

    Args:
        client: an open aioboto3 client, which the caller closes.
        bucket: the bucket's name.
        prefix: what keys start with, without a slash at its end.
        settings: the headers that each object gets.
        direct: the client's HTTP session and its credentials, to send PUTs without the client where that is possible.
    """

    def __init__(
        self,
        client: S3Client,
        bucket: str,
        prefix: str,
        settings: S3Settings,
        direct: tuple[DirectSession, AioCredentials] | None = None,
    ) -> None:
        self._client = client
        self._direct = direct
        self._bucket = bucket
        self._headers = object_headers(settings)
        self._accepted_one = False
        self.prefix = prefix
        self.destination = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        endpoint = client.meta.endpoint_url
        # AWS is one place, whatever the region's host is; any other server is another, if its buckets are named alike.
        self.identity = self.destination if "amazonaws.com" in endpoint else f"{self.destination} at {endpoint}"

    def locator(self, key: str) -> str:
        """``s3://bucket/key``, the key as it is, not percent-encoded: what Kolena reads."""
        return f"s3://{self._bucket}/{key}"

    async def check(self) -> None:
        """Ask with HeadBucket whether the bucket is there.

        A 403 passes: who may only write objects gets that answer too, and wrong keys show at the first object.

        Raises:
            StoreError: no such bucket, no credentials, no connection.
        """
        try:
            await self._client.head_bucket(Bucket=self._bucket)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                raise StoreError(f"{self.destination}: the bucket does not exist") from error
        except (BotoCoreError, AiohttpError, OSError, TimeoutError) as error:
            raise StoreError(f"{self.destination}: {unreachable(error)}") from error

    async def put(self, key: str, data: bytes) -> str | None:
        """Store the object with PutObject; the server checks its CRC32.

        A 401, 403 or 5xx before the first object was accepted is taken to be the store's refusal of all.

        Raises:
            ObjectError: the store refuses this object.
            StoreError: it refuses all of them, or cannot be reached.
        """
        checksum = base64.b64encode(isal_zlib.crc32(data).to_bytes(4, "big")).decode()
        try:
            etag = await self._put(key, data, checksum)
        except ClientError as error:
            code, status, reason = refusal(error)
            lasting = not self._accepted_one and (status in {401, 403} or status >= 500)
            kind = StoreError if code in STORE_CODES or lasting else ObjectError
            raise kind(f"{self.destination}: {reason}") from error
        except (BotoCoreError, AiohttpError, OSError, TimeoutError) as error:
            lasting = isinstance(error, NoCredentialsError) or not self._accepted_one
            raise (StoreError if lasting else ObjectError)(f"{self.destination}: {unreachable(error)}") from error
        self._accepted_one = True
        return etag.strip('"') or None

    async def _put(self, key: str, data: bytes, checksum: str) -> str:
        if self._direct is not None:
            session, credentials = self._direct
            headers = await session.put(key, data, checksum, credentials)
            if headers is not None:
                return headers.get("ETag", "")
        answer = await self._client.put_object(
            Bucket=self._bucket, Key=key, Body=data, ChecksumCRC32=checksum, **self._headers
        )
        if self._direct is not None:
            session.learn(key)
        return answer.get("ETag", "")


def object_headers(settings: S3Settings) -> dict[str, Any]:
    """What PutObject is told about every object."""
    headers = {
        "ContentType": "image/png",
        "CacheControl": settings.cache_control,
        "Metadata": dict(settings.metadata) or None,
        "StorageClass": settings.storage_class,
        "ServerSideEncryption": settings.server_side_encryption,
        "SSEKMSKeyId": settings.kms_key_id,
    }
    return {name: value for name, value in headers.items() if value is not None}
