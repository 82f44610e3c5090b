"""The README's service in uvicorn, under load from another process, and closed while its store does not answer."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import Counter
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import aiohttp
import numpy as np
import pytest

from tests.support.burst import Answer
from tests.support.leftovers import leaves_nothing
from tests.support.link import linked
from tests.support.maps import npy, random_map
from tests.support.pipelines import until
from tests.support.s3 import keys
from tests.support.stopwatch import SLACK_S, Stopwatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from async_maps.demo.seaweed import S3Server

pytest.importorskip("fastapi")
uvicorn: Any = pytest.importorskip("uvicorn")

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

README = Path(__file__).parent.parent.parent / "README.md"
TAKES = "        receipt = await app.state.pipeline.put_nowait(name, activation_map)\n"
RESERVES = """\
        async with app.state.pipeline.reserve(activation_map.nbytes, timeout_s=0.01) as room:
            receipt = await room.put(name, activation_map)
"""
COUNT, SIDE = 200, 64
TICK_S = 0.01


def readme_app(bucket: str, settings: str, *, way: str = "put_nowait") -> Any:
    """Return the README's app, with a bucket and settings of this test, and one of two ways to take room."""
    (code,) = re.findall(r"^```python\n([^`]*fastapi[^`]*)^```", README.read_text(), re.MULTILINE)
    for before, after in {
        "s3://my-bucket/service": f"s3://{bucket}/service",
        "am.Settings(workers=1)": f"am.Settings({settings})",
        TAKES: TAKES if way == "put_nowait" else RESERVES,
    }.items():
        assert before in code
        code = code.replace(before, after)
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(code, str(README), "exec", dont_inherit=True), names)  # noqa: S102  # our own README
    return names["app"]


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[tuple[Any, str]]:
    """Run the app in uvicorn. Yields the server and its URL."""
    config = uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=1, backlog=4096)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    try:
        await until(lambda: server.started)
        yield server, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/maps"
    finally:
        server.should_exit = True
        await serving


async def delays(late: list[float]) -> None:
    """Record for how long the event loop is late, every 10 ms."""
    while True:
        due = monotonic() + TICK_S
        await asyncio.sleep(TICK_S)
        late.append(monotonic() - due)


@pytest.mark.parametrize("way", ["put_nowait", "reserve"])
async def test_a_loaded_service_answers_sheds_and_stores_what_it_accepted(way: str, bucket: str) -> None:
    late: list[float] = []
    # Few places, so that the burst does not fit.
    app = readme_app(bucket, "workers=1, chunk_maps=16, concurrency=4", way=way)
    async with served(app) as (_, url):
        ticking = asyncio.create_task(delays(late))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.burst", url, f"{COUNT}", f"{SIDE}", stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        ticking.cancel()
        shed = app.state.pipeline.statistics().shed
    answers = [Answer(*answer) for answer in json.loads(out)]
    statuses = Counter(answer.status for answer in answers)
    assert statuses.keys() == {200, 503}
    assert statuses.total() == COUNT
    assert statuses[503] == shed
    assert all(1 <= int(answer.retry_after or 0) <= 61 for answer in answers if answer.status == 503)
    locators = {json.loads(answer.text)["locator"] for answer in answers if answer.status == 200}
    assert len(locators) == statuses[200]
    assert {f"s3://{bucket}/{key}" for key in await keys(bucket)} == locators
    p50, p99, longest = np.percentile(late, [50, 99, 100])
    print(f"{way}: {statuses}, event loop late p50 {p50:.3f} s, p99 {p99:.3f} s, at most {longest:.3f} s")  # noqa: T201
    # For a busy machine, which may stand still once: the loop is not blocked until each upload or chunk is done.
    assert p50 < 0.2
    assert p99 < 5.0


async def test_shutdown_is_bounded_when_the_store_does_not_answer(
    bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with linked(s3, monkeypatch) as link:
        app = readme_app(bucket, "workers=1, drain_timeout_s=1")
        async with served(app) as (server, url), aiohttp.ClientSession() as session:

            async def post(name: str) -> int:
                async with session.post(f"{url}/{name}", data=npy(random_map(1))) as answer:
                    return answer.status

            assert await post("first") == 200
            pipeline = app.state.pipeline
            link.flows.clear()
            posting = [asyncio.create_task(post(f"{i}")) for i in range(10)]
            await until(lambda: pipeline.statistics().accepted == 11)
            with Stopwatch() as watch:
                server.should_exit = True
                await until(lambda: not pipeline.is_open)
                # uvicorn's time-out for requests, and the pipeline's.
                assert watch.elapsed_s < 1.0 + 1.0 + SLACK_S
            for task in posting:
                with suppress(aiohttp.ClientError):
                    assert await task >= 500
    statistics = pipeline.statistics()
    assert (statistics.uploaded, statistics.abandoned) == (1, 10)
    assert await keys(bucket) <= {"service/first.png", *(f"service/{i}.png" for i in range(10))}
