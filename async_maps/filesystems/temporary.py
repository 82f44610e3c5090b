"""The names of temporary files, by which a later process recognizes and deletes those of a dead one."""

from __future__ import annotations

import os
import re
import socket
import stat
import time
from contextlib import suppress
from functools import lru_cache
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = ".async-maps-"
"""The start of the names of all temporary files beside files of users."""
_NAME = re.compile(r"([0-9a-f]{8})-(\d+)-(\d+)-\d+(\.[a-z]+)?")
_OLD_S = 3600.0
"""A file of another machine is deleted if it is older than this, in seconds: it is written within seconds."""
_EARLIER_NAME = re.compile(r"[0-9a-f]{24}|[0-9a-f]{32}")
"""The names of earlier versions do not tell the process."""
_EARLIER_OLD_S = 24 * 3600.0
_numbers = count()


def temporary_name() -> str:
    """Return a new name for a temporary file: with this machine, this process and when it started."""
    return f"{PREFIX}{unique_text()}"


def unique_text() -> str:
    """Return a text that differs at each call; :func:`is_left_over` recognizes it when this process has ended."""
    return f"{_machine()}-{os.getpid()}-{_started(os.getpid())}-{next(_numbers)}"


def is_left_over(text: str, path: str) -> bool:
    """Whether a text of :func:`unique_text`, in the name of the file or folder at ``path``, is of a dead process."""
    found = _NAME.fullmatch(text)
    if found is None:
        return _EARLIER_NAME.fullmatch(text) is not None and _is_older(path, _EARLIER_OLD_S)
    if found[1] == _machine():
        return _started(int(found[2])) not in {found[3], "0"}
    return _is_older(path, _OLD_S)


def _is_older(path: str, age_s: float) -> bool:
    with suppress(OSError):
        return time.time() - os.lstat(path).st_mtime > age_s
    return False


def left_over_in(folder: str) -> Iterator[str]:
    """Yield the paths of the temporary files in a folder that dead processes have left."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX) and is_left_over(entry.name.removeprefix(PREFIX), entry.path):
                yield entry.path


def sweep(folder: str) -> None:
    """Delete the temporary files in a folder that dead processes have left; other files stay."""
    for path in left_over_in(folder):
        with suppress(OSError):
            if stat.S_ISREG(os.lstat(path).st_mode):
                os.unlink(path)


@lru_cache(1)
def _machine() -> str:
    """Return a digest of the running system and its namespace of processes: a container has its own."""
    system = socket.gethostname()
    with suppress(OSError):
        system = f"{Path('/proc/sys/kernel/random/boot_id').read_bytes().decode()}{os.readlink('/proc/self/ns/pid')}"
    return blake2b(system.encode(), digest_size=4).hexdigest()


def _started(process: int) -> str:
    """Return when a process started, in the system's ticks; "0" if the system does not say, empty if it has ended."""
    try:
        # The name of the program, in parentheses, may contain anything.
        return Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        pass  # it has ended, or the processes of other users are hidden (hidepid), or there is no /proc
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except (OSError, OverflowError):  # it runs for another user, or the name of the file is not ours
        pass
    return "0"
