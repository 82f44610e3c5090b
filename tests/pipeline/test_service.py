"""The pipeline in a real HTTP service: each request is answered, overload is refused, shutdown loses no map."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import aioboto3
import aiohttp
import numpy as np
import pytest
from aiohttp import web

import async_maps as am
from async_maps.stores.s3 import S3Store
from tests.support.burst import Answer, burst
from tests.support.chaos import chaos
from tests.support.leftovers import leaves_nothing
from tests.support.maps import decode, random_map
from tests.support.memory import MIB, pss
from tests.support.pipelines import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from numpy.typing import NDArray

    from async_maps.demo.seaweed import S3Server

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

PIPELINE = web.AppKey("pipeline", am.Pipeline)
DEADLINE_S = web.AppKey("deadline_s", float)
SETTINGS = am.Settings(workers=0, encode_threads=1, concurrency=64, queue_bytes=16 * MIB)
SIDE = 64
MAP_BYTES = 16 * SIDE * SIDE * 4
REQUEST_BYTES = SIDE * SIDE * 4 + 32 * 1024
"""The memory that the HTTP server holds for a request: its body and the connection."""
SOAK_S = 240


async def post_map(request: web.Request) -> web.Response:
    """Answer when the map is stored or refused."""
    try:
        async with asyncio.timeout(request.app[DEADLINE_S]):
            # Not request.read(), which keeps the body for as long as the request.
            cam = np.lib.format.read_array(io.BytesIO(await request.content.read()), allow_pickle=False)
            receipt = await request.app[PIPELINE].put_nowait(request.match_info["name"], as_large_as_the_image(cam))
    except (am.PipelineFullError, am.PipelineClosedError) as error:
        # Returned, not raised: a traceback keeps the array until the answer is sent.
        return web.Response(status=503, text=str(error), headers={"Retry-After": "1"})
    except TimeoutError:
        return web.Response(status=504, text="not stored in time")
    except (am.MapFailedError, ValueError) as error:
        return web.Response(status=422, text=str(error))
    return web.json_response({"locator": receipt.locator})


def as_large_as_the_image(cam: NDArray[Any]) -> NDArray[Any]:
    """Enlarge a map from (h, w) to (4h, 4w), 16 times the bytes."""
    return cam.repeat(4, 0).repeat(4, 1)


@asynccontextmanager
async def serving(
    destination: str, settings: am.Settings = SETTINGS, deadline_s: float = 60.0
) -> AsyncIterator[tuple[web.AppRunner, str]]:
    """Run the service. Yields its runner and its URL."""

    async def pipeline(app: web.Application) -> AsyncIterator[None]:
        async with am.Pipeline(destination, settings=settings) as app[PIPELINE]:
            yield

    app = web.Application()
    app[DEADLINE_S] = deadline_s
    app.cleanup_ctx.append(pipeline)
    app.router.add_post("/maps/{name:.+}", post_map)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
        yield runner, f"http://127.0.0.1:{runner.addresses[0][1]}/maps"
    finally:
        await runner.cleanup()


def npy(array: NDArray[np.generic]) -> bytes:
    body = io.BytesIO()
    np.save(body, array)
    return body.getvalue()


async def objects(bucket: str) -> dict[str, int]:
    """Return the sizes of the objects in a bucket by key."""
    async with aioboto3.Session().client("s3") as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return {entry["Key"]: entry["Size"] async for page in pages for entry in page.get("Contents", [])}


async def test_a_map_is_stored_and_answered_with_its_locator(bucket: str) -> None:
    cam = random_map(1)
    async with (
        serving(f"s3://{bucket}/overlays") as (_, url),
        aiohttp.ClientSession() as session,
        session.post(f"{url}/val/0001", data=npy(cam)) as answer,
    ):
        assert answer.status == 200
        assert await answer.json() == {"locator": f"s3://{bucket}/overlays/val/0001.png"}
    async with aioboto3.Session().client("s3") as client:
        found = await client.get_object(Bucket=bucket, Key="overlays/val/0001.png")
        data = await found["Body"].read()
    assert np.array_equal(decode(data), am.colorize_activation_map(as_large_as_the_image(cam)))


async def test_an_invalid_map_is_answered_with_422(bucket: str) -> None:
    nan, pickled = np.full((3, 3), np.nan), io.BytesIO()
    np.save(pickled, np.array([{"a": 1}], object), allow_pickle=True)
    bad = {
        "empty": b"",
        "text": b"no array at all",
        "cut off": npy(random_map(1))[:-1],
        "pickled": pickled.getvalue(),
        "NaN": npy(nan),
        "of four dimensions": npy(np.zeros((2, 2, 2, 2), np.uint8)),
        "../name": npy(random_map(1)),
    }
    async with serving(f"s3://{bucket}") as (_, url), aiohttp.ClientSession() as session:
        for name, body in bad.items():
            async with session.post(f"{url}/{name.replace('/', '%2F')}", data=body) as answer:
                assert (answer.status, bool(await answer.text())) == (422, True), name
        async with session.post(f"{url}/good", data=npy(random_map(1))) as answer:
            assert answer.status == 200
    assert set(await objects(bucket)) == {"good.png"}


async def test_a_request_past_its_deadline_is_answered_with_504(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, original = asyncio.Event(), S3Store.put

    async def put(self: S3Store, key: str, data: bytes) -> str | None:
        if key == "slow.png":
            await gate.wait()
        return await original(self, key, data)

    monkeypatch.setattr(S3Store, "put", put)
    async with serving(f"s3://{bucket}", deadline_s=3.0) as (runner, url), aiohttp.ClientSession() as session:
        pipeline = runner.app[PIPELINE]
        # The first object of a bucket takes longer.
        await pipeline.put("first", random_map(1))
        async with session.post(f"{url}/slow", data=npy(random_map(1))) as answer:
            assert answer.status == 504
        async with session.post(f"{url}/next", data=npy(random_map(1))) as answer:
            assert answer.status == 200
        # The abandoned map is still uploaded, and does not block others.
        assert pipeline.statistics().in_flight == 1
        gate.set()
        await until(lambda: pipeline.statistics().in_flight == 0)
        assert pipeline.statistics().uploaded == 3


async def test_shutdown_finishes_accepted_maps_and_refuses_others(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, original = asyncio.Event(), S3Store.put

    async def put(self: S3Store, key: str, data: bytes) -> str | None:
        await gate.wait()
        return await original(self, key, data)

    monkeypatch.setattr(S3Store, "put", put)
    async with serving(f"s3://{bucket}") as (runner, url), aiohttp.ClientSession() as session:

        async def post(name: str) -> int:
            async with session.post(f"{url}/{name}", data=npy(random_map(1))) as answer:
                return answer.status

        pipeline = runner.app[PIPELINE]
        accepted = [asyncio.create_task(post(f"{i}")) for i in range(20)]
        await until(lambda: pipeline.statistics().accepted == 20)
        shutdown = asyncio.create_task(runner.cleanup())
        await asyncio.sleep(0.05)
        with pytest.raises(aiohttp.ClientConnectionError):
            await post("late")
        assert not shutdown.done()
        gate.set()
        assert await asyncio.gather(*accepted) == [200] * 20
        await shutdown
        assert not pipeline.is_open
    assert set(await objects(bucket)) == {f"{i}.png" for i in range(20)}


async def assert_all_answered(answers: list[Answer], count: int, bucket: str, shed: int) -> None:
    """Check that each answer is 200, or 503 with Retry-After, and that the bucket has exactly the answered locators."""
    statuses = Counter(answer.status for answer in answers)
    assert set(statuses) == {200, 503}
    assert statuses.total() == count
    assert statuses[503] == shed
    assert {answer.retry_after for answer in answers if answer.status == 503} == {"1"}
    locators = {json.loads(answer.text)["locator"] for answer in answers if answer.status == 200}
    assert len(locators) == statuses[200]
    assert {f"s3://{bucket}/{key}" for key in await objects(bucket)} == locators


async def test_each_of_100_concurrent_requests_is_answered(
    bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS.model_copy(update={"queue_bytes": 2 * MAP_BYTES})
    with chaos(s3, monkeypatch, seed=1, rate=1.0, kinds=("latency",)):
        async with serving(f"s3://{bucket}", settings) as (runner, url):
            answers = await burst(url, 100, SIDE)
            shed = runner.app[PIPELINE].statistics().shed
    await assert_all_answered(answers, 100, bucket, shed)


async def crowd(url: str, count: int) -> tuple[list[Answer], int]:
    """Return the answers that :mod:`tests.support.burst` gets, and the peak memory of this process meanwhile."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.burst", url, f"{count}", f"{SIDE}", stdout=asyncio.subprocess.PIPE
    )
    printed, most = asyncio.create_task(process.communicate()), 0
    while not printed.done():
        most = max(most, pss(os.getpid()))
        await asyncio.wait({printed}, timeout=0.02)
    out, _ = await printed
    return [Answer(*answer) for answer in json.loads(out)], most


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="asks Linux for the memory of a process")
async def test_memory_for_2000_concurrent_requests_stays_in_the_formula(
    bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 2_000
    with chaos(s3, monkeypatch, seed=1, rate=1.0, kinds=("latency",)):
        async with serving(f"s3://{bucket}") as (runner, url):
            await runner.app[PIPELINE].put("burst/0", random_map(0))
            gc.collect()
            before = pss(os.getpid())
            answers, most = await crowd(url, count)
            shed = runner.app[PIPELINE].statistics().shed
    await assert_all_answered(answers, count, bucket, shed)
    for status in (200, 503):
        seconds = [answer.seconds for answer in answers if answer.status == status]
        p50, p99 = np.percentile(seconds, [50, 99])
        print(f"{len(seconds):,} of {count:,} answered {status}, p50 {p50:.2f} s, p99 {p99:.2f} s")  # noqa: T201  # README's
    print(f"{(most - before) / MIB:.0f} MiB held at the most, for {count * MAP_BYTES / MIB:.0f} MiB of maps")  # noqa: T201
    # README's formula, and some MiB for encoder, uploads and allocator.
    assert most - before <= 3 * SETTINGS.queue_size + 32 * MIB + count * REQUEST_BYTES < count * MAP_BYTES / 2


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="asks Linux for the memory of a process")
async def test_a_service_answers_for_minutes_in_flat_memory(
    bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    statuses: Counter[int] = Counter()
    stored: set[str] = set()
    with chaos(s3, monkeypatch, seed=1, rate=0.1) as proxy:
        async with serving(f"s3://{bucket}") as (_, url):
            ends = time.monotonic() + SOAK_S
            while time.monotonic() < ends:
                answers, _ = await crowd(url, 200)
                statuses.update(answer.status for answer in answers)
                stored |= {f"{answer.name}.png" for answer in answers if answer.status == 200}
                gc.collect()
                sizes.append(pss(os.getpid()))
    assert set(statuses) == {200, 503}
    assert set(await objects(bucket)) == stored
    third = len(sizes) // 3
    early, late = median(sizes[third : 2 * third]), median(sizes[-third:])
    print(  # noqa: T201  # README's
        f"{statuses.total():,} requests in {SOAK_S} s, {statuses[503]:,} refused, {proxy.faults:,} PUTs broken: "
        f"{(late - early) / MIB:+.1f} MiB"
    )
    assert late < early + 8 * MIB
