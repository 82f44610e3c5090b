"""The trees of control groups as files, and commands that run in a control group, if this user may create one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_TOP = Path("/sys/fs/cgroup")
_V1 = {"cpu.max": "cpu/cpu.cfs_quota_us", "memory.max": "memory/memory.limit_in_bytes", "pids.max": "pids/pids.max"}
"""The limits by their names in version 2, and their controllers and files in version 1."""


V2 = "30 24 0:26 {root} /sys/fs/cgroup ro,nosuid shared:9 - cgroup2 cgroup rw,nsdelegate"
"""A line of mountinfo."""


def lay_out(root: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """Write ``proc/self`` and the files of ``sys/fs/cgroup``."""
    for name, text in {
        "proc/self/cgroup": groups,
        "proc/self/mountinfo": f"22 1 8:1 / / rw - ext4 /dev/sda rw\n{mounts}\n",
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@contextmanager
def control_group(**limits: int) -> Iterator[list[Path]]:
    """Create a control group with limits, such as ``cpu=50_000`` (of 100,000 us), ``memory=2**28`` or ``pids=8``.

    Yields its folders, one for each controller. Skips the test if this user may not create one.
    """
    is_unified = (_TOP / "cgroup.controllers").exists()
    name = f"async-maps-test-{uuid4().hex[:8]}"
    folders: list[Path] = []
    try:
        for limit, value in limits.items():
            controller, _, file = _V1[f"{limit}.max"].partition("/")
            folder = _TOP / name if is_unified else _TOP / controller / name
            folder.mkdir(exist_ok=True)
            folders.append(folder)
            (folder / (f"{limit}.max" if is_unified else file)).write_text(str(value))
    except OSError as error:
        _remove(folders)
        pytest.skip(f"no control group can be created: {error}")
    try:
        yield folders
    finally:
        _remove(folders)


def run_in(
    folders: list[Path], command: list[str], *, before: str = "", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in control groups, after shell commands such as ``ulimit -n 12``."""
    joins = [f"echo $$ > {folder}/cgroup.procs" for folder in folders]
    script = " && ".join([*joins, *filter(None, [before]), 'exec "$@"'])
    return subprocess.run(
        ["/bin/sh", "-c", script, "sh", *command],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment if environment is not None else dict(os.environ),
        stdin=subprocess.DEVNULL,
    )


def python(code: str) -> list[str]:
    """Return the command that runs Python code."""
    return [sys.executable, "-c", code]


def _remove(folders: list[Path]) -> None:
    for folder in dict.fromkeys(folders):
        deadline = time.monotonic() + 30
        while True:
            try:
                folder.rmdir()
                break
            except FileNotFoundError:
                break
            except OSError:  # a process of it is still ending
                assert time.monotonic() < deadline, folder
                time.sleep(0.02)
