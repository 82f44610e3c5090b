"""Closing ends in bounded time, loses nothing while bytes move, and tells what it abandons."""

from __future__ import annotations

import asyncio
import signal
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest

import async_maps as am
from async_maps.report.ending import STOPPED_EARLY
from async_maps.stores.memory import MemoryStore
from tests.support.commands import COMMAND, done_rows
from tests.support.leftovers import leaves_nothing
from tests.support.link import linked
from tests.support.maps import npy, random_map
from tests.support.pipelines import until, use_store
from tests.support.s3 import keys, upload
from tests.support.stopwatch import SLACK_S, Stopwatch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    from async_maps.demo.seaweed import S3Server

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)


@pytest.fixture
def measuring() -> Iterator[ExitStack]:
    """A stack that ends the stopwatches of a test."""
    with ExitStack() as stack:
        yield stack


def settings(drain_timeout_s: float, *, client: Literal["direct", "sdk"] = "direct") -> am.Settings:
    return am.Settings(
        workers=0, encode_threads=1, concurrency=8, drain_timeout_s=drain_timeout_s, s3=am.S3Settings(client=client)
    )


def noise(seed: int, side: int = 1024) -> NDArray[np.uint8]:
    """Return a map whose PNG is as large as the map."""
    return np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)


# A store that does not answer ---------------------------------------------------------------------------------------


async def test_leaving_is_bounded_when_the_store_does_not_answer(
    measuring: ExitStack, bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with linked(s3, monkeypatch) as link:
        async with am.Pipeline(f"s3://{bucket}", settings=settings(2.0)) as pipeline:
            await pipeline.put("first", random_map(0))
            link.flows.clear()
            waiting = asyncio.create_task(pipeline.put("waits", random_map(1)))
            pipeline.put_nowait("dropped", random_map(2))
            await until(lambda: pipeline.statistics().accepted == 3)
            watch = measuring.enter_context(Stopwatch())
        assert watch.elapsed_s < 2.0 + SLACK_S
        with pytest.raises(am.PipelineClosedError) as told:
            await waiting
    assert str(told.value) == (
        "map waits was abandoned, and may or may not be stored: the pipeline was closed, and for 2 s nothing was "
        "stored and no byte moved; put it again"
    )
    statistics = pipeline.statistics()
    assert (statistics.accepted, statistics.uploaded, statistics.abandoned) == (3, 1, 2)
    (warning,) = (record.getMessage() for record in caplog.records if record.name == "async_maps")
    assert "2 maps are abandoned" in warning
    assert "dropped" in warning
    assert await keys(bucket) <= {"first.png", "waits.png", "dropped.png"}


async def test_a_store_that_takes_bytes_for_ever_shows_no_life(
    measuring: ExitStack, bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = settings(1.0).model_copy(update={"s3": am.S3Settings(read_timeout_s=0.2, max_attempts=1000)})
    async with linked(s3, monkeypatch) as link:
        async with am.Pipeline(f"s3://{bucket}", settings=impatient) as pipeline:
            await pipeline.put("first", random_map(0))
            link.swallows = True
            waiting = asyncio.create_task(pipeline.put("waits", noise(1)))
            await until(lambda: pipeline.statistics().retries >= 2)
            watch = measuring.enter_context(Stopwatch())
        # The bytes of two more attempts count, and these follow after random waits of at most 2.4 s.
        assert watch.elapsed_s < 2.4 + 1.0 + SLACK_S
        with pytest.raises(am.PipelineClosedError, match="map waits was abandoned"):
            await waiting


class RefusingStore(MemoryStore):
    """A store that refuses all objects, one after the other."""

    async def put(self, key: str, data: bytes) -> str:
        await asyncio.sleep(0.1)
        raise am.StoreError("the store is down")


async def test_maps_that_a_store_refuses_one_by_one_do_not_delay_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    use_store(monkeypatch, RefusingStore())
    patient = settings(0.5).model_copy(update={"concurrency": 1})
    async with am.Pipeline("memory://", settings=patient) as pipeline:
        puts = [pipeline.put_nowait(f"{number}", random_map(number)) for number in range(60)]
    ends = await asyncio.gather(*puts, return_exceptions=True)
    assert {type(end) for end in ends} == {am.StoreError, am.PipelineClosedError}


async def test_a_put_that_waits_for_room_is_told_that_it_is_not_stored(
    bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = settings(1.0).model_copy(update={"queue_bytes": 1000, "concurrency": 1})
    async with linked(s3, monkeypatch) as link:
        async with am.Pipeline(f"s3://{bucket}", settings=small) as pipeline:
            await pipeline.put("first", random_map(0))
            link.flows.clear()
            puts = [asyncio.create_task(pipeline.put(f"{i}", noise(i, 32))) for i in range(8)]
            await until(lambda: pipeline.statistics().waiting > 0)
        results = await asyncio.gather(*puts, return_exceptions=True)
    assert all(isinstance(result, am.PipelineClosedError) for result in results)
    assert str(results[-1]).startswith("map 7 is not stored: the pipeline was closed")
    assert await keys(bucket) <= {"first.png", *(f"{i}.png" for i in range(7))}


@pytest.mark.parametrize("way", ["run", "stream"])
async def test_leaving_ends_a_run_or_stream_in_another_task(
    way: str, bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    maps = [(f"{i}", random_map(i)) for i in range(20)]
    manifest = tmp_path / "m.sqlite"

    async def use() -> Any:
        if way == "run":
            return await pipeline.run(maps, manifest=manifest)
        return [outcome async for outcome in pipeline.stream(maps)]

    async with linked(s3, monkeypatch) as link:
        async with am.Pipeline(f"s3://{bucket}", settings=settings(1.0)) as pipeline:
            # A manifest that lists an overlay asks the store for no keys.
            await pipeline.run([("first", random_map(0))], manifest=manifest)
            link.flows.clear()
            using = asyncio.create_task(use())
            await until(lambda: pipeline.statistics().in_flight == 20)
        with pytest.raises(am.PipelineClosedError, match="maps without an outcome may or may not be stored") as told:
            await using
    if way == "run":
        assert told.value.report.statistics.abandoned == 20
        assert "abandoned maps, which may or may not be stored: 20" in told.value.report.summary()


async def test_draining_bounds_the_total_and_receipts_are_committed(
    measuring: ExitStack, bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    manifest = tmp_path / "m.sqlite"
    maps = [("small", random_map(0)), *((f"{i}", noise(i)) for i in range(8))]
    async with linked(s3, monkeypatch) as link, am.Pipeline(f"s3://{bucket}", settings=settings(2.0)) as pipeline:
        await pipeline.put("first", random_map(0))
        # Bytes move all the time, but too few.
        link.bytes_per_s = 50_000
        running = asyncio.create_task(pipeline.run(maps, manifest=manifest))
        late = asyncio.create_task(pipeline.put("late", noise(9)))
        await until(lambda: pipeline.statistics().uploaded == 2)
        watch = measuring.enter_context(Stopwatch())
        pipeline.drain()
        with pytest.raises(am.PipelineClosedError, match="drained, and that took longer than drain_timeout_s") as told:
            await running
        assert watch.elapsed_s < 2.0 + SLACK_S
        report = told.value.report
        assert report.drained
        assert done_rows(str(manifest)) == report.uploaded == 1
        with pytest.raises(am.PipelineClosedError, match="map late was abandoned"):
            await late
        with pytest.raises(am.PipelineClosedError, match="not open anymore"):
            await pipeline.put("later", random_map(1))


async def test_draining_bounds_an_end_that_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(MemoryStore):
        async def put(self, key: str, data: bytes) -> str:
            await asyncio.sleep(0.5)
            return await super().put(key, data)

    use_store(monkeypatch, Slow())
    patient = settings(1.0).model_copy(update={"concurrency": 1})
    async with am.Pipeline("memory://", settings=patient) as pipeline:
        for number in range(200):
            pipeline.put_nowait(f"{number}", random_map(number))
        asyncio.get_running_loop().call_later(0.5, pipeline.drain)
    assert pipeline.statistics().abandoned > 0


async def test_a_drained_run_without_a_backlog_ends_normally(tmp_path: Path) -> None:
    async with am.Pipeline(tmp_path, settings=settings(60.0)) as pipeline:

        async def maps() -> Any:
            yield "first", random_map(1)
            pipeline.drain()
            yield "never", random_map(2)

        report = await pipeline.run(maps())
    assert report.drained
    assert report.statistics is not None
    assert report.statistics.abandoned == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_command_when_the_store_does_not_answer(
    number: signal.Signals, bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch, maps: Path, tmp_path: Path
) -> None:
    for i in range(40):
        np.save(maps / f"{i}.npy", random_map(i))
    manifest = tmp_path / "m.sqlite"
    async with linked(s3, monkeypatch) as link:
        link.bytes_per_s = 10_000
        command = await asyncio.create_subprocess_exec(
            *COMMAND, "run", maps, f"s3://{bucket}", "--manifest", manifest, "--workers", "0", "--concurrency", "1",
            "--drain-timeout-s", "2", stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        await until(lambda: done_rows(str(manifest)) >= 1)
        link.flows.clear()
        command.send_signal(number)
        with Stopwatch() as watch:
            _, err = await command.communicate()
            assert watch.elapsed_s < 2.0 + SLACK_S
    assert command.returncode == 128 + number, err
    assert b"run the same command again for the rest" in err
    assert 1 <= done_rows(str(manifest)) <= len(await keys(bucket)) < 40


@pytest.mark.parametrize("options", [("--workers", "0"), ("--workers", "1", "--range", "dataset")])
async def test_a_signal_ends_the_command_when_its_source_does_not_answer(
    options: tuple[str, ...], bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await asyncio.to_thread(upload, bucket, {f"maps/{i}.npy": npy(random_map(i)) for i in range(300)})
    async with linked(s3, monkeypatch) as link:
        # About 100 requests; the listing and the first pass need more.
        link.stops_at = 50_000
        command = await asyncio.create_subprocess_exec(
            *COMMAND, "run", f"s3://{bucket}/maps/", tmp_path / "overlays", "--manifest", tmp_path / "m.sqlite",
            *options, "--drain-timeout-s", "1", stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        await link.stopped()
        command.send_signal(signal.SIGTERM)
        with Stopwatch() as watch:
            _, err = await command.communicate()
            assert watch.elapsed_s < 1.0 + SLACK_S
    assert command.returncode == 128 + signal.SIGTERM, err
    assert b"run the same command again for the rest" in err


async def test_leaving_is_bounded_when_the_source_does_not_answer(
    measuring: ExitStack, bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await asyncio.to_thread(upload, bucket, {f"maps/{i}.npy": npy(random_map(i)) for i in range(300)})
    async with linked(s3, monkeypatch) as link:
        # About 40 requests; the maps need more.
        link.stops_at = 20_000
        async with am.Pipeline(tmp_path, settings=settings(1.0)) as pipeline:
            running = asyncio.create_task(pipeline.run(f"s3://{bucket}/maps/"))
            await link.stopped()
            watch = measuring.enter_context(Stopwatch())
        assert watch.elapsed_s < 1.0 + SLACK_S
        # Only maps that the listing has read are accepted; a busy machine may abandon some of them.
        with suppress(am.PipelineClosedError):
            assert (await running).exit_code == STOPPED_EARLY


# A slow link --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", ["direct", "sdk"])
async def test_leaving_over_a_slow_link_loses_no_accepted_map(
    client: Literal["direct", "sdk"], bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with linked(s3, monkeypatch) as link:
        async with am.Pipeline(f"s3://{bucket}", settings=settings(1.0, client=client)) as pipeline:
            await pipeline.put("first", random_map(0))
            # 20 Mbit/s: the first of eight concurrent PUTs of 1 MB takes longer than the time-out.
            link.bytes_per_s = 2.5e6
            accepted = [pipeline.put_nowait(f"{i}", noise(i)) for i in range(12)]
        receipts = await asyncio.gather(*accepted)
    assert len(receipts) == 12
    assert await keys(bucket) == {"first.png", *(f"{i}.png" for i in range(12))}
    assert pipeline.statistics().abandoned == 0


async def test_closing_over_a_slow_link_that_stalls_ends(
    measuring: ExitStack, bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with linked(s3, monkeypatch) as link:
        async with am.Pipeline(f"s3://{bucket}", settings=settings(1.0)) as pipeline:
            await pipeline.put("first", random_map(0))
            link.bytes_per_s = 2.5e6
            link.stops_at = link.sent + 3_000_000
            accepted = [pipeline.put_nowait(f"{i}", noise(i)) for i in range(12)]

            async def stall() -> Stopwatch:
                await link.stopped()
                return measuring.enter_context(Stopwatch())

            stalling = asyncio.create_task(stall())
        assert (await stalling).elapsed_s < 1.0 + SLACK_S
        results = await asyncio.gather(*accepted, return_exceptions=True)
    receipts = [result for result in results if isinstance(result, am.Receipt)]
    assert len(receipts) < 12
    assert all(isinstance(result, am.Receipt | am.PipelineClosedError) for result in results)
    assert {f"{receipt.name}.png" for receipt in receipts} <= await keys(bucket)
    assert pipeline.statistics().abandoned == 12 - len(receipts)
