"""A run's manifest on the event loop: each call goes to a thread, one at a time, and rows are committed in batches."""

from __future__ import annotations

import os
from contextlib import aclosing, asynccontextmanager
from functools import partial
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, get_args

from anyio import CancelScope, CapacityLimiter, to_thread

from async_maps.manifest.manifest import Manifest, RepairMode, Select
from async_maps.manifest.metadata import KeptRun
from async_maps.outcomes import Failure, Outcome, Receipt
from async_maps.sources import place_of
from async_maps.sources.activation_map import ActivationMap

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from os import PathLike
    from typing import ParamSpec, TypeVar

    from async_maps.manifest.claims import Claims
    from async_maps.render.ranges import ValueRange
    from async_maps.render.sketch import QuantileSketch
    from async_maps.report import Report
    from async_maps.settings import Settings
    from async_maps.sources.batches import Entry

    P = ParamSpec("P")
    T = TypeVar("T")

_COMMIT_ROWS = 1000
_COMMIT_INTERVAL_S = 0.5


class Recorder:
    """Asks an open manifest, which it closes, what is to be done, and writes down what was.

    Every method raises ManifestError if the manifest cannot be read or written.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._settings = ""
        self._unkept: tuple[KeptRun, ValueRange, str] | None = None
        self._repairs = False
        self._turn = Lock()
        self._threads = CapacityLimiter(2)
        self._pending: list[Outcome] = []
        self._committed_at = monotonic()

    async def sketch(self, invalid: str) -> QuantileSketch | None:
        """What an earlier run over a whole ``dataset`` found, if it counted invalid values in this way."""
        return await self._in_turn(self._manifest.sketch, invalid)

    def use(self, settings: Settings, value_range: ValueRange) -> None:
        """Say how the maps to come would be colorized; nothing is written down."""
        self._settings = settings.fingerprint(value_range)

    async def keep(
        self, settings: Settings, value_range: ValueRange, source: object, sketch: QuantileSketch | None = None
    ) -> None:
        """Say how the maps to come are colorized, and write it down.

        The sketch of all values, if they were surveyed, is written now, the rest with the first maps: a source that is
        not there has none.
        """
        self.use(settings, value_range)
        if sketch is not None:
            await self._in_turn(self._manifest.keep_sketch, settings.invalid, sketch)
        run = KeptRun(place_of(source), self._settings, settings.shaping(value_range))
        self._unkept = run, value_range, settings.range

    async def load_claims(self, claims: Claims, mode: Select | RepairMode) -> None:
        """Let the locators of done maps be taken; where all is done again, forget maps that lose theirs."""
        if mode == "all":
            await self._in_turn(self._manifest.let_locators_move)
        else:
            await self._in_turn(lambda: claims.load(self._manifest.claims()))

    async def select_maps(
        self, listing: AsyncGenerator[list[Entry], None], mode: Select | RepairMode, report: Report
    ) -> AsyncGenerator[list[Entry], None]:
        """Leave out of a listing what need not be done; the report counts it as skipped."""
        self._repairs = mode in get_args(RepairMode)
        async with aclosing(listing):
            async for batch in listing:
                maps = [entry for entry in batch if isinstance(entry, ActivationMap)]
                refused: list[Entry] = [entry for entry in batch if isinstance(entry, Failure)]
                plan = await self._in_turn(self._manifest.plan, maps, self._settings, mode)
                # A source in which a repair finds nothing was not that of anything.
                if self._unkept is not None and (plan.todo or not self._repairs):
                    run, value_range, setting = self._unkept
                    self._unkept = None
                    await self._in_turn(self._manifest.keep_run, run)
                    if not self._repairs:
                        await self._in_turn(self._manifest.keep_range, value_range, setting)
                report.skipped += plan.skipped
                report.unselected += plan.skipped if mode == "failed" else 0
                # A repair has nothing to say about what it was not asked for.
                yield [*plan.todo] if self._repairs else [*refused, *plan.refused, *plan.todo]

    def known(self, maps: Sequence[ActivationMap]) -> set[str]:
        """:meth:`Manifest.known`, for the thread that lists."""
        with self._turn:
            return self._manifest.known(maps)

    def known_done(self, maps: Sequence[ActivationMap]) -> set[str]:
        """Those of :meth:`known` that are done with these settings."""
        with self._turn:
            return self._manifest.known(maps, done_with=self._settings)

    async def note(self, outcomes: Sequence[Outcome]) -> None:
        """Write outcomes down, at the latest with the first ones that come half a second later."""
        # What a repair cannot make again is still what was found broken.
        self._pending.extend(outcome for outcome in outcomes if isinstance(outcome, Receipt) or not self._repairs)
        if len(self._pending) >= _COMMIT_ROWS or monotonic() - self._committed_at >= _COMMIT_INTERVAL_S:
            await self.commit()

    async def commit(self) -> None:
        """Write down what is pending."""
        if self._pending:
            await self._in_turn(self._write)
        self._committed_at = monotonic()

    async def complete(self) -> None:
        """The run has seen its whole source: write down what is pending, and forget what no longer is."""
        await self.commit()
        if not self._repairs:
            await self._in_turn(self._manifest.complete)

    async def close(self) -> None:
        """Write down what is pending, and close the manifest, also when cancelled."""
        with CancelScope(shield=True):
            await self._in_turn(self._close)

    async def _in_turn(self, work: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
        def with_turn() -> T:
            # The thread itself waits and holds on: cancelled, we leave while it is still at work.
            with self._turn:
                return work(*arguments, **keywords)

        return await to_thread.run_sync(with_turn, limiter=self._threads)

    def _close(self) -> None:
        try:
            self._write()
        finally:
            self._manifest.close()

    def _write(self) -> None:
        outcomes = self._pending[:]
        if outcomes:
            self._manifest.write(outcomes, self._settings)
        # Only now: what could not be written is still pending. Others may have been added meanwhile.
        del self._pending[: len(outcomes)]


@asynccontextmanager
async def open_recorder(path: str | PathLike[str] | None, destination: str) -> AsyncIterator[Recorder | None]:
    """The recorder of a run, or None without a path. However the run ends, what it has receipts for is committed.

    A ManifestError if the manifest belongs to another destination.
    """
    if path is None:
        yield None
        return
    async with _opened(partial(Manifest, path), Manifest.begin, destination) as recorder:
        yield recorder


def open_reader(path: str | PathLike[str] | None, destination: str) -> AbstractAsyncContextManager[Recorder]:
    """A recorder that selects as a run would and writes nothing; a manifest that does not exist is taken as empty."""

    def open_manifest() -> Manifest:
        return Manifest(":memory:") if path is None or not os.path.exists(path) else Manifest(path, read_only=True)

    return _opened(open_manifest, Manifest.prepare, destination)


@asynccontextmanager
async def _opened(
    open_manifest: Callable[[], Manifest], prepare: Callable[[Manifest, str], None], destination: str
) -> AsyncIterator[Recorder]:
    manifest = await to_thread.run_sync(open_manifest)
    recorder = Recorder(manifest)
    try:
        await to_thread.run_sync(prepare, manifest, destination)
        yield recorder
    finally:
        await recorder.close()
