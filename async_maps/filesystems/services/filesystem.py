"""Reading, listing and deleting the objects of a service. Blocking and thread-safe.

The requests run on an event loop in a thread of its own, so hundreds of them need no other thread.
"""

from __future__ import annotations

import asyncio
import errno
import random
import time
from asyncio import IncompleteReadError
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import partial
from sys import maxsize
from threading import Lock, Thread
from typing import TYPE_CHECKING, NoReturn, TypeVar

from async_maps.concurrency.loop import fastest_loop
from async_maps.filesystems.addresses import parse_address
from async_maps.filesystems.answers import Range, extent
from async_maps.filesystems.clock import time_of
from async_maps.filesystems.credentials import CredentialsError
from async_maps.filesystems.direct_gets import MOST_BYTES
from async_maps.filesystems.filesystem import InaccessibleError, UnavailableError
from async_maps.filesystems.remote import RefusedError, RemoteFilesystem
from async_maps.filesystems.services.client import NO_ANSWER, Client
from async_maps.filesystems.services.md5 import hex_md5
from async_maps.filesystems.services.service import NOT_UNDERSTOOD
from async_maps.filesystems.verdict import Scope, Verdict
from async_maps.settings import S3Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence
    from typing import Any

    from async_maps.filesystems.addresses import Address
    from async_maps.filesystems.answers import Extent, Object
    from async_maps.filesystems.direct_gets import Wanted
    from async_maps.filesystems.listings import Page
    from async_maps.filesystems.services.service import Answer, Request, Service

T = TypeVar("T")

_CLOSED = "the source is closed"
_ATTEMPTS = 5
"""As of the SDK for S3: a source does not wait for minutes."""
_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 0.1, 20.0
"""The wait between two attempts doubles between these."""
_DELETES = 32
"""The number of concurrent requests that delete objects."""
_BROKEN = Verdict(
    Scope.LINK, may_pass=True, certain=False, slow_down=False, reason="truncated while it was read", retry=True
)


class ServiceFilesystem(RemoteFilesystem):
    """The objects of a service, with one client that is opened at the first use."""

    def __init__(self, service: Service, settings: S3Settings | None = None) -> None:
        super().__init__(settings or S3Settings())
        self._service = service
        self._requests = _Requests(service, self.settings)

    def begin(self, address: Address, wanted: Wanted) -> Future[Range | None]:
        """Begin to read a part of an object; None if that fails, or if it is long: :meth:`read` must."""
        if wanted.length > MOST_BYTES:
            return super().begin(address, wanted)
        begun: Future[Range | None] = Future()

        def end(reading: Future[Range]) -> None:
            failed = reading.cancelled() or reading.exception() is not None
            begun.set_result(None if failed else reading.result())

        try:
            self._requests.start(partial(self._read, address, wanted)).add_done_callback(end)
        except Exception:  # noqa: BLE001  # raised again by read()
            begun.set_result(None)
        return begun

    def read(self, address: Address, wanted: Wanted) -> Range:
        """Read a part of an object in one request."""
        return self._requests.run(partial(self._read, address, wanted))

    def find(self, path: str) -> Object | None:
        """Return the object at a path, or None if it does not exist, by one request."""
        address = parse_address(path)
        try:
            return self._requests.run(partial(self._find, address))
        except FileNotFoundError:
            return None

    def pages(self, bucket: str, prefix: str, *, by_folder: bool = False) -> Iterator[Page]:
        """Yield the pages of a listing; ``by_folder`` without what is below a folder."""
        after, is_first = "", True
        while after or is_first:
            request = self._service.listing(bucket, prefix, after, by_folder=by_folder)
            page, after = self._requests.run(partial(self._list, request))
            is_first = False
            yield page

    def delete(self, bucket: str, keys: Sequence[str]) -> dict[str, str]:
        """Delete objects, each by a request."""
        return self._requests.run(partial(self._delete, bucket, keys))

    def locator(self, bucket: str, key: str) -> str:
        """Return the URL of an object."""
        return self._service.locator(bucket, key)

    def identity(self, folder: str) -> str:
        """Return the identity of a store at a folder."""
        return self._service.identity(folder)

    def close(self) -> None:
        """Close the connections permanently."""
        self._requests.close()

    # On the event loop -----------------------------------------------------------------------------------------------

    async def _read(self, address: Address, wanted: Wanted) -> Range:
        request = self._service.get(address.bucket, address.key, wanted.start, wanted.length)
        part: Extent | None = None

        def limit(answer: Answer) -> int | None:
            nonlocal part
            if not answer.is_success:
                return None
            part = extent(_as_sdk(answer), wanted.start)
            if part.start != wanted.start:
                raise RefusedError(
                    f"the server ignores ranges: expected the bytes from {wanted.start:,}, found {part.start:,}"
                )
            return None if part.size is None else wanted.count(part.size)

        try:
            answer = await self._requests.answer(request, limit)
        except _NoRangeError:
            # It starts behind the end of the object; in an empty object, every range does.
            found = await self._find(address)
            return Range(b"", found.size, found.etag, modified=found.modified)
        data = answer.body
        size = wanted.start + len(data) if part is None or part.size is None else part.size
        if len(data) != wanted.count(size):
            raise InaccessibleError.of(_BROKEN)
        tag = await self._tag(address, answer, data if len(data) == size else None)
        if wanted.etag and tag != wanted.etag:
            raise InaccessibleError("the object was replaced while it was read")
        headers = answer.headers
        changed = time_of(headers.get("Last-Modified", ""))
        return Range(data, size, tag, headers.get("Content-Type", ""), modified=changed)

    async def _tag(self, address: Address, answer: Answer, whole: bytes | None) -> str:
        if tag := self._service.tag(answer.headers):
            return tag
        # Emulators leave it out, but not in listings.
        if whole is not None:
            return hex_md5(whole)
        return (await self._find(address)).etag

    async def _find(self, address: Address) -> Object:
        answer = await self._requests.answer(self._service.find(address.bucket, address.key))
        return self._understood(partial(self._service.found, address.key), answer)

    async def _list(self, request: Request) -> tuple[Page, str]:
        try:
            answer = await self._requests.answer(request)
        except FileNotFoundError as error:
            raise RefusedError(f"the {self._service.bucket_word} does not exist") from error
        date = time_of(answer.headers.get("Date", ""))
        if date is not None:
            self.clock_offset_s = date - time.time()
        return self._understood(self._service.page, answer)

    async def _delete(self, bucket: str, keys: Sequence[str]) -> dict[str, str]:
        kept: dict[str, str] = {}
        turns = asyncio.Semaphore(_DELETES)

        async def delete(key: str) -> None:
            async with turns:
                try:
                    await self._requests.answer(self._service.delete(bucket, key))
                except FileNotFoundError:
                    pass
                except RefusedError as error:
                    kept[key] = str(error)

        async with asyncio.TaskGroup() as deleting:
            for key in keys:
                deleting.create_task(delete(key))
        return kept

    @staticmethod
    def _understood(understand: Callable[[Answer], T], answer: Answer) -> T:
        try:
            return understand(answer)
        except NOT_UNDERSTOOD as error:
            reason = f"the server's answer cannot be understood: {error}"
            raise InaccessibleError.of(_BROKEN._replace(reason=reason)) from error


def _as_sdk(answer: Answer) -> dict[str, Any]:
    length = answer.headers.get("Content-Length")
    return {
        "ContentLength": None if length is None else int(length),
        "ContentRange": answer.headers.get("Content-Range", ""),
        "ResponseMetadata": {"HTTPStatusCode": answer.status},
    }


class _NoRangeError(Exception):
    """The range starts behind the end of the object."""


class _Requests:
    """The client of a service, on an event loop in a thread that the first request starts. Thread-safe."""

    def __init__(self, service: Service, settings: S3Settings) -> None:
        self._service = service
        self._settings = settings
        self._lock = Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Call a coroutine function on the loop, and block until it returns."""
        try:
            return self.start(work).result()
        except CancelledError:
            raise InaccessibleError(_CLOSED) from None
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    def start(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """Call a coroutine function on the loop; return its result in the future."""
        with self._lock:
            if self._is_closed:
                raise InaccessibleError(_CLOSED)
            if self._loop is None:
                started: Future[asyncio.AbstractEventLoop] = Future()
                Thread(target=self._serve, args=(started,), daemon=True, name="async-maps-objects").start()
                self._loop = started.result()
            return asyncio.run_coroutine_threadsafe(work(), self._loop)

    def close(self) -> None:
        """End all requests permanently, without waiting."""
        with self._lock:
            self._is_closed = True
            if self._loop is not None:
                with suppress(RuntimeError):  # the loop has ended
                    self._loop.call_soon_threadsafe(self._ended.set)

    async def answer(self, request: Request, limit: Callable[[Answer], int | None] | None = None) -> Answer:
        """Send a request until it is accepted; raise the errors of a filesystem."""
        until, attempts = time.monotonic() + self._settings.give_up_s, min(self._settings.max_attempts, _ATTEMPTS)
        wait_s = _SHORTEST_WAIT_S
        while True:
            attempts -= 1
            cause: BaseException | None = None
            try:
                answer = await self._client.send(request, limit)
            except CredentialsError as error:
                if not error.retry:
                    raise UnavailableError(str(error), may_pass=error.may_pass) from error
                verdict, cause = self._client.judge_error(error), error
            except IncompleteReadError as error:
                verdict, cause = _BROKEN, error
            except NO_ANSWER as error:
                verdict, cause = self._client.judge_error(error), error
            else:
                if answer.is_success:
                    return answer
                verdict = self._client.judge(answer)
            if not verdict.retry or not attempts or time.monotonic() + wait_s > until:
                _refuse(verdict, 0 if cause is not None else answer.status, cause)
            # Random, because requests that fail together would be repeated together.
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311  # not for secrets
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _serve(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        try:
            with asyncio.Runner(loop_factory=fastest_loop()) as runner:
                runner.run(self._run(started))
        except BaseException as error:  # noqa: BLE001  # raised to the caller
            if not started.done():
                started.set_exception(error)

    async def _run(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        self._ended = asyncio.Event()
        # The callers limit the number of requests.
        async with Client(self._service, self._settings, connections=maxsize) as self._client:
            started.set_result(asyncio.get_running_loop())
            await self._ended.wait()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)


def _refuse(verdict: Verdict, status: int, cause: BaseException | None) -> NoReturn:
    if verdict.scope in {Scope.CREDENTIALS, Scope.LINK} and verdict.certain:
        raise UnavailableError(verdict.reason, may_pass=verdict.may_pass) from cause
    if status == 416:
        raise _NoRangeError
    if status == 404 and not verdict.certain:
        raise FileNotFoundError(errno.ENOENT, "the object does not exist")
    raise (InaccessibleError if verdict.retry else RefusedError).of(verdict) from cause
