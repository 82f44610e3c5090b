"""A run's manifest on the event loop: each call goes to a thread, one at a time, and rows are committed in batches."""

from __future__ import annotations

import os
from contextlib import aclosing, asynccontextmanager
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from anyio import CancelScope, CapacityLimiter, to_thread

from async_maps.manifest import Manifest, Redo
from async_maps.records import ActivationMap, Failure, Outcome

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence
    from os import PathLike

    from async_maps.report import Report
    from async_maps.sources.listing import Entry

_COMMIT_ROWS = 1000
_COMMIT_INTERVAL_S = 0.5


class Recorder:
    """Asks a manifest what is to be done, and writes down what was.

    Args:
        manifest: open, its run begun.
        settings: the fingerprint of the settings that shape the bytes.
    """

    def __init__(self, manifest: Manifest, settings: str) -> None:
        self._manifest = manifest
        self._settings = settings
        self._turn = CapacityLimiter(1)
        self._pending: list[Outcome] = []
        self._committed_at = monotonic()

    async def select(
        self, listing: AsyncGenerator[list[Entry], None], redo: Redo, report: Report
    ) -> AsyncGenerator[list[Entry], None]:
        """Leave out of a listing what need not be done; the report counts it as skipped.

        Raises:
            ManifestError: the manifest cannot be read.
        """
        async with aclosing(listing):
            async for batch in listing:
                maps = [entry for entry in batch if isinstance(entry, ActivationMap)]
                refused: list[Entry] = [entry for entry in batch if isinstance(entry, Failure)]
                plan = await to_thread.run_sync(self._manifest.plan, maps, self._settings, redo, limiter=self._turn)
                report.skipped += plan.skipped
                yield [*refused, *plan.refused, *plan.todo]

    async def note(self, outcomes: Sequence[Outcome]) -> None:
        """Write outcomes down, at the latest with the first ones that come half a second later.

        Raises:
            ManifestError: the manifest cannot be written.
        """
        self._pending += outcomes
        if len(self._pending) >= _COMMIT_ROWS or monotonic() - self._committed_at >= _COMMIT_INTERVAL_S:
            await self.commit()

    async def commit(self) -> None:
        """Write down what is pending.

        Raises:
            ManifestError: the manifest cannot be written.
        """
        pending, self._pending = self._pending, []
        if pending:
            await to_thread.run_sync(self._manifest.write, pending, self._settings, limiter=self._turn)
        self._committed_at = monotonic()


@asynccontextmanager
async def open_recorder(
    path: str | PathLike[str] | None, destination: str, settings: str
) -> AsyncIterator[Recorder | None]:
    """The recorder of a run, or None without a path. However the run ends, what it has receipts for is committed.

    Raises:
        ManifestError: the manifest cannot be opened or written, or belongs to another destination.
    """
    if path is None:
        yield None
        return
    manifest = await to_thread.run_sync(Manifest, path)
    try:
        await to_thread.run_sync(manifest.begin, destination)
        recorder = Recorder(manifest, settings)
        try:
            yield recorder
        finally:
            with CancelScope(shield=True):
                await recorder.commit()
    finally:
        manifest.close()


@asynccontextmanager
async def open_reader(path: str | PathLike[str] | None, destination: str, settings: str) -> AsyncIterator[Recorder]:
    """A recorder that selects as a run would and writes nothing; a manifest that does not exist is taken as empty.

    Raises:
        ManifestError: the manifest cannot be read, or belongs to another destination.
    """
    exists = path is not None and await to_thread.run_sync(os.path.exists, path)
    manifest = await to_thread.run_sync(
        partial(Manifest, path, read_only=True) if path is not None and exists else partial(Manifest, ":memory:")
    )
    try:
        await to_thread.run_sync(manifest.rehearse, destination)
        yield Recorder(manifest, settings)
    finally:
        manifest.close()
