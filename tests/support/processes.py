"""Other processes, by their id."""

from __future__ import annotations

from pathlib import Path


def worker_pids_of(pid: int) -> list[int]:
    """The processes that a process has started, in any of its threads: its workers."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def alive(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
