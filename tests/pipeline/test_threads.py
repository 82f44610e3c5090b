"""Runs in several threads at the same time, each with its own event loop and worker processes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import async_maps as am
from tests.support.leftovers import leaves_nothing
from tests.support.maps import random_map

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

RUNS = 6


@pytest.mark.timeout(600)
@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.long)])
def test_six_threads_can_start_workers_at_the_same_time(rounds: int) -> None:
    # Two uvloop event loops that start a process at the same moment fail: "Racing with another loop".
    pytest.importorskip("uvloop")
    together = threading.Barrier(RUNS)
    maps = [(f"{n}", random_map(n)) for n in range(5)]

    def one(_: int) -> int:
        together.wait()
        return am.run(maps, am.MemoryStore(), settings=am.Settings(workers=1)).uploaded

    with ThreadPoolExecutor(RUNS) as threads:
        for _ in range(rounds):
            assert list(threads.map(one, range(RUNS))) == [len(maps)] * RUNS
