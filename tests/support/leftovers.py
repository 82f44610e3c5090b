"""The check that a test leaves no process, descriptor, thread, shared memory or temporary file behind."""

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
"""The time to wait for leftovers to disappear on a busy machine."""
_SHARED = (b"/memfd:async-maps", b"/dev/shm/psm_")  # as /proc names them


def children() -> set[int]:
    """Return the child processes of this process, including zombies."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread that has just ended
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


def descriptors() -> dict[str, str]:
    """Return the targets of the open descriptors of this process, by number."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[entry.name] = os.readlink(entry)
        except OSError:
            continue
    return found


def shared_memory() -> set[str]:
    """Return the shared memory that this process has mapped, as inode and file."""
    mapped = Path("/proc/self/maps").read_bytes()
    if not any(name in mapped for name in _SHARED):
        return set()  # as nearly always, without a look at thousands of lines
    return {line.split(maxsplit=4)[4].decode() for line in mapped.splitlines() if any(name in line for name in _SHARED)}


def _state() -> dict[str, set[object]]:
    """Return the resources of this process by kind; other programs do not change them."""
    return {
        "processes": set(children()),
        "shared memory": set(shared_memory()),
        "descriptors": set(descriptors().items()),
        "temporary files": {name for name in os.listdir(tempfile.gettempdir()) if "async-maps" in name},
        "threads": {thread.name for thread in threading.enumerate() if "AnyIO" not in thread.name},
    }


@pytest.fixture(scope="session")
def pipe_of_libuv() -> None:
    """Create the first uvloop, because libuv then opens a signal pipe that it keeps until the process ends."""
    from async_maps.concurrency.loop import run_blocking

    run_blocking(partial(asyncio.sleep, 0))


@pytest.fixture
def leaves_nothing(pipe_of_libuv: None) -> Iterator[None]:
    """Fail the test if it leaves something behind."""
    before = _state()
    yield
    deadline = time.monotonic() + _GRACE_S
    while left := {what: more for what, now in _state().items() if (more := now - before[what])}:
        assert time.monotonic() < deadline, left
        gc.collect()
        time.sleep(0.02)
