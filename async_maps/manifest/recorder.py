"""Runs the manifest's methods in a thread, one at a time, and commits its rows in batches."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, get_args

from anyio import CancelScope, CapacityLimiter, to_thread

from async_maps.concurrency.tasks import OrderlyTask
from async_maps.errors import ManifestError
from async_maps.manifest.destination import relocated
from async_maps.manifest.manifest import Manifest, RepairMode, Select
from async_maps.manifest.metadata import KeptRun
from async_maps.manifest.prune import Ending
from async_maps.outcomes import Failure, Outcome, Receipt
from async_maps.settings import counted_values, given_or_default
from async_maps.sources import place_of
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.coverage import Coverage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from os import PathLike
    from pathlib import Path
    from typing import ParamSpec, TypeVar

    from async_maps.manifest.claims import Claims
    from async_maps.manifest.manifest import Plan
    from async_maps.manifest.prune import Selection
    from async_maps.manifest.samples import LastRun, Sample
    from async_maps.render.ranges import ValueRange
    from async_maps.render.sketch import QuantileSketch
    from async_maps.report import Report
    from async_maps.settings import Settings
    from async_maps.sources.batches import Entry
    from async_maps.stores.promises import Promises

    P = ParamSpec("P")
    T = TypeVar("T")

_logger = logging.getLogger("async_maps")

_COMMIT_ROWS = 1000
_COMMIT_INTERVAL_S = 0.5
_OTHERS = (
    "other maps have overlays that were made with other settings, such as the range, and keep them: to make all alike, "
    "run without --retry-failed (select='failed')"
)


class Recorder:
    """Selects the maps to do by an open manifest, records outcomes in it, and closes it.

    All methods raise ManifestError if the manifest cannot be read or written.
    """

    def __init__(self, manifest: Manifest, *, writes: bool = True) -> None:
        self._manifest = manifest
        self._writes = writes
        self._coverage = Coverage()
        self._ending: Ending | None = None
        self._settings = ""
        self._unkept: tuple[KeptRun, ValueRange, str] | None = None
        self._repairs = False
        self._promises: tuple[str, Promises] | None = None
        self._lock = Lock()
        self._threads = CapacityLimiter(2)
        self._pending: list[Outcome] = []
        self._committed_at = monotonic()

    @property
    def path(self) -> Path:
        """The path of the manifest."""
        return self._manifest.path

    def follow(self, selection: Selection, report: Report) -> Coverage:
        """Begin to compare the rows of a source with its listing, which fills the coverage that is returned."""
        self._coverage = Coverage()
        self._manifest.follow(self._coverage)
        self._ending = Ending(self._manifest, self._coverage, selection, report)
        return self._coverage

    async def sketch(self, counted: str) -> QuantileSketch | None:
        """Return the sketch of the last ``dataset`` run, if it counted the same values."""
        return await self._in_turn(self._manifest.sketch, counted)

    async def share_promises(self, identity: str, promises: Promises) -> None:
        """Add what a store has proved in earlier runs, and save with the rows what it proves in this one."""
        if known := await self._in_turn(self._manifest.promises, identity):
            promises.load(known)
        self._promises = identity, promises

    def use(self, settings: Settings, value_range: ValueRange) -> None:
        """Set the settings of the following maps, without writing to the manifest."""
        self._settings = settings.fingerprint(value_range)

    async def keep(
        self, settings: Settings, value_range: ValueRange, source: object, sketch: QuantileSketch | None = None
    ) -> None:
        """Set the settings of the following maps, and save them in the manifest.

        The sketch, if there is one, is saved now, the rest with the first maps, so that nothing is saved for a source
        that does not exist.
        """
        self.use(settings, value_range)
        if sketch is not None:
            await self._in_turn(self._manifest.keep_sketch, counted_values(settings), sketch)
        run = KeptRun(place_of(source), self._settings, settings.shaping(value_range))
        self._unkept = run, value_range, settings.range

    async def load_claims(self, claims: Claims, mode: Select | RepairMode) -> None:
        """Load the locators of done maps as claims; with mode ``all``, let new maps take them over instead."""
        if mode == "all":
            await self._in_turn(self._manifest.let_locators_move)
        else:
            await self._in_turn(lambda: claims.load(self._manifest.claims()))

    async def select_maps(
        self,
        listing: AsyncGenerator[list[Entry], None],
        mode: Select | RepairMode,
        report: Report,
        check: Callable[[Sequence[ActivationMap]], Awaitable[None]] | None = None,
    ) -> AsyncGenerator[list[Entry], None]:
        """Remove maps from a listing that need not be done; count them as skipped in the report.

        ``check`` is called with the maps to do before they are recorded as sent, and may end the run.
        """
        self._repairs = mode in get_args(RepairMode)
        is_first = not self._repairs
        async with aclosing(listing):
            async for batch in listing:
                maps = [entry for entry in batch if isinstance(entry, ActivationMap)]
                refused = [entry for entry in batch if isinstance(entry, Failure)]
                if is_first and maps:
                    is_first = False
                    self._notice_renamed(await self._in_turn(self._manifest.renamed, maps))
                plan = await self._in_turn(self._plan, maps, refused, mode)
                if check is not None:
                    await check(plan.todo)
                # A repair saves a source only if it has maps to repair.
                if self._unkept is not None and (plan.todo or not self._repairs):
                    run, value_range, setting = self._unkept
                    self._unkept = None
                    await self._in_turn(self._manifest.keep_run, run)
                    if not self._repairs:
                        await self._in_turn(self._manifest.keep_range, value_range, setting)
                if plan.todo and self._writes and not self._repairs:
                    await self._in_turn(self._manifest.note_sending, plan.todo, self._settings)
                if plan.has_others and mode == "failed" and _OTHERS not in report.warnings:
                    report.warnings.append(_OTHERS)
                    _logger.warning("%s", _OTHERS)
                report.skipped += plan.skipped
                report.unselected += plan.skipped if mode == "failed" else 0
                # A repair does not report maps that were refused.
                yield [*plan.todo] if self._repairs else [*refused, *plan.refused, *plan.todo]

    def _plan(self, maps: Sequence[ActivationMap], refused: Sequence[Failure], mode: Select | RepairMode) -> Plan:
        if self._ending is not None:
            self._ending.count_stored()
        plan = self._manifest.plan(maps, self._settings, mode)
        self._manifest.note_listed([*refused, *plan.refused], self._coverage.take_read())
        return plan

    def _notice_renamed(self, renamed: Sequence[tuple[ActivationMap, str]]) -> None:
        if renamed:
            map_, name = renamed[0]
            _logger.warning(
                "maps of this source are in the manifest under other names, such as %s: %r there, %r now. They get new "
                "overlays, and the others stay. For the same names, run with the same source as before",
                map_.source, name, map_.name,
            )  # fmt: skip

    def known(self, maps: Sequence[ActivationMap]) -> set[str]:
        """Call :meth:`Manifest.known`, in the thread that lists."""
        with self._lock:
            return self._manifest.known(maps)

    def known_done(self, maps: Sequence[ActivationMap]) -> set[str]:
        """Call :meth:`Manifest.known`, in the thread that lists, for maps that are done with these settings."""
        with self._lock:
            return self._manifest.known(maps, done_with=self._settings)

    async def stored_locators(self, limit: int) -> list[str]:
        """Call :meth:`Manifest.stored_locators`."""
        return await self._in_turn(self._manifest.stored_locators, limit)

    async def lists_overlays(self) -> bool:
        """Call :meth:`Manifest.lists_overlays`."""
        return await self._in_turn(self._manifest.lists_overlays)

    async def sent_with(self, key: str, maps: Sequence[ActivationMap]) -> set[str]:
        """Call :meth:`Manifest.sent_with`."""
        return await self._in_turn(self._manifest.sent_with, key, maps)

    async def note(self, outcomes: Sequence[Outcome]) -> None:
        """Add outcomes; commit when 1,000 are pending or the last commit is half a second ago."""
        # If a repair fails, the row keeps the difference that the verification found.
        self._pending.extend(outcome for outcome in outcomes if isinstance(outcome, Receipt) or not self._repairs)
        if len(self._pending) >= _COMMIT_ROWS or monotonic() - self._committed_at >= _COMMIT_INTERVAL_S:
            await self.commit()

    async def commit(self) -> None:
        """Write the pending outcomes."""
        if self._pending:
            await self._in_turn(self._write)
        self._committed_at = monotonic()

    async def keep_sample(self, run: LastRun, sample: Sample) -> None:
        """Save the state of the run, and a sample of its progress."""
        await self._in_turn(self._manifest.keep_sample, run, sample)

    async def commit_regularly(self) -> None:
        """Commit twice a second until cancelled: during an outage no further outcome would cause a commit."""
        while True:
            await asyncio.sleep(_COMMIT_INTERVAL_S)
            # If the manifest cannot be written, the rows stay pending, and the next note() or close() raises the error.
            with suppress(ManifestError):
                await self.commit()

    async def complete(self) -> None:
        """End a run that has done all that it selects: commit, and forget rows whose map is no longer in the source.

        Raises SettingsError if more would be pruned than is allowed.
        """
        await self.commit()
        if self._ending is not None and not self._repairs:
            steps = self._ending.steps()
            # One call each, so that a cancelled run ends between two steps.
            while await self._in_turn(next, steps, steps) is not steps:
                pass

    async def close(self) -> None:
        """Write the pending outcomes, and close the manifest, even when cancelled."""
        with CancelScope(shield=True):
            await self._in_turn(self._close)

    async def _in_turn(self, work: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
        def with_turn() -> T:
            # The thread holds the lock, because a cancelled task leaves while the thread is still working.
            with self._lock:
                return work(*arguments, **keywords)

        return await to_thread.run_sync(with_turn, limiter=self._threads)

    def _close(self) -> None:
        try:
            self._write()
        finally:
            self._manifest.close()

    def _write(self) -> None:
        if self._promises is not None:
            identity, promises = self._promises
            if promises.is_news:
                try:
                    self._manifest.keep_promises(identity, promises.dump())
                except ManifestError:
                    promises.is_news = True
                    raise
        outcomes = self._pending[:]
        if outcomes:
            self._manifest.write(outcomes, self._settings)
        # After the write, so that outcomes stay pending if it fails. Others may have been added meanwhile.
        del self._pending[: len(outcomes)]


@asynccontextmanager
async def open_recorder(
    path: str | PathLike[str] | None,
    identity: str,
    settings: Settings | None = None,
    promises: Promises | None = None,
) -> AsyncIterator[Recorder | None]:
    """Open the recorder of a run, or None without a path. At the end, even after an error, receipts are committed.

    The promises of the store are those of earlier runs from now on, and what this run proves is saved with its rows.
    Raises ManifestError if the manifest belongs to another destination than the store with this identity.
    """
    if path is None:
        yield None
        return

    def begin(manifest: Manifest) -> None:
        if relocation := relocated(manifest, identity, given_or_default(settings)):
            manifest.relocate(relocation)
        manifest.begin(identity)

    async with _opened(partial(Manifest, path), begin) as recorder:
        if promises is not None:
            await recorder.share_promises(identity, promises)
        committing = OrderlyTask(recorder.commit_regularly)
        try:
            yield recorder
        finally:
            await committing.cancel()


def open_reader(
    path: str | PathLike[str] | None, identity: str, settings: Settings | None = None
) -> AbstractAsyncContextManager[Recorder]:
    """Open a recorder that selects maps but writes nothing; a manifest that does not exist counts as empty."""

    def open_manifest() -> Manifest:
        return Manifest(":memory:") if path is None or not os.path.exists(path) else Manifest(path, read_only=True)

    def prepare(manifest: Manifest) -> None:
        manifest.relocation = relocated(manifest, identity, given_or_default(settings))
        manifest.prepare()

    return _opened(open_manifest, prepare, writes=False)


@asynccontextmanager
async def _opened(
    open_manifest: Callable[[], Manifest], prepare: Callable[[Manifest], None], *, writes: bool = True
) -> AsyncIterator[Recorder]:
    manifest = await to_thread.run_sync(open_manifest)
    recorder = Recorder(manifest, writes=writes)
    try:
        await to_thread.run_sync(prepare, manifest)
        yield recorder
    finally:
        await recorder.close()
