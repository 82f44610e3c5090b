"""Fast GETs of objects: the same requests as the AWS SDK's, without the milliseconds that the SDK needs for each.

The SDK sends the first GET in a bucket, which is the plan of the others (:mod:`~async_maps.filesystems.get_plan`). They
run on one event loop, in a thread of its own, so hundreds of them need no other thread. The caller repeats a GET with
the SDK if its answer is not a plain one: the SDK handles redirects and expired tokens, waits between attempts, and has
the words for errors.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from contextlib import suppress
from sys import maxsize
from threading import Lock, Thread
from typing import TYPE_CHECKING, NamedTuple

from async_maps.concurrency.loop import fastest_loop
from async_maps.filesystems.answers import Range, extent
from async_maps.filesystems.clock import time_of, timestamp
from async_maps.filesystems.credentials import CredentialsError
from async_maps.filesystems.filesystem import InaccessibleError
from async_maps.filesystems.get_plan import GetPlan, GetSigner
from async_maps.filesystems.http_messages import request_head

if TYPE_CHECKING:
    from typing import Any

    from botocore.awsrequest import AWSPreparedRequest
    from botocore.credentials import ReadOnlyCredentials

    from async_maps.filesystems.addresses import Address
    from async_maps.filesystems.http_messages import AnswerParser
    from async_maps.filesystems.http_session import Watch
    from async_maps.filesystems.pooled_session import PooledSession
    from async_maps.filesystems.sessions import BlockingCredentials
    from async_maps.filesystems.time_limits import TimeLimits

MOST_BYTES = 8 * 2**20
"""Longer parts are left to the SDK, whose answers are read in pieces."""
_OF_THE_OBJECT = {404, 412, 416}
"""Statuses that say nothing about the other objects."""
_MAY_PASS = {408, 429}
_FAILURES, _PLANS = 4, 3
"""The plan is discarded after this many failures in a row. This many plans may be discarded because of refusals."""


class Wanted(NamedTuple):
    """A part of an object.

    Attributes:
        start: the offset of the first byte.
        length: the maximum number of bytes; the object may end earlier.
        etag: the ETag that the object must have.
        keep: the number of bytes to read if the object is longer than ``start + length``.
    """

    start: int
    length: int
    etag: str | None = None
    keep: int | None = None

    @property
    def byte_range(self) -> str:
        """The value of the Range header."""
        return f"bytes={self.start}-{self.start + self.length - 1}"

    def count(self, size: int) -> int:
        """Return the number of bytes to read of an object of that size."""
        count = max(0, min(size - self.start, self.length))
        return min(count, self.keep) if self.keep is not None and size > self.start + self.length else count


class _Bucket:
    """What is known of the GETs in one bucket."""

    def __init__(self) -> None:
        self.plan: GetPlan | None = None
        self.plans_left = _PLANS
        self._signer: GetSigner | None = None
        self._failures = 0

    def signer(self, credentials: ReadOnlyCredentials) -> GetSigner | None:
        """Return the signer for the plan; None if there is no plan."""
        plan, signer = self.plan, self._signer
        if plan is None:
            return None
        if signer is None or signer.plan is not plan or signer.credentials != credentials:
            signer = self._signer = GetSigner(plan, credentials)
        return signer

    def succeeded(self) -> None:
        """Record a plain answer."""
        self._failures = 0

    def failed(self, plan: GetPlan, status: int) -> None:
        """Record another answer, or none, with status 0; after several the SDK sends the next requests."""
        if status in _OF_THE_OBJECT or plan is not self.plan:
            return
        self._failures += 1
        if self._failures >= _FAILURES:
            self.plan, self._failures = None, 0
            # An outage makes the requests no others, but an odd server does.
            self.plans_left -= 0 < status < 500 and status not in _MAY_PASS


class DirectGets:
    """Sends GETs. Thread-safe.

    Args:
        client: the blocking client of the SDK, whose certificates and time-outs it shares.
        limits: those of each request.
    """

    def __init__(self, client: Any, limits: TimeLimits) -> None:
        # botocore has no public way to either.
        self._http: Any = client._endpoint.http_session
        self._credentials: BlockingCredentials = client._request_signer._credentials
        self._limits = limits
        self._buckets: dict[str, _Bucket] = {}
        self._lock = Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False
        self._waiting: set[Future[Range | None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def learn(self, address: Address, request: AWSPreparedRequest) -> None:
        """Make a plan from a GET of the SDK that has succeeded, if that is possible."""
        bucket = self._buckets.setdefault(address.bucket, _Bucket())
        # Requests through a proxy are left to the SDK.
        if bucket.plan is None and bucket.plans_left and not self._http._proxy_config.proxy_url_for(request.url):
            bucket.plan = GetPlan.of(request, address.key)

    def get(self, address: Address, wanted: Wanted) -> Future[Range | None]:
        """Begin to read a part of an object.

        Returns:
            The part; None if the SDK must read it: it is long, there is no plan, no plain answer, or this is closed.
        """
        found: Future[Range | None] = Future()
        bucket = self._buckets.get(address.bucket) if wanted.length <= MOST_BYTES else None
        try:
            # If there are none now, the SDK waits for them.
            signer = None if bucket is None else bucket.signer(self._credentials.shared.get())
        except CredentialsError:
            signer = None
        if bucket is None or signer is None or not self._start():
            found.set_result(None)
            return found
        with self._lock:
            if self._is_closed or self._loop is None:
                found.set_result(None)
                return found
            self._waiting.add(found)
            self._loop.call_soon_threadsafe(self._begin, found, bucket, signer, address.key, wanted)
        return found

    def close(self) -> None:
        """End all requests permanently, without waiting: their results are None."""
        with self._lock:
            self._is_closed = True
            if self._loop is not None:
                with suppress(RuntimeError):  # the loop has ended
                    self._loop.call_soon_threadsafe(self._ended.set)

    def _start(self) -> bool:
        """Start the event loop, unless it runs; return whether it does."""
        if self._is_running():
            return True
        # aiohttp is slow to import, and many processes send only a few requests. Not with the lock, for close().
        import async_maps.filesystems.pooled_session  # noqa: F401

        with self._lock:
            if not (self._is_running() or self._is_closed):
                started: Future[asyncio.AbstractEventLoop] = Future()
                try:
                    Thread(target=self._run, args=(started,), daemon=True, name="async-maps-gets").start()
                    self._loop = started.result()
                except Exception:  # noqa: BLE001  # no thread, no file or no memory is left: the SDK reads
                    self._is_closed = True
            return self._is_running()

    def _is_running(self) -> bool:
        return self._loop is not None

    def _run(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        try:
            with asyncio.Runner(loop_factory=fastest_loop()) as runner:
                runner.run(self._serve(started))
        except BaseException as error:  # noqa: BLE001  # such as MemoryError; the SDK reads without this
            if not started.done():
                started.set_exception(error)
        finally:
            with self._lock:
                self._is_closed = True
            for found in list(self._waiting):
                self._end(found, None)

    async def _serve(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        self._ended = asyncio.Event()
        async with self._new_session() as self._session:
            started.set_result(asyncio.get_running_loop())
            await self._ended.wait()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _new_session(self) -> PooledSession:
        from async_maps.filesystems.pooled_session import PooledSession

        http = self._http
        certificate = (http._cert_file, http._key_file) if http._cert_file else None
        # The callers limit the number of requests.
        return PooledSession(
            verify=http._verify,
            timeout=(http._timeout.connect_timeout, self._limits.silence_s),
            max_pool_connections=maxsize,
            client_cert=certificate,
            limits=self._limits,
        )

    def _begin(self, found: Future[Range | None], *request: Any) -> None:
        if not self._ended.is_set():
            task = asyncio.create_task(self._get(found, *request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _get(
        self, found: Future[Range | None], bucket: _Bucket, signer: GetSigner, key: str, wanted: Wanted
    ) -> None:
        status, part = 0, None
        try:
            pool = await self._session.pool(signer.plan.base)
            with self._session.watches.watch(0) as watch:
                reading = _Reading(wanted, watch)

                def head() -> bytes:
                    now = timestamp(self._credentials.shared.clock.time())
                    url, headers = signer.sign(key, wanted.byte_range, wanted.etag, now)
                    return request_head("GET", url.removeprefix(pool.origin), {**headers, "Host": signer.host})

                answer = await pool.request(watch, head, b"", may_repeat=True, limit=reading.begin)
            status, part = answer.status, reading.part(answer)
        except Exception:  # noqa: BLE001  # the SDK repeats the request, and has the words for each error
            status = 0
        finally:
            # Also if it is cancelled.
            self._end(found, part)
        if part is None:
            bucket.failed(signer.plan, status)
        else:
            bucket.succeeded()

    def _end(self, found: Future[Range | None], part: Range | None) -> None:
        self._waiting.discard(found)
        if not found.done():
            found.set_result(part)


class _Reading:
    """Reads a part of an object from an answer, if it is a plain one."""

    def __init__(self, wanted: Wanted, watch: Watch) -> None:
        self._wanted, self._watch = wanted, watch

    def begin(self, answer: AnswerParser) -> int | None:
        """Return the number of bytes to read of an answer whose head is known; None for all."""
        size = self._size(answer)
        if size is None:
            return None
        count = self._wanted.count(size)
        self._watch.expect(count)
        return count

    def part(self, answer: AnswerParser) -> Range | None:
        """Return the part in a whole answer; None if the answer is not plain, or was refused."""
        size, headers = self._size(answer), answer.headers
        etag, changed = headers.get("etag", ""), headers.get("last-modified")
        modified = None if changed is None else time_of(changed)
        if size is None or (self._wanted.etag or etag) != etag or (changed and modified is None):
            return None
        count = self._wanted.count(size)
        if len(answer.body) < count:
            return None
        # Only chunks can have more.
        data = answer.body if len(answer.body) == count else answer.body[:count]
        encryption = headers.get("x-amz-server-side-encryption", "")
        return Range(data, size, etag, headers.get("content-type", ""), encryption, modified)

    def _size(self, answer: AnswerParser) -> int | None:
        """Return the size of the object; None if the answer is not plain."""
        headers = answer.headers
        length = headers.get("content-length")
        if answer.status not in {200, 206} or (length is None and "transfer-encoding" not in headers):
            return None
        told = {
            "ContentLength": None if length is None else int(length),
            "ContentRange": headers.get("content-range", ""),
            "ResponseMetadata": {"HTTPStatusCode": answer.status},
        }
        try:
            found = extent(told, self._wanted.start)
        except InaccessibleError:
            return None
        return found.size if found.start == self._wanted.start else None
