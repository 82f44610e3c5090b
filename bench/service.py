"""In a service: how many maps a second, how long does a caller wait, and for how long is the event loop blocked?

Each of 16 callers puts maps from memory to a sink, one after the other. The event loop also has a call due every
millisecond; its delay is the delay of every other request of the service. Loops wait in whole milliseconds, so an idle
loop is also up to 1 ms late. Then 2,000 concurrent callers, each with its own map, wait in ``put`` or are refused by
``put_nowait``. Each row is a separate process, and all rows take turns: ``python -m bench.service LOOP WORKERS SIZE
SECONDS`` and ``python -m bench.service WAY``.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

import async_maps as am
from bench import sink
from bench.data import make_map
from bench.measure import BUCKET, by_turns, cpu_s, parser, take_turns, watched
from bench.tables import Bench

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from bench.measure import Figures

_CALLERS = 16
_MAPS = 48
_TICK_S = 0.001
_LOOPS = ("asyncio", "uvloop")
_WORKERS = (1, 0)
_SIZES = (224, 512)
_CROWD = 2_000
_WAYS = ("put", "put_nowait")
_CROWD_COLUMNS = {"": "", "stored": ",.0f", "shed": ",.0f", "p50 ms": ",.0f", "p99 ms": ",.0f", "peak MB": ",.0f"}
_COLUMNS = {
    "": "", "workers": "", "size": "", "maps/s": ",.0f", "CPU ms/map": ".2f", "p50 ms": ".1f", "p99 ms": ".1f",
    "late p99.9 ms": ".1f", "longest stall ms": ".1f", "idle, late p99.9 ms": ".1f",
}  # fmt: skip


class Ticks:
    """A call that is due every millisecond. Records the delay of each call in seconds."""

    def __init__(self) -> None:
        self.late: list[float] = []
        self._loop = asyncio.get_running_loop()
        self._arm()

    def _arm(self) -> None:
        self._due = time.perf_counter() + _TICK_S
        self._handle = self._loop.call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        self.late.append(max(0.0, time.perf_counter() - self._due))
        self._arm()

    def stop(self) -> list[float]:
        """Stop, and return the delays."""
        self._handle.cancel()
        return self.late


class Service:
    """A pipeline and its callers.

    Args:
        pipeline: an open pipeline.
        size: the side of the square maps in pixels.
        seconds: the length of a turn.
    """

    def __init__(self, pipeline: am.Pipeline, size: int, seconds: float) -> None:
        self._pipeline = pipeline
        self._maps = [make_map(index, size) for index in range(_MAPS)]
        self._seconds = seconds
        self._numbers = itertools.count()

    async def turn(self) -> Figures:
        """Measure the idle loop, then the busy one."""
        ticks = Ticks()
        await asyncio.sleep(self._seconds / 3)
        idle = ticks.stop()

        latencies: list[float] = []
        ticks, used_s, started = Ticks(), cpu_s(), time.perf_counter()
        async with asyncio.TaskGroup() as callers:
            for _ in range(_CALLERS):
                callers.create_task(self._call(started + self._seconds, latencies))
        wall_s, late = time.perf_counter() - started, ticks.stop()
        return {
            "maps/s": len(latencies) / wall_s,
            "CPU ms/map": 1000 * (cpu_s() - used_s) / len(latencies),
            "p50 ms": _milliseconds(latencies, 50),
            "p99 ms": _milliseconds(latencies, 99),
            "late p99.9 ms": _milliseconds(late, 99.9),
            "longest stall ms": _milliseconds(late, 100),
            "idle, late p99.9 ms": _milliseconds(idle, 99.9),
        }

    async def _call(self, deadline: float, latencies: list[float]) -> None:
        while (started := time.perf_counter()) < deadline:
            number = next(self._numbers)
            await self._pipeline.put(f"map-{number}", self._maps[number % _MAPS])
            latencies.append(time.perf_counter() - started)


class Crowd:
    """Concurrent callers, each with its own map.

    Args:
        pipeline: an open pipeline.
        way: the method of the pipeline that they call.
    """

    def __init__(self, pipeline: am.Pipeline, way: str) -> None:
        self._put: Callable[[str, NDArray[Any]], Awaitable[am.Receipt]] = getattr(pipeline, way)
        self._maps = [make_map(index, _SIZES[0]) for index in range(_MAPS)]

    async def turn(self) -> Figures:
        """Measure one turn of all callers."""
        latencies: list[float] = []
        with watched(os.getpid()) as peak:
            async with asyncio.TaskGroup() as callers:
                for number in range(_CROWD):
                    callers.create_task(self._call(number, latencies))
        return {
            "stored": len(latencies),
            "shed": _CROWD - len(latencies),
            "p50 ms": _milliseconds(latencies, 50),
            "p99 ms": _milliseconds(latencies, 99),
            "peak MB": peak[0] / 1e6,
        }

    async def _call(self, number: int, latencies: list[float]) -> None:
        started = time.perf_counter()
        with suppress(am.PipelineFullError):
            await self._put(f"map-{number}", self._maps[number % _MAPS].copy())
            latencies.append(time.perf_counter() - started)


def _milliseconds(seconds: Sequence[float], percentile: float) -> float:
    return 1000 * float(np.percentile(seconds, percentile))


async def _serve(workers: int, size: int, seconds: float) -> None:
    settings = am.Settings(workers=workers)
    async with am.Pipeline(f"s3://{BUCKET}/service", settings=settings) as pipeline:
        service = Service(pipeline, size, seconds)
        await service.turn()
        await take_turns(service.turn)


async def _serve_crowd(way: str) -> None:
    async with am.Pipeline(f"s3://{BUCKET}/service", settings=am.Settings(workers=1)) as pipeline:
        await pipeline.put("first", make_map(0, _SIZES[0]))
        await take_turns(Crowd(pipeline, way).turn)


def _run_on(loop: str, main: Coroutine[Any, Any, None]) -> None:
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop if loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


def main(arguments: Sequence[str]) -> None:
    """Run ``python -m bench service``."""
    options = parser("service", __doc__).parse_args(arguments)
    bench = Bench("service", options.quick)
    rounds, seconds = (1, 0.3) if options.quick else (3, 0.6)
    title = f"{_CALLERS} callers of Pipeline.put, a sink, a tick each ms, {rounds} rounds of {seconds} s"
    table = bench.table(title, _COLUMNS)
    with sink.serve() as server:
        rows = list(itertools.product(_LOOPS, _WORKERS, _SIZES[:1] if options.quick else _SIZES))
        commands = {str(row): ("-m", "bench.service", *map(str, row), str(seconds)) for row in rows}
        found = by_turns(commands, rounds, server.environment())
    for row in rows:
        loop, workers, size = row
        table.add(**{"": loop, "workers": workers, "size": size, **found[str(row)]})
    bench.publish()
    title = f"{_CROWD:,} concurrent callers, {_SIZES[0]}x{_SIZES[0]}, a sink, {rounds} rounds"
    crowd = bench.table(title, _CROWD_COLUMNS)
    with sink.serve() as server:
        found = by_turns({way: ("-m", "bench.service", way) for way in _WAYS}, rounds, server.environment())
    for way in _WAYS:
        crowd.add(**{"": way, **found[way]})
    bench.publish()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        _run_on("uvloop", _serve_crowd(sys.argv[1]))
    else:
        _, _loop, _workers, _size, _seconds = sys.argv
        _run_on(_loop, _serve(int(_workers), int(_size), float(_seconds)))
