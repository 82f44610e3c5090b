"""Closing a pipeline with lanes ends in bounded time, tells what it abandons, and leaves no process."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import numpy as np
import pytest

import async_maps as am
from tests.support.commands import COMMAND, done_rows
from tests.support.leftovers import leaves_nothing
from tests.support.link import linked
from tests.support.maps import random_map
from tests.support.pipelines import lane_pids, until
from tests.support.processes import alive, worker_pids_of
from tests.support.s3 import keys
from tests.support.stopwatch import SLACK_S, Stopwatch

if TYPE_CHECKING:
    from pathlib import Path

    from async_maps.demo.seaweed import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures(leaves_nothing.__name__)]

COUNT = 40


@pytest.fixture
def source(maps: Path) -> Path:
    """A folder of maps, of which each lane gets some."""
    for i in range(COUNT):
        np.save(maps / f"{i}.npy", random_map(i))
    return maps


@pytest.mark.parametrize("drain_timeout_s", [2, 600])
async def test_signals_end_the_command_when_the_store_does_not_answer(
    drain_timeout_s: int, bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch, source: Path, tmp_path: Path
) -> None:
    manifest = tmp_path / "m.sqlite"
    async with linked(s3, monkeypatch) as link:
        link.bytes_per_s = 10_000
        command = await asyncio.create_subprocess_exec(
            *COMMAND, "run", source, f"s3://{bucket}", "--manifest", manifest, "--workers", "1", "--concurrency", "2",
            "--processes", "2", "--drain-timeout-s", f"{drain_timeout_s}",
            stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert command.stderr is not None
        await until(lambda: done_rows(str(manifest)) >= 1)
        lanes = worker_pids_of(command.pid)
        processes = [*lanes, *(worker for lane in lanes for worker in worker_pids_of(lane))]
        assert len(processes) >= 3, "two lanes, and a worker of one at least"
        link.flows.clear()
        command.send_signal(signal.SIGTERM)
        if drain_timeout_s > 60:
            # The maps in flight are given up by a second signal.
            while b"finishing the maps in flight" not in await command.stderr.readline():
                pass
            command.send_signal(signal.SIGTERM)
        with Stopwatch() as watch:
            _, err = await command.communicate()
            assert watch.elapsed_s < 2.0 + SLACK_S
        assert not link.flows.is_set()
    assert command.returncode == 128 + signal.SIGTERM, err
    assert b"run the same command again for the rest" in err
    assert not any(map(alive, processes))
    assert 1 <= done_rows(str(manifest)) <= len(await keys(bucket)) < COUNT


@pytest.mark.parametrize("way", ["run", "stream"])
async def test_leaving_abandons_the_maps_of_lanes_when_the_store_does_not_answer(
    way: str, bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch, source: Path
) -> None:
    settings = am.Settings(workers=0, processes=2, drain_timeout_s=1.0)

    async def use() -> object:
        if way == "run":
            return await pipeline.run(source)
        return [outcome async for outcome in pipeline.stream(source)]

    async with linked(s3, monkeypatch) as link:
        async with am.Pipeline(f"s3://{bucket}", settings=settings) as pipeline:
            await pipeline.put("first", random_map(0))
            link.flows.clear()
            using = asyncio.create_task(use())
            await until(lambda: pipeline.statistics().in_flight == COUNT)
            await until(lambda: len(lane_pids()) == 2)
        with pytest.raises(am.PipelineClosedError, match="maps without an outcome may or may not be stored"):
            await using
    found = pipeline.statistics()
    assert (found.accepted, found.uploaded, found.abandoned, found.in_flight) == (1 + COUNT, 1, COUNT, 0)
    assert {lane.pid for lane in found.lanes} == {None}


async def test_leaving_finishes_the_maps_that_lanes_have(source: Path, tmp_path: Path) -> None:
    settings = am.Settings(workers=0, processes=2)
    async with am.Pipeline(tmp_path / "out", settings=settings) as pipeline:
        using = asyncio.create_task(pipeline.run(source))
        await until(lambda: pipeline.statistics().in_flight > 0)
    report = await using
    found = pipeline.statistics()
    assert report.failed == found.abandoned == 0
    assert report.uploaded == found.uploaded == found.accepted == len(list((tmp_path / "out").glob("*.png"))) > 0
