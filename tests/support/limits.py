"""Limits of this process, for a time."""

from __future__ import annotations

import resource
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def no_file_left() -> Iterator[Callable[[], None]]:
    """Let every attempt to open a file fail in the ``with`` block, until the function that it yields is called."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    allow = partial(resource.setrlimit, resource.RLIMIT_NOFILE, before)
    # The three standard streams are open, so each new file has a larger number.
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield allow
    finally:
        allow()
