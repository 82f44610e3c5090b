"""A worker that is launched before the libraries of the program: the first pipeline takes it, else it is killed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

import async_maps as am
from async_maps.stores import open_store
from async_maps.workers import early
from async_maps.workers.early import early_worker, take_early_worker
from tests.support.commands import invoke
from tests.support.leftovers import leaves_nothing
from tests.support.maps import random_map
from tests.support.processes import alive, hook, worker_pids_of

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from typing import Any

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)


def new_workers(before: set[int]) -> list[int]:
    """Return the workers of this process that were not there before, as those of other tests."""
    return [pid for pid in worker_pids_of(os.getpid()) if pid not in before]


@pytest.fixture
def before() -> set[int]:
    """The workers before the test."""
    return set(worker_pids_of(os.getpid()))


async def test_the_first_pipeline_takes_the_early_worker(before: set[int], tmp_path: Path) -> None:
    with early_worker():
        (pid,) = new_workers(before)
        async with am.Pipeline(tmp_path / "out", settings=am.Settings(workers=2)) as pipeline:
            workers = new_workers(before)
            assert len(workers) == 2
            assert pid in workers
            await asyncio.gather(*[pipeline.put(f"{number}", random_map(number)) for number in range(8)])
        assert not alive(pid)
        async with am.Pipeline(tmp_path / "out", settings=am.Settings(workers=1)) as pipeline:
            await pipeline.put("again", random_map(1))
    assert len([*(tmp_path / "out").iterdir()]) == 9


async def test_an_early_worker_that_died_is_replaced(before: set[int], tmp_path: Path) -> None:
    with early_worker():
        (pid,) = new_workers(before)
        os.kill(pid, 9)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222  # it is dead
        async with am.Pipeline(tmp_path / "out", settings=am.Settings(workers=1)) as pipeline:
            await pipeline.put("a", random_map(1))


async def test_a_pipeline_without_processes_ends_the_early_worker(before: set[int], tmp_path: Path) -> None:
    with early_worker():
        (pid,) = new_workers(before)
        async with am.Pipeline(tmp_path / "out", settings=am.Settings(workers=0)):
            assert not alive(pid)


def test_an_early_worker_that_is_not_taken_is_killed(before: set[int]) -> None:
    with early_worker():
        (pid,) = new_workers(before)
    assert not alive(pid)
    assert take_early_worker() is None


async def test_workers_are_launched_before_the_store_opens(
    before: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[list[int]] = []

    def opened(*arguments: Any) -> AbstractAsyncContextManager[Any]:
        found.append(new_workers(before))
        return open_store(*arguments)

    monkeypatch.setattr("async_maps.pipeline.open_store", opened)
    async with am.Pipeline(tmp_path / "out", settings=am.Settings(workers=2)):
        assert found == [new_workers(before)]
    assert len(found[0]) == 2


HOOK = """
import os, sys
from pathlib import Path

class Finder:
    def find_spec(name, path, target=None):
        if name in {"cyclopts", "numpy", "botocore"} and "async_maps.cli" in sys.modules:
            tasks = Path("/proc/self/task").iterdir()
            children = [child for task in tasks for child in (task / "children").read_text().split()]
            print(name, *children, file=sys.stderr)

sys.meta_path.insert(0, Finder)
"""


@pytest.mark.parametrize(("more", "code"), [((), 0), (("--nonsense",), 2)])
def test_a_run_launches_its_worker_before_its_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", random_map(1))
    hook(tmp_path / "hook", monkeypatch, HOOK)
    command = [sys.executable, "-m", "async_maps", "run", "a.npy", "out", *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    children = dict(line.split() for line in done.stderr.splitlines() if line.startswith(("cyclopts", "numpy")))
    assert children["cyclopts"] == children["numpy"]
    assert not alive(int(children["numpy"]))


@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        "run --help",
        "run a.npy out --dry-run",
        "run a.npy out --workers 0",
        "run a.npy out --workers=0",
        "run --plan nowhere --part 1/2",
        "doctor out --quick",
        "verify nowhere.sqlite",
    ],
)
def test_commands_that_need_no_worker_launch_none_early(
    arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("launched")

    monkeypatch.chdir(tmp_path)
    np.save("a.npy", random_map(1))
    monkeypatch.setattr(early, "launch_connected", refuse)
    assert invoke(*arguments.split()) in {0, 2, 4}


COLLECTS = """
import gc, os, sys

def look(event, arguments):
    if event == "open" and str(arguments[0]).endswith("a.npy"):
        print("collects", os.getpid(), gc.isenabled(), gc.get_freeze_count() > 0, file=sys.stderr)

sys.addaudithook(look)
"""


@pytest.mark.parametrize(("more", "processes"), [((), 2), (("--dry-run",), 1)])
def test_processes_collect_garbage_again_after_their_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], processes: int
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", random_map(1))
    hook(tmp_path / "hook", monkeypatch, COLLECTS)
    command = [sys.executable, "-m", "async_maps", "run", "a.npy", "out", *more]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = [line.split()[1:] for line in done.stderr.splitlines() if line.startswith("collects")]
    assert {(is_enabled, is_frozen) for _, is_enabled, is_frozen in found} == {("True", "True")}
    assert len({pid for pid, *_ in found}) == processes
