"""What must not be left behind: processes, descriptors, threads of ours, shared memory, temporary files."""

from __future__ import annotations

import gc
import os
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_GRACE_S = 5.0


def children() -> set[int]:
    """The processes that this one has started and that still are, zombies too."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread that has just ended
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


def descriptors() -> dict[str, str]:
    """What this process has open, but for anyio's and asyncio's own machinery."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[entry.name] = os.readlink(entry)
        except OSError:
            continue
    return found


def _state() -> dict[str, set[object]]:
    return {
        "processes": set(children()),
        "shared memory": set(os.listdir("/dev/shm")),  # noqa: S108  # to be looked at
        "descriptors": set(descriptors().items()),
        "temporary files": {name for name in os.listdir(tempfile.gettempdir()) if "async-maps" in name},
        "threads": {thread.name for thread in threading.enumerate() if "AnyIO" not in thread.name},
    }


@pytest.fixture
def leaves_nothing() -> Iterator[None]:
    """Fails the test that leaves something behind."""
    before = _state()
    yield
    deadline = time.monotonic() + _GRACE_S
    while left := {what: more for what, now in _state().items() if (more := now - before[what])}:
        assert time.monotonic() < deadline, left
        gc.collect()
        time.sleep(0.02)
