"""What lies at locators, in S3 and in folders: listed, read and deleted. It blocks: call it in a thread."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from async_maps.errors import ObjectError, SourceError, StoreError
from async_maps.filesystems.filesystem import Filesystems, is_remote
from async_maps.filesystems.locators import file_path, parse_s3_address
from async_maps.keys import printable

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from async_maps.settings import S3Settings

_MOST_BYTES = 2**40
"""No object that one PUT has made is larger."""
_TEMPORARY = ".async-maps-"
"""What the names of files start with that somebody of ours is writing at this moment, or was when it was killed."""


class ObjectInfo(NamedTuple):
    """An object as a listing tells of it.

    Attributes:
        locator: where it lies.
        size: bytes.
        etag: without quotes; None of a file.
    """

    locator: str
    size: int
    etag: str | None


class Content(NamedTuple):
    """An object that was read.

    Attributes:
        data: all of it.
        content_type: as it is told to browsers; None of a file.
        etag_is_md5: whether its ETag can be the MD5 of its bytes (Amazon S3 API reference, "Object": not of what KMS
            encrypts).
    """

    data: bytes | bytearray
    content_type: str | None = None
    etag_is_md5: bool = False


class Objects:
    """Everything that a locator can lead to. Any number of threads may share it.

    Args:
        s3: how patient the client of S3 is.
    """

    def __init__(self, s3: S3Settings | None = None) -> None:
        self._filesystems = Filesystems(s3)

    def __enter__(self) -> Objects:
        return self

    def __exit__(self, *_: object) -> None:
        self._filesystems.close()

    def identity(self, folder: str) -> str:
        """What a manifest would be bound to whose run went to that folder: as ``Store.identity``.

        Raises:
            StoreError: the AWS configuration makes no sense.
        """
        if not is_remote(folder):
            return folder
        from async_maps.filesystems.aws import identity

        with _translate_errors(folder):
            return identity(folder, self._filesystems.s3().endpoint())

    def below(self, folder: str) -> Generator[ObjectInfo, None, None]:
        """What lies below a folder, in no particular order: a thousand objects a request, or as the disk has them.

        Args:
            folder: ``s3://bucket/prefix/`` or ``file:///folder/``, with its slash at the end.

        Raises:
            ObjectError: S3 refuses to list it: there is no such bucket, or no permission.
            StoreError: it cannot be listed.
        """
        with _translate_errors(folder):
            if (path := file_path(folder)) is not None:
                yield from _files_below(path)
                return
            bucket, prefix = parse_s3_address(folder)
            for found in self._filesystems.s3().objects(bucket, prefix):
                # What stands for a folder is no object of anybody's.
                if not found.key.endswith("/"):
                    yield ObjectInfo(f"s3://{bucket}/{found.key}", found.size, found.etag or None)

    def find(self, locator: str) -> ObjectInfo | None:
        """One object, as :meth:`below` would tell of it; None if there is none.

        Raises:
            ObjectError: S3 refuses to tell, or the disk does.
            StoreError: S3 cannot be asked.
        """
        if (path := file_path(locator)) is not None:
            try:
                status = os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                return None
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise ObjectError(f"{printable(locator)}: cannot be looked at: {reason}") from error
            return ObjectInfo(locator, status.st_size, None) if stat.S_ISREG(status.st_mode) else None
        with _translate_errors(locator):
            found = self._filesystems.s3().find(locator)
        return None if found is None else ObjectInfo(locator, found.size, found.etag or None)

    def read(self, locator: str) -> Content:
        """All of an object, in one request.

        Raises:
            FileNotFoundError: there is none.
            OSError: the file cannot be read.
            SourceError: S3 refuses it.
            StoreError: S3 cannot be reached.
        """
        if (path := file_path(locator)) is not None:
            with self._filesystems.of(path).open(path) as file:
                return Content(file.read())
        from async_maps.filesystems.s3 import RefusedError

        address = parse_s3_address(locator)
        try:
            found = self._filesystems.s3().get(address, 0, _MOST_BYTES)
        except RefusedError:
            raise
        except SourceError as error:
            raise StoreError(f"{printable(locator)}: {error}") from error
        return Content(found.data, found.content_type, not found.encryption.startswith("aws:kms"))

    def delete(self, locators: Sequence[str]) -> dict[str, str]:
        """Delete objects: all of a bucket in one request.

        Args:
            locators: up to a thousand, sorted.

        Returns:
            those that could not be deleted, and why.

        Raises:
            StoreError: S3 cannot be reached.
        """
        kept = {}
        for locator in locators:
            if (path := file_path(locator)) is not None:
                try:
                    os.unlink(path)
                except OSError as error:
                    kept[locator] = error.strerror or str(error)
        addresses = [parse_s3_address(locator) for locator in locators if is_remote(locator)]
        for bucket, group in groupby(addresses, lambda address: address.bucket):
            keys = [address.key for address in group]
            try:
                with _translate_errors(f"s3://{bucket}"):
                    refused = self._filesystems.s3().delete(bucket, keys)
            except ObjectError as error:
                refused = dict.fromkeys(keys, str(error))
            kept |= {f"s3://{bucket}/{key}": reason for key, reason in refused.items()}
        return kept


def _files_below(folder: str) -> Iterator[ObjectInfo]:
    waiting = [folder]
    while waiting:
        try:
            entries = os.scandir(waiting.pop())
        except (FileNotFoundError, PermissionError):
            # Nothing was written there, or it is gone by now; or it may not be listed, and each file is asked for.
            continue
        with entries:
            for entry in entries:
                # Links to folders are not followed: what is behind them is not below this one.
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.is_file() and not entry.name.startswith(_TEMPORARY):
                    with suppress(FileNotFoundError):  # gone by now
                        yield ObjectInfo(Path(entry.path).as_uri(), entry.stat().st_size, None)


@contextmanager
def _translate_errors(place: str) -> Iterator[None]:
    try:
        yield
    except SourceError as error:
        from async_maps.filesystems.s3 import RefusedError

        kind = ObjectError if isinstance(error, RefusedError) else StoreError
        raise kind(f"{printable(place)}: {error}") from error
    except OSError as error:
        where = printable(str(error.filename or place))
        raise StoreError(f"{where}: cannot be looked at: {error.strerror or error}") from error
