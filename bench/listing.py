"""What does a key cost in a listing of S3?

Each contender is a separate process that lists all keys of a sink and looks at each key and size, without its start:
``python -m bench.listing NAME``.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING

from async_maps.concurrency.loop import fastest_loop
from bench import peers, sink
from bench.data import link_maps, write_maps
from bench.measure import BUCKET, by_turns, cpu_s, parser, ratio_of, take_turns
from bench.tables import Bench

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from typing import TypeAlias

    from bench.measure import Figures

    Turn: TypeAlias = Callable[[], Awaitable[int]]

_COUNT, _QUICK_COUNT = 20_000, 2_000
_ROUNDS = 5
_PREFIX = "keys/"
_COLUMNS = {"": "", "CPU us/key": ".1f", "x our CPU": ".2f", "keys/s": ",.0f"}


@asynccontextmanager
async def with_async_maps() -> AsyncIterator[Turn]:
    """What our sources, plans and ``verify`` use."""
    from async_maps.filesystems.s3 import S3Filesystem

    with closing(S3Filesystem()) as filesystem:

        async def turn() -> int:
            return sum(1 for found in filesystem.objects(BUCKET, _PREFIX) if found.key and found.size)

        yield turn


@asynccontextmanager
async def with_boto3() -> AsyncIterator[Turn]:
    """The paginator of boto3."""
    pages = peers.boto3_client(1).get_paginator("list_objects_v2")

    async def turn() -> int:
        found = pages.paginate(Bucket=BUCKET, Prefix=_PREFIX)
        return sum(1 for page in found for entry in page["Contents"] if entry["Key"] and entry["Size"])

    yield turn


@asynccontextmanager
async def with_aioboto3() -> AsyncIterator[Turn]:
    """The paginator of aioboto3."""
    from aioboto3 import Session

    async with Session().client("s3") as client:

        async def turn() -> int:
            found = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=_PREFIX)
            return sum([1 async for page in found for entry in page["Contents"] if entry["Key"] and entry["Size"]])

        yield turn


@asynccontextmanager
async def with_obstore() -> AsyncIterator[Turn]:
    """The list of obstore."""
    store = peers.obstore_store(BUCKET)

    async def turn() -> int:
        return sum(1 for page in store.list(_PREFIX) for entry in page if entry["path"] and entry["size"])

    yield turn


CLIENTS: dict[str, Callable[[], AbstractAsyncContextManager[Turn]]] = {
    "async_maps": with_async_maps,
    "boto3 list_objects_v2": with_boto3,
    "aioboto3 list_objects_v2": with_aioboto3,
    "obstore list": with_obstore,
}


def main(arguments: Sequence[str]) -> None:
    """Run ``python -m bench listing``."""
    options = parser("listing", __doc__).parse_args(arguments)
    bench = Bench("listing", options.quick)
    count, rounds = (_QUICK_COUNT, 1) if options.quick else (_COUNT, _ROUNDS)
    with tempfile.TemporaryDirectory(prefix="async-maps-bench-") as name:
        place = Path(name)
        write_maps(place / "file", 1, 8)
        link_maps(place / "file", place / _PREFIX, count)
        with sink.serve(objects=place) as server:
            commands = {client: ("-m", "bench.listing", client, str(count)) for client in CLIENTS}
            found = by_turns(commands, rounds, server.environment())
    table = bench.table(f"{count:,} keys of a sink, {rounds} rounds", _COLUMNS)
    ours = found[next(iter(CLIENTS))]
    for client, figures in found.items():
        table.add(**{"": client, **figures, "x our CPU": ratio_of(figures["CPU us/key"], ours["CPU us/key"])})
    bench.publish()


async def _contender(name: str, count: int) -> None:
    async with CLIENTS[name]() as list_all:

        async def turn() -> Figures:
            used_s, started = cpu_s(), time.perf_counter()
            if (found := await list_all()) != count:
                raise RuntimeError(f"{name} listed {found:,} of {count:,} keys")
            wall_s = time.perf_counter() - started
            return {"CPU us/key": 1e6 * (cpu_s() - used_s) / count, "keys/s": count / wall_s}

        # The first turn opens a connection and is not measured.
        await turn()
        await take_turns(turn)
    # obstore sometimes aborts when the interpreter ends.
    os._exit(0)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        runner.run(_contender(sys.argv[1], int(sys.argv[2])))
