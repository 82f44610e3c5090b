from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import uvloop

from async_maps.concurrency.loop import run_loop

if TYPE_CHECKING:
    from pathlib import Path


async def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def test_it_is_uvloops_where_that_is_installed() -> None:
    assert isinstance(run_loop(_loop()), uvloop.Loop)


@pytest.mark.parametrize("standard", [0, 1, 2])
def test_a_standard_file_that_is_closed_is_too_much_for_libuv(standard: int, tmp_path: Path) -> None:
    program = (
        "import asyncio, sys; from async_maps.concurrency.loop import run_loop\n"
        "async def main(): return type(asyncio.get_running_loop()).__module__\n"
        "name = run_loop(main())\n"
        "open(sys.argv[1], 'w').write(name)"
    )
    command = ["/bin/sh", "-c", f'exec "$@" {standard}>&-', "sh", sys.executable, "-c", program, str(tmp_path / "loop")]
    assert subprocess.run(command, check=False).returncode == 0
    assert (tmp_path / "loop").read_text().startswith("asyncio")


def test_without_it_it_is_asyncios_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    loop = run_loop(_loop())
    assert not isinstance(loop, uvloop.Loop)
    assert loop.is_closed()
