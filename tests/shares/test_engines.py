"""The engines that run the parts of a plan: each part is committed once, also if a process or a node dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import tempfile
import time
from contextlib import aclosing
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.plans.manifests import read_footer, read_rows
from async_maps.plans.planning import aplan
from async_maps.report.ending import DONE, STOPPED_EARLY
from async_maps.shares import ray as ray_engine
from async_maps.shares.engine import LocalEngine, Work
from async_maps.shares.part import PartDone
from async_maps.shares.share import arun_plan
from tests.support.commands import start
from tests.support.held_parts import HeldParts
from tests.support.maps import random_map
from tests.support.processes import alive, worker_pids_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Iterator

    from async_maps.plans.document import Plan
    from async_maps.shares.engine import Engine, PartOutcome

# Ray leaves sockets to the garbage collector.
pytestmark = [pytest.mark.filterwarnings("ignore::ResourceWarning"), pytest.mark.timeout(600)]

SETTINGS = am.Settings(workers=0)
NODE = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
PARTS, MAPS = 8, 40
_WITH_RAY = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray")


@pytest.fixture(scope="module")
def held() -> Iterator[HeldParts]:
    """Control of the parts in all processes that start from now on."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        yield HeldParts(Path(folder) / "held", patch)


@pytest.fixture(scope="module")
def cluster(held: HeldParts) -> Iterator[Any]:
    """A Ray cluster of two nodes with one CPU each."""
    before = set(worker_pids_of(os.getpid()))
    # The names of sockets have at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        for name, value in ray_engine.VARIABLES.items():
            patch.setenv(name, value)
        made = import_module("ray.cluster_utils").Cluster(initialize_head=True, head_node_args=NODE)
        try:
            made.add_node(**{name: NODE[name] for name in ("num_cpus", "object_store_memory")})
            yield made
        finally:
            made.shutdown()
    assert {pid for pid in worker_pids_of(os.getpid()) if alive(pid)} <= before


@pytest.fixture(params=["local", pytest.param("ray", marks=[_WITH_RAY, pytest.mark.long])])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine."""
    if request.param == "local":
        return LocalEngine()
    found: Engine = request.getfixturevalue("ray_of_cluster")
    return found


@pytest.fixture
def ray_of_cluster(cluster: Any) -> Engine:
    """The engine of the cluster."""
    return ray_engine.RayEngine(cluster.address)


@pytest.fixture
async def plan(maps: Path, tmp_path: Path) -> Plan:
    """A plan of 40 maps in 8 parts."""
    for i in range(MAPS):
        np.save(maps / f"{i:02}.npy", random_map(i))
    return await aplan(maps, tmp_path / "out", tmp_path / "plan", part_size=MAPS // PARTS)


async def parts() -> AsyncGenerator[int, None]:
    for part in range(1, PARTS + 1):
        yield part


async def run(engine: Engine, place: Path) -> list[PartOutcome]:
    async with aclosing(engine.run(Work(str(place), SETTINGS), parts(), 2)) as outcomes:
        return [outcome async for outcome in outcomes]


def check(place: Path, missing: Collection[int] = ()) -> dict[str, str]:
    """Check that each part has one manifest, and each map of it one row; return the reasons of failed maps by name."""
    rows: list[tuple[Any, ...]] = []
    manifests = sorted(place.rglob("done/*"))
    footers = [read_footer(path.read_bytes(), path.name) for path in manifests]
    assert [footer.part for footer in footers] == [part for part in range(1, PARTS + 1) if part not in missing]
    for path in manifests:
        rows += read_rows(path.read_bytes(), path.name)
    assert len(rows) == len({row[0] for row in rows}) == MAPS - len(missing) * MAPS // PARTS
    stored = {row[0] for row in rows if row[2] == "done"}
    assert {path.stem for path in (place.parent / "out").glob("*.png")} == stored
    return {row[0]: row[11] for row in rows if row[2] == "failed"}


def start_driver(engine: Engine, place: Path, number: int) -> subprocess.Popen[str]:
    """Start the command that runs the plan."""
    options = ["--workers", "0"]
    if isinstance(engine, ray_engine.RayEngine):
        options = ["--engine", "ray", *(["--address", engine._address] if engine._address else [])]
    return start("run", "--plan", place, "--report", report_of(place, number), "--progress", "none", *options)


def report_of(place: Path, number: int) -> Path:
    """The report of a driver."""
    return place.with_name(f"{number}.json")


@pytest.mark.usefixtures("plan")
async def test_each_part_is_committed_once(tmp_path: Path) -> None:
    await check_run(LocalEngine(), tmp_path)


@pytest.mark.slow
@_WITH_RAY
@pytest.mark.usefixtures("plan")
async def test_ray_commits_each_part_once(ray_of_cluster: Engine, tmp_path: Path) -> None:
    await check_run(ray_of_cluster, tmp_path)


async def check_run(engine: Engine, tmp_path: Path) -> None:
    outcomes = await run(engine, tmp_path / "plan")
    assert sorted(outcome.part for outcome in outcomes) == list(range(1, PARTS + 1))
    for outcome in outcomes:
        assert isinstance(outcome, PartDone)
        assert outcome[1:4] == (True, MAPS // PARTS, 0)
    assert not check(tmp_path / "plan")


@pytest.mark.long
@_WITH_RAY
async def test_a_part_whose_process_always_dies_fails_alone(
    cluster: Any, held: HeldParts, plan: Plan, tmp_path: Path
) -> None:
    held.hold(plan.id, 3, what="die")
    report = await arun_plan(tmp_path / "plan", settings=SETTINGS, engine="ray", address=cluster.address)
    held.release(plan.id)
    assert report.unfinished == {3: "its process died 3 times, perhaps of one of its maps"}
    assert (report.exit_code, report.uploaded) == (STOPPED_EARLY, MAPS - MAPS // PARTS)
    assert "not finished: part 3: its process died 3 times" in report.summary()
    assert [part for part, _, _ in held.starts(plan.id)].count(3) == 3
    assert not check(tmp_path / "plan", missing={3})


@pytest.mark.long
@_WITH_RAY
async def test_a_map_that_kills_its_process_fails_by_name(
    cluster: Any, held: HeldParts, plan: Plan, tmp_path: Path
) -> None:
    # The map 07 is in part 2. What a map kills first is the process of the task, which has no workers.
    held.hold(plan.id, 2, what="die once")
    held.kill_at(plan.id, tmp_path / "maps" / "07.npy")
    report = await arun_plan(tmp_path / "plan", settings=SETTINGS, engine="ray", address=cluster.address)
    held.release(plan.id)
    assert (report.exit_code, report.uploaded, report.failed, report.unfinished) == (DONE, MAPS - 1, 1, {})
    (name, reason), *others = check(tmp_path / "plan").items()
    assert (name, others) == ("07", [])
    assert reason.startswith("a worker process was killed by signal 9")
    assert [part for part, _, _ in held.starts(plan.id)].count(2) == 2


@pytest.mark.long
@_WITH_RAY
async def test_a_part_whose_process_is_killed_is_started_again(
    ray_of_cluster: Engine, held: HeldParts, plan: Plan, tmp_path: Path
) -> None:
    held.hold(plan.id, *range(1, PARTS + 1))
    running = asyncio.create_task(run(ray_of_cluster, tmp_path / "plan"))
    (part, pid, _), _ = await asyncio.to_thread(held.wait_for, plan.id, 2)
    os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(held.wait_for, plan.id, 3)
    held.release(plan.id)
    assert all(isinstance(outcome, PartDone) for outcome in await running)
    assert not check(tmp_path / "plan")
    starts = [part for part, _, _ in held.starts(plan.id)]
    assert sorted(starts) == sorted([*range(1, PARTS + 1), part])


@pytest.mark.long
@_WITH_RAY
async def test_closing_the_engine_cancels_the_parts_that_run(
    ray_of_cluster: Engine, held: HeldParts, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "_END_S", 1.0)
    held.hold(plan.id, *range(1, PARTS + 1))
    running = asyncio.create_task(run(ray_of_cluster, tmp_path / "plan"))
    starts = await asyncio.to_thread(held.wait_for, plan.id, 2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    while any(alive(pid) for _, pid, _ in starts):
        time.sleep(0.02)  # noqa: ASYNC251  # nothing else runs on the loop
    held.release(plan.id)
    assert not [*(tmp_path / "plan").rglob("done/*")]


@pytest.mark.long
async def test_a_second_driver_completes_what_a_killed_one_has_begun(
    engine: Engine, held: HeldParts, plan: Plan, tmp_path: Path
) -> None:
    held.hold(plan.id, 3, 4)
    with start_driver(engine, tmp_path / "plan", 1) as driver:
        await asyncio.to_thread(held.wait_until, lambda: {3, 4} <= {part for part, _, _ in held.starts(plan.id)})
        driver.kill()
    held.release(plan.id)
    outcomes = await run(engine, tmp_path / "plan")
    assert sorted(outcome.part for outcome in outcomes) == list(range(1, PARTS + 1))
    assert all(isinstance(outcome, PartDone) for outcome in outcomes)
    assert not check(tmp_path / "plan")


@pytest.mark.long
async def test_two_drivers_commit_each_part_once(engine: Engine, held: HeldParts, plan: Plan, tmp_path: Path) -> None:
    held.hold(plan.id, 3)
    drivers = [start_driver(engine, tmp_path / "plan", number) for number in (1, 2)]
    # Until both run the same part.
    await asyncio.to_thread(held.wait_until, lambda: [part for part, _, _ in held.starts(plan.id)].count(3) == 2)
    held.release(plan.id)
    ends = await asyncio.gather(*(asyncio.to_thread(driver.communicate) for driver in drivers))
    assert [driver.returncode for driver in drivers] == [DONE, DONE], ends
    first, second = (json.loads(report_of(tmp_path / "plan", number).read_bytes()) for number in (1, 2))
    assert sorted([*first["committed"], *second["committed"]]) == list(range(1, PARTS + 1))
    assert not check(tmp_path / "plan")


@pytest.mark.long
@_WITH_RAY
async def test_a_node_that_dies_costs_its_running_parts_only(
    cluster: Any, ray_of_cluster: Engine, held: HeldParts, plan: Plan, tmp_path: Path
) -> None:
    held.hold(plan.id, *range(1, PARTS + 1))
    running = asyncio.create_task(run(ray_of_cluster, tmp_path / "plan"))
    first = await asyncio.to_thread(held.wait_for, plan.id, 2)
    node = cluster.worker_nodes.copy().pop()
    raylet = node.all_processes["raylet"][0].process.pid
    (lost,) = [part for part, _, parent in first if parent == raylet]
    await asyncio.to_thread(cluster.remove_node, node, allow_graceful=False)
    held.release(plan.id)
    assert all(isinstance(outcome, PartDone) for outcome in await running)
    assert not check(tmp_path / "plan")
    starts = [part for part, _, _ in held.starts(plan.id)]
    # The dying node may start it once more.
    assert {part for part in starts if starts.count(part) > 1} == {lost}
    cluster.add_node(**{name: NODE[name] for name in ("num_cpus", "object_store_memory")})


@pytest.mark.long
@_WITH_RAY
def test_parts_that_are_killed_for_their_memory_are_not_started_for_ever(
    held: HeldParts, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.hold(plan.id, *range(1, PARTS + 1))
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        monkeypatch.setenv("RAY_memory_usage_threshold", "0.01")
        monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
        with start_driver(ray_engine.RayEngine(), tmp_path / "plan", 1) as driver:
            driver.communicate()
    held.release(plan.id)
    assert driver.returncode == STOPPED_EARLY
    report = json.loads(report_of(tmp_path / "plan", 1).read_bytes())
    assert len(report["unfinished"]) == PARTS
    assert all(reason.startswith("Ray killed its process, as the memory") for reason in report["unfinished"].values())
