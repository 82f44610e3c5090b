"""A slow or stalled store and very many maps: memory stays within README's formula."""

from __future__ import annotations

import asyncio
import gc
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.manifest.manifest import Manifest
from async_maps.stores.memory import MemoryStore
from tests.support.leftovers import leaves_nothing
from tests.support.maps import decode
from tests.support.memory import MIB, held
from tests.support.pipelines import use_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

pytestmark = [
    pytest.mark.usefixtures(leaves_nothing.__name__),
    pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="asks Linux for the memory of a process"),
    pytest.mark.alone,
]

SIDE = 512
QUEUE = 16 * MIB
BATCH = 16 * MIB
"""The largest batch of a listing, from README."""


class CheckingStore(MemoryStore):
    """Delays each object and records only whether its pixels are right.

    Args:
        delay: the seconds for the n-th object.
        expected: the pixels of a key.
    """

    def __init__(self, delay: Callable[[int], float], expected: Callable[[str], NDArray[np.uint8]]) -> None:
        super().__init__()
        self._delay = delay
        self._expected = expected
        self.taken = 0
        self.right: set[str] = set()

    async def put(self, key: str, data: bytes) -> str:
        self.taken += 1
        await asyncio.sleep(self._delay(self.taken))
        if np.array_equal(decode(data), self._expected(key)):
            self.right.add(key)
        return ""


def large_map(number: int) -> NDArray[np.float32]:
    """Return a map of one MiB that compresses badly. Four different maps are enough to know their pixels."""
    return np.random.default_rng(number % 4).random((SIDE, SIDE), np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "delay"),
    [
        # The kernel takes 0.13 ms for a map of this size.
        pytest.param(2, lambda _: 0.013, id="100 times slower than the kernels"),
        pytest.param(0, lambda number: 2.0 if number == 20 else 0.0, id="stalls and goes on"),
    ],
)
async def test_memory_for_a_slow_store_stays_within_the_formula(
    workers: int, delay: Callable[[int], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 250
    expected = [am.colorize_activation_map(large_map(kind)) for kind in range(4)]
    store = CheckingStore(delay, lambda key: expected[int(key.removesuffix(".png")) % 4])
    use_store(monkeypatch, store)
    read = 0

    def maps() -> Iterator[tuple[str, NDArray[Any]]]:
        nonlocal read
        for i in range(count):
            read += 1
            yield f"{i}", large_map(i)

    settings = am.Settings(workers=workers, concurrency=1, encode_threads=2, queue_bytes=QUEUE)
    most_ahead, most_held, fullest = 0, 0, 0.0
    async with am.Pipeline("memory://", settings=settings) as pipeline:
        # Each worker and encoder has its own memory from its first map on.
        await asyncio.gather(*(pipeline.put(f"{i}", large_map(i)) for i in range(8)))
        gc.collect()
        before = held()
        running = asyncio.create_task(pipeline.run(maps()))
        ours = pipeline.statistics().uploaded
        while not running.done():
            most_ahead = max(most_ahead, read - (pipeline.statistics().uploaded - ours))
            most_held = max(most_held, held() - before)
            fullest = max(fullest, pipeline.statistics().upload.queue)
            await asyncio.wait({running}, timeout=0.02)
        report = await running
    assert (report.uploaded, report.failed) == (count, 0)
    assert store.right == {f"{i}.png" for i in range(count)}
    print(f"{most_ahead} maps ahead, {most_held / MIB:.0f} MiB held at the most")  # noqa: T201  # README's
    assert fullest == 1.0
    # Waiting arrays, one listed batch, and blocks of an array and its scanlines each. Then those of the two encoders
    # (a batch is a MiB of scanlines), of the reader, and of the upload, before which one more waits.
    assert most_ahead <= QUEUE // MIB + BATCH // MIB + QUEUE // (MIB + MIB // 4) + 2 * 5 + 3
    # Three queues, a batch, and some MiB for two workers, two encoders and the allocator, which keeps what was freed.
    assert most_held <= 3 * QUEUE + BATCH + 48 * MIB


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_100_000_maps_to_a_slow_store_keep_memory_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 100_000

    class Counting(MemoryStore):
        """Waits for each object like a network, and keeps none."""

        taken = size = 0

        async def put(self, key: str, data: bytes) -> str:
            await asyncio.sleep(0.001)
            self.taken += 1
            self.size += len(data)
            return ""

    store = Counting()
    use_store(monkeypatch, store)

    def maps() -> Iterator[tuple[str, NDArray[Any]]]:
        for i in range(count):
            yield f"{i}", np.full((8, 8), i % 256, np.uint8)

    samples: list[tuple[int, int]] = []
    began = time.monotonic()
    async with am.Pipeline("memory://", settings=am.Settings(workers=1)) as pipeline:
        running = asyncio.create_task(pipeline.run(maps(), manifest=tmp_path / "m.sqlite"))
        while not running.done():
            samples.append((pipeline.statistics().uploaded, held()))
            await asyncio.wait({running}, timeout=0.1)
        report = await running
    assert (report.uploaded, report.failed) == (count, 0)
    assert store.taken == count
    with Manifest(tmp_path / "m.sqlite", read_only=True) as manifest:
        assert manifest.counts() == {"done": count}
    sizes = [size for uploaded, size in samples if uploaded >= count / 10]
    fifth = len(sizes) // 5
    early, late = median(sizes[:fifth]), median(sizes[-fifth:])
    print(  # noqa: T201  # README's
        f"{count:,} maps in {time.monotonic() - began:.0f} s: {(late - early) / MIB:+.1f} MiB from 10 % to the end, "
        f"{(max(sizes) - early) / MIB:+.1f} MiB at the most"
    )
    assert late < early + 12 * MIB
    assert max(sizes) < early + 48 * MIB
