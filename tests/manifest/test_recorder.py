"""The recorder commits the rows of stored maps in time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

import async_maps as am
from tests.support.commands import done_rows
from tests.support.leftovers import leaves_nothing
from tests.support.maps import random_map
from tests.support.pipelines import THREADS, SlowStore, until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.fast, pytest.mark.usefixtures(leaves_nothing.__name__)]


class OutageStore(SlowStore):
    """A store that stores one object, then none until its gate is set."""

    async def put(self, key: str, data: bytes) -> str:
        if not self.objects:
            self.objects[key] = data
            return ""
        return await super().put(key, data)


async def test_rows_of_stored_maps_are_committed_during_an_outage(tmp_path: Path) -> None:
    store, manifest = OutageStore(), tmp_path / "m.sqlite"
    async with am.Pipeline(store, settings=THREADS) as pipeline:
        running = asyncio.create_task(pipeline.run([(f"{i}", random_map(i)) for i in range(5)], manifest=manifest))
        await until(lambda: done_rows(str(manifest)) == 1)
        assert not running.done()
        store.gate.set()
        assert (await running).uploaded == 5
    assert done_rows(str(manifest)) == 5
