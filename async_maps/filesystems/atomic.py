"""A file of ours, written whole or not at all: until it is, and after a disk was full, the older one is there."""

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
    """Where to write: what is there when the context ends without an error takes the target's place in one step.

    Args:
        target: the file; a pipe or a terminal, whose place nothing can take, is written to directly.

    Raises:
        OSError: it cannot take that place.
    """
    if target.exists() and not (target.is_file() or target.is_dir()):
        yield target
        return
    # Through links: what they lead to is replaced, they stay.
    target = Path(os.path.realpath(target))
    # Beside the target, so that the rename at the end is one step.
    temporary = target.with_name(f".async-maps-{uuid4().hex}")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
