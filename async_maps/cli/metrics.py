"""``--metrics-port`` and ``--metrics-textfile``: the metrics of a run for Prometheus (extra ``metrics``)."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from anyio import CancelScope, create_tcp_listener, fail_after, to_thread
from anyio.abc import SocketAttribute
from anyio.streams.buffered import BufferedByteReceiveStream

from async_maps.cli.console import say
from async_maps.cli.options import LOOPBACK
from async_maps.cli.reports import check_writable
from async_maps.concurrency.tasks import OrderlyTask
from async_maps.errors import SettingsError
from async_maps.filesystems.atomic import replacing
from async_maps.filesystems.outputs import check_output, is_metrics
from async_maps.metrics import PipelineCollector

# async_maps.metrics explains what to do if it is not installed.
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # isort: skip
from prometheus_client.exposition import choose_encoder, generate_latest  # isort: skip
from prometheus_client.registry import Collector, CollectorRegistry  # isort: skip

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

    from anyio.abc import SocketStream
    from prometheus_client.core import Metric

    from async_maps.cli.job import Drainable
    from async_maps.progress import Progress

_logger = logging.getLogger("async_maps.cli")

_INTERVAL_S = 5.0
_REQUEST_TIMEOUT_S = 10.0
_MAX_HEAD = 8192
_MAX_CONNECTIONS = 16
"""Further connections are closed, so that they take no files of the run."""


class MetricsOptions(NamedTuple):
    """Where the metrics of a run go.

    Attributes:
        port: the port of an HTTP server, 0 for any; None for no server.
        host: its address.
        textfile: a file for node_exporter's textfile collector; None for no file.
    """

    port: int | None = None
    host: str = LOOPBACK
    textfile: Path | None = None

    def check(self, files: Mapping[str, str]) -> None:
        """Check before a run that the file can be written.

        Args:
            files: the files of the run, which it must not replace.

        Raises:
            SettingsError: it cannot be written, has no name that node_exporter reads, or would replace another file.
        """
        if self.textfile is not None:
            if self.textfile.suffix != ".prom":
                raise SettingsError(f"--metrics-textfile {self.textfile}: node_exporter reads files named *.prom only")
            if self.textfile.is_fifo():
                raise SettingsError(f"--metrics-textfile {self.textfile}: expected a file, found a pipe")
            check_writable(self.textfile, "the metrics", is_metrics, files)


class RunMetrics(Collector):
    """The metrics of a run: those of its pipeline, and those that only a run has.

    Args:
        pipeline: the pipeline, or the share of a plan.
        label: the value of the label ``pipeline``.
    """

    def __init__(self, pipeline: Drainable, label: str) -> None:
        self._of_pipeline = PipelineCollector({label: pipeline})
        self._label = label
        self._running = True
        self._started_at = self._progress_at = time.time()
        self._counts = 0, 0, 0
        self._total: int | None = None
        self._connections = 0
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def update(self, progress: Progress) -> None:
        """Take the current figures of the run."""
        report = progress.report
        counts = report.uploaded + report.failed, report.skipped, report.surveyed
        if counts != self._counts:
            self._counts, self._progress_at = counts, time.time()
        self._total = progress.total

    def collect(self) -> Iterator[Metric]:
        """Collect the current metrics.

        Yields:
            Each metric.
        """
        yield from self._of_pipeline.collect()
        _, skipped, surveyed = self._counts
        for kind, name, text, value in (
            (GaugeMetricFamily, "running", "1 while the run goes on, 0 after its end.", float(self._running)),
            (GaugeMetricFamily, "start_timestamp_seconds", "When the run began, in Unix time.", self._started_at),
            (
                GaugeMetricFamily,
                "progress_timestamp_seconds",
                "When the run last uploaded, failed, skipped or surveyed a map, in Unix time.",
                self._progress_at,
            ),
            (CounterMetricFamily, "skipped", "Maps that were skipped, such as unchanged ones.", skipped),
            (CounterMetricFamily, "surveyed", "Maps that were read for the range of the whole set.", surveyed),
            (GaugeMetricFamily, "maps", "Maps of the source; missing until they are counted.", self._total),
        ):
            metric = kind(f"async_maps_run_{name}", text, labels=("pipeline",))
            if value is not None:
                metric.add_metric((self._label,), value)
            yield metric

    @asynccontextmanager
    async def exposed(self, options: MetricsOptions) -> AsyncIterator[None]:
        """Serve and write the metrics inside the ``with`` block; at its end, write the last ones.

        Raises:
            SettingsError: before the block, the port cannot be used or the file cannot be written.
        """
        async with AsyncExitStack() as stack:
            if options.port is not None:
                await stack.enter_async_context(self._served(options.host, options.port))
            if options.textfile is not None:
                await stack.enter_async_context(self._written(options.textfile))
            try:
                yield
            finally:
                self._running = False

    @asynccontextmanager
    async def _served(self, host: str, port: int) -> AsyncIterator[None]:
        try:
            listener = await create_tcp_listener(local_host=host, local_port=port)
        except OSError as error:
            raise SettingsError(
                f"cannot serve metrics on {host} port {port}: {error.strerror or error}; choose another --metrics-port "
                "or --metrics-host, or end the program that uses it"
            ) from error
        async with listener:
            found = listener.extra(SocketAttribute.local_port)  # noqa: S610  # not Django's
            url = f"http://{f'[{host}]' if ':' in host else host}:{found}/metrics"
            say(f"metrics: {url}", url=url)
            # No task group: it would wrap the errors of the run.
            serving = OrderlyTask(partial(listener.serve, self._answer))
            try:
                yield
            finally:
                await serving.cancel()

    async def _answer(self, connection: SocketStream) -> None:
        async with connection:
            if self._connections >= _MAX_CONNECTIONS:
                return
            self._connections += 1
            try:
                with fail_after(_REQUEST_TIMEOUT_S):
                    await self._answer_request(connection)
            except Exception as error:  # noqa: BLE001  # no client may end the server
                _logger.debug("a request for metrics failed: %r", error)
            finally:
                self._connections -= 1

    async def _answer_request(self, connection: SocketStream) -> None:
        reader = BufferedByteReceiveStream(connection)
        request, *lines = (await reader.receive_until(b"\r\n\r\n", _MAX_HEAD)).decode("latin-1").split("\r\n")
        method, path, _ = request.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        encode, kind = choose_encoder(headers.get("accept", ""))
        is_there = path.partition("?")[0] in {"/", "/metrics"}
        body = encode(self._registry) if is_there else b"not found: the metrics are at /metrics\n"
        head = (
            f"HTTP/1.1 {'200 OK' if is_there else '404 Not Found'}\r\n"
            f"Content-Type: {kind if is_there else 'text/plain'}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        await connection.send(head.encode() + (body if method != "HEAD" else b""))

    @asynccontextmanager
    async def _written(self, path: Path) -> AsyncIterator[None]:
        try:
            await to_thread.run_sync(self._write, path)
        except OSError as error:
            raise SettingsError(f"cannot write the metrics to {path}: {error.strerror or error}") from error

        is_written = True

        async def write() -> None:
            nonlocal is_written
            try:
                await to_thread.run_sync(self._write, path)
                is_written = True
            except (OSError, SettingsError) as error:
                # Once for each reason to look, not every 5 seconds.
                level = logging.WARNING if is_written else logging.DEBUG
                is_written = False
                _logger.log(level, "cannot write the metrics to %s, the run continues without: %s", path, error)

        async def write_periodically() -> None:
            while True:
                await asyncio.sleep(_INTERVAL_S)
                await write()

        writing = OrderlyTask(write_periodically)
        try:
            yield
        finally:
            await writing.cancel()
            with CancelScope(shield=True):
                await write()

    def _write(self, path: Path) -> None:
        check_output(path, "the metrics", is_metrics)
        with replacing(path) as temporary:
            temporary.write_bytes(generate_latest(self._registry))
