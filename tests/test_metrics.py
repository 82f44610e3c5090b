"""Prometheus metrics of pipelines: values and names, read with Prometheus' own parser."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import async_maps as am
from async_maps.metrics import PipelineCollector
from tests.support.leftovers import leaves_nothing
from tests.support.maps import random_map
from tests.support.pipelines import THREADS, FailingStore, SlowStore, until, use_store

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from prometheus_client.core import Metric

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures(leaves_nothing.__name__)]


def scraped(pipelines: Mapping[str, am.Pipeline]) -> str:
    registry = CollectorRegistry()
    registry.register(PipelineCollector(pipelines))
    return generate_latest(registry).decode()


def families(text: str) -> dict[str, Metric]:
    """Return the metrics by name, and check that each name occurs once."""
    found = list(text_string_to_metric_families(text))
    assert len({family.name for family in found}) == len(found)
    return {family.name: family for family in found}


def value(text: str, name: str, **labels: str) -> float:
    """Return the value of the only sample with this name and these labels."""
    (found,) = [
        sample.value
        for family in families(text).values()
        for sample in family.samples
        if sample.name == f"async_maps_{name}" and labels.items() <= sample.labels.items()
    ]
    return found


async def test_a_scrape_has_the_counts_of_the_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    store = FailingStore({"refused.png"})
    use_store(monkeypatch, store)
    async with am.Pipeline("memory://", settings=am.Settings(workers=0, chunk_maps=2)) as pipeline:
        receipts = await asyncio.gather(*(pipeline.put_nowait(f"{i}", random_map(i)) for i in range(2)))
        for bad in ("refused", "NaN"):
            with pytest.raises(am.MapFailedError):
                await pipeline.put(bad, random_map(1) if bad == "refused" else np.full((2, 2), np.nan))
        taken = [pipeline.put_nowait(f"{i}", random_map(i)) for i in range(2)]
        for _ in range(3):
            with pytest.raises(am.PipelineFullError):
                pipeline.put_nowait("shed", random_map(1))
        text = scraped({"overlays": pipeline})
        receipts += await asyncio.gather(*taken)
    assert value(text, "uploads_total", pipeline="overlays") == 2
    assert value(text, "failures_total") == 2
    assert value(text, "shed_total") == 3
    assert value(text, "uploaded_bytes_total") == sum(receipt.size for receipt in receipts[:2])
    assert value(text, "upload_retries_total") == 0
    assert value(text, "upload_limit") == pipeline.settings.first_concurrency
    assert value(text, "in_flight") == 2
    assert value(text, "waiting") == 0
    assert [value(text, "stage_maps_total", stage=stage) for stage in ("colorize", "encode", "upload")] == [4, 3, 3]
    assert 0 < value(text, "stage_busy_seconds_total", stage="colorize") < 60
    assert value(text, "stage_workers", stage="upload") == pipeline.settings.first_concurrency
    assert value(text, "upload_rate_limit") == float("inf")
    assert value(text, "stage_queue_ratio", stage="colorize") > 0
    # A closed pipeline keeps its values, as counters must not decrease.
    text = scraped({"overlays": pipeline})
    assert (value(text, "uploads_total"), value(text, "in_flight")) == (4, 0)


async def test_waiting_callers_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    store = SlowStore()
    use_store(monkeypatch, store)
    array = random_map(1)
    settings = am.Settings(workers=0, concurrency=1, encode_threads=1, queue_bytes=array.nbytes)
    async with am.Pipeline("memory://", settings=settings) as pipeline:
        puts = [asyncio.create_task(pipeline.put(f"{i}", array)) for i in range(50)]
        await until(lambda: store.asked == 1)
        # A caller that was just given room is in neither count until its task runs.
        await until(lambda: pipeline.statistics().waiting + pipeline.statistics().in_flight == 50)
        text = scraped({"": pipeline})
        assert value(text, "waiting") + value(text, "in_flight") == 50
        assert value(text, "waiting") > 30
        store.gate.set()
        await asyncio.gather(*puts)
        assert (value(scraped({"": pipeline}), "waiting"), value(scraped({"": pipeline}), "in_flight")) == (0, 0)


async def test_names_types_and_units_follow_prometheus(tmp_path: Path) -> None:
    async with am.Pipeline(tmp_path, settings=THREADS) as pipeline:
        found = families(scraped({"a": pipeline}))
    assert len(found) == 19
    for name, family in found.items():
        assert name.startswith("async_maps_")
        assert family.documentation.endswith(".")
        assert family.type in {"counter", "gauge"}
        assert not name.endswith(("_total", "_count", "_sum", "_bucket", "_info"))
        assert not {"ms", "milliseconds", "mb", "kb", "percent"} & set(name.split("_"))
        for sample in family.samples:
            assert sample.name == (f"{name}_total" if family.type == "counter" else name)
            assert set(sample.labels) == ({"pipeline", "stage"} if "_stage_" in name else {"pipeline"})
            assert sample.value >= 0
    units = {name.rpartition("_")[2] for name in found} & {"bytes", "seconds", "ratio"}
    assert units == {"bytes", "seconds", "ratio"}


@pytest.mark.slow
async def test_a_scrape_has_the_counts_of_each_lane(maps: Path, tmp_path: Path) -> None:
    for i in range(40):
        np.save(maps / f"{i}.npy", random_map(i))
    async with am.Pipeline(tmp_path, settings=am.Settings(workers=0, processes=2)) as pipeline:
        await pipeline.run(maps)
        text = scraped({"a": pipeline})
    of_lanes = [value(text, "lane_maps_total", pipeline="a", lane=lane) for lane in ("1", "2")]
    assert sum(of_lanes) == value(text, "uploads_total") == value(text, "stage_maps_total", stage="upload") == 40
    assert value(text, "lane_in_flight", lane="1") == value(text, "lane_restarts_total", lane="1") == 0


async def test_each_open_pipeline_of_a_registry_has_its_samples(tmp_path: Path) -> None:
    pipelines = {name: am.Pipeline(tmp_path / name, settings=THREADS) for name in ("overlays", 'of "masks"\n')}
    registry = CollectorRegistry()
    registry.register(PipelineCollector(pipelines))
    assert families(generate_latest(registry).decode())["async_maps_uploads"].samples == []
    pipelines["never"] = am.Pipeline(tmp_path / "never")
    async with pipelines["overlays"] as overlays, pipelines['of "masks"\n'] as masks:
        await overlays.put("1", random_map(1))
        for i in range(3):
            await masks.put(f"{i}", random_map(i))
        text = generate_latest(registry).decode()
    assert value(text, "uploads_total", pipeline="overlays") == 1
    assert value(text, "uploads_total", pipeline='of "masks"\n') == 3
    assert "never" not in text
