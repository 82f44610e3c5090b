"""Shortages of the machine: what is used up (threads, files, memory, space), which limit that is, and what to raise."""

from __future__ import annotations

import errno
import os
import resource
from traceback import format_tb
from typing import TYPE_CHECKING, NamedTuple

from async_maps.machine import cgroups

if TYPE_CHECKING:
    from collections.abc import Iterator


class Cap(NamedTuple):
    """A limit: its number, how many are used (None if not known), its name, and how to raise it."""

    value: int
    used: int | None
    origin: str
    remedy: str

    @property
    def left(self) -> int:
        """The number that is not used."""
        return self.value - (self.used or 0)


def open_files_limit() -> Cap | None:
    """Return the limit of open files of this process; None if there is none."""
    value = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if value == resource.RLIM_INFINITY:
        return None
    return Cap(
        value,
        _open_files(value),
        "the limit of open files (ulimit -n)",
        "ulimit -n, docker --ulimit nofile, LimitNOFILE=",
    )


def thread_limit() -> Cap | None:
    """Return the smaller limit of processes and threads: of the control group, or of the user; None without one."""
    caps = []
    if found := cgroups.pids_limit():
        remedy = "docker --pids-limit, Kubernetes podPidsLimit, systemd TasksMax="
        caps.append(Cap(*found, "the limit of processes and threads of the control group (pids.max)", remedy))
    value = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if value != resource.RLIM_INFINITY and os.geteuid() != 0:
        caps.append(
            Cap(value, None, "the limit of processes and threads of this user (ulimit -u)", "ulimit -u, LimitNPROC=")
        )
    return min(caps, key=lambda cap: cap.value, default=None)


def describe_shortage(error: BaseException | None) -> str | None:
    """Describe a shortage in one sentence, if one is the cause of an error.

    Args:
        error: any error; its causes and the errors of a group count too.

    Returns:
        What is used up, the limit that was found, and how to raise it; None for another error.
    """
    return next(filter(None, map(_described, _causes(error))), None)


def is_out_of_files(error: BaseException) -> bool:
    """Whether an error says that no file can be opened, or one of its causes does."""
    numbers = {errno.EMFILE, errno.ENFILE}
    return any(isinstance(cause, OSError) and cause.errno in numbers for cause in _causes(error))


def _described(error: BaseException) -> str | None:
    number = error.errno if isinstance(error, OSError) else None
    what = None
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        what = _sentence("no thread can be started", thread_limit())
    elif number == errno.EAGAIN and "fork" in "".join(format_tb(error.__traceback__)):
        what = _sentence("no process can be started", thread_limit())
    elif number == errno.EMFILE:
        what = _sentence("no file can be opened", open_files_limit())
    elif number == errno.ENFILE:
        what = "no file can be opened: the machine's limit of open files is reached; raise fs.file-max (sysctl)"
    elif number == errno.ENOMEM or isinstance(error, MemoryError):
        what = _memory("no memory is left")
    elif number in {errno.ENOSPC, errno.EDQUOT} and isinstance(error, OSError) and error.filename is not None:
        what = f"no space is left on the disk of {error.filename}: free some space, and run the same command again"
    return what


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Iterate over an error, the errors in its group, and its causes."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        cause = waiting.pop()
        if cause is not None and id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            waiting += [cause.__context__, cause.__cause__]
            if isinstance(cause, BaseExceptionGroup):
                waiting += reversed(cause.exceptions)


def _sentence(what: str, cap: Cap | None) -> str:
    if cap is None:
        return f"{what}: the system refuses, and no limit of this process explains it; check the limits of the machine"
    used = "" if cap.used is None or cap.used > cap.value else f", and {cap.used:,} are used"
    return f"{what}: {cap.origin} is {cap.value:,}{used}; raise it ({cap.remedy})"


def _memory(what: str) -> str:
    limit = cgroups.memory_limit()
    if limit is None:
        return f"{what} on this machine: use fewer workers and a smaller queue_bytes"
    return (
        f"{what}: the memory limit of the control group is {limit / 2**20:,.0f} MiB; raise it (docker --memory, "
        "Kubernetes limits.memory), or use fewer workers and a smaller queue_bytes"
    )


def _open_files(limit: int) -> int | None:
    try:
        return len(os.listdir("/proc/self/fd")) - 1
    except OSError as error:  # no file can be opened, this folder included; or not Linux
        return limit if error.errno == errno.EMFILE else None
