"""What must not be left behind: processes, descriptors, threads of ours, shared memory, temporary files."""

from __future__ import annotations

import asyncio
import gc
import os
import tempfile
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_GRACE_S = 30.0
"""For a busy machine; where nothing is left, nothing waits."""
_SHARED = ("/memfd:async-maps", "/dev/shm/psm_")  # noqa: S108  # as /proc names them


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


def shared_memory() -> set[str]:
    """The shared memory that this process has mapped: inode and file."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split(maxsplit=4)[4] for line in lines if any(name in line for name in _SHARED)}


def _state() -> dict[str, set[object]]:
    """What is this process's own: nothing that another program on the machine makes or removes."""
    return {
        "processes": set(children()),
        "shared memory": set(shared_memory()),
        "descriptors": set(descriptors().items()),
        # In the folder of this session.
        "temporary files": {name for name in os.listdir(tempfile.gettempdir()) if "async-maps" in name},
        "threads": {thread.name for thread in threading.enumerate() if "AnyIO" not in thread.name},
    }


@pytest.fixture(scope="session")
def pipe_of_libuv() -> None:
    """Make the first uvloop: libuv opens a pipe for signals then, and keeps it until the process ends."""
    from async_maps.concurrency.loop import run_blocking

    run_blocking(partial(asyncio.sleep, 0))


@pytest.fixture
def leaves_nothing(pipe_of_libuv: None) -> Iterator[None]:
    """Fails the test that leaves something behind."""
    before = _state()
    yield
    deadline = time.monotonic() + _GRACE_S
    while left := {what: more for what, now in _state().items() if (more := now - before[what])}:
        assert time.monotonic() < deadline, left
        gc.collect()
        time.sleep(0.02)
