"""One run at a time uses a manifest. The error of a second run names the first; a killed run holds nothing."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest

import async_maps as am
from async_maps.errors import ManifestError
from async_maps.manifest.lock import RunLock, holder_of
from async_maps.manifest.manifest import Manifest
from tests.support.commands import done_rows, invoke, start
from tests.support.leftovers import leaves_nothing
from tests.support.maps import random_map

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

HOLD = (
    "import sys; from async_maps.manifest.manifest import Manifest; "
    "m = Manifest(sys.argv[1]); print(flush=True); input()"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.sqlite"


def _held(manifest: Path, pid: int) -> str:
    """Return a pattern of the error that a second run gets."""
    since = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    return (
        rf"^the manifest {re.escape(str(manifest))} is in use by another run "
        rf"\(process {pid} on {re.escape(socket.gethostname())}, since {since}\): wait until it has ended, "
        r"or choose another manifest file$"
    )


def test_a_second_writer_is_refused_but_not_a_reader(path: Path) -> None:
    with Manifest(path) as first:
        first.begin("s3://bucket")
        with pytest.raises(ManifestError, match=_held(path, os.getpid())):
            Manifest(path)
        with Manifest(path, read_only=True) as reader:
            assert reader.counts() == {}
        # The first refusal does not release the lock.
        with pytest.raises(ManifestError, match="in use by another run"):
            Manifest(path)
    with Manifest(path):
        pass
    assert list(path.parent.iterdir()) == [path]


def test_one_file_has_one_lock_under_every_name(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.sqlite"
    link.symlink_to(path)
    monkeypatch.chdir(tmp_path)
    with Manifest(path):
        for name in ("m.sqlite", "elsewhere/../m.sqlite", link):
            with pytest.raises(ManifestError, match="in use by another run"):
                Manifest(name)
    with Manifest(link), pytest.raises(ManifestError, match="in use by another run"):
        Manifest(path)


def test_manifests_in_memory_are_not_locked() -> None:
    with Manifest(":memory:"), Manifest(":memory:"):
        pass


def test_a_killed_process_releases_its_lock(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(ManifestError, match=_held(path, holder.pid)):
            Manifest(path)
        holder.kill()
    assert path.with_name("m.sqlite-lock").exists()
    with Manifest(path) as manifest:
        manifest.begin("s3://bucket")
    assert list(path.parent.iterdir()) == [path]


def test_the_holder_is_known_until_it_is_killed(path: Path) -> None:
    assert holder_of(path) is None
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        holder = holder_of(path)
        assert holder is not None
        assert holder.text.startswith(f"process {process.pid} on {socket.gethostname()}, since ")
        assert holder.since is not None
        assert holder.since <= datetime.now(UTC)
        process.kill()
    assert path.with_name("m.sqlite-lock").exists()
    assert holder_of(path) is None


def test_a_run_after_killed_ones_claims_their_objects(path: Path) -> None:
    lock = path.with_name("m.sqlite-lock")
    with Manifest(path):
        holder = holder_of(path)
    assert holder is not None
    assert holder.claims_since == holder.since
    lock.write_text("process 1 on host, since 2026-01-02 03:04:05 UTC")
    for _ in range(2):
        with Manifest(path):
            holder = holder_of(path)
            text = lock.read_text()
        assert holder is not None
        assert holder.since != holder.claims_since == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        assert holder.text.endswith(", after a killed run since 2026-01-02 03:04:05 UTC")
        # It is killed, too.
        lock.write_text(text)


def test_looking_for_the_holder_disturbs_no_run(path: Path) -> None:
    found = []
    ended = Event()

    def look() -> None:
        while not ended.is_set():
            found.append(holder_of(path))

    threads = [Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            RunLock(path).release()
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert found


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_lock_has_no_holder(kind: str, path: Path) -> None:
    (os.mkdir if kind == "folder" else os.mkfifo)(path.with_name("m.sqlite-lock"))
    assert holder_of(path) is None


def test_a_stale_lock_file_is_overwritten(path: Path) -> None:
    path.with_name("m.sqlite-lock").write_text(f"process 1 on a host of old, {'since ' * 100}")
    with Manifest(path), pytest.raises(ManifestError, match=_held(path, os.getpid())):
        Manifest(path)


@pytest.mark.parametrize("kind", ["link", "broken link", "hard link", "pipe", "socket", "folder", "text", "binary"])
def test_a_foreign_file_in_place_of_the_lock_is_refused_unchanged(kind: str, path: Path, tmp_path: Path) -> None:
    lock, other = path.with_name("m.sqlite-lock"), tmp_path / "other"
    other.write_bytes(b"" if kind == "hard link" else b"process my maps")
    if kind.endswith("link"):
        os.link(other, lock) if kind == "hard link" else lock.symlink_to(other if kind == "link" else "nowhere")
    elif kind == "pipe":
        os.mkfifo(lock)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(lock))
    elif kind == "folder":
        lock.mkdir()
    else:
        lock.write_bytes(b"process my maps" if kind == "text" else bytes(range(256)) * 9)
    before = os.lstat(lock), other.read_bytes(), sorted(tmp_path.iterdir())
    with pytest.raises(ManifestError, match=r"m\.sqlite-lock is .*, not a lock of async-maps: move it away"):
        Manifest(path)
    assert (os.lstat(lock), other.read_bytes(), sorted(tmp_path.iterdir())) == before


@pytest.mark.parametrize("text", ["", "pro", "process 12", "process 12 on a-host, since 2026"])
def test_a_lock_that_a_full_disk_has_cut_is_ours(text: str, path: Path) -> None:
    path.with_name("m.sqlite-lock").write_text(text)
    Manifest(path).close()
    assert list(path.parent.iterdir()) == [path]


def test_only_one_of_many_threads_holds_the_lock(path: Path) -> None:
    turn = Lock()
    holders = most = taken = 0

    def acquire_repeatedly() -> None:
        nonlocal holders, most, taken
        while taken < 60:
            try:
                lock = RunLock(path)
            except ManifestError:
                continue
            with turn:
                holders += 1
                taken += 1
                most = max(most, holders)
            time.sleep(0.0005)
            with turn:
                holders -= 1
            lock.release()

    threads = [Thread(target=acquire_repeatedly) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert list(path.parent.iterdir()) == []


async def test_a_second_run_of_one_pipeline_is_refused(path: Path) -> None:
    began, refused = anyio.Event(), anyio.Event()

    async def maps() -> AsyncIterator[tuple[str, NDArray[np.floating[Any]]]]:
        yield "a", random_map(1)
        began.set()
        await refused.wait()
        yield "b", random_map(2)

    settings = am.Settings(workers=0)
    async with am.Pipeline("memory://", settings=settings) as pipeline, anyio.create_task_group() as tasks:
        reports: list[am.Report] = []

        async def first() -> None:
            reports.append(await pipeline.run(maps(), manifest=path))

        tasks.start_soon(first)
        await began.wait()
        with pytest.raises(ManifestError, match=_held(path, os.getpid())):
            await pipeline.run([("c", random_map(3))], manifest=path)
        refused.set()
    assert reports[0].uploaded == 2
    assert done_rows(str(path)) == 2
    assert list(path.parent.iterdir()) == [path]


def test_a_second_command_is_refused_until_the_first_is_killed(
    maps: Path, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save(maps / "stack.npy", np.random.default_rng(1).random((1500, 6, 6)))
    command = ("run", maps, "out", "--progress", "none", "--manifest", path)
    running = start(*command, "--workers", 1, "--rate", 25)  # so that it still runs
    try:
        while not done_rows(str(path)):
            assert running.poll() is None
        # A stopped process keeps its lock: a closed laptop resumes later.
        os.kill(running.pid, signal.SIGSTOP)
        assert invoke(*command, "--workers", 0) == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert re.match(_held(path, running.pid), line.removeprefix("async-maps: error: "))
        # A dry run and an export only read.
        assert invoke(*command, "--dry-run") == 0
        assert invoke("export", path, "locators.csv") == 0
    finally:
        running.kill()
        running.communicate()
    assert invoke(*command, "--workers", 0) == 0
    assert done_rows(str(path)) == len(list((tmp_path / "out" / "stack").glob("*.png"))) == 1500
    assert not list(tmp_path.glob("m.sqlite-*"))
