"""What the filesystems of all object services have in common: objects as files, folders and fingerprints."""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from concurrent.futures import Future
from typing import TYPE_CHECKING

from async_maps.filesystems.addresses import parse_address
from async_maps.filesystems.direct_gets import MOST_BYTES, Wanted
from async_maps.filesystems.filesystem import InaccessibleError
from async_maps.filesystems.remote_file import RemoteFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import BinaryIO

    from async_maps.filesystems.addresses import Address
    from async_maps.filesystems.answers import Object, Range
    from async_maps.filesystems.listings import Page
    from async_maps.settings import S3Settings

WHOLE_BYTES = MOST_BYTES
"""Objects up to this size are read in one request."""
HEAD_BYTES = 64 * 2**10
"""Of a larger object, this many bytes at its start are read and kept; they usually contain the format's header."""
WHOLE = Wanted(0, WHOLE_BYTES, keep=HEAD_BYTES)


class RefusedError(InaccessibleError):
    """The service refuses the request permanently, for instance for lack of permission."""

    is_refusal = True


class RemoteFilesystem(ABC):
    """Reads, lists and deletes the objects of a service. Blocking and thread-safe.

    Attributes:
        settings: the time-outs and attempts.
        clock_offset_s: how many seconds the server's clock was ahead of this machine's in the last listing.

    Raises:
        SourceError: all methods raise it if the service refuses a request or cannot be reached, or its configuration
            cannot be used.
    """

    def __init__(self, settings: S3Settings) -> None:
        self.settings = settings
        self.clock_offset_s = 0.0

    def open(self, path: str) -> BinaryIO:
        """Open an object as a seekable file; raise FileNotFoundError if it does not exist."""
        return io.BufferedReader(self.open_object(path))

    def open_object(self, path: str, whole_bytes: int = WHOLE_BYTES) -> RemoteFile:
        """Open an object unbuffered; one of up to ``whole_bytes`` is read immediately, in one request."""
        address = parse_address(path)
        return RemoteFile(self, address, self.read(address, Wanted(0, whole_bytes, keep=HEAD_BYTES)))

    def get(self, address: Address, start: int, length: int, etag: str | None = None) -> Range:
        """Read a part of an object; the arguments are those of :class:`Wanted`."""
        return self.read(address, Wanted(start, length, etag))

    def begin(self, address: Address, wanted: Wanted) -> Future[Range | None]:  # for subclasses
        """Begin to read a part of an object, if that needs no thread; else, or if it fails, :meth:`read` must."""
        begun: Future[Range | None] = Future()
        begun.set_result(None)
        return begun

    @abstractmethod
    def read(self, address: Address, wanted: Wanted) -> Range:
        """Read a part of an object in one request.

        Raises:
            FileNotFoundError: the object does not exist.
            SourceError: also if the object has another ETag than expected.
        """

    @abstractmethod
    def find(self, path: str) -> Object | None:
        """Return the object at a path, or None if it does not exist, by one request."""

    def objects(self, bucket: str, prefix: str) -> Iterator[Object]:
        """Yield the objects whose keys start with the prefix, in the order of their keys."""
        for page in self.pages(bucket, prefix):
            yield from page.objects

    @abstractmethod
    def pages(self, bucket: str, prefix: str, *, by_folder: bool = False) -> Iterator[Page]:
        """Yield the pages of a listing; ``by_folder`` without what is below a folder."""

    @abstractmethod
    def delete(self, bucket: str, keys: Sequence[str]) -> dict[str, str]:
        """Delete up to 1,000 objects; those that do not exist count as deleted.

        Returns:
            The keys of the objects that could not be deleted, with the reasons.
        """

    @abstractmethod
    def locator(self, bucket: str, key: str) -> str:
        """Return the URL of an object."""

    @abstractmethod
    def identity(self, folder: str) -> str:
        """Return the identity of a store at a folder, see :class:`~async_maps.stores.Store`."""

    def fingerprint_below(self, path: str) -> str | None:
        """Return the fingerprint of all objects in a folder (:class:`Digest`); None if there are none."""
        address = parse_address(path)
        digest = Digest()
        for found in self.objects(address.bucket, f"{address.key.rstrip('/')}/"):
            digest.add(found)
        return digest.fingerprint()

    @abstractmethod
    def close(self) -> None:
        """Close the connections permanently: a thread that waits for an answer fails, and none can ask later."""


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
