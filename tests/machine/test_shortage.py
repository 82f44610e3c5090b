"""A shortage of the machine is named: what is used up, the limit, and what to raise."""

from __future__ import annotations

import errno
import resource
from typing import TYPE_CHECKING

import pytest

from async_maps.errors import SettingsError, ShortageError, name_shortage, naming_shortages
from async_maps.machine import shortage
from async_maps.machine.shortage import Cap, describe_shortage, open_files_limit
from tests.support.limits import no_file_left

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fast

THREADS = Cap(8, 7, "the limit of processes and threads of the control group (pids.max)", "docker --pids-limit")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            RuntimeError("can't start new thread"),
            f"no thread can be started: {THREADS.origin} is 8, and 7 are used; raise it (docker --pids-limit)",
        ),
        (
            OSError(errno.EMFILE, "Too many open files"),
            "no file can be opened: the limit of open files (ulimit -n) is ",
        ),
        (OSError(errno.ENFILE, ""), "no file can be opened: the machine's limit of open files is reached; raise fs."),
        (OSError(errno.ENOSPC, "", "/disk/a"), "no space is left on the disk of /disk/a: free some space, and run"),
        (OSError(errno.ENOMEM, ""), "no memory is left"),
        (MemoryError(), "no memory is left"),
    ],
)
def test_each_shortage_names_the_limit_and_what_to_raise(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shortage, "thread_limit", lambda: THREADS)
    assert str(describe_shortage(error)).startswith(sentence)
    assert str(describe_shortage(ExceptionGroup("", [KeyError(), ExceptionGroup("", [error])]))).startswith(sentence)
    with pytest.raises(ShortageError) as raised, naming_shortages():
        raise ValueError("what it led to") from error
    assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize(
    "error", [RuntimeError("another"), OSError(errno.EAGAIN, "not of fork"), OSError(errno.ENOSPC, "of a pipe"), None]
)
def test_another_error_is_no_shortage(error: BaseException | None) -> None:
    assert describe_shortage(error) is None


def test_our_own_errors_stay_as_they_are() -> None:
    error = SettingsError("ours")
    error.__cause__ = MemoryError()
    assert name_shortage(error) is error


def test_a_memory_limit_of_the_group_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("async_maps.machine.cgroups.memory_limit", lambda: 2**28)
    assert "the memory limit of the control group is 256 MiB; raise it" in str(describe_shortage(MemoryError()))


def test_the_users_limit_of_threads_counts_except_for_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("async_maps.machine.cgroups.pids_limit", lambda: (100, 5))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (50, 50))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    limit = shortage.thread_limit()
    assert limit is not None
    assert (limit.value, limit.left) == (50, 50)
    assert "ulimit -u" in limit.origin
    monkeypatch.setattr("os.geteuid", lambda: 0)
    limit = shortage.thread_limit()
    assert limit is not None
    assert (limit.value, limit.left) == (100, 95)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert shortage.open_files_limit() is None


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    error = OSError(errno.EDQUOT, "quota", str(tmp_path))
    assert str(tmp_path) in str(describe_shortage(error))


def test_all_files_are_used_if_none_can_be_opened() -> None:
    with no_file_left():
        limit = open_files_limit()
    assert limit is not None
    assert (limit.used, limit.left) == (limit.value, 0)
