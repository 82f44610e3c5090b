"""The engines that run the parts of a plan: each part is committed once, whatever dies."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
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
from async_maps.shares import ray as ray_engine
from async_maps.shares.engine import LocalEngine, Work
from async_maps.shares.part import PartDone, PartFailed
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
        for name, value in ray_engine._VARIABLES.items():
            patch.setenv(name, value)
        made = import_module("ray.cluster_utils").Cluster(initialize_head=True, head_node_args=NODE)
        try:
            made.add_node(**{name: NODE[name] for name in ("num_cpus", "object_store_memory")})
            yield made
        finally:
            made.shutdown()
    assert {pid for pid in worker_pids_of(os.getpid()) if alive(pid)} <= before


@pytest.fixture(params=["local", pytest.param("ray", marks=_WITH_RAY)])
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


def check(place: Path, missing: Collection[int] = ()) -> None:
    """Check that each part has one manifest, and each map of it one row that is done."""
    names = []
    manifests = sorted(place.rglob("done/*"))
    footers = [read_footer(path.read_bytes(), path.name) for path in manifests]
    assert [footer.part for footer in footers] == [part for part in range(1, PARTS + 1) if part not in missing]
    for path in manifests:
        rows = [*read_rows(path.read_bytes(), path.name)]
        assert {row[2] for row in rows} == {"done"}
        names += [row[0] for row in rows]
    assert len(names) == len(set(names)) == MAPS - len(missing) * MAPS // PARTS
    assert len(list((place.parent / "out").glob("*.png"))) == len(names)


def start_driver(engine: Engine, place: Path) -> subprocess.Popen[str]:
    """Start a process that runs the plan."""
    address = getattr(engine, "_address", None)
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from tests.shares.test_engines import LocalEngine, ray_engine, run\n"
        f"engine = ray_engine.RayEngine({address!r}) if {address!r} else LocalEngine()\n"
        f"print(*asyncio.run(run(engine, Path({str(place)!r}))), sep='\\n')\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
async def test_each_part_is_committed_once(engine: Engine, plan: Plan, tmp_path: Path) -> None:
    outcomes = await run(engine, tmp_path / "plan")
    assert sorted(outcomes) == [PartDone(part, is_ours=True, uploaded=5) for part in range(1, PARTS + 1)]
    check(tmp_path / "plan")


@pytest.mark.slow
@_WITH_RAY
async def test_a_part_whose_process_always_dies_fails_alone(
    ray_of_cluster: Engine, held: HeldParts, plan: Plan, tmp_path: Path
) -> None:
    held.hold(plan.id, 3, what="die")
    outcomes = await run(ray_of_cluster, tmp_path / "plan")
    held.release(plan.id)
    failed = [outcome for outcome in outcomes if isinstance(outcome, PartFailed)]
    assert failed == [PartFailed(3, "its process died 3 times, perhaps of one of its maps")]
    assert [part for part, _, _ in held.starts(plan.id)].count(3) == 3
    check(tmp_path / "plan", missing={3})


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
    check(tmp_path / "plan")
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
    with start_driver(engine, tmp_path / "plan") as driver:
        while len(list((tmp_path / "plan").rglob("done/*"))) < 2 or len(held.starts(plan.id)) < 4:
            time.sleep(0.02)  # noqa: ASYNC251  # nothing else runs on the loop
        driver.kill()
    held.release(plan.id)
    outcomes = await run(engine, tmp_path / "plan")
    assert sorted(outcome.part for outcome in outcomes) == list(range(1, PARTS + 1))
    assert all(isinstance(outcome, PartDone) for outcome in outcomes)
    assert sum(isinstance(outcome, PartDone) and outcome.is_ours for outcome in outcomes) == PARTS - 2
    check(tmp_path / "plan")


@pytest.mark.long
async def test_two_drivers_commit_each_part_once(engine: Engine, held: HeldParts, plan: Plan, tmp_path: Path) -> None:
    # Both have started the first parts before one goes on.
    held.hold(plan.id, 1, 2)
    drivers = [start_driver(engine, tmp_path / "plan") for _ in range(2)]
    await asyncio.to_thread(held.wait_for, plan.id, 2)
    held.release(plan.id)
    ends = await asyncio.gather(*(asyncio.to_thread(driver.communicate) for driver in drivers))
    assert [driver.returncode for driver in drivers] == [0, 0]
    text = "".join(output for output, _ in ends)
    for part in range(1, PARTS + 1):
        assert text.count(f"PartDone(part={part}, is_ours=True") == 1
        assert text.count(f"PartDone(part={part}, ") == 2
    check(tmp_path / "plan")


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
    check(tmp_path / "plan")
    starts = [part for part, _, _ in held.starts(plan.id)]
    # The dying node may start it once more.
    assert {part for part in starts if starts.count(part) > 1} == {lost}
    cluster.add_node(**{name: NODE[name] for name in ("num_cpus", "object_store_memory")})
