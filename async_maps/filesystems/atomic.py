"""Atomic writes of files: the old file stays in place until the new one is complete."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from async_maps.filesystems.temporary import sweep, temporary_name

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def replacing(target: Path, *, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path whose file replaces the target when the ``with`` block ends without an error.

    A pipe or a terminal cannot be replaced: then the target itself is yielded. A ``private`` file can be read only by
    its owner.
    """
    if target.exists() and not (target.is_file() or target.is_dir()):
        yield target
        return
    # If the target is a symbolic link, replace the file that it points to, not the link.
    target = Path(os.path.realpath(target))
    # In the same folder, because a rename is atomic only within one filesystem.
    sweep(str(target.parent))
    temporary = target.with_name(temporary_name())
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600 if private else 0o666))
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
