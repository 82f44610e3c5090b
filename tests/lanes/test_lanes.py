"""Lanes: what becomes of maps when one dies, and that nothing stands still."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from contextlib import aclosing
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from anyio import to_thread

import async_maps as am
from async_maps.concurrency.interpreter import Interpreter, StartError
from async_maps.lanes import lanes as lanes_module
from tests.support.commands import done_rows, invoke, start
from tests.support.leftovers import leaves_nothing
from tests.support.maps import decode, random_map
from tests.support.pipelines import lane_pids, until
from tests.support.processes import alive, hook, kill_at_opening, worker_pids_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

TWO = am.Settings(workers=0, processes=2)


def save(maps: Path, count: int) -> None:
    for i in range(count):
        np.save(maps / f"{i:04}.npy", random_map(i, (12, 16)))


def check_overlays(folder: Path, count: int) -> None:
    assert sorted(path.stem for path in folder.glob("*.png")) == [f"{i:04}" for i in range(count)]
    for i in range(count):
        expected = am.colorize_activation_map(random_map(i, (12, 16)))
        assert np.array_equal(decode((folder / f"{i:04}.png").read_bytes()), expected)


@pytest.mark.slow
async def test_killed_lanes_lose_no_map(maps: Path, tmp_path: Path) -> None:
    count, rng = 2_000, random.Random(5)  # noqa: S311  # seeded on purpose
    save(maps, count)
    killed: set[int] = set()
    seen: list[am.Statistics] = []
    async with am.Pipeline(tmp_path / "out", settings=TWO) as pipeline:
        running = asyncio.create_task(pipeline.run(maps, manifest=tmp_path / "m.sqlite"))
        while not running.done():
            now = pipeline.statistics()
            # A killed process may be there for a while, and one that has just been started is no lane yet.
            running_lanes = {lane.pid for lane in now.lanes if lane.pid is not None} - killed
            if len(killed) < 3 and now.uploaded > 300 * len(killed) and running_lanes:
                pid = rng.choice(sorted(running_lanes))
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            await asyncio.wait({running}, timeout=0.005)
            seen.append(pipeline.statistics())
        report = await running
    assert len(killed) == 3
    assert (report.uploaded, report.failed) == (count, 0)
    # No counter goes back, and they add up, also at the end.
    seen.append(pipeline.statistics())
    for before, after in pairwise(seen):
        assert all(after.stages[name].maps >= stage.maps for name, stage in before.stages.items())
        done = {lane.name: lane.done for lane in after.lanes}
        assert all(done[lane.name] >= lane.done for lane in before.lanes)
        assert after.upload_limit >= 1
    last = seen[-1]
    assert sum(lane.done for lane in last.lanes) == last.uploaded == count
    assert sum(lane.restarts for lane in last.lanes) == 3
    assert {(lane.pid, lane.in_flight, lane.waits_for) for lane in last.lanes} == {(None, 0, "")}
    assert min(last.colorize.maps, last.encode.maps, last.upload.maps) >= count
    assert (last.upload.workers, last.upload_limit) == (32, 32)
    check_overlays(tmp_path / "out", count)


@pytest.mark.slow
async def test_a_map_that_kills_its_lane_fails_alone(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at_opening("/0050.npy", tmp_path / "hook", monkeypatch)
    save(maps, 100)
    async with am.Pipeline(tmp_path / "out", settings=TWO) as pipeline:
        report = await pipeline.run(maps)
        lanes = {lane.name: lane for lane in pipeline.statistics().lanes}
    assert (report.uploaded, report.failed) == (99, 1)
    assert sum(lane.done for lane in lanes.values()) == 100
    assert lanes["1"].restarts + lanes["2"].restarts == 1
    assert lanes["quarantine"].restarts == 2
    failure = report.failures[0]
    assert (failure.name, failure.stage, failure.maybe_stored) == ("0050", "colorize", True)
    assert failure.reason == (
        "the process of a lane was killed by signal 9 (out of memory?) each time it processed this map"
    )
    assert len(list((tmp_path / "out").glob("*.png"))) == 99


@pytest.mark.slow
async def test_lanes_that_cannot_start_end_the_run(maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hook(
        tmp_path / "hook",
        monkeypatch,
        "import os, signal, sys\n"
        "if any('lanes.child' in argument for argument in sys.orig_argv):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n",
    )
    save(maps, 3)
    with pytest.raises(am.WorkerError) as caught:
        async with am.Pipeline(tmp_path / "out", settings=TWO) as pipeline:
            await pipeline.run(maps)
    assert str(caught.value) == (
        "the process of a lane was killed by signal 9 (out of memory?) when it was started, 12 times in a row; "
        "set fewer processes, which need less memory"
    )


async def test_ordered_outcomes_of_lanes_keep_the_order(maps: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(lanes_module, "_WINDOW_OF_A_LANE", 3)
    save(maps, 200)
    async with (
        am.Pipeline(tmp_path / "out", settings=TWO.model_copy(update={"processes": 3})) as pipeline,
        aclosing(pipeline.stream(maps, ordered=True)) as outcomes,
    ):
        names = [outcome.name async for outcome in outcomes]
    assert names == [f"{i:04}" for i in range(200)]


@pytest.mark.long
async def test_seventeen_lanes_with_tiny_windows_do_not_stand_still(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes_module, "_WINDOW_OF_A_LANE", 2)
    monkeypatch.setattr(lanes_module, "WINDOW", 40)
    save(maps, 300)
    settings = TWO.model_copy(update={"processes": 17})
    async with (
        am.Pipeline(tmp_path / "out", settings=settings) as pipeline,
        aclosing(pipeline.stream(maps, ordered=True)) as outcomes,
    ):
        names = [outcome.name async for outcome in outcomes]
        assert len(lane_pids()) == 17
    assert names == [f"{i:04}" for i in range(300)]


async def test_a_lone_map_in_memory_starts_no_lane(tmp_path: Path) -> None:
    async with am.Pipeline(tmp_path / "out", settings=TWO) as pipeline:
        receipt = await pipeline.put("a", random_map(1))
        assert receipt.name == "a"
        assert lane_pids() == []


async def test_a_lone_file_is_not_held_back(maps: Path, tmp_path: Path) -> None:
    save(maps, 1)
    async with am.Pipeline(tmp_path / "out", settings=TWO) as pipeline:
        for _ in range(3):
            report = await pipeline.run(maps)
            assert report.uploaded == 1


async def test_a_cancelled_run_leaves_no_lane(maps: Path, tmp_path: Path) -> None:
    save(maps, 400)

    async def run() -> None:
        async with am.Pipeline(tmp_path / "out", settings=TWO) as pipeline:
            await pipeline.run(maps)

    running = asyncio.create_task(run())
    await until(lambda: len(lane_pids()) == 2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert lane_pids() == []


async def test_statistics_add_up_the_lanes(maps: Path, tmp_path: Path) -> None:
    save(maps, 300)
    async with am.Pipeline(tmp_path / "out", settings=TWO) as pipeline:
        report = await pipeline.run(maps)
        await pipeline.put("in memory", random_map(1))
        found, pids = pipeline.statistics(), lane_pids()
    for stage in (found.colorize, found.encode, found.upload):
        assert stage.maps == 301
    assert found.uploaded == 301
    assert [lane.name for lane in found.lanes] == ["1", "2"]
    assert sum(lane.done for lane in found.lanes) == 300
    assert {(lane.in_flight, lane.waits_for, lane.restarts) for lane in found.lanes} == {(0, "maps", 0)}
    assert {lane.pid for lane in found.lanes} == set(pids)
    assert report.statistics is not None
    assert report.statistics.upload.maps == 300
    assert report.statistics.upload.workers == report.statistics.upload_limit == 32


async def test_memory_destinations_have_no_lanes(maps: Path) -> None:
    save(maps, 3)
    async with am.Pipeline("memory://", settings=TWO) as pipeline:
        assert (await pipeline.run(maps)).uploaded == 3
        assert lane_pids() == []


def _tree(pid: int) -> list[int]:
    own = worker_pids_of(pid)
    return own + [below for child in own for below in _tree(child)]


@pytest.mark.slow
async def test_lanes_and_their_workers_end_when_the_parent_is_killed(maps: Path, tmp_path: Path) -> None:
    save(maps, 3000)
    manifest = tmp_path / "m.sqlite"
    command = ("run", maps, tmp_path / "out", "--progress", "none", "--processes", 2, "--manifest", manifest)
    running = start(*command, "--workers", 2)
    await until(lambda: done_rows(str(manifest)) > 0)
    pids = _tree(running.pid)
    assert len(pids) >= 4, "two lanes with a worker each"
    running.kill()
    running.communicate()
    await until(lambda: not any(map(alive, pids)))
    again = start(*command, "--workers", 0)
    assert (await to_thread.run_sync(again.communicate))[1].count("Traceback") == 0
    assert again.returncode == 0
    check_overlays(tmp_path / "out", 3000)


@pytest.mark.slow
async def test_maps_of_a_killed_lane_are_its_own_under_create_only(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The lane dies when it has written the file, and before it can say so.
    hook(
        tmp_path / "hook",
        monkeypatch,
        "import os, signal, sys\n"
        f"died = {str(tmp_path / 'died')!r}\n"
        "def deadly(event, arguments):\n"
        "    if event == 'os.remove' and '.async-maps-' in str(arguments[0]) and not os.path.exists(died):\n"
        "        open(died, 'x').close()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(deadly)\n",
    )
    save(maps, 40)
    settings = am.Settings(workers=0, processes=2, if_exists="error")
    async with am.Pipeline(tmp_path / "out", settings=settings) as pipeline:
        report = await pipeline.run(maps)
    assert (tmp_path / "died").exists()
    assert (report.uploaded, report.failed) == (40, 0), report.failures
    check_overlays(tmp_path / "out", 40)


@pytest.mark.slow
def test_the_command_with_lanes_is_drained_by_a_signal(maps: Path, tmp_path: Path) -> None:
    save(maps, 3000)
    manifest, out = tmp_path / "m.sqlite", tmp_path / "out"
    command = ("run", maps, out, "--progress", "json", "--workers", 0, "--processes", 2, "--manifest", manifest)
    # Otherwise all maps are stored before the signal, on a fast machine, or on one that stands still meanwhile.
    running = start(*command, "--rate", 300)
    while not done_rows(str(manifest)):
        assert running.poll() is None
        time.sleep(0.02)
    lanes = worker_pids_of(running.pid)
    assert lanes
    for lane in lanes:
        # Service managers send them to all processes; only the parent decides when to stop.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(lane, number)
    running.send_signal(signal.SIGTERM)
    _, lines = running.communicate(timeout=100)
    assert running.returncode == 143
    done = done_rows(str(manifest))
    assert 0 < done < 3000
    assert len(list(out.glob("*.png"))) == done
    last = json.loads(lines.splitlines()[-1])
    assert last["report"]["uploaded"] == done
    assert last["report"]["statistics"]["upload"]["maps"] == done
    assert invoke(*command[:3], "--progress", "none", "--workers", 0, "--processes", 2, "--manifest", manifest) == 0
    check_overlays(out, 3000)


@pytest.mark.slow
async def test_a_suspect_of_a_pipeline_that_closes_has_an_outcome(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at_opening("/0000.npy", tmp_path / "hook", monkeypatch)
    save(maps, 1)
    async with am.Pipeline(tmp_path / "out", settings=TWO) as pipeline, aclosing(pipeline.stream(maps)) as outcomes:
        first = asyncio.ensure_future(anext(outcomes))
        await until(lambda: pipeline.statistics().in_flight == 1)
        first.cancel()
        await asyncio.wait({first})
    # No lane has maps anymore when the map is tried again.
    assert pipeline.statistics().failed == 1


@pytest.mark.slow
async def test_the_room_of_a_dead_lane_is_used(maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each lane dies with its first map, while the caller waits for room, which no outcome makes.
    monkeypatch.setattr(lanes_module, "_WINDOW_OF_A_LANE", 1)
    hook(
        tmp_path / "hook",
        monkeypatch,
        "import os, signal, sys\n"
        f"died = {str(tmp_path / 'died')!r}\n"
        "def deadly(event, arguments):\n"
        "    if event == 'open' and '.async-maps-' in str(arguments[0]) and len(os.listdir(died)) < 2:\n"
        "        open(os.path.join(died, str(os.getpid())), 'x').close()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "if any('lanes.child' in argument for argument in sys.orig_argv):\n"
        "    sys.addaudithook(deadly)\n",
    )
    (tmp_path / "died").mkdir()
    np.savez(maps / "a.npz", *map(random_map, range(3)))
    async with am.Pipeline(tmp_path / "out", settings=TWO) as pipeline:
        report = await pipeline.run(maps)
    assert len(list((tmp_path / "died").iterdir())) == 2
    assert (report.uploaded, report.failed) == (3, 0)


@pytest.mark.slow
async def test_lanes_killed_by_many_maps_in_a_row_are_started_again(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each map kills its lane, so no outcome shows that the lanes could be started.
    monkeypatch.setattr(lanes_module, "START_ATTEMPTS", 1)
    monkeypatch.setattr(lanes_module, "_WINDOW_OF_A_LANE", 1)
    kill_at_opening(".npy", tmp_path / "hook", monkeypatch)
    save(maps, 4)
    async with am.Pipeline(tmp_path / "out", settings=TWO) as pipeline:
        report = await pipeline.run(maps)
    assert (report.uploaded, report.failed) == (0, 4)


async def test_a_lane_that_cannot_start_leaves_its_maps_to_the_others(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Interpreter.start
    started: list[Interpreter] = []

    async def start_once(self: Interpreter) -> None:
        if started:
            raise StartError("no memory")
        started.append(self)
        await start(self)

    monkeypatch.setattr(Interpreter, "start", start_once)
    save(maps, 60)
    async with am.Pipeline(tmp_path / "out", settings=TWO) as pipeline:
        report = await pipeline.run(maps)
    assert (report.uploaded, report.failed) == (60, 0)
    check_overlays(tmp_path / "out", 60)


async def test_the_maps_of_a_large_container_go_to_idle_lanes_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "maps.npz", *(random_map(i, (12, 16)) for i in range(100)))
    async with am.Pipeline(tmp_path / "out", settings=TWO) as pipeline:
        report = await pipeline.run(tmp_path / "maps.npz")
        done = [lane.done for lane in pipeline.statistics().lanes]
    assert (report.uploaded, report.failed) == (100, 0)
    assert len(done) == 2
    assert all(done)
    assert sum(done) == 100
