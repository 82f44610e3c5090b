"""The pipeline with worker processes, some of which are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from anyio import create_task_group, from_thread, to_thread

import async_maps as am
from async_maps.workers.pool import ProcessWorker
from tests.support.leftovers import leaves_nothing
from tests.support.maps import decode, random_map
from tests.support.pipelines import worker_pids

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from async_maps.settings import PngKind
    from async_maps.workers.arena import Block
    from async_maps.workers.worker import Reply, Request

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("png", ["palette", "rgba"])
async def test_put_stores_the_pixels_of_colorize_activation_map(tmp_path: Path, workers: int, png: PngKind) -> None:
    activation_map = random_map(1)
    async with am.Pipeline(tmp_path / "out", settings=am.Settings(workers=workers, png=png)) as pipeline:
        receipt = await pipeline.put("val/0001", activation_map)
    path = tmp_path / "out" / "val" / "0001.png"
    assert receipt.locator == path.as_uri()
    assert (receipt.name, receipt.height, receipt.width) == ("val/0001", 20, 30)
    assert receipt.size == path.stat().st_size
    assert np.array_equal(decode(path.read_bytes()), am.colorize_activation_map(activation_map))


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "u1", np.longdouble])
@pytest.mark.slow
async def test_every_dtype_layout_and_shape_passes_the_shared_memory(tmp_path: Path, dtype: str) -> None:
    values = random_map(3, (17, 23)).astype(np.float64)
    array = (values * 255).astype("u1") if dtype == "u1" else values.astype(dtype)
    shapes = {
        "plain": array,
        "fortran": np.asfortranarray(array),
        "strided": array[::2, ::-3],
        "channel": array[..., None],
        "one": array[:1, :1],
        "row": array[:1],
    }
    async with am.Pipeline(tmp_path, settings=am.Settings(workers=1)) as pipeline:
        await asyncio.gather(*(pipeline.put(name, variant) for name, variant in shapes.items()))
    for name, variant in shapes.items():
        assert np.array_equal(decode((tmp_path / f"{name}.png").read_bytes()), am.colorize_activation_map(variant)), (
            name
        )


async def test_concurrent_puts_share_chunks_and_a_lone_put_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks: list[int] = []
    original = ProcessWorker.colorize

    async def counted(self: ProcessWorker, block: Block, free_from: int, requests: list[Request]) -> Reply:
        chunks.append(len(requests))
        return await original(self, block, free_from, requests)

    monkeypatch.setattr(ProcessWorker, "colorize", counted)
    async with am.Pipeline(tmp_path, settings=am.Settings(workers=1)) as pipeline:
        await pipeline.put("alone", random_map(0))
        assert chunks == [1]
        await asyncio.gather(*(pipeline.put(f"{i}", random_map(i)) for i in range(100)))
    assert sum(chunks) == 101
    assert len(chunks) < 20


async def test_stream_gives_each_outcome_once(tmp_path: Path) -> None:
    def maps() -> Iterator[tuple[str, NDArray[Any]]]:
        for i in range(500):
            yield f"m{i}", np.zeros((2, 2), np.int32) if i % 50 == 7 else random_map(i)

    outcomes: dict[str, am.Outcome] = {}
    async with am.Pipeline(tmp_path, settings=am.Settings(workers=1)) as pipeline:
        async for outcome in pipeline.stream(maps()):
            assert outcome.name not in outcomes
            outcomes[outcome.name] = outcome
    assert len(outcomes) == 500
    failed = {name for name, outcome in outcomes.items() if isinstance(outcome, am.Failure)}
    assert failed == {f"m{i}" for i in range(500) if i % 50 == 7}


async def test_callers_in_all_of_anyios_threads_do_not_block_the_pipeline(tmp_path: Path) -> None:
    large = np.zeros((200, 200), np.float32)
    async with am.Pipeline(tmp_path, settings=am.Settings(workers=1)) as pipeline, create_task_group() as tasks:
        for i in range(40):
            tasks.start_soon(to_thread.run_sync, from_thread.run, pipeline.put, f"{i}", large)
    assert len(list(tmp_path.glob("*.png"))) == 40


async def test_a_worker_that_cannot_start_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(am.WorkerError, match="cannot be started: No such file or directory; set workers = 0"):
        async with am.Pipeline(tmp_path, settings=am.Settings(workers=1)):
            pytest.fail("entered")


async def test_a_map_larger_than_every_bound_is_uploaded(tmp_path: Path) -> None:
    settings = am.Settings(workers=1, queue_bytes=100_000, chunk_bytes=10_000)
    large = random_map(1, (700, 900))
    np.save(tmp_path / "large.npy", (large * 255).astype(np.uint8))
    for i in range(20):
        np.save(tmp_path / f"small{i}.npy", random_map(i))
    async with am.Pipeline(tmp_path / "out", settings=settings) as pipeline:
        report, receipt = await asyncio.gather(pipeline.run(tmp_path), pipeline.put("array", large))
    assert (report.uploaded, report.failed) == (21, 0)
    assert receipt.width == 900
    assert np.array_equal(decode((tmp_path / "out/array.png").read_bytes()), am.colorize_activation_map(large))


@pytest.mark.parametrize("queue_bytes", [pytest.param(20_000, marks=pytest.mark.slow), 2**26])
async def test_a_killed_worker_loses_no_map(maps: Path, tmp_path: Path, queue_bytes: int) -> None:
    for i in range(600):
        np.save(maps / f"{i}.npy", random_map(i, (60, 60)))
    killed = 0
    settings = am.Settings(workers=2, queue_bytes=queue_bytes)
    async with am.Pipeline(tmp_path / "out", settings=settings) as pipeline:
        running = asyncio.create_task(pipeline.run(maps))
        while not running.done():
            # A map that is hit twice would fail. 150 maps later, most maps of the last kill are done.
            if killed < 3 and pipeline.statistics().uploaded >= 150 * killed and (pids := worker_pids()):
                os.kill(pids[0], signal.SIGKILL)
                killed += 1
            await asyncio.wait({running}, timeout=0.05)
        report = await running
    assert killed > 0
    assert report.failed == 0, report.failures
    assert report.uploaded == len(list((tmp_path / "out").glob("*.png"))) == 600


@pytest.mark.parametrize("size", [2**50, 2**60])
async def test_a_wrong_size_in_an_archive_fails_alone(maps: Path, tmp_path: Path, size: int) -> None:
    np.save(maps / "a.npy", random_map(1))
    np.savez(maps / "lying.npz", x=random_map(2))
    with zipfile.ZipFile(maps / "lying.npz", "a") as archive:
        archive.filelist[0].file_size = size
        archive.writestr("y.npy", (maps / "a.npy").read_bytes())
    async with am.Pipeline(tmp_path / "out", settings=am.Settings(workers=1)) as pipeline:
        report = await pipeline.run(maps)
        assert (await pipeline.put("after", random_map(3))).name == "after"
    assert report.uploaded + report.failed == 3
    assert report.uploaded >= 2
    assert (tmp_path / "out" / "a.png").exists()


@pytest.mark.slow
async def test_a_map_that_kills_its_worker_twice_fails_alone(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ProcessWorker.colorize

    async def deadly(self: ProcessWorker, block: Block, free_from: int, requests: list[Request]) -> Reply:
        if any("poison" in str(request.path) for request in requests):
            assert self.pid is not None
            os.kill(self.pid, signal.SIGKILL)
        return await original(self, block, free_from, requests)

    monkeypatch.setattr(ProcessWorker, "colorize", deadly)
    for name in ("a", "b", "poison", "z"):
        np.save(maps / f"{name}.npy", random_map(1))
    async with am.Pipeline(tmp_path / "out", settings=am.Settings(workers=1)) as pipeline:
        report = await pipeline.run(maps)
        receipt = await pipeline.put("array", random_map(5))
    assert (report.uploaded, report.failed) == (3, 1)
    assert report.failures[0].name == "poison"
    assert "killed by signal 9" in report.failures[0].reason
    assert receipt.name == "array"


async def test_the_context_may_be_left_in_another_task(tmp_path: Path) -> None:
    pipeline = am.Pipeline(tmp_path, settings=am.Settings(workers=1))
    await asyncio.create_task(pipeline.__aenter__())
    assert (await pipeline.put("x", random_map(1))).name == "x"
    await asyncio.create_task(pipeline.__aexit__(None, None, None))


def test_run_works_in_a_script_without_a_main_guard(maps: Path, tmp_path: Path) -> None:
    for i in range(5):
        np.save(maps / f"{i}.npy", random_map(i))
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
            import async_maps as am
            print("once")
            report = am.run({str(maps)!r}, {str(tmp_path / "out")!r}, settings=am.Settings(workers=2))
            assert report.uploaded == 5
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "once\n", "")
