"""The memory of processes."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.leftovers import children

MIB = 2**20


def held() -> int:
    """Return the bytes that this process and its children hold; shared memory counts once."""
    return sum(pss(process) for process in (os.getpid(), *children()))


def pss(process: int) -> int:
    """Return the proportional set size of a process in bytes, without files; 0 if it has ended.

    The share of libraries, which are files, depends on other processes that use them.
    """
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
