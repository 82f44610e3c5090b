"""Broken overlays, repaired: found by a look at all, marked in the manifest, done by the pipeline, looked at again.

On the event loop; what blocks goes to threads.
"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING

from anyio import CancelScope, to_thread

from async_maps.blocking import blocking
from async_maps.errors import SettingsError, SourceError
from async_maps.filesystems.objects import Objects
from async_maps.keys import printable
from async_maps.manifest.manifest import Manifest
from async_maps.outcomes import Receipt
from async_maps.pipeline import Pipeline
from async_maps.settings import Settings
from async_maps.sources import place_of
from async_maps.tables import is_table
from async_maps.verify.check import Check, advice_on_foreign, destination_of, watched
from async_maps.verify.comparison import MENDABLE, Comparison
from async_maps.verify.verification import MAX_LISTED_DIFFERENCES, Verification

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from async_maps.manifest.manifest import RepairMode
    from async_maps.manifest.metadata import KeptRun
    from async_maps.outcomes import Outcome
    from async_maps.verify.check import OnVerification

_AT_ONCE = 1000
_ADVISED = 9


async def arepair_overlays(  # noqa: PLR0913  # one argument a flag
    manifest: str | PathLike[str],
    *,
    settings: Settings | None = None,
    deep: bool = False,
    source: str | PathLike[str] | None = None,
    delete_foreign: bool = False,
    on_progress: OnVerification | None = None,
) -> Verification:
    """Verify as :func:`averify_locators` does, and make broken overlays again: nothing else is uploaded.

    The rows of what is broken are failed rows (stage ``verify``) before anything is made: if the repair is interrupted,
    the next one, or the next run, does the rest. Maps are read from where their run has read them, and
    colorized with its settings, as the manifest has kept both; a map that has changed since gets what is there now.

    Args:
        manifest: no other run may be writing it.
        settings: as for ``averify_locators``, and for the pipeline all that does not shape overlays.
        deep: also read every object.
        source: where the maps are now, if they have moved.
        delete_foreign: delete each PNG below the destination that no row knows, also another manifest's overlays.
        on_progress: as for :func:`averify_locators`.

    Returns:
        The verification after the repair: it ``is_clean`` if everything could be repaired.

    Raises:
        AsyncMapsError: as ``averify_locators``, and as ``Pipeline.run`` but for sources that are gone: they are named.
    """
    if is_table(str(manifest)):
        raise SettingsError(f"{manifest} is a table, and does not tell how overlays were made: repair with a manifest")
    repair = _Repair(manifest, settings or Settings(), Verification())
    place = None if source is None else place_of(source)
    if source is not None and place is None:
        raise SettingsError("a repair may read its source more than once: name a place, not standard input")
    work = partial(repair.run, place, deep=deep, delete_foreign=delete_foreign)
    await watched(work, repair.verification, on_progress)
    return repair.verification


repair_overlays = blocking(arepair_overlays)
"""Verify, and make broken overlays again: nothing else is uploaded."""


class _Repair:
    def __init__(self, manifest: str | PathLike[str], settings: Settings, verification: Verification) -> None:
        self.verification = verification
        self._manifest = manifest
        self._settings = settings.model_copy(update={"if_exists": "overwrite"})
        self._problems: list[str] = []

    async def run(self, source: str | None, *, deep: bool, delete_foreign: bool) -> None:
        verification = self.verification
        began_at = monotonic()
        with Objects(self._settings.s3) as objects, Comparison() as before, Comparison() as after:
            # Locked until all that is broken is marked: the rows that were read are those that are written.
            opened = await to_thread.run_sync(_open, self._manifest)
            try:
                check = Check(before, objects, self._settings, verification)
                await check.look(self._manifest, deep=deep)
                await check.finish()
                verification.doing = "marking what is broken"
                await to_thread.run_sync(_mark, opened, before)
                if delete_foreign:
                    await self._delete_foreign(before, objects)
                broken, runs = await to_thread.run_sync(lambda: (opened.broken(), opened.runs()))
                destination = destination_of(opened.destination() or "")
            finally:
                with CancelScope(shield=True):
                    await to_thread.run_sync(opened.close)
            verification.doing = f"making {sum(broken.values()):,} overlays again"
            since = datetime.now(UTC).isoformat(timespec="milliseconds")
            for settings, sources in self._ways(runs, broken, source):
                await self._make(settings, destination, sources, "moved" if source else "broken")
            if verification.repaired or verification.deleted:
                verification.locators = verification.right = verification.listed = 0
                check = Check(after, objects, self._settings, verification)
                await check.look(self._manifest, deep=deep, since=since)
                # These were not read once more.
                await to_thread.run_sync(after.note, before.differences("unreadable"))
                await check.finish()
            await self._advise()
            if not delete_foreign:
                verification.advice.extend(advice_on_foreign(verification, deep))
        verification.doing, verification.elapsed_s = "", monotonic() - began_at

    async def _delete_foreign(self, comparison: Comparison, objects: Objects) -> None:
        verification = self.verification
        foreign = verification.differences.get("foreign", 0)
        if foreign and not verification.right:
            verification.advice.append(
                f"nothing was deleted: not one overlay of {self._manifest} lies there, only {foreign:,} others; is it "
                "the right manifest?"
            )
            return
        verification.doing = f"deleting {foreign:,} foreign objects"
        named = comparison.differences("foreign")

        def delete() -> int:
            locators = [difference.locator for difference in islice(named, _AT_ONCE)]
            kept = objects.delete(locators)
            listed = islice(kept.items(), max(0, _ADVISED - len(verification.advice)))
            verification.advice.extend(f"not deleted: {locator}: {reason}" for locator, reason in listed)
            verification.deleted += len(locators) - len(kept)
            return len(locators)

        while await to_thread.run_sync(delete):
            pass

    def _ways(
        self, runs: list[KeptRun], broken: dict[str, int], source: str | None
    ) -> list[tuple[Settings, list[str]]]:
        """The settings behind the fingerprints of what is broken, as far as they are known, and sources for each.

        Two of them may have one fingerprint: they differ in the headers of the objects in S3.
        """
        ways: dict[str, tuple[Settings, list[str]]] = {}
        for run in runs:
            place = source or run.source
            with suppress(SettingsError):  # a range that has come to a single value
                settings = self._settings.shaped_as(run.shaping)
                if place is not None and settings.fingerprint() in broken:
                    _, sources = ways.setdefault(json.dumps(run.shaping), (settings, []))
                    if place not in sources:
                        sources.append(place)
        return list(ways.values())

    async def _make(self, settings: Settings, destination: str, sources: Sequence[str], mode: RepairMode) -> None:
        """Make overlays of these settings again, from one source after the other, until none is left."""
        async with Pipeline(destination, settings=settings) as pipeline:
            for source in sources:
                if settings.fingerprint() not in await self._broken():
                    return
                try:
                    report = await pipeline._repair(source, self._manifest, mode, self._count)
                except SourceError as error:
                    self._problems.append(f"cannot be made from {printable(source)}: {error}")
                else:
                    self._problems.extend(f"failed: {failure}" for failure in report.failures)
                del self._problems[_ADVISED:]

    def _count(self, outcomes: Sequence[Outcome]) -> None:
        made = [outcome.locator for outcome in outcomes if isinstance(outcome, Receipt)]
        listed = self.verification.first_repaired
        self.verification.repaired += len(made)
        listed.extend(made[: MAX_LISTED_DIFFERENCES - len(listed)])

    async def _broken(self) -> dict[str, int]:
        def read() -> dict[str, int]:
            with Manifest(self._manifest, read_only=True) as opened:
                return opened.broken()

        return await to_thread.run_sync(read)

    async def _advise(self) -> None:
        left = sum((await self._broken()).values())
        if left:
            self.verification.advice.extend(self._problems)
            self.verification.advice.append(
                f"{left:,} could not be repaired; they count as failed, and a run does them: async-maps run SOURCE "
                f"DESTINATION --manifest {self._manifest} --retry-failed, with the settings of before. If their maps "
                "lie elsewhere now, repair with --source"
            )


def _open(path: str | PathLike[str]) -> Manifest:
    with Manifest(path, read_only=True):
        # Else it would be made.
        pass
    return Manifest(path)


def _mark(manifest: Manifest, comparison: Comparison) -> None:
    manifest.mark_broken(
        (found.locator, found.name, f"{found.kind}: expected {found.expected}, found {found.found}")
        for found in comparison.differences(*MENDABLE)
    )
