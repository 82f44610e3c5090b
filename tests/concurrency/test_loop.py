"""Event loops for synchronous callers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from anyio import CancelScope

from async_maps.concurrency.loop import run_blocking

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.fast]


async def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def test_the_loop_is_uvloop_when_installed() -> None:
    uvloop = pytest.importorskip("uvloop")
    assert isinstance(run_blocking(_loop), uvloop.Loop)


def test_the_loop_is_asyncio_without_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    loop = run_blocking(_loop)
    assert type(loop).__module__.startswith("asyncio")
    assert loop.is_closed()


@pytest.mark.runs
@pytest.mark.parametrize("standard", [0, 1, 2])
def test_uvloop_is_not_used_when_a_standard_file_is_closed(standard: int, tmp_path: Path) -> None:
    program = (
        "import asyncio, sys; from async_maps.concurrency.loop import run_blocking\n"
        "async def main(): return type(asyncio.get_running_loop()).__module__\n"
        "name = run_blocking(main)\n"
        "open(sys.argv[1], 'w').write(name)"
    )
    command = ["/bin/sh", "-c", f'exec "$@" {standard}>&-', "sh", sys.executable, "-c", program, str(tmp_path / "loop")]
    assert subprocess.run(command, check=False).returncode == 0
    assert (tmp_path / "loop").read_text().startswith("asyncio")


def test_an_error_is_raised_in_the_caller() -> None:
    async def fail() -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        run_blocking(fail)


async def test_run_blocking_uses_another_loop_and_blocks_the_running_one() -> None:
    ours = asyncio.get_running_loop()
    ticked = False

    def tick() -> None:
        nonlocal ticked
        ticked = True

    ours.call_soon(tick)
    assert run_blocking(_loop) is not ours
    assert not ticked
    await asyncio.sleep(0)
    assert ticked


def test_an_interrupt_cancels_the_coroutine_and_waits_for_its_end() -> None:
    ended = threading.Event()

    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            with CancelScope(shield=True):
                await asyncio.sleep(0.01)
            ended.set()

    with pytest.raises(KeyboardInterrupt):
        run_blocking(work)
    assert ended.is_set()


def test_an_interrupt_while_the_loop_starts_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    main, began, ended = threading.main_thread().ident or 0, False, threading.Event()

    def make() -> asyncio.AbstractEventLoop:
        # The main thread waits for the loop.
        ended.wait(0.2)
        signal.pthread_kill(main, signal.SIGINT)
        ended.wait(0.2)
        return asyncio.new_event_loop()

    async def work() -> None:
        nonlocal began
        began = True

    def stop_waiting() -> None:
        signal.pthread_kill(main, signal.SIGINT)
        ended.set()

    monkeypatch.setattr("async_maps.concurrency.loop.fastest_loop", lambda: make)
    hanging = threading.Timer(10, stop_waiting)
    hanging.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_blocking(work)
    finally:
        hanging.cancel()
    assert not began
    assert not ended.is_set()
