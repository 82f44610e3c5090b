"""Repairs broken overlays: verifies all, marks the broken rows, uploads their overlays again, and verifies these.

Runs on the event loop, and in threads.
"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from os import fspath
from typing import TYPE_CHECKING

from anyio import CancelScope, to_thread

from async_maps.blocking import blocking
from async_maps.errors import SettingsError, SourceError
from async_maps.filesystems.endpoints import Identity
from async_maps.keys import printable
from async_maps.manifest.destination import relocated_by_environment
from async_maps.manifest.manifest import Manifest
from async_maps.outcomes import Receipt
from async_maps.pipeline import Pipeline
from async_maps.plans.place import is_plan
from async_maps.report import counted
from async_maps.settings import Settings, given_or_default
from async_maps.sources import place_of
from async_maps.suggestions import suggest
from async_maps.tables import is_table
from async_maps.verify.advice import ANOTHER_WRITES, advice_on_foreign, repair_flags
from async_maps.verify.check import Check
from async_maps.verify.comparison import REPAIRABLE, Comparison
from async_maps.verify.locators import watched
from async_maps.verify.verification import MAX_LISTED_DIFFERENCES, Verification

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from async_maps.filesystems.objects import Objects
    from async_maps.manifest.manifest import RepairMode
    from async_maps.manifest.metadata import KeptRun
    from async_maps.outcomes import Outcome
    from async_maps.verify.locators import OnVerification

_BATCH_ROWS = 1000
_MAX_ADVICE = 9


async def arepair_overlays(  # noqa: PLR0913  # one argument per option
    manifest: str | PathLike[str],
    *,
    settings: Settings | None = None,
    deep: bool = False,
    source: str | PathLike[str] | None = None,
    destination: str | PathLike[str] | None = None,
    delete_foreign: bool = False,
    on_progress: OnVerification | None = None,
) -> Verification:
    """Verify like :func:`averify_locators`, and upload only broken overlays again.

    First, the rows of broken overlays become failed rows (stage ``verify``). So if the repair is interrupted, the next
    repair or run does the rest. The maps are read from the sources of their run, and colorized with its settings; the
    manifest has both. A map that has changed since gets an overlay of its new values.

    Args:
        manifest: the manifest; no run may be writing it.
        settings: as for ``averify_locators``; also those settings of the pipeline that do not affect the overlays.
        deep: also read every object.
        source: the current place of the maps, if they have moved.
        destination: the current place of the overlays, if they have moved. If a few of them are there, the locators of
            the manifest are updated.
        delete_foreign: delete all foreign PNGs under the destination, even overlays of another manifest; none while
            another run stores objects there.
        on_progress: as for :func:`averify_locators`.

    Returns:
        The verification after the repair; its ``is_clean`` is true if everything was repaired.

    Raises:
        AsyncMapsError: as for ``averify_locators`` and ``Pipeline.run``; but a source that does not exist is reported
            in the ``advice``.
    """
    if is_table(str(manifest)):
        raise SettingsError(f"{manifest} is a table, which has no settings to repair overlays with: pass a manifest")
    if is_plan(manifest):
        raise SettingsError(
            f"{manifest} is a plan, which is not repaired: verify it without repair, which names the parts to run again"
        )
    settings = given_or_default(settings)
    repair = _Repair(manifest, settings, Verification(settings=settings.model_dump(mode="json")))
    place = None if source is None else place_of(source)
    if source is not None and place is None:
        raise SettingsError("a repair may read its source more than once: pass a path, not standard input")
    repair.destination = None if destination is None else fspath(destination)
    work = partial(repair.run, place, deep=deep, delete_foreign=delete_foreign)
    await watched(work, settings, repair.verification, on_progress)
    return repair.verification


repair_overlays = blocking(arepair_overlays)
"""Verify, and upload only broken overlays again."""


class _Repair:
    destination: str | None = None
    """The place to which the overlays were moved."""

    def __init__(self, manifest: str | PathLike[str], settings: Settings, verification: Verification) -> None:
        self.verification = verification
        self._manifest = manifest
        self._settings = settings.model_copy(update={"if_exists": "overwrite"})
        self._problems: list[str] = []

    async def run(self, source: str | None, objects: Objects, *, deep: bool, delete_foreign: bool) -> None:
        verification = self.verification
        with Comparison() as before, Comparison() as after:
            # Keep the lock until all broken rows are marked, so that no run changes them in between.
            opened = await to_thread.run_sync(_open, self._manifest)
            try:
                await to_thread.run_sync(self._relocate, opened, objects)
                check = Check(before, objects, self._settings, verification)
                check.is_locked_by_us = True
                await check.look(self._manifest, deep=deep)
                await check.finish()
                verification.doing = "marking broken overlays"
                await to_thread.run_sync(_mark, opened, before)
                if delete_foreign:
                    await self._delete_foreign(before, objects, Identity.parse(opened.destination() or "").folder)
                broken, runs = await to_thread.run_sync(lambda: (opened.broken(), opened.runs()))
                destination = Identity.parse(opened.destination() or "").destination
            finally:
                with CancelScope(shield=True):
                    await to_thread.run_sync(opened.close)
            verification.doing = f"repairing {counted(sum(broken.values()), 'overlay')}"
            since = datetime.now(UTC).isoformat(timespec="milliseconds")
            for settings, sources in self._plan(runs, broken, source):
                await self._make(settings, destination, sources, "moved" if source else "broken")
            if verification.repaired or verification.deleted:
                verification.locators = verification.right = verification.listed = 0
                check = Check(after, objects, self._settings, verification)
                await check.look(self._manifest, deep=deep, since=since)
                # The second verification does not read these.
                await to_thread.run_sync(after.note, before.differences("unreadable"))
                await check.finish()
            await self._advise(destination)
            if verification.shared:
                verification.advice.append(ANOTHER_WRITES)
            if not delete_foreign:
                verification.advice.extend(advice_on_foreign(verification, repair_flags(deep=deep, source=source)))
        verification.doing = ""

    def _relocate(self, manifest: Manifest, objects: Objects) -> None:
        if relocation := relocated_by_environment(manifest, objects, self._settings, self.destination):
            manifest.relocate(relocation)

    async def _delete_foreign(self, comparison: Comparison, objects: Objects, folder: str) -> None:
        verification = self.verification
        foreign = verification.differences.get("foreign", 0)
        if foreign and not verification.right:
            verification.advice.append(
                f"nothing was deleted: no overlay of {self._manifest} exists there, only "
                f"{counted(foreign, 'foreign object')}; is this the right manifest?"
            )
            return
        verification.doing = f"deleting {counted(foreign, 'foreign object')}"
        named = comparison.differences("foreign")

        def delete() -> int:
            locators = [difference.locator for difference in islice(named, _BATCH_ROWS)]
            kept = objects.delete(locators, folder)
            listed = islice(kept.items(), max(0, _MAX_ADVICE - len(verification.advice)))
            verification.advice.extend(f"not deleted: {locator}: {reason}" for locator, reason in listed)
            verification.deleted += len(locators) - len(kept)
            return len(locators)

        while await to_thread.run_sync(delete):
            pass

    def _plan(
        self, runs: list[KeptRun], broken: dict[str, int], source: str | None
    ) -> list[tuple[Settings, list[str]]]:
        """Return the known settings of broken overlays, each with the sources of their maps.

        Two settings can have the same fingerprint, if they differ only in the headers of objects.
        """
        ways: dict[str, tuple[Settings, list[str]]] = {}
        for run in runs:
            place = source or run.source
            with suppress(SettingsError):  # a dataset range of a single value
                settings = self._settings.shaped_as(run.shaping)
                if place is not None and settings.fingerprint() in broken:
                    _, sources = ways.setdefault(json.dumps(run.shaping), (settings, []))
                    if place not in sources:
                        sources.append(place)
        return list(ways.values())

    async def _make(self, settings: Settings, destination: str, sources: Sequence[str], mode: RepairMode) -> None:
        async with Pipeline(destination, settings=settings) as pipeline:
            for source in sources:
                if settings.fingerprint() not in await self._broken():
                    return
                try:
                    report = await pipeline._repair(source, self._manifest, mode, self._count)
                except SourceError as error:
                    self._problems.append(f"cannot be repaired from {printable(source)}: {error}")
                else:
                    self._problems.extend(f"failed: {failure}" for failure in report.failures)
                del self._problems[_MAX_ADVICE:]

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

    async def _advise(self, destination: str) -> None:
        left = sum((await self._broken()).values())
        if left:
            self.verification.advice.extend(self._problems)
            self.verification.advice.append(
                f"{counted(left, 'overlay')} could not be repaired. If the maps have moved, "
                "repair with --source. To upload them by a run, give it the settings of theirs: "
                + suggest("run", "SOURCE", destination, "--manifest", self._manifest, "--retry-failed")
            )


def _open(path: str | PathLike[str]) -> Manifest:
    with Manifest(path, read_only=True):
        # Raises an error if it does not exist; the next line would create it.
        pass
    return Manifest(path)


def _mark(manifest: Manifest, comparison: Comparison) -> None:
    manifest.mark_broken(
        (found.locator, found.name, f"{found.kind}: expected {found.expected}, found {found.found}")
        for found in comparison.differences(*REPAIRABLE)
    )
