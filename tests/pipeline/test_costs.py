"""The cost of a map on the default path, in requests, copies, messages and calls."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.concurrency import interpreter
from async_maps.concurrency.messages import frame
from async_maps.stages import colorize as colorize_stage
from async_maps.stages import encode, graph
from async_maps.workers.pool import ProcessWorker
from tests.support.leftovers import leaves_nothing
from tests.support.maps import random_map
from tests.support.scripted_server import server

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from async_maps.stages.items import Bitmap
    from async_maps.workers.arena import Arena
    from tests.support.scripted_server import Scripted

__all__ = ["server"]

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

MAPS, SIDE = 96, 256
SCANLINES = SIDE * (SIDE + 1)


@pytest.fixture
def source(maps: Path) -> Path:
    for i in range(MAPS):
        np.save(maps / f"{i:03}.npy", random_map(i, (SIDE, SIDE)))
    return maps


async def test_a_run_takes_one_request_a_map_and_one_for_the_bucket(source: Path, server: Scripted) -> None:
    async with am.Pipeline("s3://bucket/p") as pipeline:
        report = await pipeline.run(source)
    assert report.uploaded == MAPS
    # The first request checks the bucket.
    assert len(server.sdk) + len(server.direct) == MAPS + 1
    assert len([body for body in server.bodies.values() if body]) == MAPS


async def test_a_resumed_run_takes_one_request(source: Path, server: Scripted, tmp_path: Path) -> None:
    asked = []
    for _ in range(2):
        async with am.Pipeline("s3://bucket/p") as pipeline:
            await pipeline.run(source, manifest=tmp_path / "m.sqlite")
        asked.append(len(server.sdk) + len(server.direct))
    # The first run also asks for the keys of up to 32 maps.
    assert MAPS + 1 < asked[0] <= MAPS + 1 + 32
    assert asked[1] == asked[0] + 1


async def test_pixels_are_never_copied_between_the_processes(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arenas: list[Arena] = []
    lines: list[NDArray[np.uint8]] = []
    encode_bitmap = encode.encode_bitmap

    def checked(bitmap: Bitmap, table: NDArray[np.uint8], level: int) -> bytes:
        assert np.shares_memory(bitmap.data, arenas[0]._memory)
        lines.append(bitmap.data)
        return encode_bitmap(bitmap, table, level)

    def kept(arena: Arena, **options: Any) -> Any:
        arenas.append(arena)
        return colorize_stage.ColorizeStage(arena, **options)

    monkeypatch.setattr(graph, "encode_bitmap", checked)
    monkeypatch.setattr(graph, "ColorizeStage", kept)
    async with am.Pipeline("memory://") as pipeline:
        assert (await pipeline.run(source)).uploaded == MAPS
    assert [array.size for array in lines] == [SCANLINES] * MAPS


@pytest.mark.parametrize("in_memory", [False, True])
async def test_an_array_in_memory_is_copied_once_and_a_file_never(
    in_memory: bool, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[int] = []
    copyto = np.copyto

    def counted(target: NDArray[Any], array: NDArray[Any]) -> None:
        copied.append(array.nbytes)
        copyto(target, array)

    monkeypatch.setattr(np, "copyto", counted)
    pairs = [(f"{i}", random_map(i, (SIDE, SIDE))) for i in range(MAPS)] if in_memory else source
    async with am.Pipeline("memory://") as pipeline:
        assert (await pipeline.run(pairs)).uploaded == MAPS
    assert copied == ([SIDE * SIDE * 4] * MAPS if in_memory else [])


async def test_messages_between_processes_take_a_few_hundred_bytes_a_map(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[int] = []
    readexactly = asyncio.StreamReader.readexactly

    def counted_frame(message: Any) -> bytes:
        passed.append(len(frame(message)))
        return frame(message)

    async def counted_read(reader: asyncio.StreamReader, size: int) -> bytes:
        passed.append(size)
        return await readexactly(reader, size)

    async with am.Pipeline("memory://") as pipeline:
        monkeypatch.setattr(interpreter, "frame", counted_frame)
        monkeypatch.setattr(asyncio.StreamReader, "readexactly", counted_read)
        assert (await pipeline.run(source)).uploaded == MAPS
    length = len(str(source))
    assert 100 * MAPS < sum(passed) < (300 + length) * MAPS


async def test_a_chunk_takes_one_worker_call_and_one_encoder_call_a_batch(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    colorized: list[int] = []
    encoded: list[int] = []
    colorize, encode_batch = ProcessWorker.colorize, encode._encode_batch

    async def counted(worker: ProcessWorker, block: Any, free_from: int, requests: list[Any]) -> Any:
        colorized.append(len(requests))
        return await colorize(worker, block, free_from, requests)

    def counted_batch(batch: list[Bitmap], encoding: encode.Encoding) -> Any:
        encoded.append(len(batch))
        return encode_batch(batch, encoding)

    monkeypatch.setattr(ProcessWorker, "colorize", counted)
    monkeypatch.setattr(encode, "_encode_batch", counted_batch)
    settings = am.Settings(workers=1, chunk_maps=32)
    async with am.Pipeline("memory://", settings=settings) as pipeline:
        assert (await pipeline.run(source)).uploaded == MAPS
    assert sum(colorized) == sum(encoded) == MAPS
    # The first chunks hold the maps listed by then; later ones are full.
    assert len(colorized) <= 2 * MAPS / 32 + 2
    batch = math.ceil(colorize_stage._ENCODE_BATCH_BYTES / SCANLINES)
    assert max(encoded) <= batch
    assert len(encoded) <= sum(math.ceil(count / batch) for count in colorized)
