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
        OSError: a folder cannot be opened, or a part is a symbolic link.
    """
    if create and not os.path.isdir(root):
        os.makedirs(root, exist_ok=True)
    descriptor = os.open(root, _FLAGS)
    try:
        for part in parts:
            below = _open(part, descriptor, create=create)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


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
                reason = f"the folder {part!r} is a symbolic link, and links in a destination are not followed"
                raise OSError(errno.ELOOP, reason) from None
        raise
