"""Measures the throughput to the store, and the number of concurrent uploads that it needs."""

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
"""The duration of a measurement; its first third, in which connections are opened, does not count."""
_MAX_CONCURRENCY = 256
_OVERRUN_S = 5.0
_GAIN = 1.15
"""If twice the concurrency is less than this much faster, the link is saturated."""


class Load(NamedTuple):
    """The rate with a number of concurrent uploads, and the error that ended the measurement, or None."""

    concurrency: int
    puts_per_s: float
    error: StoreError | None


def concurrencies(concurrency: int) -> list[int]:
    """Return the numbers of concurrent uploads to measure: the configured one, and up to four times as many."""
    most = max(_MAX_CONCURRENCY, concurrency)
    return [uploads for uploads in (concurrency, 2 * concurrency, 4 * concurrency) if uploads <= most]


async def measure_latency(store: AddressedStore, key: Callable[[int], str], data: bytes) -> float:
    """Return the median seconds of a PUT without concurrent ones."""
    times = []
    # The first PUT is slower, because the SDK sends it, and does not count.
    for _ in range(1 + _LATENCY_PUTS):
        started = perf_counter()
        await unbroken(store.put(key(0), data))
        times.append(perf_counter() - started)
    return median(times[1:])


async def measure_throughput(
    store: AddressedStore, key: Callable[[int], str], data: bytes, concurrency: int
) -> list[Load]:
    """Measure the configured concurrency, then twice as much while that is faster; each upload has its own key."""
    loads: list[Load] = []
    for uploads in concurrencies(concurrency):
        loads.append(await _measure(store, key, data, uploads))
        if loads[-1].error or (len(loads) > 1 and loads[-1].puts_per_s < _GAIN * loads[-2].puts_per_s):
            break
    return loads


async def _measure(store: AddressedStore, key: Callable[[int], str], data: bytes, concurrency: int) -> Load:
    began = perf_counter()
    counted_from, end = began + _LEVEL_S / 3, began + _LEVEL_S
    taken: list[float] = []
    errors: list[StoreError] = []

    async def put_repeatedly(lane: int) -> None:
        while perf_counter() < end and not errors:
            try:
                await unbroken(store.put(key(lane), data))
            except StoreError as error:
                errors.append(error)
            else:
                taken.append(perf_counter())

    with move_on_after(_LEVEL_S + _OVERRUN_S):
        async with create_task_group() as lanes:
            for lane in range(concurrency):
                lanes.start_soon(put_repeatedly, lane)
    counted = sum(counted_from <= moment < end for moment in taken)
    return Load(concurrency, counted / (end - counted_from), errors[0] if errors else None)


def judge(loads: list[Load], latency_s: float, size: int, concurrency: int, *, grows: bool = False) -> list[Finding]:
    """Return findings about the throughput and the concurrency, which ``grows`` by itself or not.

    By Little's law, the number of uploads in flight is the rate times the latency. At the highest rate and the latency
    of a single PUT, fewer uploads leave the link idle, and more only wait. (Little, "A proof for the queuing formula
    L = λW", 1961; Kleinrock, "Power and deterministic rules of thumb", 1979.) ``size`` is that of an object in bytes.
    """
    failed = loads[-1].error
    best = max(loads, key=lambda load: load.puts_per_s)
    rate = best.puts_per_s
    text = f"{rate:,.0f} PUTs/s, {rate * size / 1e6:,.1f} MB/s, with {best.concurrency} concurrent uploads"
    if failed is not None:
        slow_down = isinstance(failed, TransientError) and failed.slow_down
        advice = "a run slows down automatically" if slow_down else "a run retries; try a lower --concurrency"
        return [Finding("throughput", "warning", f"{text}; with {loads[-1].concurrency}: {failed}", advice)]
    if rate == 0:
        return [Finding("throughput", "warning", f"no PUT of {size / 1e3:.0f} KB was done in {_LEVEL_S} s",
                        "a run over this link is slow; raise s3.read_timeout_s")]  # fmt: skip
    in_flight = rate * latency_s
    law = f"Little's law: {rate:,.0f}/s x {latency_s * 1e3:.1f} ms = {in_flight:.1f} in flight"
    enough = Finding("concurrency", "ok", f"{concurrency} concurrent uploads are enough ({law})")
    if in_flight > concurrency and rate >= _GAIN * loads[0].puts_per_s:
        # The next power of two, for bursts; but not more than was measured.
        suggested = min(2 ** math.ceil(math.log2(in_flight)), loads[-1].concurrency)
        if grows:
            text_of_growth = (
                f"a run starts with {concurrency} concurrent uploads and grows to about {suggested} ({law})"
            )
            return [Finding("throughput", "ok", text), Finding("concurrency", "ok", text_of_growth)]
        enough = Finding("concurrency", "warning", f"{concurrency} concurrent uploads do not fill this link ({law})",
                         f"use --concurrency {suggested}")  # fmt: skip
    return [Finding("throughput", "ok", text), enough]
