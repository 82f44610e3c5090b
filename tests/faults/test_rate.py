"""Uploads adapt to the rate of the store, to its latency, and to a slow link; no map is lost, and none is blamed."""

from __future__ import annotations

import asyncio
import sys
import time
from time import monotonic
from typing import TYPE_CHECKING

import pytest

import async_maps as am
from tests.support.leftovers import leaves_nothing
from tests.support.link import linked
from tests.support.maps import random_map
from tests.support.pipelines import until
from tests.support.s3_proxy import Refusal, counting

if TYPE_CHECKING:
    from pathlib import Path

    from async_maps.demo.seaweed import S3Server

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

_SLOW_DOWN = Refusal(503, "SlowDown", "Please reduce your request rate.")


class LateStore(am.MemoryStore):
    """Looks like S3, and answers late, with any number of uploads."""

    def __init__(self, answer_s: float) -> None:
        super().__init__()
        self.destination = "s3://late"
        self._answer_s = answer_s
        self.under_way = self.most_concurrent = 0

    async def put(self, key: str, data: bytes) -> str:
        self.under_way += 1
        self.most_concurrent = max(self.most_concurrent, self.under_way)
        await asyncio.sleep(self._answer_s)
        self.under_way -= 1
        return await super().put(key, data)


async def run_late(settings: am.Settings, count: int = 400) -> tuple[LateStore, am.Statistics]:
    store = LateStore(0.3)
    async with am.Pipeline(store, settings=settings) as pipeline:
        report = await pipeline.run([(f"{i}", random_map(i)) for i in range(count)])
    assert (report.uploaded, report.failed) == (count, 0)
    return store, pipeline.statistics()


async def test_concurrent_uploads_grow_if_the_store_answers_late() -> None:
    store, statistics = await run_late(am.Settings(workers=0))
    assert 32 < store.most_concurrent <= 256
    assert statistics.upload.workers >= store.most_concurrent
    assert statistics.upload_limit == statistics.upload.workers


async def test_a_given_concurrency_is_a_maximum() -> None:
    store, statistics = await run_late(am.Settings(workers=0, concurrency=33), 100)
    assert store.most_concurrent == 33
    assert statistics.upload.workers == 33


async def test_a_given_rate_limits_the_uploads_and_is_shown() -> None:
    async with am.Pipeline(am.MemoryStore(), settings=am.Settings(workers=0, rate=100)) as pipeline:
        assert pipeline.statistics().upload_rate is None
        report = await pipeline.run([(f"{i}", random_map(i)) for i in range(50)])
        assert report.uploaded == 50
        assert pipeline.statistics().upload_rate == 100.0


async def test_a_wait_for_the_bandwidth_ends_with_the_pipeline() -> None:
    store = am.MemoryStore()
    settings = am.Settings(workers=0, bandwidth="1B", drain_timeout_s=0.1)
    async with am.Pipeline(store, settings=settings) as pipeline:
        await pipeline.put("first", random_map(1))
        waiting = asyncio.create_task(pipeline.put("second", random_map(2)))
        await until(lambda: pipeline.statistics().encode.maps == 2)
    with pytest.raises(am.PipelineClosedError):
        await waiting
    assert set(store.objects) == {"first.png"}


@pytest.mark.skipif(sys.platform != "linux", reason="connections send evenly on Linux only")
async def test_a_connection_sends_at_most_the_bandwidth(
    bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = am.Settings(workers=0, png="gray", invalid="zero", bandwidth="2MB")
    async with linked(s3, monkeypatch) as link, am.Pipeline(f"s3://{bucket}", settings=settings) as pipeline:
        await pipeline.put("first", random_map(0))
        sent = link.sent
        putting = asyncio.create_task(pipeline.put("large", random_map(1, (1_500, 1_500))))
        await until(lambda: link.sent > sent)
        began, sent = monotonic(), link.sent
        await until(lambda: link.sent > sent + 1_000_000)
        # Half a second; without a limit of the connection, some milliseconds.
        assert monotonic() - began > 0.2
        await putting


@pytest.mark.slow
async def test_a_store_that_takes_few_puts_a_second_gets_all_maps(
    bucket: str, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, at, refused = 5.0, time.monotonic(), 0

    def refuse(method: str, *_: str) -> Refusal | None:
        nonlocal tokens, at, refused
        if method != "PUT":
            return None
        now = time.monotonic()
        tokens, at = min(tokens + 40 * (now - at), 5.0), now
        if tokens < 1:
            refused += 1
            return _SLOW_DOWN
        tokens -= 1
        return None

    told: list[am.Statistics | None] = []
    with counting(s3, monkeypatch) as proxy:
        proxy.refuse = refuse
        settings = am.Settings(workers=0, s3=am.S3Settings(max_attempts=2))
        async with am.Pipeline(f"s3://{bucket}", settings=settings) as pipeline:
            maps = [(f"{i}", random_map(i)) for i in range(300)]
            report = await pipeline.run(
                maps, manifest=tmp_path / "m.sqlite", on_progress=lambda now: told.append(now.statistics)
            )
    assert (report.uploaded, report.failed) == (300, 0)
    # At their own speed, 32 concurrent uploads would be refused most of the time.
    assert 0 < refused < 300
    assert any(found is not None and found.upload_rate is not None for found in told)
    assert report.statistics is not None
    assert report.statistics.upload_limit >= 32


@pytest.mark.slow
async def test_a_slow_link_behind_a_buffer_gets_fewer_concurrent_uploads(
    bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = am.Settings(workers=0, png="gray", invalid="zero", s3=am.S3Settings(read_timeout_s=1.5))
    maps = [(f"{i}", random_map(i, (400, 400))) for i in range(24)]
    told: list[am.Statistics | None] = []
    async with linked(s3, monkeypatch) as link, am.Pipeline(f"s3://{bucket}", settings=settings) as pipeline:
        await pipeline.put("first", random_map(0))
        # All maps take 7 s together: 24 at a time have no answer in time, and no byte moves meanwhile.
        link.holds, link.bytes_per_s = True, 24 * 160_000 / 7
        report = await pipeline.run(maps, on_progress=lambda now: told.append(now.statistics))
    assert (report.uploaded, report.failed) == (24, 0)
    assert min(found.upload_limit for found in told if found is not None) < 32
