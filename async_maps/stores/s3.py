"""S3 and compatible servers as a store, through aioboto3. Runs on the event loop.

Credentials, region, endpoint, proxies and certificates come from the AWS environment variables and files.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import ClientError as AiohttpError
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from async_maps.errors import ExistsError, SettingsError, StoreError, TransientError
from async_maps.filesystems.addresses import parse_destination
from async_maps.filesystems.aws import client_options, pay_for_requests
from async_maps.filesystems.blame import answer_details, judge, judge_answer
from async_maps.filesystems.credentials import CredentialsError
from async_maps.filesystems.endpoints import bucket_identity, is_aws, missing_bucket
from async_maps.filesystems.http_session import read_body
from async_maps.filesystems.sessions import AsyncSession
from async_maps.filesystems.time_limits import TimeLimits
from async_maps.filesystems.verdict import store_error
from async_maps.stores.direct import Answer, DirectSession
from async_maps.stores.first_object import FirstObject
from async_maps.stores.headers import crc32, http_status, md5, md5_digest, object_headers
from async_maps.stores.odd_keys import OddKeys
from async_maps.stores.promises import UNPROVED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Mapping
    from typing import Any

    from types_aiobotocore_s3 import S3Client

    from async_maps.filesystems.sessions import AsyncCredentials
    from async_maps.settings import Settings


NO_ANSWER = (BotoCoreError, ResponseParserError, AiohttpError, OSError)
"""The errors of a request that got no HTTP answer."""
_CHECK_WAITS_S = (0.2, 0.8)
UNREADABLE = "the answer of the store cannot be read"
_MD5 = re.compile("[0-9a-f]{32}")


@asynccontextmanager
async def open_s3(destination: str, settings: Settings, content_type: str = "image/png") -> AsyncIterator[S3Store]:
    """Open a store with one client for the whole run.

    Raises:
        SettingsError: the destination has no bucket, or the AWS configuration is not valid.
    """
    address = parse_destination(destination)
    direct: list[DirectSession] = []
    create_only = settings.if_exists != "overwrite"
    limits = TimeLimits.of(settings.s3)

    def http_session(*arguments: Any, **options: Any) -> DirectSession:
        direct.append(DirectSession(*arguments, limits=limits, **options))
        direct[-1].may_repeat = not create_only
        direct[-1].traffic.bytes_per_s = settings.bandwidth
        return direct[-1]

    # One attempt: only the upload stage retries, because the attempts of two layers multiply.
    options = client_options(settings.s3, settings.most_concurrency, attempts=1)
    options["http_session_cls"] = http_session
    async with AsyncExitStack() as opened:
        try:
            session = AsyncSession()
            client = await opened.enter_async_context(session.client(options))
        except (BotoCoreError, ValueError) as error:
            raise SettingsError(f"the AWS configuration cannot be used: {error}") from error
        pay_for_requests(client, settings.s3)
        configured: Any = client.meta.config
        if (configured.s3 or {}).get("payload_signing_enabled"):
            direct[0].may_trust_answers = False
        headers = object_headers(settings.s3, create_only=create_only, content_type=content_type)
        used = session.credentials if settings.s3.client == "direct" else None
        yield S3Store(client, address.bucket, address.key, headers, session=direct[0], credentials=used)


class S3Store:
    """Stores objects under a prefix of a bucket.

    Args:
        client: an open aioboto3 client, which the caller closes.
        bucket: the bucket's name.
        prefix: as in :class:`~async_maps.stores.Store`.
        headers: the arguments of all PutObject requests.
        session: the client's HTTP session.
        credentials: to send PUTs without the client if possible; None to send all with it.

    Attributes:
        promises: what is known of the store, and may be loaded from and kept in a manifest.
        is_aws: whether it is Amazon S3.
    """

    def __init__(  # noqa: PLR0913  # one argument for each part
        self,
        client: S3Client,
        bucket: str,
        prefix: str,
        headers: dict[str, Any],
        *,
        session: DirectSession,
        credentials: AsyncCredentials | None = None,
    ) -> None:
        self._client = client
        self._session = session
        self._credentials = credentials
        self._bucket = bucket
        self._headers = headers
        self._first = FirstObject(self, headers)
        self.promises = self._first.promises
        self._odd_keys = OddKeys(self._find)
        self.is_aws = is_aws(client.meta.endpoint_url)
        self.prefix = prefix
        self.destination = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        self.identity = bucket_identity(self.destination, client.meta.endpoint_url)

    def locator(self, key: str) -> str:
        """Return ``s3://bucket/key``; the key is not percent-encoded, as Kolena expects."""
        return f"s3://{self._bucket}/{key}"

    def sent_bytes(self) -> int:
        """Return the number of bytes that the store has received, also of unfinished requests."""
        return self._session.traffic.sent_bytes()

    async def check(self) -> None:
        """Check with HeadBucket that the bucket exists.

        A 403 is accepted, because it is also the answer to credentials that may only write objects. The first object
        shows whether they are wrong.
        """
        for wait_s in (*_CHECK_WAITS_S, None):
            try:
                await self._client.head_bucket(Bucket=self._bucket)
            except ClientError as error:
                if http_status(error) == 404:
                    reason = missing_bucket(self._client.meta.endpoint_url)
                    raise StoreError(f"{self.destination}: {reason}") from error
                # An answer to HEAD has no code, so no refusal is certain, but for that of another service.
                verdict = judge(error)
                if not (verdict.retry or verdict.certain):
                    return
            except CredentialsError as error:
                # The services that give them were asked several times.
                raise StoreError(f"{self.destination}: {error}", may_pass=error.may_pass) from error
            except NO_ANSWER as error:
                verdict = judge(error)
            else:
                return
            if wait_s is None or not verdict.retry:
                raise StoreError(f"{self.destination}: {verdict.reason}", may_pass=verdict.may_pass)
            await asyncio.sleep(wait_s)

    async def put(self, key: str, data: bytes) -> str | None:
        """Store the object by one PutObject. The server checks the CRC32, and this checks the answer.

        The first object proves what the others rely on (:mod:`~async_maps.stores.first_object`).

        An answer that does not prove that the store has these bytes raises a TransientError; a refusal that may concern
        all objects an UnjudgedError.
        """
        return await self._odd_keys.put(key, partial(self._put_one, key, data))

    async def _put_one(self, key: str, data: bytes) -> str | None:
        try:
            if self._first.is_over:
                return await self._put_and_check(key, data)
            return await self._first.put(key, data, self._put_and_check)
        except ClientError as error:
            if http_status(error) == 412:
                raise await self._exists(key, data) from error
            raise store_error(self.destination, judge(error)) from error
        except NO_ANSWER as error:
            raise store_error(self.destination, judge(error)) from error

    async def _put_and_check(self, key: str, data: bytes) -> str | None:
        checksum = crc32(data)
        answer = await self._put(key, data, checksum)
        found = answer.headers.get("etag", "").strip('"')
        etag: str | None = found or None
        if not self._is_proved(answer, found, data, checksum):
            etag = await self._first.read_back(key, data, answered=etag)
        if self._first.asks:
            await self._first.compare(key, answer.headers)
        return None if self.promises.etags_are_md5 is False else etag

    async def _put(self, key: str, data: bytes, checksum: str) -> Answer:
        """Return an answer with status 200."""
        if self._credentials is not None:
            if not self.promises.takes_crc32:
                checksum = md5(data)
            answer = await self._session.put(key, data, checksum, self._credentials)
            if answer is not None:
                if answer.status == 200:
                    return answer
                if answer.status == 412:
                    raise await self._exists(key, data)
                verdict = judge_answer(answer.status, *answer_details(answer.body))
                if verdict.retry and answer.status >= 400:
                    raise store_error(self.destination, verdict)
        headers = await self.put_by_sdk(key, data)
        if self._credentials is not None:
            self._session.learn(key)
        return Answer(200, headers)

    async def put_by_sdk(self, key: str, data: bytes) -> Mapping[str, str]:
        """Put an object with the SDK, and return the headers of the answer; raise the SDK's errors."""
        if not self.promises.takes_crc32:
            return await self._put_object(key, data, ContentMD5=md5(data))
        try:
            headers = await self._put_object(key, data, ChecksumCRC32=crc32(data))
        except ClientError as error:
            if not self._first.may_refuse_crc32(error):
                raise
            return await self._put_without_crc32(key, data, error)
        self._first.took_crc32()
        return headers

    async def _put_without_crc32(self, key: str, data: bytes, refused: ClientError) -> Mapping[str, str]:
        try:
            headers = await self._put_object(key, data, ContentMD5=md5(data))
        except ClientError as error:
            # The checksum was not the cause.
            raise error if judge(error).retry else refused from error
        self._first.use_md5(refused)
        return headers

    async def _put_object(self, key: str, data: bytes, **checksum: str) -> Mapping[str, str]:
        arguments = {**self._headers, **checksum}
        done = await _readable(self._client.put_object(Bucket=self._bucket, Key=key, Body=data, **arguments))
        found: Mapping[str, str] = done["ResponseMetadata"]["HTTPHeaders"]
        return found

    async def read(self, key: str) -> Stored:
        """Read an object; raise the SDK's errors."""
        found = await _readable(self._client.get_object(Bucket=self._bucket, Key=key))
        data = await read_body(found, self._session.watches.limits)
        is_kms = "kms" in found.get("ServerSideEncryption", "")
        return Stored(data, found.get("ETag", "").strip('"'), is_kms)

    async def head(self, key: str) -> Mapping[str, str]:
        """Return the headers of an object; raise the SDK's errors."""
        done = await _readable(self._client.head_object(Bucket=self._bucket, Key=key))
        found: Mapping[str, str] = done["ResponseMetadata"]["HTTPHeaders"]
        return found

    async def has(self, key: str) -> bool | None:
        """Return whether an object exists; None if the store does not tell."""
        try:
            found = await self._find(key)
        except StoreError:
            return None
        return None if found is None else found != ""

    async def _find(self, key: str) -> str | None:
        """Return the ETag and the time of an object; empty if it does not exist, None if the store refuses to tell.

        Raises StoreError if it may tell later, or without an answer.
        """
        try:
            headers = await self.head(key)
        except ClientError as error:
            verdict = judge(error)
            if verdict.retry:
                raise store_error(self.destination, verdict) from error
            return "" if http_status(error) == 404 else None
        except NO_ANSWER as error:
            raise store_error(self.destination, judge(error)) from error
        return f"{headers.get('etag', '')} {headers.get('last-modified', '')}"

    def exists(self, found: Stored, data: bytes) -> ExistsError:
        """Return the error of an object that is there already, and is not replaced by the data."""
        same = found.data == data
        what = "the same object" if same else "another object"
        text = f"{self.destination}: {what} already exists, and is not replaced"
        return ExistsError(text, same=same, etag=self._first.etag_of(found))

    def _transient(self, reason: str) -> TransientError:
        return TransientError(f"{self.destination}: {reason}")

    def _is_proved(self, answer: Answer, etag: str, data: bytes, checksum: str) -> bool:
        """Check that an answer proves that the store has these bytes.

        The proof is the ``checksum`` of the data, if the server has computed it too, or an ETag that is the MD5 of the
        body. With KMS it is not an MD5 (Amazon S3 API reference, "Object").

        Returns:
            False if the object must be read back: it is not known whether ETags of this store are MD5s, or this one is
            none.

        Raises:
            TransientError: the answer does not prove it.
        """
        promises, headers = self.promises, answer.headers
        if echoed := headers.get("x-amz-checksum-crc32"):
            if echoed != checksum:
                raise self._transient(UNPROVED)
            self._session.trust_answers()
            return True
        if promises.etags_are_md5 is False or (etag and "kms" in headers.get("x-amz-server-side-encryption", "")):
            if answer.must_prove:
                # The SHA-256 of the next attempt is the proof.
                self._session.distrust_answers()
                raise self._transient(UNPROVED)
            return True
        if etag and etag == md5_digest(data).hex():
            promises.etags_are_md5 = True
            self._session.trust_answers()
            return True
        if promises.etags_are_md5 is None or (etag and not _MD5.fullmatch(etag)):
            # A proxy or a sign-in page before the store can answer each request with 200 and an ETag.
            return False
        raise self._transient(UNPROVED)

    async def _exists(self, key: str, data: bytes) -> ExistsError:
        try:
            return self.exists(await self.read(key), data)
        except (ClientError, *NO_ANSWER) as error:
            raise self._transient("an object with that key exists, but cannot be read") from error


async def _readable(request: Awaitable[Any]) -> Any:
    """Return the answer to a request; raise ResponseParserError for text where the SDK expects a number or a date."""
    try:
        return await request
    except ValueError as error:
        if isinstance(error, BotoCoreError):
            raise
        raise ResponseParserError(f"{UNREADABLE}: {error}") from error


class Stored(NamedTuple):
    """The bytes of an object, its ETag without quotes (empty if it has none), and whether KMS encrypts it."""

    data: bytes
    etag: str
    is_kms: bool = False

    @property
    def claims_md5(self) -> bool:
        """Whether the ETag has the form of an MD5, and should be one."""
        return not self.is_kms and _MD5.fullmatch(self.etag) is not None

    @property
    def has_md5(self) -> bool:
        """Whether the ETag is the MD5 of the bytes."""
        return self.etag == md5_digest(self.data).hex()
