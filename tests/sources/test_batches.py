"""Sources are listed in bounded batches."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from async_maps.errors import SourceError
from async_maps.sources import open_source
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.batches import list_maps
from tests.support.entries import failures_of, save_map
from tests.support.maps import MAP

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from numpy.typing import NDArray

    from async_maps.sources.batches import AnySource, Entry

pytestmark = pytest.mark.fast


async def test_paths_sources_and_iterables_are_listed(maps: Path) -> None:
    for number in range(600):
        os.link(maps / "000.npy", maps / f"{number:03}.npy") if number else save_map(maps / "000.npy")
    names = [f"{number:03}" for number in range(600)]
    for place in (maps, str(maps), open_source(maps), f"{maps}/*.npy"):
        assert [entry.name for entry in await _listed(place)] == names

    async def pairs() -> AsyncIterator[tuple[str, NDArray[Any]]]:
        for name in names:
            await asyncio.sleep(0)
            yield name, MAP

    for source in ([(name, MAP) for name in names], dict.fromkeys(names, MAP).items(), pairs()):
        entries = await _listed(source)
        assert [entry.name for entry in entries] == names
        first = entries[0]
        assert isinstance(first, ActivationMap)
        assert first.array is MAP
        assert replace(first, array=None) == ActivationMap("000", "000", None, MAP.nbytes)


async def test_invalid_arrays_fail_alone() -> None:
    source: list[tuple[str, Any]] = [
        ("good", MAP),
        ("wrong dtype", MAP.astype(complex)),
        ("wrong shape", np.zeros((2, 2, 3))),
        ("empty", np.zeros((0, 3))),
        ("../out", MAP),
        ("caf\udce9", MAP),
        ("list", [[0.5]]),
        (5, MAP),  # type: ignore[list-item]
        ("good too", MAP[..., None]),
    ]
    entries = await _listed(source)
    failures = failures_of(entries)
    assert [entry.name for entry in entries if isinstance(entry, ActivationMap)] == ["good", "good too"]
    assert [(failure.name, failure.stage, failure.fingerprint) for failure in failures] == [
        (name, "source", None) for name in ("wrong dtype", "wrong shape", "empty", "../out", r"caf\udce9", "list", "5")
    ]
    for failure, reason in zip(
        failures,
        ["found complex128", "(2, 2, 3)", "is empty", "'..' is not allowed", "is not UTF-8", "found list", "found int"],
        strict=True,
    ):
        assert reason in failure.reason


@pytest.mark.parametrize("source", [np.zeros((2, 3, 4)), {"a": MAP}, [("a", MAP, 7)]], ids=["array", "dict", "triple"])
async def test_an_iterable_without_pairs_is_refused(source: Any) -> None:
    with pytest.raises(SourceError, match=r"must yield pairs \(name, array\); found (ndarray|str|tuple)"):
        await _listed(source)


async def test_a_batch_does_not_wait_for_a_slow_iterable() -> None:
    may_go_on = threading.Event()

    def slow() -> Iterator[tuple[str, NDArray[Any]]]:
        yield "first", MAP
        time.sleep(0.05)
        yield "second", MAP
        assert may_go_on.wait(60)
        yield "third", MAP

    seen: list[str] = []
    async with aclosing(list_maps(slow())) as batches:
        # The generator waits before its third map, and the second arrives nevertheless.
        while "second" not in seen:
            seen += [entry.name for entry in await anext(batches)]
        may_go_on.set()
        seen += [entry.name async for batch in batches for entry in batch]
    assert seen == ["first", "second", "third"]


async def test_a_blocking_iterable_does_not_block_the_event_loop() -> None:
    inside, ticked = threading.Event(), threading.Event()

    async def tick() -> None:
        while not inside.is_set():  # noqa: ASYNC110  # set by a thread
            await asyncio.sleep(0.001)
        ticked.set()

    def blocking() -> Iterator[tuple[str, NDArray[Any]]]:
        inside.set()
        assert ticked.wait(60)
        yield "a", MAP

    ticking = asyncio.create_task(tick())
    assert len(await _listed(blocking())) == 1
    await ticking


async def test_a_batch_is_bounded_in_items_and_bytes() -> None:
    large = np.zeros((2**20, 5), np.uint8)
    async with aclosing(list_maps((str(number), large) for number in range(20))) as batches:
        sizes = [sum(entry.max_bytes for entry in batch if isinstance(entry, ActivationMap)) async for batch in batches]
    assert sum(sizes) == 20 * large.nbytes
    assert max(sizes) < 16 * 2**20 + large.nbytes
    async with aclosing(list_maps((str(number), MAP) for number in range(1000))) as batches:
        assert max([len(batch) async for batch in batches]) <= 256


class _OwnError(Exception):
    pass


@pytest.mark.parametrize("kind", ["iterable", "async iterable"])
async def test_an_error_of_the_iterable_is_raised_unchanged(kind: str) -> None:
    def pairs() -> Iterator[tuple[str, NDArray[Any]]]:
        yield "a", MAP
        raise _OwnError("theirs")

    async def async_pairs() -> AsyncIterator[tuple[str, NDArray[Any]]]:
        for pair in pairs():
            yield pair

    with pytest.raises(_OwnError, match=r"^theirs$"):
        await _listed(pairs() if kind == "iterable" else async_pairs())


@pytest.mark.parametrize("kind", ["iterable", "async iterable"])
@pytest.mark.parametrize("end", ["exhausted", "left early", "cancelled"])
async def test_a_generator_is_closed_afterwards(kind: str, end: str) -> None:
    # A generator that never started has nothing to close.
    started, closed = threading.Event(), threading.Event()

    def pairs() -> Iterator[tuple[str, NDArray[Any]]]:
        started.set()
        try:
            for number in range(3 if end == "exhausted" else 100_000):
                yield str(number), MAP
        finally:
            closed.set()

    async def async_pairs() -> AsyncIterator[tuple[str, NDArray[Any]]]:
        started.set()
        try:
            for number in range(3 if end == "exhausted" else 100_000):
                await asyncio.sleep(0)
                yield str(number), MAP
        finally:
            closed.set()

    source = pairs() if kind == "iterable" else async_pairs()
    taking = asyncio.create_task(_listed(source, first=10 if end == "left early" else None))
    if end == "cancelled":
        assert await asyncio.to_thread(started.wait, 60)
        taking.cancel()
    await asyncio.wait({taking})
    assert taking.cancelled() == (end == "cancelled")
    # After a cancel the thread may still run. `source` is alive, so the garbage collector did not close it.
    assert await asyncio.to_thread(closed.wait, 60), source


async def test_a_blocked_generator_is_closed_after_the_cancel() -> None:
    inside, may_go_on, closed = threading.Event(), threading.Event(), threading.Event()

    def blocking() -> Iterator[tuple[str, NDArray[Any]]]:
        try:
            inside.set()
            assert may_go_on.wait(30)
            while True:
                yield "a", MAP
        finally:
            closed.set()

    source = blocking()
    taking = asyncio.create_task(_listed(source))
    assert await asyncio.to_thread(inside.wait, 5)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert not closed.is_set()
    may_go_on.set()
    assert await asyncio.to_thread(closed.wait, 60), source


async def test_an_iterator_without_close_is_listed() -> None:
    iterator = iter([("a", MAP), ("b", MAP)])
    assert [entry.name for entry in await _listed(iterator)] == ["a", "b"]


async def _listed(source: AnySource, first: int | None = None) -> list[Entry]:
    entries: list[Entry] = []
    async with aclosing(list_maps(source)) as batches:
        async for batch in batches:
            entries += batch
            if first is not None and len(entries) >= first:
                break
    return entries


async def test_items_before_an_iterables_error_come_first() -> None:
    def pairs() -> Iterator[tuple[str, NDArray[Any]]]:
        yield "a", MAP
        yield "b", MAP
        raise LookupError("mine")

    batches = list_maps(pairs())
    assert [entry.name for entry in await anext(batches)] == ["a", "b"]
    with pytest.raises(LookupError, match="mine"):
        await anext(batches)
