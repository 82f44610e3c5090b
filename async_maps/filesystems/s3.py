"""Reading S3 objects as files. Blocking and thread-safe.

Credentials, region, endpoint, proxies and certificates come from the AWS environment variables and files.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import time
from collections import OrderedDict
from contextlib import closing, contextmanager, suppress
from email.utils import parsedate_to_datetime
from threading import Event, Lock
from typing import TYPE_CHECKING, NamedTuple

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from async_maps.filesystems.aws import (
    TRANSIENT_STATUSES,
    client_options,
    is_temporary,
    pay_for_requests,
    refusal,
    unreachable,
)
from async_maps.filesystems.blame import Scope, judge
from async_maps.filesystems.connections import Connections
from async_maps.filesystems.credentials import CredentialsError
from async_maps.filesystems.filesystem import InaccessibleError, UnavailableError
from async_maps.filesystems.locators import is_directory_bucket, parse_s3_address
from async_maps.filesystems.sessions import blocking_client
from async_maps.settings import S3Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, BinaryIO

    from typing_extensions import Buffer

    from async_maps.filesystems.locators import S3Address

_WHOLE_BYTES = 8 * 2**20
"""Objects up to this size are read in one request."""
_HEAD_BYTES = 64 * 2**10
"""Of a larger object, this many bytes at its start are read and kept; they usually contain the format's header."""
_BLOCK_BYTES = 512 * 2**10
_MAX_BLOCK_BYTES = 4 * 2**20
_CACHE_BYTES = 8 * 2**20
_PIECE = 2**20
_CONNECTIONS = 64
_CLOSED = "the source is closed"


class Object(NamedTuple):
    """An object in a listing.

    The size is in bytes, the ETag without quotes, and the time of the last change in seconds since 1970, if known.
    """

    key: str
    size: int
    etag: str
    modified: float | None = None

    @property
    def fingerprint(self) -> str:
        """The size and ETag, as text; they change when the object does."""
        return f"{self.size}-{self.etag}"


class S3Filesystem:
    """Reads, lists and deletes objects with one client, which is created at the first use.

    Attributes:
        clock_offset_s: how many seconds the server's clock was ahead of this machine's in the last listing.

    Raises:
        SourceError: all methods raise it if S3 refuses a request or cannot be reached, or the AWS configuration cannot
            be used.
    """

    def __init__(self, settings: S3Settings | None = None) -> None:
        self.clock_offset_s = 0.0
        self._settings = settings or S3Settings()
        self._making, self._changing = Lock(), Lock()
        self._connections = Connections()
        self._client: Any = None
        self._is_closed = Event()

    def open(self, path: str) -> BinaryIO:
        """Open ``s3://bucket/key`` as a seekable file; raise FileNotFoundError if the object does not exist."""
        return io.BufferedReader(self.open_object(path))

    def open_object(self, path: str, whole_bytes: int = _WHOLE_BYTES) -> S3File:
        """Open an object unbuffered; one of up to ``whole_bytes`` is read immediately, in one request."""
        address = parse_s3_address(path)
        return S3File(self, address, self.get(address, 0, whole_bytes, keep=_HEAD_BYTES))

    def get(
        self, address: S3Address, start: int, length: int, etag: str | None = None, keep: int | None = None
    ) -> Range:
        """Read a part of an object in one request; raise FileNotFoundError if the object does not exist.

        Args:
            address: the object.
            start: the offset of the first byte.
            length: the maximum number of bytes; the object may end earlier.
            etag: the expected ETag; raise SourceError if the object has another one.
            keep: the number of bytes to read if the object is longer than ``start + length``.
        """
        attempts = self._settings.max_attempts
        while True:
            attempts -= 1
            try:
                return self._get(address, start, length, etag, keep)
            except _NoRangeError:
                with _translate_errors():
                    answer = self._get_client().head_object(Bucket=address.bucket, Key=address.key)
                return _range(b"", answer["ContentLength"], answer)
            except BotoCoreError as error:
                # The client retries until it has a response, but not if the body of the response is interrupted.
                if not attempts:
                    raise InaccessibleError(unreachable(error), may_pass=is_temporary(error)) from error

    def _get(self, address: S3Address, start: int, length: int, etag: str | None, keep: int | None) -> Range:
        match = {"IfMatch": etag} if etag else {}
        with _translate_errors():
            answer = self._get_client().get_object(
                Bucket=address.bucket, Key=address.key, Range=f"bytes={start}-{start + length - 1}", **match
            )
        with closing(answer["Body"]) as body:
            if etag and answer["ETag"] != etag:
                raise InaccessibleError("the object was replaced while it was read")
            size = int(answer.get("ContentRange", f"/{answer['ContentLength']}").rpartition("/")[2])
            wanted = min(answer["ContentLength"], length)
            if keep is not None and size > start + length:
                wanted = min(wanted, keep)
            data = bytearray(wanted)
            view, filled = memoryview(data), 0
            while filled < wanted and (count := body.readinto(view[filled : filled + _PIECE])):
                filled += count
        if filled < wanted:
            raise InaccessibleError("truncated while it was read")
        return _range(data, size, answer)

    def find(self, path: str) -> Object | None:
        """Return the object at a path, or None if it does not exist, by one request."""
        address = parse_s3_address(path)
        try:
            with _translate_errors():
                answer = self._get_client().head_object(Bucket=address.bucket, Key=address.key)
        except FileNotFoundError:
            return None
        return Object(address.key, answer["ContentLength"], answer["ETag"].strip('"'), _modified(answer))

    def objects(self, bucket: str, prefix: str) -> Iterator[Object]:
        """Yield the objects whose keys start with the prefix, in the order of their keys."""
        if not is_directory_bucket(bucket):
            yield from self._objects(bucket, prefix)
            return
        # Their prefixes end in a slash, and their listings have no order.
        found = self._objects(bucket, prefix[: prefix.rfind("/") + 1])
        yield from sorted(entry for entry in found if entry.key.startswith(prefix))

    def _objects(self, bucket: str, prefix: str) -> Iterator[Object]:
        for page in self.pages(bucket, prefix):
            for entry in page.get("Contents", []):
                yield Object(entry["Key"], entry["Size"], entry.get("ETag", "").strip('"'), _modified(entry))

    def pages(self, bucket: str, prefix: str, **options: Any) -> Iterator[dict[str, Any]]:
        """Yield the responses of ListObjectsV2."""
        with _translate_errors():
            paginator = self._get_client().get_paginator("list_objects_v2")
            for page in paginator.paginate(Bucket=bucket, Prefix=prefix, **options):
                date = page["ResponseMetadata"]["HTTPHeaders"].get("date", "")
                with suppress(ValueError, TypeError):
                    self.clock_offset_s = parsedate_to_datetime(date).timestamp() - time.time()
                yield page

    def delete(self, bucket: str, keys: Sequence[str]) -> dict[str, str]:
        """Delete up to 1,000 objects in one request.

        Returns:
            The keys of the objects that could not be deleted, with the reasons.
        """
        with _translate_errors():
            answer = self._get_client().delete_objects(
                Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True}
            )
        return {error["Key"]: f"refused with {error['Code']}" for error in answer.get("Errors", [])}

    def endpoint(self) -> str:
        """The URL of the server."""
        return str(self._get_client().meta.endpoint_url)

    def fingerprint_below(self, path: str) -> str | None:
        """Return the fingerprint of all objects in a folder (:class:`Digest`); None if there are none."""
        bucket, key = parse_s3_address(path)
        digest = Digest()
        for found in self.objects(bucket, f"{key.rstrip('/')}/"):
            digest.add(found)
        return digest.fingerprint()

    def close(self) -> None:
        """Close the connections permanently: a thread that waits for an answer fails, and none can ask later."""
        with self._changing:
            self._is_closed.set()
            client, self._client = self._client, None
        if client is not None:
            self._connections.shut_down()
            client.close()

    def _get_client(self) -> Any:
        with self._making:
            client = self._client
            if client is None and not self._is_closed.is_set():
                client = self._make_client()
                # Meanwhile close() may have been called, which does not wait: the credentials may take seconds.
                with self._changing:
                    if not self._is_closed.is_set():
                        self._client = client
                        return client
                client.close()
            if client is None or self._is_closed.is_set():
                raise InaccessibleError(_CLOSED)
            return client

    def _make_client(self) -> Any:
        config = Config(**client_options(self._settings, _CONNECTIONS))
        try:
            client = blocking_client(config, self._settings.give_up_s, self._is_closed)
        except (BotoCoreError, ValueError) as error:
            raise InaccessibleError(f"the AWS configuration cannot be used: {error}") from error
        client.meta.events.register("before-send.s3", self._refuse_closed)
        pay_for_requests(client, self._settings)
        self._connections.watch(client)
        return client

    def _refuse_closed(self, **_: object) -> None:
        # Also for the retries of the client.
        if self._is_closed.is_set():
            raise InaccessibleError(_CLOSED)


class Range(NamedTuple):
    """A part of an object.

    ``size`` is the size of the whole object in bytes. The ETag includes its quotes. ``encryption`` is the server-side
    encryption, such as ``aws:kms``; empty if the response does not say.
    """

    data: bytes | bytearray
    size: int
    etag: str
    content_type: str = ""
    encryption: str = ""
    modified: float | None = None


def _range(data: bytes | bytearray, size: int, answer: dict[str, Any]) -> Range:
    encryption = answer.get("ServerSideEncryption", "")
    return Range(data, size, answer["ETag"], answer.get("ContentType", ""), encryption, _modified(answer))


def _modified(answer: dict[str, Any]) -> float | None:
    found = answer.get("LastModified")
    return None if found is None else float(found.timestamp())


class S3File(io.RawIOBase):
    """An object as a seekable file. It reads ranges of one version of the object and caches the last ones.

    A large read is one request. Small reads are served from cached blocks, whose size grows while the reads are
    sequential. ``head`` is the start of the object.
    """

    def __init__(self, filesystem: S3Filesystem, address: S3Address, head: Range) -> None:
        super().__init__()
        self._filesystem = filesystem
        self._address = address
        self._head = head
        self._blocks: OrderedDict[int, bytes | bytearray] = OrderedDict()
        self._position = 0
        self._read_until = len(head.data)
        self._step = _BLOCK_BYTES

    @property
    def fingerprint(self) -> str:
        """The same fingerprint as in a listing."""
        return Object(self._address.key, self._head.size, self._head.etag.strip('"')).fingerprint

    def readable(self) -> bool:  # noqa: D102  # inherited, as the next four
        return True

    def seekable(self) -> bool:  # noqa: D102
        return True

    def tell(self) -> int:  # noqa: D102
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:  # noqa: D102
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._head.size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Buffer, /) -> int:  # noqa: D102
        view = memoryview(buffer).cast("B")
        view = view[: max(0, self._head.size - self._position)]
        filled = 0
        while filled < len(view):
            data = self._at(self._position + filled, len(view) - filled)
            view[filled : filled + len(data)] = data
            filled += len(data)
        self._position += filled
        return filled

    def _at(self, position: int, wanted: int) -> memoryview:
        for start, data in ((0, self._head.data), *self._blocks.items()):
            if start <= position < start + len(data):
                if start in self._blocks:
                    self._blocks.move_to_end(start)
                return memoryview(data)[position - start : position - start + wanted]
        forward = self._read_until <= position <= self._read_until + self._step
        self._step = min(2 * self._step, _MAX_BLOCK_BYTES) if forward else _BLOCK_BYTES
        start, length = position, max(wanted, self._step)
        if wanted < self._step and not forward:
            # Readers of archives jump to the directory at the end, and then read backwards from there.
            start = max(0, min(position, self._head.size - length))
        length = min(length, self._head.size - start)
        data = self._filesystem.get(self._address, start, length, self._head.etag).data
        self._read_until = start + length
        if wanted < self._step:
            self._blocks[start] = data
            while sum(map(len, self._blocks.values())) > _CACHE_BYTES:
                self._blocks.popitem(last=False)
        return memoryview(data)[position - start : position - start + wanted]


class Digest:
    """One fingerprint for all objects in a folder; add them in the order of their keys."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._size = self._count = 0

    def add(self, found: Object) -> None:
        """Add an object."""
        self._hash.update(f"{found.key}\0{found.size}\0{found.etag}\n".encode(errors="surrogatepass"))
        self._size += found.size
        self._count += 1

    def fingerprint(self) -> str | None:
        """Return the total size and a hash, as text; None if there are no objects."""
        return f"{self._size}-{self._hash.hexdigest()[:32]}" if self._count else None


class RefusedError(InaccessibleError):
    """S3 refuses the request permanently, for instance for lack of permission."""

    is_refusal = True


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
        code, status, reason = refusal(error)
        if status == 416:
            raise _NoRangeError from error
        if status == 404 and code != "NoSuchBucket":
            raise FileNotFoundError(errno.ENOENT, "the object does not exist") from error
        if status == 412:
            raise InaccessibleError("the object was replaced while it was read") from error
        kind = InaccessibleError if status in TRANSIENT_STATUSES else RefusedError
        raise kind(reason, may_pass=is_temporary(error)) from error
    except CredentialsError as error:
        raise UnavailableError(str(error), may_pass=error.may_pass) from error
    except BotoCoreError as error:
        raise InaccessibleError(unreachable(error), may_pass=is_temporary(error)) from error
