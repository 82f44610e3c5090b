"""Whole commands under the limits of a container: CPU quota, memory, threads, open files, closed streams."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.support.commands import COMMAND
from tests.support.containers import control_group, python, run_in
from tests.support.kernels import Place
from tests.support.maps import random_map

if TYPE_CHECKING:
    from pathlib import Path

COUNT = 40


@pytest.fixture
def job(maps: Path, tmp_path: Path) -> list[str]:
    """A run of 40 maps into a folder."""
    for i in range(COUNT):
        np.save(maps / f"{i:02}.npy", random_map(i))
    return [
        *COMMAND,
        "run",
        str(maps),
        str(tmp_path / "out"),
        "--manifest",
        str(tmp_path / "m.sqlite"),
    ]


def error_of(ended: subprocess.CompletedProcess[str]) -> str:
    """The only error of a command, which has no traceback."""
    assert "Traceback" not in ended.stderr, ended.stderr
    assert "closed before" not in ended.stderr
    (error,) = (line for line in ended.stderr.splitlines() if line.startswith("async-maps: error: "))
    return error


def temporary_files(folder: Path) -> list[Path]:
    """The files that a store has not finished."""
    return list(folder.rglob(".async-maps-*"))


def test_half_a_cpu_and_256_mib_give_one_worker_and_smaller_queues(job: list[str], tmp_path: Path) -> None:
    with control_group(cpu=50_000, memory=2**28) as groups:
        found = run_in(
            groups, python("import async_maps as am; s = am.Settings(); print(s.worker_count, s.queue_size)")
        )
        ended = run_in(groups, job)
    assert found.stdout.split() == ["1", "2796202"]
    assert ended.returncode == 0, ended.stderr
    assert "workers: 1, from a CPU quota of 0.5; encode_threads: 2, from a CPU quota of 0.5" in ended.stderr
    assert "queue_bytes: 2.7 MiB, from a memory limit of 256 MiB" in ended.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == COUNT


@pytest.mark.slow
def test_a_small_container_works_with_one_notice(maps: Path, tmp_path: Path) -> None:
    """A read-only root, no HOME, no cache of kernels, half a CPU and 256 MiB."""
    for i in range(COUNT):
        np.save(maps / f"{i:02}.npy", random_map(i))
    (tmp_path / "place").mkdir()
    place = Place(tmp_path / "place")
    state = tmp_path / "state"
    state.mkdir()
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user may not mount file systems")
    del place.environment["HOME"], place.environment["NUMBA_CACHE_DIR"]
    home = os.path.expanduser("~/.cache")
    # Another run of this machine may have a cache in its home folder.
    hide = f"if test -d {home}; then mount -t tmpfs -o ro,size=4k none {home}; fi"
    script = f'{hide} && mount --bind {state} {state} && mount -o remount,ro,bind / && cd {state} && exec "$@"'
    run = [sys.executable, "-m", "async_maps", "run", str(maps), "out", "--progress=none"]
    with control_group(cpu=50_000, memory=2**28) as groups:
        ended = run_in(groups, [unshare, "-m", "/bin/sh", "-c", script, "sh", *run], environment=place.environment)
    assert ended.returncode == 0, ended.stderr
    assert len(list((state / "out").glob("*.png"))) == COUNT
    sizes, notice = ended.stderr.splitlines()
    assert "workers: 1, from a CPU quota of 0.5" in sizes
    assert "compiled kernels cannot be kept" in notice
    assert sorted(path.name for path in state.iterdir()) == ["async-maps.sqlite", "out"]


def test_doctor_names_the_quota(tmp_path: Path) -> None:
    with control_group(cpu=50_000) as groups:
        ended = run_in(groups, [*COMMAND, "doctor", str(tmp_path / "out"), "--quick"])
    (line,) = (line for line in ended.stdout.splitlines() if " machine " in line)
    assert line.startswith("ok ")
    assert "0.5 cores" in line
    assert "workers: 1, from a CPU quota of 0.5" in line


@pytest.mark.parametrize("pids", [5, 8])
def test_no_thread_left_names_the_limit_of_the_group(pids: int, job: list[str], tmp_path: Path) -> None:
    with control_group(pids=pids) as groups:
        ended = run_in(groups, job)
        assert (groups[0] / "cgroup.procs").read_text() == ""
    assert ended.returncode in {1, 2, 3}
    assert f"(pids.max) is {pids}" in error_of(ended)
    assert "raise it (docker --pids-limit" in error_of(ended)
    assert temporary_files(tmp_path) == []


@pytest.mark.parametrize("files", [8, 10, 12])
def test_no_file_left_names_the_limit(files: int, job: list[str], tmp_path: Path) -> None:
    ended = run_in([], job, before=f"ulimit -n {files}")
    assert ended.returncode in {1, 2, 3}
    assert "Traceback" not in ended.stderr
    assert re.search(
        rf"no file can be opened: the limit of open files \(ulimit -n\) is {files}\b.*raise it", ended.stderr
    )
    assert temporary_files(tmp_path) == []


@pytest.mark.parametrize("redirection", ["2>&-", ">&-", ">&- 2>&-", ">&- 2>&- <&-", "2>/dev/full"])
@pytest.mark.parametrize("progress", ["none", "json"])
def test_a_run_with_closed_streams_does_its_work(
    redirection: str, progress: str, job: list[str], tmp_path: Path
) -> None:
    ended = run_in([], ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", *job, f"--progress={progress}"])
    assert ended.returncode == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == COUNT


def test_an_error_with_a_closed_standard_error_is_still_the_exit_code(tmp_path: Path) -> None:
    command = [*COMMAND, "run", str(tmp_path / "missing"), str(tmp_path / "out")]
    ended = run_in([], ["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", *command])
    assert (ended.returncode, ended.stdout) == (2, "")


def test_a_full_shared_memory_of_the_container_does_not_matter(job: list[str], tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user may not mount file systems")
    # As small as a file system can be, and filled by a bounded number of bytes: memory is everybody's.
    fill = "mount -t tmpfs -o size=64k none /dev/shm && head -c 65536 /dev/zero > /dev/shm/full"
    ended = run_in([], [unshare, "-m", "/bin/sh", "-c", f'{fill} && exec "$@"', "sh", *job])
    assert ended.returncode == 0, ended.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == COUNT
