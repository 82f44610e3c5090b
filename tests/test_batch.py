"""Whole batches from synchronous code: in scripts, threads and notebooks, and with a running event loop."""

from __future__ import annotations

import asyncio
import copy
import pickle
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from tests.support.leftovers import leaves_nothing
from tests.support.maps import random_map

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = [pytest.mark.fast, pytest.mark.usefixtures(leaves_nothing.__name__)]

THREADS = am.Settings(workers=0)
MAPS = [(f"{n}", random_map(n)) for n in range(5)]


async def _pairs() -> AsyncIterator[tuple[str, NDArray[Any]]]:
    for pair in MAPS:
        yield pair


# In a running event loop, as in a notebook ---------------------------------------------------------------------------


async def test_run_works_inside_a_coroutine() -> None:
    store = am.MemoryStore()
    assert am.run(MAPS, store, settings=THREADS).uploaded == 5
    assert len(store.objects) == 5


async def test_stream_works_inside_a_coroutine() -> None:
    outcomes = list(am.stream(MAPS, am.MemoryStore(), settings=THREADS, ordered=True))
    assert [outcome.name for outcome in outcomes] == [name for name, _ in MAPS]


@pytest.mark.runs
async def test_verify_and_repair_work_inside_a_coroutine(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", MAPS[0][1])
    manifest = tmp_path / "m.sqlite"
    am.run(tmp_path / "a.npy", tmp_path / "out", settings=THREADS, manifest=manifest)
    assert am.verify_locators(manifest).is_clean
    (tmp_path / "out/a.png").unlink()
    assert not am.verify_locators(manifest).is_clean
    repaired = am.repair_overlays(manifest, settings=THREADS)
    assert repaired.is_clean
    assert repaired.repaired == 1
    assert all(finding.level != "failure" for finding in am.diagnose(tmp_path / "out", quick=True))


@pytest.mark.parametrize(
    ("call", "instead"),
    [(am.run, "await am.arun(...)"), (am.dry_run, "await am.adry_run(...)"), (am.stream, "am.astream(...)")],
)
async def test_an_async_iterable_is_refused_in_a_running_loop(call: Callable[..., Any], instead: str) -> None:
    source = _pairs()
    for arguments, keywords in ((source, "memory://"), {}), ((), {"source": source, "destination": "memory://"}):
        with pytest.raises(am.SourceError) as raised:
            list(call(*arguments, **keywords))
        assert instead in str(raised.value)
    await source.aclose()  # type: ignore[attr-defined]


def test_an_async_iterable_is_accepted_without_a_running_loop() -> None:
    assert am.run(_pairs(), "memory://", settings=THREADS).uploaded == 5


# Coroutines ----------------------------------------------------------------------------------------------------------


async def test_every_coroutine_has_the_arguments_of_its_synchronous_twin() -> None:
    import inspect

    for name in ("run", "dry_run", "stream", "verify_locators", "repair_overlays", "diagnose"):
        ours, theirs = getattr(am, name), getattr(am, f"a{name}")
        assert inspect.signature(ours).parameters == inspect.signature(theirs).parameters, name
        assert not inspect.iscoroutinefunction(ours)
        assert inspect.iscoroutinefunction(theirs) or inspect.isasyncgenfunction(theirs)


async def test_arun_and_astream_accept_async_iterables() -> None:
    store = am.MemoryStore()
    assert (await am.arun(_pairs(), store, settings=THREADS)).uploaded == 5
    names = [outcome.name async for outcome in am.astream(_pairs(), store, settings=THREADS, ordered=True)]
    assert names == [name for name, _ in MAPS]


async def test_a_dry_run_counts_and_uploads_nothing() -> None:
    store = am.MemoryStore()
    report = await am.adry_run(_pairs(), store, settings=THREADS)
    assert (report.planned, report.uploaded, report.destination) == (5, 0, "memory://")
    assert not store.objects


# Progress ------------------------------------------------------------------------------------------------------------


def test_the_last_progress_has_the_whole_report() -> None:
    seen: list[am.Progress] = []
    report = am.run(MAPS, "memory://", settings=THREADS, on_progress=seen.append)
    assert [progress.ended for progress in seen].count(True) == 1
    assert seen[-1].ended
    assert (seen[-1].report.uploaded, seen[-1].total) == (report.uploaded, 5)


def test_an_error_of_the_callback_ends_the_run() -> None:
    store = am.MemoryStore()
    gate = threading.Event()

    def maps() -> Iterator[tuple[str, NDArray[Any]]]:
        yield MAPS[0]
        gate.wait(60)

    def fail(_: am.Progress) -> None:
        gate.set()
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        am.run(maps(), store, settings=THREADS, on_progress=fail)


@pytest.mark.runs
def test_an_error_that_ends_a_run_has_its_report() -> None:
    bad = [(f"bad-{n}", np.zeros((2, 2, 2))) for n in range(3)]
    with pytest.raises(am.TooManyFailuresError) as raised:
        am.run([*MAPS, *bad], "memory://", settings=am.Settings(workers=0, max_failures=0))
    assert raised.value.report.failed > 0


async def _cancelling() -> AsyncIterator[tuple[str, NDArray[Any]]]:
    yield MAPS[0]
    inner = asyncio.create_task(asyncio.Event().wait())
    inner.cancel()
    await inner
    yield MAPS[1]


def _cancelling_in_a_thread() -> Iterator[tuple[str, NDArray[Any]]]:
    yield MAPS[0]
    raise asyncio.CancelledError


@pytest.mark.parametrize("source", [_cancelling, _cancelling_in_a_thread])
async def test_a_source_that_raises_cancelled_error_is_a_source_error(source: Callable[[], Any]) -> None:
    store = am.MemoryStore()
    with pytest.raises(am.SourceError, match="the source raised CancelledError"):
        await am.arun(source(), store, settings=THREADS)
    assert list(store.objects) == ["0.png"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(7)], ids=repr)
def test_a_source_that_ends_the_program_is_a_source_error(error: BaseException) -> None:
    def maps() -> Iterator[tuple[str, NDArray[Any]]]:
        yield MAPS[0]
        raise error

    store = am.MemoryStore()
    with pytest.raises(am.SourceError, match=re.escape(f"the source raised {error!r}")):
        am.run(maps(), store, settings=THREADS)
    assert list(store.objects) == ["0.png"]


@pytest.mark.parametrize(
    "error",
    [
        am.ExistsError("there", same=True, etag="tag"),
        am.MissingExtraError("zstd", "zstd"),
        am.TransientError("busy", slow_down=True),
        am.MapFailedError(am.Failure("a", "a", None, "read", "no")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_pickle_and_copy(error: am.AsyncMapsError) -> None:
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301  # our own bytes
        assert type(again) is type(error)
        assert (str(again), vars(again)) == (str(error), vars(error))


@pytest.mark.parametrize("select", ["broken", "moved", "everything"])
async def test_select_accepts_only_its_three_values(select: Any) -> None:
    with pytest.raises(am.SettingsError, match=f"select: expected changed, failed, all, found '{select}'"):
        await am.arun(MAPS, "memory://", settings=THREADS, select=select)
    with pytest.raises(am.SettingsError, match="select: expected changed"):
        await am.adry_run(MAPS, "memory://", settings=THREADS, select=select)


# Threads -------------------------------------------------------------------------------------------------------------


@pytest.mark.runs
def test_six_threads_can_run_at_the_same_time() -> None:
    together = threading.Barrier(6)

    def one(_: int) -> int:
        together.wait()
        return am.run(MAPS, am.MemoryStore(), settings=THREADS).uploaded

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(one, range(6))) == [5] * 6


async def _coroutine(_: object) -> None: ...


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((5, "out"), {}, "a source is a path or an iterable of pairs (name, array); found 5"),
        (([], 5), {}, "the destination is a int"),
        (
            ([], "out"),
            {"settings": {"png": "rgba"}},
            "settings: expected async_maps.Settings(...), found {'png': 'rgba'}",
        ),
        (([("a", np.zeros((3, 3)))], "out"), {"on_progress": _coroutine}, "on_progress must be a function"),
        (([("a", np.zeros((3, 3)))], "memory://../x"), {}, "'..' is not allowed"),
    ],
)
def test_arguments_of_the_wrong_type_are_refused(
    arguments: Any, options: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(am.AsyncMapsError, match=re.escape(message)):
        am.run(*arguments, **({"settings": THREADS} | options))
