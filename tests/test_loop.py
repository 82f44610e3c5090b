from __future__ import annotations

import asyncio
import sys

import pytest
import uvloop

from async_maps.loop import run_loop


async def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def test_it_is_uvloops_where_that_is_installed() -> None:
    assert isinstance(run_loop(_loop()), uvloop.Loop)


def test_without_it_it_is_asyncios_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    loop = run_loop(_loop())
    assert not isinstance(loop, uvloop.Loop)
    assert loop.is_closed()
