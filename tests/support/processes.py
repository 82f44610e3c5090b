"""Other processes by pid."""

from __future__ import annotations

from pathlib import Path


def worker_pids_of(pid: int) -> list[int]:
    """Return the child processes of a process, which are its workers."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def alive(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
