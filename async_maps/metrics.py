"""Metrics of pipelines for Prometheus (extra ``metrics``). Called in the thread that scrapes the registry."""

from __future__ import annotations

from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Protocol

from async_maps.errors import PipelineClosedError, require_extra

with require_extra("async_maps.metrics", "metrics"):
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.core import Metric

    from async_maps.stages.meters import Statistics


_PIPELINE_METRICS = (
    (CounterMetricFamily, "uploads", "Maps whose overlay the store has confirmed.", "uploaded"),
    (CounterMetricFamily, "transparent_overlays", "Uploaded overlays that are fully transparent.", "transparent"),
    (CounterMetricFamily, "faint_overlays", "Uploaded overlays that are nearly invisible.", "faint"),
    (CounterMetricFamily, "failures", "Maps that failed, in any stage.", "failed"),
    (CounterMetricFamily, "abandoned", "Maps that had no outcome when the pipeline was closed.", "abandoned"),
    (CounterMetricFamily, "shed", "Maps that put_nowait or reserve refused because the pipeline was full.", "shed"),
    (CounterMetricFamily, "uploaded_bytes", "Bytes of the uploaded PNGs.", "uploaded_bytes"),
    (CounterMetricFamily, "upload_retries", "Upload attempts that failed and were retried.", "retries"),
    (GaugeMetricFamily, "upload_limit", "Current maximum number of concurrent uploads.", "upload_limit"),
    (GaugeMetricFamily, "upload_rate_limit", "Maximum of PUTs per second; +Inf if it delays none.", "upload_rate"),
    (GaugeMetricFamily, "in_flight", "Maps that were accepted and have no outcome yet.", "in_flight"),
    (GaugeMetricFamily, "waiting", "Calls of put that wait for room.", "waiting"),
)
_STAGE_METRICS = (
    (CounterMetricFamily, "stage_maps", "Maps that the stage has done.", "maps"),
    (CounterMetricFamily, "stage_busy_seconds", "Total working time of the stage's workers in seconds.", "busy_s"),
    (GaugeMetricFamily, "stage_workers", "Parallel workers of the stage.", "workers"),
    (GaugeMetricFamily, "stage_queue_ratio", "How full the stage's incoming queue is, 0 to 1.", "queue"),
)
_LANE_METRICS = (
    (CounterMetricFamily, "lane_maps", "Maps of the lane that have an outcome.", "done"),
    (GaugeMetricFamily, "lane_in_flight", "Maps of the lane without an outcome.", "in_flight"),
    (CounterMetricFamily, "lane_restarts", "How often the process of the lane has died.", "restarts"),
)
"""For each metric: its class, its name without ``async_maps_`` and ``_total``, its help, and its attribute."""


class _Measured(Protocol):
    """A pipeline, or a share of a plan."""

    def statistics(self) -> Statistics:
        """Return the current statistics; raise PipelineClosedError if there are none yet."""


class PipelineCollector(Collector):
    """Collects the metrics of pipelines when they are scraped; there is no cost per map.

    Register it with ``REGISTRY.register(PipelineCollector({"overlays": pipeline}))``. Put all pipelines of a registry
    into one collector, because the text format allows each metric only once.

    Args:
        pipelines: the pipelines, by the value of their label ``pipeline``. The mapping is read at each scrape. A
            pipeline that was never open has no metrics; a closed pipeline keeps its last ones.
    """

    def __init__(self, pipelines: Mapping[str, _Measured]) -> None:
        self._pipelines = pipelines

    def collect(self) -> Iterator[Metric]:
        """Collect the current metrics, named by https://prometheus.io/docs/practices/naming/.

        Yields:
            Each metric, with a sample per pipeline, per pipeline and stage, or per pipeline and lane.
        """
        found: dict[str, Statistics] = {}
        for name, pipeline in list(self._pipelines.items()):
            with suppress(PipelineClosedError):
                found[name] = pipeline.statistics()
        for kind, name, text, attribute in _PIPELINE_METRICS:
            metric = kind(f"async_maps_{name}", text, labels=("pipeline",))
            for pipeline_name, statistics in found.items():
                value = getattr(statistics, attribute)
                metric.add_metric((pipeline_name,), inf if value is None else value)
            yield metric
        for kind, name, text, attribute in _STAGE_METRICS:
            metric = kind(f"async_maps_{name}", text, labels=("pipeline", "stage"))
            for pipeline_name, statistics in found.items():
                for stage, figures in statistics.stages.items():
                    metric.add_metric((pipeline_name, stage), getattr(figures, attribute))
            yield metric
        for kind, name, text, attribute in _LANE_METRICS:
            metric = kind(f"async_maps_{name}", text, labels=("pipeline", "lane"))
            for pipeline_name, statistics in found.items():
                for lane in statistics.lanes:
                    metric.add_metric((pipeline_name, lane.name), getattr(lane, attribute))
            yield metric
