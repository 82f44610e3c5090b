"""Atomic writes of files: the old file stays in place until the new one is complete."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary path whose file replaces the target when the ``with`` block ends without an error.

    A pipe or a terminal cannot be replaced: then the target itself is yielded.
    """
    if target.exists() and not (target.is_file() or target.is_dir()):
        yield target
        return
    # If the target is a symbolic link, replace the file that it points to, not the link.
    target = Path(os.path.realpath(target))
    # In the same folder, because a rename is atomic only within one filesystem.
    temporary = target.with_name(f".async-maps-{uuid4().hex}")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
