"""Folders below a root, opened part by part, so that no symbolic link leads out of it."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# With O_PATH, a folder need not be readable.
_FLAGS = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC


@contextmanager
def folder_below(root: str, parts: Sequence[str], *, create: bool = False) -> Iterator[int]:
    """Yield a descriptor of the folder with these parts below a root; the root itself may be a link.

    Args:
        root: the path of the root.
        parts: the names of the folders below it, the outermost first.
        create: whether to create folders that do not exist.

    Raises:
        OSError: a folder cannot be opened, or a part is a symbolic link that leads out of the root.
    """
    if create and not os.path.isdir(root):
        try:
            os.makedirs(root, exist_ok=True)
        except FileExistsError:
            os.stat(root)  # the disk has failed: it says so
            raise
    try:
        descriptor = _opened(root, parts, create=create)
    except _LinkError as error:
        # A link to a folder below the root: take the folder's own path.
        top, real = os.path.realpath(root), os.path.realpath(os.path.join(root, *parts))
        if os.path.commonpath((top, real)) != top:
            reason = f"the folder {error} is a symbolic link, and links out of a destination are not followed"
            raise OSError(errno.ELOOP, reason) from None
        descriptor = _opened(top, os.path.relpath(real, top).split("/"), create=create)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class _LinkError(OSError):
    """A part is a symbolic link."""


def _opened(root: str, parts: Sequence[str], *, create: bool) -> int:
    descriptor = os.open(root, _FLAGS)
    try:
        for part in parts:
            below = _open(part, descriptor, create=create)
            os.close(descriptor)
            descriptor = below
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open(part: str, folder: int, *, create: bool) -> int:
    if part in {"", ".", ".."}:
        raise OSError(errno.EINVAL, f"a path below a folder cannot have the part {part!r}")
    flags = _FLAGS | os.O_NOFOLLOW
    try:
        return os.open(part, flags, dir_fd=folder)
    except FileNotFoundError:
        if not create:
            raise
        with suppress(FileExistsError):
            os.mkdir(part, dir_fd=folder)
        return os.open(part, flags, dir_fd=folder)
    except OSError:
        with suppress(FileNotFoundError):
            if stat.S_ISLNK(os.lstat(part, dir_fd=folder).st_mode):
                raise _LinkError(repr(part)) from None
        raise
