"""How fast this link takes overlays, and how many uploads at once that needs: PUTs as a run makes them."""

from __future__ import annotations

import math
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from anyio import create_task_group, move_on_after

from async_maps.doctor.finding import Finding
from async_maps.doctor.target import unbroken
from async_maps.errors import StoreError, TransientError

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_maps.stores import AddressedStore

_LATENCY_PUTS = 9
_LEVEL_S = 0.8
"""So long each number of uploads at once is kept up; in the first third connections are made."""
_MOST = 256
_OVERRUN_S = 5.0
_GAIN = 1.15
"""Twice the uploads at once that take less than this much more have passed the knee."""


class Load(NamedTuple):
    """How many objects were taken a second with so many uploads at once, and the error that ended it, if one did."""

    at_once: int
    puts_per_s: float
    error: StoreError | None


def concurrencies(concurrency: int) -> list[int]:
    """How many uploads at once are tried: as many as configured, and more, but not as many as a store could resent."""
    return [
        at_once for at_once in (concurrency, 2 * concurrency, 4 * concurrency) if at_once <= max(_MOST, concurrency)
    ]


async def measure_latency(store: AddressedStore, key: Callable[[int], str], data: bytes) -> float:
    """Seconds of a PUT when nothing else is under way: the median of some."""
    times = []
    # The first one teaches the store what the others look like.
    for _ in range(1 + _LATENCY_PUTS):
        started = perf_counter()
        await unbroken(store.put(key(0), data))
        times.append(perf_counter() - started)
    return median(times[1:])


async def measure_throughput(
    store: AddressedStore, key: Callable[[int], str], data: bytes, concurrency: int
) -> list[Load]:
    """Try the concurrency, then twice as much as long as that pays: each with as many keys as uploads at once."""
    loads: list[Load] = []
    for at_once in concurrencies(concurrency):
        loads.append(await _keep_up(store, key, data, at_once))
        if loads[-1].error or (len(loads) > 1 and loads[-1].puts_per_s < _GAIN * loads[-2].puts_per_s):
            break
    return loads


async def _keep_up(store: AddressedStore, key: Callable[[int], str], data: bytes, at_once: int) -> Load:
    began = perf_counter()
    counted_from, end = began + _LEVEL_S / 3, began + _LEVEL_S
    taken: list[float] = []
    errors: list[StoreError] = []

    async def put_again_and_again(lane: int) -> None:
        while perf_counter() < end and not errors:
            try:
                await unbroken(store.put(key(lane), data))
            except StoreError as error:
                errors.append(error)
            else:
                taken.append(perf_counter())

    with move_on_after(_LEVEL_S + _OVERRUN_S):
        async with create_task_group() as lanes:
            for lane in range(at_once):
                lanes.start_soon(put_again_and_again, lane)
    counted = sum(counted_from <= moment < end for moment in taken)
    return Load(at_once, counted / (end - counted_from), errors[0] if errors else None)


def judge(loads: list[Load], latency_s: float, size: int, concurrency: int) -> list[Finding]:
    """What the measurements say about the link and the concurrency.

    By Little's law, as many uploads are under way as are taken a second times the seconds that each takes; at the
    fastest rate seen and the latency of a lone PUT that is the knee: fewer leave the link idle, more only wait.
    (Little, "A proof for the queuing formula L = λW", 1961; Kleinrock, "Power and deterministic rules of thumb", 1979.)
    """
    failed = loads[-1].error
    best = max(loads, key=lambda load: load.puts_per_s)
    rate = best.puts_per_s
    text = f"{rate:,.0f} PUTs/s, {rate * size / 1e6:,.1f} MB/s, with {best.at_once} at once"
    if failed is not None:
        slow_down = isinstance(failed, TransientError) and failed.slow_down
        advice = "a run slows down by itself" if slow_down else "a run tries again; try with less --concurrency"
        return [Finding("throughput", "warning", f"{text}; with {loads[-1].at_once} at once: {failed}", advice)]
    if rate == 0:
        return [Finding("throughput", "warning", f"no PUT of {size / 1e3:.0f} KB was done in {_LEVEL_S} s",
                        "a run takes long over this link; see s3.read_timeout_s")]  # fmt: skip
    under_way = rate * latency_s
    law = f"Little's law: {rate:,.0f}/s x {latency_s * 1e3:.1f} ms = {under_way:.1f} under way"
    enough = Finding("concurrency", "ok", f"{concurrency} at once are enough ({law})")
    if under_way > concurrency and rate >= _GAIN * loads[0].puts_per_s:
        # A power of two above it, so that bursts find some room; but no more than was tried.
        suggested = min(2 ** math.ceil(math.log2(under_way)), loads[-1].at_once)
        enough = Finding("concurrency", "warning", f"{concurrency} at once do not fill this link ({law})",
                         f"use --concurrency {suggested}")  # fmt: skip
    return [Finding("throughput", "ok", text), enough]
