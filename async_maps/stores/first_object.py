"""Proves with the first object of a run what a store keeps of what a PUT asks for. Runs on the event loop.

Some servers ignore or refuse If-None-Match, checksums, encryption or storage classes, or have ETags that are no MD5s.
What is proved is known to all later runs with the same manifest and destination.
"""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import ClientError as AiohttpError
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from async_maps.errors import TransientError
from async_maps.filesystems.blame import judge
from async_maps.stores.headers import (
    STORAGE_CLASS,
    advice_for,
    asked_headers,
    http_status,
    is_kept,
    may_refuse_header,
    not_kept,
    refused_crc32,
    unknown_storage_class,
)
from async_maps.stores.promises import (
    ALLOW_PROOF,
    ALLOW_READING,
    IGNORES_CONDITION,
    OPAQUE_ETAGS,
    OVERWRITE,
    UNPROVED,
    UNPROVED_CONDITION,
    UNREAD,
    BrokenPromiseError,
    Promises,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from typing import Any

    from async_maps.stores.s3 import S3Store, Stored

_logger = logging.getLogger("async_maps")

_CONDITION = re.compile("if-?none-?match|conditional|precondition", re.IGNORECASE)
_PATIENCE_S = 5.0
"""How long other objects wait for the first one if nothing must be proved before them."""
_UNREADABLE = 3
"""After this many answers without a proof, objects that cannot be read back end the run."""


class FirstObject:
    """Proves with the first object of a store what its PUTs rely on, while other objects wait.

    It takes no request more for each object, and at most four for each run: a GET of the new key, a PUT without the
    refused checksum, a second PUT of the same bytes, and a GET or a HEAD of the stored object. If answers to PUTs have
    neither a checksum nor an ETag, but objects have one, each object is read back.

    Attributes:
        promises: what is known.
        is_over: whether an object was stored and everything is proved.
    """

    def __init__(self, store: S3Store, arguments: Mapping[str, Any]) -> None:
        self.promises = Promises()
        self.is_over = False
        self._store = store
        self._asked = asked_headers(arguments)
        self._create_only = "IfNoneMatch" in arguments
        self._lock = asyncio.Lock()
        self._some_exist = self._is_trusted = self._was_taken = False
        self._unreadable = 0
        self._end_reason = ""

    async def put(self, key: str, data: bytes, put: Callable[[str, bytes], Awaitable[str | None]]) -> str | None:
        """Call ``put`` for an object: for the first one with all proofs, for others when these are over.

        Raises:
            BrokenPromiseError: the store does not keep what the settings ask for.
            ExistsError: an object exists; before create-only is proved, this is found by a GET.
            ClientError, BotoCoreError, AiohttpError, OSError: as ``put`` raises them.
        """
        if self._some_exist and self._must_prove_create_only:
            # Repeated runs find most of their objects: look for them concurrently.
            await self._refuse_existing(key, data)
        async with self._turn():
            if self._end_reason:
                # Found by an object before this one, and true for all.
                raise self._end(self._end_reason)
            if not self.is_over:
                return await self._prove(key, data, put)
        return await put(key, data)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        must_wait = self._must_prove_create_only or any(self.promises.kept.get(n) != v for n, v in self._asked.items())
        try:
            async with asyncio.timeout(None if must_wait else _PATIENCE_S):
                await self._lock.acquire()
        except TimeoutError:
            yield
            return
        try:
            yield
        finally:
            self._lock.release()

    @property
    def asks(self) -> bool:
        """Whether answers must have headers that the settings ask for."""
        return bool(self._asked)

    @property
    def _must_prove_create_only(self) -> bool:
        return self._create_only and not (self.promises.create_only or self._is_trusted)

    async def _prove(self, key: str, data: bytes, put: Callable[[str, bytes], Awaitable[str | None]]) -> str | None:
        create_only = self._must_prove_create_only
        if create_only:
            await self._refuse_existing(key, data)
        try:
            etag = await put(key, data)
        except ClientError as error:
            if create_only and http_status(error) == 412:
                # Another writer came in between, and its object was left alone.
                self.promises.create_only = self.promises.is_news = True
            if create_only and _refuses_condition(error):
                raise self._end(f"a PUT with If-None-Match is {judge(error).reason}; {OVERWRITE}") from error
            raise
        self.is_over = not self._must_prove_create_only or await self._is_left_alone(key, data)
        return etag

    async def _refuse_existing(self, key: str, data: bytes) -> None:
        try:
            found = await self._store.read(key)
        except ClientError as error:
            verdict, status = judge(error), http_status(error)
            if status == 404 and not verdict.certain:
                return
            if status == 403 and not verdict.certain:
                if self._store.is_aws:
                    # Without s3:ListBucket, S3 answers 403 for new keys. Its documentation promises If-None-Match.
                    self._is_trusted = True
                    return
                raise self._end(f"{UNPROVED_CONDITION} {verdict.reason}: {ALLOW_PROOF}") from error
            raise
        self._some_exist = True
        raise self._store.exists(found, data)

    async def _is_left_alone(self, key: str, data: bytes) -> bool:
        """Put the same object again; return whether that was refused, False if it cannot be known now."""
        try:
            await self._store.put_by_sdk(key, data)
        except ClientError as error:
            verdict = judge(error)
            if http_status(error) == 412:
                self.promises.create_only = self.promises.is_news = True
            return not verdict.retry
        except (BotoCoreError, AiohttpError, ResponseParserError, OSError):
            return False
        locator = self._store.locator(key)
        raise self._end(f"{IGNORES_CONDITION}: only {locator} was written, which did not exist; {OVERWRITE}")

    # Checksums and ETags --------------------------------------------------------------------------------------------

    def took_crc32(self) -> None:
        """Note that the store accepted a PUT with the header of the checksum."""
        self._was_taken = True

    def may_refuse_crc32(self, error: ClientError) -> bool:
        """Whether a refused PUT shall be tried with Content-MD5: nothing with the other checksum was accepted yet."""
        return self.promises.takes_crc32 and not self._was_taken and may_refuse_header(error)

    def use_md5(self, error: ClientError) -> None:
        """Send Content-MD5 from now on, because a PUT without the other checksum was accepted."""
        if self.promises.takes_crc32 and not self._was_taken:
            self.promises.takes_crc32, self.promises.is_news = False, True
            _logger.warning("%s: %s", self._store.destination, refused_crc32(judge(error).reason))

    async def read_back(self, key: str, data: bytes, *, answered: str | None) -> str | None:
        """Read an object whose answer does not prove its bytes, and learn what ETags of this store are.

        Args:
            key: the key of the object.
            data: its bytes.
            answered: the ETag in the answer; None if there is none, which says nothing about later answers.

        Returns:
            The ETag, if it is the MD5; else None, and ETags of this store are not compared from now on.
        """
        try:
            found = await self._store.read(key)
        except ClientError as error:
            verdict, status = judge(error), http_status(error)
            if status not in {401, 403, 404} or verdict.certain:
                raise
            self._unreadable += status != 404
            if self._unreadable < _UNREADABLE:
                raise self._unproved() from error
            raise self._end(f"{UNREAD} {verdict.reason}; {ALLOW_READING}") from error
        if found.data != data:
            raise self._unproved()
        if found.has_md5:
            if answered:
                # Only the answer was wrong: a hop before the store has changed it.
                self.promises.etags_are_md5 = True
            return found.etag
        self._distrust_etags()
        return None

    def etag_of(self, found: Stored) -> str | None:
        """Return the ETag of an object that was read, None if ETags of this store are not compared."""
        if self.promises.etags_are_md5 is None and found.claims_md5 and not found.has_md5:
            self._distrust_etags()
        return None if self.promises.etags_are_md5 is False else found.etag or None

    def _distrust_etags(self) -> None:
        self.promises.etags_are_md5, self.promises.is_news = False, True
        _logger.warning(
            "%s: %s. One object was read back and is right; to read all of them, use verify --deep",
            self._store.destination, OPAQUE_ETAGS,
        )  # fmt: skip

    # Encryption and storage class -----------------------------------------------------------------------------------

    async def compare(self, key: str, headers: Mapping[str, str]) -> None:
        """Compare the headers of the answer to a PUT with what was asked; ask HeadObject for what the answer lacks.

        Raises:
            BrokenPromiseError: something was not kept.
        """
        kept = self.promises.kept
        lacking = {
            name: value
            for name, value in self._asked.items()
            if kept.get(name) != value and (name == STORAGE_CLASS or not is_kept(name, value, headers.get(name)))
        }
        if not lacking:
            return
        try:
            headers = await self._store.head(key)
        except ClientError as error:
            verdict = judge(error)
            if verdict.retry or verdict.certain:
                raise
            if set(lacking) != {STORAGE_CLASS}:
                raise self._broken(key, next(iter(lacking)), f"HeadObject is {verdict.reason}") from error
            text = unknown_storage_class(lacking[STORAGE_CLASS], verdict.reason)
            _logger.warning("%s: %s", self._store.destination, text)
            del self._asked[STORAGE_CLASS]
            return
        for name, value in lacking.items():
            if not is_kept(name, value, headers.get(name)):
                raise self._broken(key, name, f"found {headers.get(name) or 'none'}")
        self.promises.kept |= lacking
        self.promises.is_news = True

    def _broken(self, key: str, header: str, found: str) -> BrokenPromiseError:
        sentence = not_kept(header, self._asked[header], found)
        locator = self._store.locator(key)
        return self._end(f"{sentence} for {locator}, which is stored; {advice_for(header)}")

    def _unproved(self) -> TransientError:
        return TransientError(f"{self._store.destination}: {UNPROVED}")

    def _end(self, reason: str) -> BrokenPromiseError:
        self._end_reason = reason
        return BrokenPromiseError(f"{self._store.destination}: {reason}")


def _refuses_condition(error: ClientError) -> bool:
    verdict = judge(error)
    said = http_status(error) == 501 or verdict.code == "NotImplemented" or _CONDITION.search(verdict.reason)
    return may_refuse_header(error) and bool(said)
