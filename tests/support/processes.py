"""Other processes by pid, and what they run first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def worker_pids_of(pid: int) -> list[int]:
    """Return the child processes of a process, which are its workers or its lanes."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def alive(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def hook(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let every interpreter that starts from now on run this code first."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)


def kill_at_opening(end: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every interpreter that starts from now on kill itself when it opens a file whose path ends like this."""
    code = (
        "import os, signal, sys\n"
        "def deadly(event, arguments):\n"
        f"    if event == 'open' and str(arguments[0]).endswith({end!r}):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(deadly)\n"
    )
    hook(folder, monkeypatch, code)
