"""A store in an object service besides S3: one PUT for each object. Runs on the event loop."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from anyio import to_thread

from async_maps.errors import ExistsError, SettingsError, StoreError, TransientError
from async_maps.filesystems.addresses import parse_destination
from async_maps.filesystems.credentials import CredentialsError
from async_maps.filesystems.services import open_service
from async_maps.filesystems.services.client import NO_ANSWER, Client
from async_maps.filesystems.services.md5 import hex_md5
from async_maps.filesystems.services.service import NOT_UNDERSTOOD, ObjectHeaders
from async_maps.filesystems.verdict import store_error
from async_maps.settings.s3 import HEADERS, S3Settings
from async_maps.stores.odd_keys import OddKeys
from async_maps.stores.promises import OVERWRITE, UNPROVED, BrokenPromiseError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from async_maps.filesystems.addresses import Address
    from async_maps.filesystems.services.service import Answer, Request
    from async_maps.filesystems.services.tokens import Tokens
    from async_maps.settings import Settings

T = TypeVar("T")

_CHECK_WAITS_S = (0.2, 0.8)
_MOST_BYTES = 2**40
"""More than the largest object of one PUT."""
_OF_S3 = HEADERS - {"cache_control", "metadata", "request_payer"}
"""The settings for headers of objects that only S3 has. The payer may be for a source in S3."""


@asynccontextmanager
async def open_service_store(
    destination: str, settings: Settings, content_type: str = "image/png"
) -> AsyncIterator[ServiceStore]:
    """Open a store with one client for the whole run.

    Raises:
        SettingsError: the destination or the service's set-up is not valid, or there are settings for S3.
        MissingExtraError: the service needs an extra.
    """
    address = parse_destination(destination)
    _refuse_settings(settings.s3, address)
    # In a thread, because the import takes long.
    service = await to_thread.run_sync(open_service, address)
    create_only = settings.if_exists != "overwrite"
    connections, bytes_per_s = settings.most_concurrency, settings.bandwidth
    async with Client(service, settings.s3, connections=connections, bytes_per_s=bytes_per_s) as client:
        headers = ObjectHeaders(content_type, settings.s3.cache_control, settings.s3.metadata)
        yield ServiceStore(client, address, headers, create_only=create_only)


def _refuse_settings(settings: S3Settings, address: Address) -> None:
    default = S3Settings()
    if given := sorted(name for name in _OF_S3 if getattr(settings, name) != getattr(default, name)):
        raise SettingsError(f"s3.{given[0]} is for destinations in S3 only: leave it out for {address.scheme}://")
    for name in settings.metadata if address.scheme == "az" else ():
        if not (name.isascii() and name.isidentifier()):
            raise SettingsError(
                f"s3.metadata: {name!r} is no name of metadata in Azure; expected letters, digits and underscores"
            )


class ServiceStore:
    """Stores objects under a prefix of a bucket.

    Args:
        client: an open client, which the caller closes.
        address: the bucket and the prefix.
        headers: what the objects have in common.
        create_only: whether an existing object is left alone; ``put`` then raises ExistsError.

    Attributes:
        client: the client.
        bucket: the bucket.
        place: the address.
    """

    def __init__(self, client: Client, address: Address, headers: ObjectHeaders, *, create_only: bool) -> None:
        service = client.service
        self.client = client
        self.bucket = address.bucket
        self.place = str(address)
        self._service = service
        self._headers = headers
        self._create_only = create_only
        self._odd_keys = OddKeys(self._find)
        self._proving = asyncio.Lock()
        # The vendors promise it. An emulator may ignore the condition, and replace objects.
        self._is_proved = service.is_original or not create_only
        self._end_reason = ""
        self.prefix = address.key
        self.destination = service.locator(address.bucket, address.key).rstrip("/")
        self.identity = service.identity(self.destination)

    def locator(self, key: str) -> str:
        """Return the URL of an object."""
        return self._service.locator(self.bucket, key)

    @property
    def tokens(self) -> Tokens | None:
        """The tokens of the requests, which the processes of a run share when they start; None without tokens."""
        return self._service.tokens

    def sent_bytes(self) -> int:
        """Return the number of bytes that the service has received, also of unfinished requests."""
        return self.client.traffic.sent_bytes()

    async def check(self) -> None:
        """Check by a listing of one object that the bucket exists.

        A 403 is accepted, because it is also the answer to credentials that may only write objects. The first object
        shows whether they are wrong.
        """
        request = self._service.listing(self.bucket, "", most=1)
        for wait_s in (*_CHECK_WAITS_S, None):
            try:
                answer = await self.client.send(request)
            except CredentialsError as error:
                raise StoreError(f"{self.destination}: {error}", may_pass=error.may_pass) from error
            except NO_ANSWER as error:
                verdict = self.client.judge_error(error)
            else:
                if answer.is_success:
                    self._understood(self._service.page, answer)
                    return
                verdict = self.client.judge(answer)
                if answer.status == 404 and not verdict.certain:
                    raise StoreError(f"{self.destination}: the {self._service.bucket_word} does not exist")
                if not (verdict.retry or verdict.certain):
                    return
            if wait_s is None or not verdict.retry:
                raise StoreError(f"{self.destination}: {verdict.reason}", may_pass=verdict.may_pass)
            await asyncio.sleep(wait_s)

    async def put(self, key: str, data: bytes) -> str | None:
        """Store the object by one request. The service compares the checksums, and this the answer.

        An answer that does not prove that the service has these bytes raises a TransientError; a refusal that may
        concern all objects an UnjudgedError.
        """
        return await self._odd_keys.put(key, partial(self._put, key, data))

    async def put_once(self, key: str, data: bytes) -> str | None:
        """Store the object by one request, as :meth:`put`, without a proof before that the service keeps conditions."""
        request = self._service.put(self.bucket, key, data, self._headers, create_only=self._create_only)
        answer = await self._send(request)
        if answer.is_success:
            tag = self._service.proof(answer, request)
            if tag is None:
                # A proxy or a sign-in page before the service can answer each request with 200.
                raise TransientError(f"{self.destination}: {UNPROVED}")
            return tag or None
        if self._create_only and self._service.exists(answer):
            raise await self._exists(key, data)
        raise store_error(self.destination, self.client.judge(answer))

    async def has(self, key: str) -> bool | None:
        """Return whether an object exists; None if the service does not tell."""
        try:
            found = await self._find(key)
        except StoreError:
            return None
        return None if found is None else found != ""

    async def read(self, key: str) -> Answer | str:
        """Return the answer to a GET of an object, or why there is none."""
        try:
            answer = await self._send(self._service.get(self.bucket, key, 0, _MOST_BYTES))
        except StoreError as error:
            return str(error)
        return answer if answer.is_success else self.client.judge(answer).reason

    async def delete(self, key: str) -> str:
        """Delete an object, if it exists; return why it was not deleted, or an empty text."""
        try:
            answer = await self._send(self._service.delete(self.bucket, key))
        except StoreError as error:
            return str(error)
        return "" if answer.is_success or answer.status == 404 else self.client.judge(answer).reason

    async def _put(self, key: str, data: bytes) -> str | None:
        if not self._is_proved:
            async with self._proving:
                if not self._is_proved:
                    return await self._prove_create_only(key, data)
        return await self.put_once(key, data)

    async def _prove_create_only(self, key: str, data: bytes) -> str | None:
        """Put the first object twice: the second time must be refused."""
        if self._end_reason:
            raise BrokenPromiseError(f"{self.destination}: {self._end_reason}")
        found = await self._find(key)
        if found:
            raise await self._exists(key, data)
        what = f"{self._service.condition}, which --if-exists skip and error need"
        if found is None:
            self._end_reason = (
                f"whether the store keeps {what}, is not known: new keys cannot be looked up; {OVERWRITE}"
            )
            raise BrokenPromiseError(f"{self.destination}: {self._end_reason}")
        tag = await self.put_once(key, data)
        try:
            await self.put_once(key, data)
        except ExistsError:
            self._is_proved = True
            return tag
        written = f"only {self.locator(key)} was written, which did not exist"
        self._end_reason = f"the store ignores {what}: {written}; {OVERWRITE}"
        raise BrokenPromiseError(f"{self.destination}: {self._end_reason}")

    async def _find(self, key: str) -> str | None:
        """Return the tag and the time of an object; empty if it does not exist, None if the service refuses to tell.

        Raises StoreError if it may tell later, or without an answer.
        """
        answer = await self._send(self._service.find(self.bucket, key))
        if answer.is_success:
            found = self._understood(partial(self._service.found, key), answer)
            return f"{found.etag} {found.modified}"
        verdict = self.client.judge(answer)
        if verdict.retry:
            raise store_error(self.destination, verdict)
        return "" if answer.status == 404 else None

    async def _exists(self, key: str, data: bytes) -> ExistsError:
        """Return the error of an object that is there already, and is not replaced by the data."""
        answer = await self._send(self._service.get(self.bucket, key, 0, _MOST_BYTES))
        if answer.status == 404:
            raise TransientError(f"{self.destination}: an object with that key existed, and does not any more")
        if not answer.is_success and not (answer.status == 416 and not data):
            raise TransientError(f"{self.destination}: an object with that key exists, but cannot be read")
        found = answer.body if answer.is_success else b""
        what = "the same object" if found == data else "another object"
        text = f"{self.destination}: {what} already exists, and is not replaced"
        return ExistsError(text, same=found == data, etag=hex_md5(found))

    def _understood(self, understand: Callable[[Answer], T], answer: Answer) -> T:
        try:
            return understand(answer)
        except NOT_UNDERSTOOD as error:
            # A proxy or a sign-in page before the service can answer each request with 200.
            raise TransientError(f"{self.destination}: the server's answer cannot be understood: {error}") from error

    async def _send(self, request: Request) -> Answer:
        try:
            return await self.client.send(request)
        except NO_ANSWER as error:
            raise store_error(self.destination, self.client.judge_error(error)) from error
