"""A cancel before any step of the event loop leaks nothing, records nothing false and does not affect the next caller.

The sweeps cancel an operation before the first, the second, ... the n-th callback that is given to the loop, until the
operation ends without a cancel. So each place where the operation awaits is cancelled once.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVarTuple, Unpack

import aioboto3
import pytest
from anyio import CancelScope

import async_maps as am
from async_maps.concurrency.tasks import OrderlyTask
from async_maps.manifest.manifest import Manifest
from async_maps.stores.memory import MemoryStore
from tests.support.leftovers import children, descriptors, leaves_nothing
from tests.support.maps import random_map
from tests.support.pipelines import use_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from contextvars import Context
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)


def maps(name: str) -> list[tuple[str, NDArray[Any]]]:
    return [(f"{name}/{i}", random_map(i)) for i in range(5)]


Ts = TypeVarTuple("Ts")


class CountingLoop(asyncio.SelectorEventLoop):
    """Cancels a task before the n-th callback from now, and optionally again after further callbacks."""

    def __init__(self) -> None:
        super().__init__()
        self._victim: asyncio.Task[Any] | None = None
        self._moments: list[int] = []
        self.complaints: list[dict[str, Any]] = []

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Record the errors that asyncio reports, such as exceptions that were never retrieved."""
        self.complaints.append(context)

    def cancel_before(self, moments: list[int], victim: asyncio.Task[Any]) -> None:
        self._moments, self._victim = moments, victim

    def spare(self) -> None:
        self._victim = None

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        if self._victim is not None and self._moments:
            self._moments[0] -= 1
            if self._moments[0] < 0:
                del self._moments[0]
                self._victim.cancel()
        return super().call_soon(callback, *args, context=context)


async def cancelled(moments: list[int], operation: Coroutine[Any, Any, Any]) -> bool:
    """Run an operation and cancel it at these moments. Returns whether it ended before the first of them."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, CountingLoop)
    count, task = len(moments), asyncio.create_task(operation)
    loop.cancel_before(moments, task)
    await asyncio.wait({task}, timeout=60)
    loop.spare()
    assert task.done(), "it hangs"
    if not task.cancelled():
        # An operation that is cancelled in its last step may succeed, but never ends with another error.
        await task
    return len(moments) == count


def swept(sweep: Coroutine[Any, Any, int]) -> int:
    """Run a sweep and check that asyncio reports no error. Returns the number of cancels."""
    loop = CountingLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        cancels = runner.run(sweep)
    gc.collect()
    assert loop.complaints == []
    return cancels


async def ends(tasks: set[asyncio.Task[Any]], processes: set[int]) -> None:
    """Wait until only these tasks and processes are left; parts of a cancelled operation may still run."""
    async with asyncio.timeout(60):
        while asyncio.all_tasks() != tasks or children() != processes:  # noqa: ASYNC110  # no event to wait for
            await asyncio.sleep(0.001)


async def run_in(pipeline: am.Pipeline, name: str, manifest: Path) -> None:
    report = await pipeline.run(maps(name), manifest=manifest)
    assert (report.uploaded, report.failed) == (5, 0)


async def stream_in(pipeline: am.Pipeline, name: str, _: Path) -> None:
    async with aclosing(pipeline.stream(maps(name))) as outcomes:
        async for outcome in outcomes:
            assert isinstance(outcome, am.Receipt)


async def put_in(pipeline: am.Pipeline, name: str, _: Path) -> None:
    await pipeline.put(name, random_map(1))


async def put_nowait_in(pipeline: am.Pipeline, name: str, _: Path) -> None:
    await asyncio.gather(*(pipeline.put_nowait(f"{name}/{i}", random_map(i)) for i in range(2)))


OPERATIONS = {"put": put_in, "put_nowait": put_nowait_in, "stream": stream_in, "run": run_in}


def done(manifest: Path) -> set[str]:
    """Return the locators of done maps, and check that no map failed; empty without a manifest."""
    if not manifest.exists():
        return set()
    with Manifest(manifest, read_only=True) as opened:
        locators = {str(row[1]) for row in opened.rows()}
        assert opened.counts() in ({}, {"done": len(locators)})
    return locators


@asynccontextmanager
async def listing(
    destination: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[[], Awaitable[set[str]]]]:
    """Yield a function that lists the locators in a destination."""
    if destination == "memory://":
        store = MemoryStore()
        use_store(monkeypatch, store)

        async def in_memory() -> set[str]:
            return {store.locator(key) for key in store.objects}

        yield in_memory
        return
    bucket = destination.removeprefix("s3://")
    async with aioboto3.Session().client("s3") as client:

        async def in_bucket() -> set[str]:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
            return {f"s3://{bucket}/{entry['Key']}" async for page in pages for entry in page.get("Contents", [])}

        yield in_bucket


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("where", "workers", "stride", "again"),
    [
        pytest.param("memory", 0, 1, [], id="memory"),
        pytest.param("memory", 0, 3, [2], id="memory, and once more"),
        pytest.param("memory", 1, 3, [], id="memory, processes"),
        pytest.param("s3", 0, 7, [], id="S3"),
        pytest.param("memory", 1, 1, [], id="memory, processes, every step", marks=pytest.mark.slow),
        pytest.param("s3", 1, 3, [], id="S3, processes, finer", marks=pytest.mark.long),
        pytest.param("s3", 0, 4, [5], id="S3, and once more", marks=pytest.mark.slow),
    ],
)
def test_a_cancel_before_any_step_leaves_the_pipeline_usable(
    operation: str, where: str, workers: int, stride: int, again: list[int], bucket: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    settings = am.Settings(workers=workers, concurrency=2, chunk_maps=2, encode_threads=1, queue_bytes=8_000)

    destination = f"s3://{bucket}" if where == "s3" else "memory://"

    async def sweep() -> int:
        async with (
            listing(destination, monkeypatch) as stored,
            am.Pipeline(destination, settings=settings) as pipeline,
        ):
            await pipeline.put("before", random_map(0))
            tasks, processes = asyncio.all_tasks(), children()
            for steps in itertools.count(step=stride):
                manifest = tmp_path / f"{steps}.sqlite"
                begun = OPERATIONS[operation](pipeline, f"{steps}", manifest)
                ended_itself = await cancelled([steps, *again], begun)
                if locators := done(manifest):
                    assert locators <= await stored()
                receipt = await asyncio.wait_for(pipeline.put(f"after {steps}", random_map(2)), 60)
                assert receipt.locator in await stored()
                await ends(tasks, processes)
                if ended_itself:
                    break
            async with asyncio.timeout(60):
                while pipeline.statistics().in_flight:  # noqa: ASYNC110  # no event to wait for
                    await asyncio.sleep(0.001)
            assert pipeline.statistics().waiting == 0
        statistics = pipeline.statistics()
        assert (statistics.colorize.queue, statistics.encode.queue, statistics.upload.queue) == (0, 0, 0)
        return steps // stride

    cancels = swept(sweep())
    print(f"{operation} cancelled at {cancels} moments")  # noqa: T201  # README's
    assert cancels * stride > {"put": 8, "put_nowait": 8, "stream": 30, "run": 40}[operation]


async def whole_life(destination: str, settings: am.Settings, manifest: Path) -> None:
    async with am.Pipeline(destination, settings=settings) as pipeline:
        await run_in(pipeline, "many", manifest)
        await put_in(pipeline, "one", manifest)


@pytest.mark.parametrize(
    ("where", "workers", "stride", "again"),
    [
        pytest.param("memory", 0, 4, [], id="memory"),
        pytest.param("memory", 1, 50, [], id="memory, processes", marks=pytest.mark.slow),
        pytest.param("s3", 0, 50, [], id="S3"),
        pytest.param("memory", 0, 5, [3], id="memory, and once more"),
        pytest.param("memory", 0, 1, [], id="memory, every step", marks=pytest.mark.long),
        pytest.param("memory", 2, 40, [], id="memory, processes, finer", marks=pytest.mark.long),
        pytest.param("memory", 1, 40, [10], id="memory, processes, and once more", marks=pytest.mark.slow),
        pytest.param("s3", 0, 12, [], id="S3, finer", marks=pytest.mark.slow),
    ],
)
def test_a_cancel_at_any_step_of_a_pipeline_leaves_nothing(
    where: str, workers: int, stride: int, again: list[int], bucket: str, tmp_path: Path
) -> None:
    settings = am.Settings(workers=workers, concurrency=2, encode_threads=1)

    async def sweep() -> int:
        tasks, processes, open_ = asyncio.all_tasks(), children(), len(descriptors())
        for count in itertools.count():
            life = whole_life(
                f"s3://{bucket}" if where == "s3" else "memory://", settings, tmp_path / f"{count}.sqlite"
            )
            ended_itself = await cancelled([count * stride, *again], life)
            if not again:
                # After a single cancel, the pipeline ends its processes before it ends itself.
                assert children() == processes
            await ends(tasks, processes)
            async with asyncio.timeout(60):
                while len(descriptors()) > open_:
                    # Tracebacks of cancelled stages are reference cycles, some with the shared memory. After two
                    # cancels, a thread may still close its file.
                    gc.collect()
                    await asyncio.sleep(0.001)
            if ended_itself:
                break
        return count

    cancels = swept(sweep())
    print(f"a pipeline's life cancelled at {cancels} moments")  # noqa: T201  # README's
    assert cancels >= 4


def test_a_failure_after_two_cancels_is_not_reported_to_the_loop() -> None:
    async def fails_at_its_end() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            with CancelScope(shield=True):
                await asyncio.sleep(0.01)
            raise LookupError

    async def cancel_twice() -> int:
        waiting = asyncio.create_task(OrderlyTask(fails_at_its_end).result())
        for _ in range(2):
            await asyncio.sleep(0.001)
            waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await ends({task for task in asyncio.all_tasks() if task is asyncio.current_task()}, children())
        return 2

    assert swept(cancel_twice()) == 2
