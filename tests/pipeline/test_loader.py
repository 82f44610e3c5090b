"""``am.stream`` for synchronous code: reading ahead is bounded, and either side may stop first."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.stages.graph import Stages
from tests.support.leftovers import leaves_nothing
from tests.support.maps import random_map
from tests.support.pipelines import THREADS, SlowStore, use_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

WINDOW, LISTED, HANDED_OVER = 64, 256, 128
"""Items in a stream's window (smaller here than the default 4,096), in a listing, and between two threads."""


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stages, "window", WINDOW)


class Source:
    """An endless source that counts its maps."""

    def __init__(self) -> None:
        self.read = 0
        self.closed = False

    def __iter__(self) -> Iterator[tuple[str, NDArray[Any]]]:
        try:
            while True:
                self.read += 1
                yield f"{self.read}", random_map(1, (2, 2))
        finally:
            self.closed = True


def settled(source: Source) -> int:
    """Return the number of maps read once reading has stopped."""
    before = -1
    while source.read != before:
        before = source.read
        time.sleep(0.15)
    return before


def becomes_true(what: Callable[[], bool]) -> bool:
    """Wait for the condition for up to 60 s. Returns whether it became true."""
    deadline = time.monotonic() + 60
    while not what() and time.monotonic() < deadline:
        time.sleep(0.01)
    return what()


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.usefixtures("window")
def test_the_source_is_read_ahead_only_within_the_window(ordered: bool, tmp_path: Path) -> None:
    source = Source()
    with closing(am.stream(source, tmp_path, settings=THREADS, ordered=ordered)) as outcomes:
        # Nothing is read before the first outcome is asked for.
        assert source.read == 0
        for taken, outcome in enumerate(outcomes, 1):
            assert isinstance(outcome, am.Receipt)
            # Outcomes of one collect() have left the window, but not all are taken yet.
            assert source.read - taken <= 2 * WINDOW + LISTED + HANDED_OVER
            if taken in {1, 300}:
                assert becomes_true(lambda taken=taken: source.read - taken >= WINDOW)  # type: ignore[misc]
                assert settled(source) - taken <= 2 * WINDOW + LISTED + HANDED_OVER
            if taken == 400:
                break
    assert 400 <= len(list(tmp_path.iterdir())) <= source.read
    assert becomes_true(lambda: source.closed)


@pytest.mark.usefixtures("window")
async def test_outcomes_held_back_for_the_order_count_in_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    class FirstIsSlow(SlowStore):
        async def put(self, key: str, data: bytes) -> str:
            if key != "1.png":
                self.objects[key] = data
                return ""
            return await super().put(key, data)

    store, source = FirstIsSlow(), Source()
    use_store(monkeypatch, store)
    async with am.Pipeline("memory://", settings=THREADS) as pipeline:
        outcomes = pipeline.stream(source, ordered=True)
        first = asyncio.ensure_future(anext(outcomes))
        while len(store.objects) < WINDOW - 1:  # noqa: ASYNC110  # no event to wait for
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        # All but the first of the window are stored; no other may enter.
        assert len(store.objects) == WINDOW - 1
        assert not first.done()
        assert source.read <= WINDOW + LISTED
        store.gate.set()
        names = [(await first).name]
        async for outcome in outcomes:
            names.append(outcome.name)
            if len(names) == 3 * WINDOW:
                break
        await outcomes.aclose()
    assert names == [f"{number}" for number in range(1, 3 * WINDOW + 1)]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_ordered_outcomes_and_failures_follow_the_source(workers: int, tmp_path: Path) -> None:
    def maps() -> Iterator[tuple[str, NDArray[Any]]]:
        for i in range(700):
            array = np.full((2, 2), np.nan) if i % 7 == 3 else random_map(i, (1 + i % 50, 1 + i * 13 % 80))
            # The second kind of failure never enters the pipeline.
            yield ("../x" if i % 11 == 5 else f"{i}"), array

    settings = am.Settings(workers=workers, chunk_maps=16)
    outcomes = list(am.stream(maps(), tmp_path, settings=settings, ordered=True))
    assert [outcome.name for outcome in outcomes] == ["../x" if i % 11 == 5 else f"{i}" for i in range(700)]
    for i, outcome in enumerate(outcomes):
        assert isinstance(outcome, am.Failure) == (i % 7 == 3 or i % 11 == 5)


def test_errors_of_the_source_and_of_the_pipeline_reach_the_caller(tmp_path: Path) -> None:
    def maps() -> Iterator[tuple[str, NDArray[Any]]]:
        yield "first", random_map(1)
        raise LookupError("mine")

    outcomes = am.stream(maps(), tmp_path, settings=THREADS, ordered=True)
    assert next(outcomes).name == "first"
    with pytest.raises(LookupError, match="mine"):
        next(outcomes)
    with pytest.raises(am.SettingsError):
        next(am.stream(maps(), "ftp://bucket", settings=THREADS))
    with pytest.raises(am.SourceError, match="no activation maps"):
        list(am.stream([], tmp_path, settings=THREADS))


def test_closing_a_stream_early_ends_its_pipeline_and_thread(tmp_path: Path) -> None:
    source = Source()
    outcomes = am.stream(source, tmp_path, settings=THREADS)
    next(outcomes)
    assert "async-maps" in {thread.name for thread in threading.enumerate()}
    outcomes.close()
    assert becomes_true(lambda: source.closed)
    assert "async-maps" not in {thread.name for thread in threading.enumerate()}


def test_ctrl_c_ends_a_stream_that_waits_for_its_source(tmp_path: Path) -> None:
    answer = threading.Event()

    def maps() -> Iterator[tuple[str, NDArray[Any]]]:
        yield "first", random_map(1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        answer.wait()

    outcomes = am.stream(maps(), tmp_path, settings=THREADS, ordered=True)
    # A shell starts background commands with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(outcomes)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "async-maps" not in {thread.name for thread in threading.enumerate()}
    answer.set()


async def test_an_async_source_can_be_ordered(tmp_path: Path) -> None:
    async def maps() -> AsyncIterator[tuple[str, NDArray[Any]]]:
        for i in range(50):
            yield f"{i}", random_map(i, (1 + i % 9, 50))

    async with am.Pipeline(tmp_path, settings=THREADS) as pipeline:
        names = [outcome.name async for outcome in pipeline.stream(maps(), ordered=True)]
    assert names == [f"{i}" for i in range(50)]


@pytest.mark.slow
@pytest.mark.parametrize("ordered", [None, False, True])
def test_an_evaluation_loop_over_a_data_loader(ordered: bool | None, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    data = pytest.importorskip("torch.utils.data")
    images = torch.rand(90, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    model = torch.nn.Conv2d(3, 8, 3, padding=1)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def cams() -> Iterator[tuple[str, Any]]:
        for indices, batch in data.DataLoader(data.TensorDataset(torch.arange(90), images), batch_size=16):
            weights = model(batch).relu().mean(1)
            assert not weights.requires_grad
            for index, cam in zip(indices.tolist(), weights / weights.amax((1, 2), keepdim=True), strict=True):
                yield f"val/{index:03}", cam

    if ordered is None:
        assert am.run(cams(), tmp_path, settings=THREADS).uploaded == 90
    else:
        names = [outcome.name for outcome in am.stream(cams(), tmp_path, settings=THREADS, ordered=ordered)]
        expected = [f"val/{index:03}" for index in range(90)]
        assert names == expected if ordered else sorted(names) == expected
    assert len(list((tmp_path / "val").iterdir())) == 90
