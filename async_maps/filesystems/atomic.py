"""Files that are written whole or not at all: until then, and after a full disk, the older file is in place."""

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
    """Where to write: the file there replaces the target in one step when the context ends without an error.

    A pipe or a terminal, which nothing can replace, is written to directly.
    """
    if target.exists() and not (target.is_file() or target.is_dir()):
        yield target
        return
    # Through links: their targets are replaced, they stay.
    target = Path(os.path.realpath(target))
    # Beside the target, so that the rename at the end is one step.
    temporary = target.with_name(f".async-maps-{uuid4().hex}")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
