"""Where does the CPU time of a job go: to which stage, in which thread?

A pipeline does the job in a process of its own: ``python -m bench.profile SOURCE COUNT MANIFEST``. Each step of a task
on the event loop, and each call in a thread, is timed with the clock of its thread and counted for the module of its
function. The start is not measured. The floor is the same work without a pipeline: our kernels and our encoder in a
loop over one map of each kind, and a PUT by a blocking socket, which signs and checks nothing.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Coroutine
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
from anyio import to_thread
from isal import isal_zlib

import async_maps as am
from async_maps.concurrency.loop import fastest_loop
from async_maps.render.png import deflate, write_palette
from async_maps.render.quantize import quantize
from async_maps.render.scanlines import room_bytes, scanline_bytes, write_scanlines
from async_maps.render.statistics import summarize
from bench.clients import FLOOR
from bench.data import KINDS, write_maps
from bench.job import Conditions, add_options
from bench.measure import BUCKET, by_turns, cpu_s, interleaved, mean_of, parser, take_turns
from bench.tables import Bench

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
    from types import CodeType

    from bench.measure import Figures

_ROUNDS = 5
_FIRST_COUNT = 16
_NPY_HEADER = 128
_LOOP, _THREAD, _OTHER = "event loop, ", "threads, ", "other"
_REST_OF_LOOP, _REST = f"{_LOOP}sockets and callbacks", f"{_THREAD}waits and hops"
_WORKERS, _ALL = "worker processes", "all"
_COLUMNS = {"": "", "CPU ms/map": ".3f", "share": ".1%", "floor ms": ".3f"}


class Times:
    """The CPU seconds of each stage on the event loop and in threads.

    Attributes:
        seconds: the seconds by label.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Time the new tasks of the running loop, and calls in threads, during the ``with`` block."""
        loop = asyncio.get_running_loop()
        loop.set_task_factory(self._task)
        try:
            with patch.object(to_thread, "run_sync", partial(self._run_sync, to_thread.run_sync)):
                yield
        finally:
            loop.set_task_factory(None)

    def add(self, label: str, seconds: float) -> None:
        """Add CPU time; from any thread."""
        with self._lock:
            self.seconds[label] += seconds

    def _task(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(_Timed(work, self.add), loop=loop, **options)

    async def _run_sync(
        self, run_sync: Callable[..., Awaitable[Any]], function: Callable[..., Any], *arguments: Any, **options: Any
    ) -> Any:
        inner = function
        while isinstance(inner, partial):
            inner = inner.func
        label = _THREAD + (stage_of(getattr(inner, "__code__", None)) or _OTHER)

        def timed() -> Any:
            started = time.thread_time()
            try:
                return function(*arguments)
            finally:
                self.add(label, time.thread_time() - started)

        return await run_sync(timed, **options)


class _Timed(Coroutine[Any, Any, Any]):
    """A coroutine whose steps are timed."""

    def __init__(self, work: Any, add: Callable[[str, float], None]) -> None:
        self._work = work
        self._add = add
        self._stage: str | None = None

    def send(self, value: Any) -> Any:
        return self._step(self._work.send, value)

    def throw(self, *error: Any) -> Any:
        return self._step(self._work.throw, *error)

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Any:
        return self._work.__await__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)

    def _step(self, step: Callable[..., Any], *arguments: Any) -> Any:
        started = time.thread_time()
        try:
            return step(*arguments)
        finally:
            seconds = time.thread_time() - started
            self._stage = self._stage or self._find_stage()
            self._add(_LOOP + (self._stage or _OTHER), seconds)

    def _find_stage(self) -> str | None:
        """Return the stage of the outermost coroutine of a stage: task groups and others wrap it."""
        work = self._work
        while work is not None:
            if stage := stage_of(getattr(work, "cr_code", None)):
                return stage
            work = getattr(work, "cr_await", None)
        return None


def stage_of(code: CodeType | None) -> str | None:
    """Return the stage of a function: its module in ``async_maps/stages``, else its package; None if it has none."""
    parts = Path(code.co_filename).with_suffix("").parts if code else ()
    if "async_maps" not in parts:
        return None
    package, *modules = parts[len(parts) - parts[::-1].index("async_maps") :]
    if package == "concurrency":  # what all stages use
        return None
    return modules[0] if package == "stages" and modules else package


def floors(size: int, rounds: int, environment: Mapping[str, str]) -> dict[str, list[float]]:
    """Return the milliseconds of the same work without a pipeline, by label."""
    with tempfile.TemporaryDirectory(prefix="async-maps-bench-") as folder:
        write_maps(Path(folder), len(KINDS), size)
        works = [_work(path) for path in sorted(Path(folder).iterdir())]
        times = [interleaved({"color": color, "encode": encode}, rounds, time.thread_time) for color, encode in works]
    kilobytes = sum(len(encode()) for _, encode in works) / len(works) / 1000
    put = by_turns({FLOOR: ("-m", "bench.clients", FLOOR, f"{kilobytes:.0f}", "1", "0.3")}, rounds, environment)
    return {
        _WORKERS: mean_of([found["color"] for found in times]),
        f"{_THREAD}encode": mean_of([found["encode"] for found in times]),
        f"{_LOOP}upload": put[FLOOR]["CPU ms/PUT"],
    }


def _work(path: Path) -> tuple[Callable[[], None], Callable[[], bytes]]:
    """Return what reads, quantizes and compresses a map, and what makes a PNG of the stream, with its checksum."""
    height, width = shape = np.load(path, mmap_mode="r").shape
    table, plane = am.Settings().table(), np.empty(shape, np.uint8)
    room, size = np.empty(room_bytes(height, width, 1), np.uint8), scanline_bytes(height, width, 1)
    streams = [0]

    def color() -> None:
        values = np.fromfile(path, np.float32, offset=_NPY_HEADER).reshape(shape)
        summarize(plane, quantize(values, plane))
        streams[0] = write_scanlines(plane, room, compress=True)

    def encode() -> bytes:
        stream = (room[: streams[0]].data,) if streams[0] else deflate(room[:size], 1)
        data = write_palette(stream, shape, table)
        isal_zlib.crc32(data)
        return data

    return color, encode


def main(arguments: Sequence[str]) -> None:
    """Run ``python -m bench profile``."""
    options = parser("profile", __doc__)
    add_options(options, _ROUNDS)
    given = options.parse_args(arguments)
    conditions = Conditions.of(given)
    bench = Bench("-".join(filter(None, ("profile", conditions.name))), given.quick)
    with conditions.prepared() as (source, server):
        maps = source.of(conditions.maps)
        command = ("-m", "bench.profile", maps, str(conditions.maps), str(source.place / "profile.sqlite"))
        found = by_turns({"profile": command}, conditions.rounds, server.environment())["profile"]
        floor = floors(conditions.size, conditions.rounds, server.environment())
    floor[_ALL] = [sum(each) for each in zip(*floor.values(), strict=True)]
    table = bench.table(f"{conditions.title()}, {conditions.rounds} rounds", _COLUMNS)
    for label in sorted(found, key=lambda label: median(found[label]), reverse=True):
        share = median(found[label]) / median(found[_ALL])
        table.add(**{"": label, "CPU ms/map": found[label], "share": share, "floor ms": floor.get(label)})
    bench.publish()


async def _profiled(source: str, count: int, manifest: Path) -> None:
    times = Times()
    with times.measuring():
        async with am.Pipeline(f"s3://{BUCKET}/run", settings=am.Settings(processes=1)) as pipeline:
            await pipeline.run(source, manifest=manifest, limit=_FIRST_COUNT)

            async def turn() -> Figures:
                manifest.unlink()
                times.seconds.clear()
                all_s, own_s, loop_s = cpu_s(), time.process_time(), time.thread_time()
                report = await asyncio.create_task(pipeline.run(source, manifest=manifest))
                if report.uploaded != count:
                    raise RuntimeError(f"{report.uploaded:,} of {count:,} maps were stored")
                loop_s, own_s, all_s = time.thread_time() - loop_s, time.process_time() - own_s, cpu_s() - all_s
                seconds = dict(times.seconds)
                steps_s = sum(value for label, value in seconds.items() if label.startswith(_LOOP))
                calls_s = sum(value for label, value in seconds.items() if label.startswith(_THREAD))
                seconds |= {
                    _REST_OF_LOOP: loop_s - steps_s, _REST: own_s - loop_s - calls_s,
                    _WORKERS: all_s - own_s, _ALL: all_s,
                }  # fmt: skip
                return {label: 1000 * value / count for label, value in seconds.items()}

            await take_turns(turn)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        runner.run(_profiled(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
