"""Reading, listing and deleting objects in S3. Blocking and thread-safe.

Credentials, region, endpoint, proxies and certificates come from the AWS environment variables and files.
"""

from __future__ import annotations

import errno
import time
from concurrent.futures import Future
from contextlib import closing, contextmanager
from threading import Event, Lock, local
from typing import TYPE_CHECKING

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ReadTimeoutError
from botocore.parsers import ResponseParserError
from botocore.retries.standard import register_retry_handler
from urllib3.exceptions import HTTPError

from async_maps.filesystems.addresses import Address, is_directory_bucket, parse_address
from async_maps.filesystems.answers import Object, Range, ends_by_itself, extent, modified
from async_maps.filesystems.aws import client_options, pay_for_requests
from async_maps.filesystems.blame import judge
from async_maps.filesystems.clock import time_of
from async_maps.filesystems.connections import Connections
from async_maps.filesystems.credentials import CredentialsError
from async_maps.filesystems.direct_gets import DirectGets, Wanted
from async_maps.filesystems.endpoints import bucket_identity, missing_bucket
from async_maps.filesystems.filesystem import InaccessibleError, UnavailableError
from async_maps.filesystems.listings import Page, parse_quickly
from async_maps.filesystems.remote import RefusedError, RemoteFilesystem
from async_maps.filesystems.sessions import blocking_client
from async_maps.filesystems.time_limits import TimeLimits
from async_maps.filesystems.verdict import Scope, Verdict
from async_maps.settings import S3Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from botocore.awsrequest import AWSPreparedRequest


_PIECE = 2**20
_CONNECTIONS = 64
_CLOSED = "the source is closed"
_SDK_RETRIES = "retry-config-s3"
"""What botocore calls its own decision about attempts."""
_BROKEN = Verdict(Scope.LINK, True, False, False, "truncated while it was read", retry=True)


class S3Filesystem(RemoteFilesystem):
    """Reads, lists and deletes objects with one client, which is created at the first use."""

    def __init__(self, settings: S3Settings | None = None) -> None:
        super().__init__(settings or S3Settings())
        self._making, self._changing = Lock(), Lock()
        self._connections = Connections(TimeLimits.of(self.settings))
        self._client: Any = None
        self._direct: DirectGets | None = None
        self._sent = local()
        self._is_closed = Event()

    def begin(self, address: Address, wanted: Wanted) -> Future[Range | None]:
        """Begin to read a part of an object, if that needs no thread; else, or if it fails, :meth:`read` must."""
        return super().begin(address, wanted) if self._direct is None else self._direct.get(address, wanted)

    def read(self, address: Address, wanted: Wanted) -> Range:
        """Read a part of an object in one request.

        Raises:
            FileNotFoundError: the object does not exist.
            SourceError: also if the object has another ETag than expected.
        """
        until, attempts = time.monotonic() + self.settings.give_up_s, self.settings.max_attempts
        while True:
            attempts -= 1
            try:
                return self._read(address, wanted)
            except _NoRangeError:
                with _translate_errors():
                    answer = self._get_client().head_object(Bucket=address.bucket, Key=address.key)
                return Range.of(b"", answer.get("ContentLength", 0), answer)
            except (BotoCoreError, HTTPError) as error:
                # The client retries until it has a response, but not if the body of the response is interrupted.
                if not attempts or time.monotonic() > until:
                    late = isinstance(error, ReadTimeoutError)
                    reason = judge(error).reason if late else "the connection broke while it was read"
                    raise InaccessibleError.of(_BROKEN._replace(reason=reason)) from error

    def _read(self, address: Address, wanted: Wanted) -> Range:
        start, length, etag, keep = wanted
        match = {"IfMatch": etag} if etag else {}
        client = self._get_client()
        if (found := self.begin(address, wanted).result()) is not None:
            return found
        with _translate_errors():
            answer = client.get_object(Bucket=address.bucket, Key=address.key, Range=wanted.byte_range, **match)
        with closing(answer["Body"]) as body:
            if etag and answer.get("ETag", etag) != etag:
                raise InaccessibleError("the object was replaced while it was read")
            first, told, size = extent(answer, start)
            if first != start:
                raise RefusedError(f"the server ignores ranges: expected the bytes from {start:,}, found {first:,}")
            count = length if told is None else min(told, length)
            if keep is not None and size is not None and size > start + length:
                count = min(count, keep)
            data = _read(body, count, is_known=told is not None)
        end, is_short = start + len(data), len(data) < count
        if size is None:
            # Fewer bytes than were asked for: the object ends here, if the connection did not break.
            ends_here = len(data) < length and (told is not None or ends_by_itself(answer))
            size = end if ends_here else self._size(address, end if is_short else None)
        if is_short and (told is not None or size != end):
            raise InaccessibleError.of(_BROKEN)
        if self._direct is not None:
            self._direct.learn(address, self._sent.request)
        return Range.of(data, size, answer)

    def find(self, path: str) -> Object | None:
        """Return the object at a path, or None if it does not exist, by one request."""
        address = parse_address(path)
        try:
            with _translate_errors():
                answer = self._get_client().head_object(Bucket=address.bucket, Key=address.key)
        except FileNotFoundError:
            return None
        size = answer.get("ContentLength")
        size = self._size(address) if size is None else size
        return Object(address.key, size, answer.get("ETag", "").strip('"'), modified(answer))

    def _size(self, address: Address, otherwise: int | None = None) -> int:
        """Ask for the size of an object by HeadObject, else by GetObject; ``otherwise`` if the server tells neither."""
        bucket, key = address.bucket, address.key
        with _translate_errors():
            told = self._get_client().head_object(Bucket=bucket, Key=key).get("ContentLength")
        if told is None:
            try:
                with _translate_errors():
                    part = self._get_client().get_object(Bucket=bucket, Key=key, Range="bytes=0-0")
                part["Body"].close()
                told = extent(part, 0).size
            except _NoRangeError:
                told = 0
        told = otherwise if told is None else told
        if told is None:
            raise InaccessibleError("the server does not tell the object's size")
        return int(told)

    def objects(self, bucket: str, prefix: str) -> Iterator[Object]:
        """Yield the objects whose keys start with the prefix, in the order of their keys."""
        if not is_directory_bucket(bucket):
            yield from super().objects(bucket, prefix)
            return
        # Their prefixes end in a slash, and their listings have no order.
        found = super().objects(bucket, prefix[: prefix.rfind("/") + 1])
        yield from sorted(entry for entry in found if entry.key.startswith(prefix))

    def pages(self, bucket: str, prefix: str, *, by_folder: bool = False) -> Iterator[Page]:
        """Yield the pages of ListObjectsV2; ``by_folder`` without what is below a folder."""
        options = {"Delimiter": "/"} if by_folder else {}
        try:
            with _translate_errors():
                paginator = self._get_client().get_paginator("list_objects_v2")
                for answer in paginator.paginate(Bucket=bucket, Prefix=prefix, **options):
                    told = time_of(answer["ResponseMetadata"]["HTTPHeaders"].get("date", ""))
                    if told is not None:
                        self.clock_offset_s = told - time.time()
                    yield Page.of(answer)
        except FileNotFoundError as error:
            raise RefusedError(missing_bucket(self.endpoint())) from error
        except RefusedError as error:
            if error.verdict is not None and error.verdict.code == "NoSuchBucket":
                raise RefusedError(str(error).replace(missing_bucket(""), missing_bucket(self.endpoint()))) from error
            raise

    def delete(self, bucket: str, keys: Sequence[str]) -> dict[str, str]:
        """Delete up to 1,000 objects in one request.

        Returns:
            The keys of the objects that could not be deleted, with the reasons.
        """
        with _translate_errors():
            answer = self._get_client().delete_objects(
                Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True}
            )
        kept: dict[str, str] = {}
        for error in answer.get("Errors", []):
            reason = f"refused with {error.get('Code') or 'no code'}"
            # Without a key, it may be any of them.
            kept |= {error["Key"]: reason} if error.get("Key") else dict.fromkeys(keys, reason)
        return kept

    def endpoint(self) -> str:
        """The URL of the server."""
        return str(self._get_client().meta.endpoint_url)

    def locator(self, bucket: str, key: str) -> str:
        """Return ``s3://bucket/key``."""
        return str(Address("s3", bucket, key))

    def identity(self, folder: str) -> str:
        """Return the identity of a store at a folder, which names the server if it is not Amazon's."""
        return bucket_identity(folder, self.endpoint())

    def close(self) -> None:
        """Close the connections permanently: a thread that waits for an answer fails, and none can ask later."""
        with self._changing:
            self._is_closed.set()
            client, self._client = self._client, None
        if client is not None:
            if self._direct is not None:
                self._direct.close()
            self._connections.shut_down()
            client.close()

    def _get_client(self) -> Any:
        with self._making:
            client = self._client
            if client is None and not self._is_closed.is_set():
                client = self._make_client()
                # Meanwhile close() may have been called, which does not wait.
                with self._changing:
                    if not self._is_closed.is_set():
                        if self.settings.client == "direct":
                            self._direct = DirectGets(client, TimeLimits.of(self.settings))
                        self._client = client
                        return client
                client.close()
            if client is None or self._is_closed.is_set():
                raise InaccessibleError(_CLOSED)
            return client

    def _make_client(self) -> Any:
        config = Config(**client_options(self.settings, _CONNECTIONS))
        try:
            client = blocking_client(config, self.settings.give_up_s, self._is_closed)
        except (BotoCoreError, ValueError) as error:
            raise InaccessibleError(f"the AWS configuration cannot be used: {error}") from error
        client.meta.events.register("before-send.s3", self._begin_request)
        client.meta.events.register("request-created.s3", _note_time)
        # botocore calls its own handlers for "before-parse.s3" later than those for "before-parse.*".
        client.meta.events.register("before-parse.*.ListObjectsV2", parse_quickly)
        self._wait_here(client)
        pay_for_requests(client, self.settings)
        self._connections.watch(client)
        return client

    def _begin_request(self, request: AWSPreparedRequest, **_: object) -> None:
        if self._is_closed.is_set():
            raise InaccessibleError(_CLOSED)
        self._sent.request = request

    def _wait_here(self, client: Any) -> None:
        """Let the client decide about attempts, but wait between them here: closing and ``give_up_s`` end the waits."""
        events, attempts = client.meta.events, client.meta.config.retries["total_max_attempts"]
        events.unregister("needs-retry.s3", unique_id=_SDK_RETRIES)
        decide = register_retry_handler(client, attempts).needs_retry
        events.unregister("needs-retry.s3", unique_id=_SDK_RETRIES)

        def needs_retry(request_dict: dict[str, Any], **event: Any) -> float | None:
            wait_s: float | None = decide(request_dict=request_dict, **event)
            left_s = request_dict["context"]["async_maps_began_at"] + self.settings.give_up_s - time.monotonic()
            if wait_s is None or left_s <= 0:
                return None
            self._is_closed.wait(min(wait_s, left_s))
            return 0.0

        events.register("needs-retry.s3", needs_retry)


def _note_time(request: Any, **_: object) -> None:
    """Note the time of the first attempt."""
    request.context.setdefault("async_maps_began_at", time.monotonic())


def _read(body: Any, length: int, *, is_known: bool) -> bytearray:
    """Read up to that number of bytes, whose memory is allocated first if the answer has as many."""
    data, filled = bytearray(length if is_known else 0), 0
    while filled < length:
        if filled == len(data):
            data += bytes(min(_PIECE, length - filled))
        with memoryview(data) as view:
            count = body.readinto(view[filled : filled + _PIECE])
        if not count:
            break
        filled += count
    del data[filled:]
    return data


class _NoRangeError(Exception):
    """The range starts behind the object's end; in an empty object, every range does."""


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Turn the SDK's errors into SourceErrors of one sentence, without the object's name."""
    try:
        yield
    except ClientError as error:
        verdict = judge(error)
        if verdict.scope is Scope.CREDENTIALS and verdict.certain:
            raise UnavailableError(verdict.reason, may_pass=verdict.may_pass) from error
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status == 416:
            raise _NoRangeError from error
        if status == 404 and verdict.code != "NoSuchBucket":
            raise FileNotFoundError(errno.ENOENT, "the object does not exist") from error
        if status == 412:
            raise InaccessibleError("the object was replaced while it was read") from error
        raise (InaccessibleError if verdict.retry else RefusedError).of(verdict) from error
    except CredentialsError as error:
        raise UnavailableError(str(error), may_pass=error.may_pass) from error
    except (BotoCoreError, ResponseParserError) as error:
        raise InaccessibleError.of(judge(error)) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        # The SDK reads some answers without looking, such as a date.
        reason = f"the server's answer cannot be understood: {error}"
        raise InaccessibleError.of(_BROKEN._replace(reason=reason)) from error
