"""The stage colorize copies large arrays outside the event loop, and restarts a worker as long as others progress."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from anyio import create_memory_object_stream, fail_after

from async_maps.errors import WorkerError
from async_maps.render.ranges import UNIT
from async_maps.settings import Settings
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.arrays import array_map
from async_maps.stages import colorize
from async_maps.stages.colorize import ColorizeStage
from async_maps.stages.items import Bitmap, Job
from async_maps.stages.meters import Meter
from async_maps.workers.arena import Arena
from async_maps.workers.pool import ThreadWorker
from async_maps.workers.worker import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from async_maps.workers.pool import Worker


class Noted(np.ndarray[Any, Any]):
    """An array that notes the threads in which it is copied."""

    threads: list[int]

    def __array_function__(self, function: Any, types: Any, arguments: Any, keywords: Any) -> Any:
        self.threads.append(threading.get_ident())
        plain = (argument.view(np.ndarray) for argument in arguments)
        return function(*plain, **keywords)


@pytest.fixture
def arena() -> Iterator[Arena]:
    with Arena(2**20) as arena:
        yield arena


def _stage(arena: Arena, meter: Meter) -> ColorizeStage:
    return ColorizeStage(arena, chunk_maps=1, chunk_bytes=2**20, channels=1, meter=meter)


def _job(array: NDArray[Any]) -> Job:
    map_ = array_map("x", array)
    assert isinstance(map_, ActivationMap)
    return Job(map_, lambda _: None, UNIT)


@pytest.mark.parametrize(("side", "in_loop"), [(8, True), (300, False)])
async def test_only_small_arrays_are_copied_on_the_event_loop(arena: Arena, side: int, in_loop: bool) -> None:
    array = np.linspace(0, 1, side * side, dtype=np.float32).reshape(side, side).view(Noted)
    array.threads = []
    block = await arena.take(array.nbytes)
    job = _job(array)
    object.__setattr__(job.map, "array", array)
    await _stage(arena, Meter(1))._copy_inputs([job], block, array.nbytes)
    assert [thread == threading.get_ident() for thread in array.threads] == [in_loop]
    assert block.memory[: array.nbytes].tobytes() == array.tobytes()
    block.release()


async def test_a_map_larger_than_the_arena_is_colorized_while_the_one_before_it_is_held(
    arena: Arena, tmp_path: Path
) -> None:
    np.save(tmp_path / "map.npy", np.zeros((1024, 1024), np.float32))
    worker = ThreadWorker(Recipe.of(Settings()))
    await worker.start()
    jobs, jobs_out = create_memory_object_stream[Job](3)
    bitmaps, bitmaps_out = create_memory_object_stream[list[Bitmap]](3)
    for name in "ab":
        map_ = ActivationMap(name, "", None, 2**22, str(tmp_path / "map.npy"))
        jobs.send_nowait(Job(map_, lambda outcome: pytest.fail(str(outcome)), UNIT))
    jobs.close()
    with fail_after(60), bitmaps_out:
        await _stage(arena, Meter(1)).run(worker, jobs_out, bitmaps)
        batches = [batch async for batch in bitmaps_out]
    assert [bitmap.job.map.name for (bitmap,) in batches] == ["a", "b"]
    assert arena.held > 2 * arena.size
    for (bitmap,) in batches:
        bitmap.release()
    await worker.stop()


class Unstartable:
    """A worker that cannot be restarted; other workers do maps before some of the attempts."""

    def __init__(self, meter: Meter, progress_before: int) -> None:
        self.attempts = 0
        self._meter = meter
        self._progress_before = progress_before

    async def start(self) -> None:
        self.attempts += 1
        self._meter.maps += self.attempts == self._progress_before
        raise WorkerError("the worker process was killed")


@pytest.mark.parametrize("before", [0, 2, 3])
async def test_attempts_to_restart_a_worker_count_from_the_last_progress(
    arena: Arena, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(colorize, "_FIRST_WAIT_S", 0)
    meter = Meter(2)
    worker = Unstartable(meter, before)
    with pytest.raises(WorkerError, match=f"killed when it was restarted, {colorize._START_ATTEMPTS} times in a row"):
        await _stage(arena, meter)._restart(cast("Worker", worker))
    assert worker.attempts == max(before - 1, 0) + colorize._START_ATTEMPTS
