"""Worker processes: start, work, death and stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from async_maps.concurrency import launch as launch_module
from async_maps.errors import WorkerError
from async_maps.render.colorize import colorize_activation_map
from async_maps.render.scanlines import room_bytes
from async_maps.workers import pool
from async_maps.workers.arena import Arena
from async_maps.workers.pool import ProcessWorker
from async_maps.workers.worker import Failed, Recipe, Reply, Request, Result
from tests.support.chunks import PALETTE, RGBA, colorized, in_file, intensities, pixels, placed, random_array, saved
from tests.support.leftovers import leaves_nothing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path


tidy = pytest.mark.usefixtures(leaves_nothing.__name__)
"""Only for tests that start processes, because the check reads all memory maps."""


@asynccontextmanager
async def started(arena: Arena, recipe: Recipe = PALETTE) -> AsyncIterator[ProcessWorker]:
    """Start a worker and stop it afterwards."""
    process = ProcessWorker(recipe, arena)
    await process.start()
    try:
        yield process
    finally:
        await process.stop()


def is_alive(pid: int | None) -> bool:
    """Return whether the process exists."""
    assert pid is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("recipe", [PALETTE, RGBA], ids=["palette", "rgba"])
@tidy
async def test_a_worker_colorizes_into_shared_memory_until_stopped(tmp_path: Path, recipe: Recipe) -> None:
    array = random_array(50, 60)
    expected = colorize_activation_map(array) if recipe.png == "rgba" else intensities(array)
    with Arena(2**20) as arena:
        async with started(arena, recipe) as process:
            pid = process.pid
            assert pid != os.getpid()
            assert is_alive(pid)
            before = await arena.take(1)  # so that the next block does not start at offset 0
            for size in (2**17, 2**22):  # the second is larger than the arena
                if size > arena.size:
                    before.release()
                block = await arena.take(size)
                requests = [
                    placed(block.memory, 0, array),
                    saved(tmp_path / "map.npy", array),
                    in_file(tmp_path / "none.npy"),
                ]
                reply = await process.colorize(block, size - 2**16, requests)
                assert reply.wanted == 0
                assert [type(result) for result in reply.results] == [Result, Result, Failed]
                for result in colorized(Reply(reply.results[:2], 0)):
                    np.testing.assert_array_equal(pixels(block.memory, result, recipe), expected)
                assert reply.results[2][0] == "read"
                block.release()
            block = await arena.take(4_096)
            large = saved(tmp_path / "large.npy", np.zeros((500, 600)))
            assert await process.colorize(block, 0, [large]) == Reply([], room_bytes(500, 600, recipe.channels))
            block.release()
        assert process.pid is None
        assert not is_alive(pid)
        await process.stop()  # a second stop is harmless


@tidy
async def test_a_worker_ignores_the_signals_that_end_a_command(tmp_path: Path) -> None:
    with Arena(2**16) as arena:
        async with started(arena) as process:
            pid = process.pid
            assert pid is not None
            assert os.getsid(pid) == pid  # Ctrl-C in a terminal does not reach it
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGHUP)
            reply = await process.colorize(await arena.take(2**16), 0, [saved(tmp_path / "a.npy", random_array(3, 4))])
            (result,) = colorized(reply)
            assert (result.offset, result.height, result.width) == (0, 3, 4)
            assert process.pid == pid


@tidy
async def test_a_worker_ignores_signals_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    original = launch_module.launch

    def launch(module: str, theirs: socket.socket, descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
        process = original(module, theirs, descriptors)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(process.pid, number)
        return process

    monkeypatch.setattr(launch_module, "launch", launch)
    with Arena(2**16) as arena:
        async with started(arena) as process:
            assert process.is_alive


@tidy
async def test_output_of_libraries_goes_to_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import builtins, os\n"
        "quiet = builtins.open\n"
        "def noisy(file, *arguments, **options):\n"
        "    if str(file).endswith('.npy'):\n"
        "        print('printed', flush=True)\n"
        "        os.write(1, b'written')\n"
        "    return quiet(file, *arguments, **options)\n"
        "builtins.open = noisy\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with Arena(2**16) as arena:
        async with started(arena) as process:
            request = saved(tmp_path / "a.npy", random_array(3, 4))
            block = await arena.take(2**16)
            for _ in range(3):
                (result,) = colorized(await process.colorize(block, 0, [request]))
                assert (result.offset, result.height, result.width) == (0, 3, 4)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("printed") == err.count("written") == 3


def seconds_of_work(folder: Path) -> list[Request]:
    """Return a chunk that keeps a worker busy for a second: an image in Fortran order is read before it is refused."""
    return [saved(folder / "large.npy", np.zeros((2_000, 2_000, 3), order="F"))] * 50


@tidy
@pytest.mark.slow
async def test_a_killed_worker_names_the_signal_and_can_restart(tmp_path: Path) -> None:
    with Arena(2**16) as arena:
        async with started(arena) as process:
            block = await arena.take(2**16)
            request = saved(tmp_path / "a.npy", random_array(3, 4))
            first = process.pid
            assert first is not None

            # While it works.
            work = asyncio.create_task(process.colorize(block, 0, [request, *seconds_of_work(tmp_path)]))
            await asyncio.sleep(0.1)
            assert not work.done()
            os.kill(first, signal.SIGKILL)
            with pytest.raises(WorkerError, match=r"was killed by signal 9 \(out of memory\?\)"):
                await work
            assert process.pid is None
            assert not is_alive(first)

            # While it waits.
            await process.start()
            second = process.pid
            assert second is not None
            assert second != first
            os.kill(second, signal.SIGSEGV)
            with pytest.raises(WorkerError, match=r"was killed by signal 11$"):
                await process.colorize(block, 0, [request])

            await process.start()
            assert len(colorized(await process.colorize(block, 0, [request]))) == 1


@tidy
async def test_a_cancelled_chunk_kills_its_process(tmp_path: Path) -> None:
    with Arena(2**16) as arena:
        async with started(arena) as process:
            pid = process.pid
            block = await arena.take(2**16)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await process.colorize(block, 0, seconds_of_work(tmp_path))
            assert process.pid is None
            assert not is_alive(pid)


@tidy
async def test_a_worker_that_ends_while_it_starts_names_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_module, "_BOOT", "raise SystemExit(3)")
    with Arena(2**16) as arena:
        process = ProcessWorker(PALETTE, arena)
        with pytest.raises(WorkerError, match="ended with status 3"):
            await process.start()
        assert process.pid is None


@pytest.mark.parametrize("sent", [b"", b"\0\0", b"\0\0\0\x64", b"\0\0\0\x64(cut"])
@tidy
async def test_a_message_that_a_dying_worker_cuts_is_its_death(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_module, "_BOOT", f"import os; os.write(1, {sent!r}); os._exit(4)")
    with Arena(2**16) as arena:
        process = ProcessWorker(PALETTE, arena)
        with pytest.raises(WorkerError, match="ended with status 4"):
            await process.start()
        assert process.pid is None


@tidy
async def test_a_worker_that_is_never_ready_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_module, "_BOOT", "import time; time.sleep(100)")
    monkeypatch.setattr(pool, "_START_TIMEOUT_S", 0.2)
    with Arena(2**16) as arena:
        process = ProcessWorker(PALETTE, arena)
        with pytest.raises(WorkerError, match="was not ready after 0 s"):
            await process.start()
        assert process.pid is None


@tidy
async def test_a_worker_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    with Arena(2**16) as arena:
        process = ProcessWorker(PALETTE, arena)
        await process.start()
        pid = process.pid
        assert pid is not None
        monkeypatch.setattr(pool, "_STOP_TIMEOUT_S", 0.1)
        os.kill(pid, signal.SIGSTOP)
        await process.stop()
        assert not is_alive(pid)


@pytest.fixture
def launched(leaves_nothing: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes that are launched; a child of the test holds their sockets, too, as if the caller had forked."""
    found: list[subprocess.Popen[bytes]] = []
    children: list[subprocess.Popen[bytes]] = []
    original = launch_module.launch

    def launch(module: str, theirs: socket.socket, descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
        children.append(subprocess.Popen(["/bin/sleep", "1000"], pass_fds=(theirs.fileno(),)))
        found.append(original(module, theirs, descriptors))
        return found[-1]

    monkeypatch.setattr(launch_module, "launch", launch)
    yield found
    for child in children:
        child.kill()
        child.wait()


@tidy
async def test_stopping_does_not_wait_for_a_child_that_inherited_the_socket(
    launched: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_STOP_TIMEOUT_S", 1000)
    with Arena(2**16) as arena:
        process = ProcessWorker(PALETTE, arena)
        await process.start()
        async with asyncio.timeout(60):
            await process.stop()
    assert [process.returncode for process in launched] == [0]


@tidy
@pytest.mark.usefixtures(launched.__name__)
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the end of a process is reported on Linux only")
async def test_the_death_of_a_worker_is_seen_although_a_child_inherited_the_socket(tmp_path: Path) -> None:
    with Arena(2**16) as arena:
        process = ProcessWorker(PALETTE, arena)
        await process.start()
        assert process.pid is not None
        block = await arena.take(2**16)
        os.kill(process.pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            with pytest.raises(WorkerError, match="was killed by signal 9"):
                await process.colorize(block, 0, [saved(tmp_path / "a.npy", random_array(3, 4))])


PARENT = """
import asyncio, sys
from async_maps.workers.arena import Arena
from async_maps.render.colormap import ColormapJet, color_table
from async_maps.workers.pool import ProcessWorker
from async_maps.workers.worker import Recipe, Request

async def main():
    arena = Arena(2**16)
    worker = ProcessWorker(Recipe(color_table(ColormapJet())), arena)
    await worker.start()
    block = await arena.take(2**16)
    requests = [Request(path, None, 0, (), "") for path in sys.argv[1:]]
    work = asyncio.create_task(worker.colorize(block, 0, requests))
    await asyncio.sleep(0.1)
    print(worker.pid, flush=True)
    await asyncio.sleep(100)

asyncio.run(main())
"""


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@tidy
def test_a_worker_ends_when_its_parent_is_killed(tmp_path: Path, busy: bool) -> None:
    arguments = []
    if busy:
        arguments = [str(request.path) for request in seconds_of_work(tmp_path)]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_alive(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait(60)
    if busy:
        # The worker notices after its chunk.
        assert is_alive(pid)
    # The worker inherits its parent's standard error, so this waits for both.
    _, err = parent.communicate(timeout=100)
    assert err == ""
    assert parent.returncode == -signal.SIGKILL


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_workers_start_with_closed_standard_files(closed: str, tmp_path: Path) -> None:
    program = (
        "import sys, numpy as np, async_maps as am\n"
        "maps = [('a', np.zeros((4, 4), np.uint8))]\n"
        "report = am.run(maps, 'memory://', settings=am.Settings(workers=1))\n"
        "open(sys.argv[1], 'w').write(str(report.uploaded))"
    )
    command = ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", program, str(tmp_path / "uploaded")]
    assert subprocess.run(command, check=False).returncode == 0
    assert (tmp_path / "uploaded").read_text() == "1"
