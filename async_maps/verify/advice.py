"""What a verification advises: to repair, to delete foreign objects, or to wait for a run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from async_maps.filesystems.locators import file_path
from async_maps.keys import printable
from async_maps.plans.place import is_plan
from async_maps.suggestions import suggest
from async_maps.tables import is_table
from async_maps.verify.comparison import REPAIRABLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from async_maps.verify.verification import Verification

ANOTHER_WRITES = (
    "another run or program has stored objects there in the last minute: verify again when it has ended. "
    "Give each manifest its own prefix"
)


def advice_on(verification: Verification, flags: Sequence[str]) -> Iterator[str]:
    """Yield sentences that say what to do about the differences; ``flags`` are those of a repair."""
    found = verification.differences
    if is_table(verification.place):
        if "size" in found or "etag" in found:
            yield "if a run has replaced overlays since the table was exported, export it again"
        return
    if is_plan(verification.place):
        if verification.shared:
            yield ANOTHER_WRITES
        return
    if verification.running is not None:
        yield "verify again when the run has ended"
        return
    if verification.shared:
        yield ANOTHER_WRITES
    folder = file_path(verification.folders[0])
    if folder is not None and not os.path.lexists(folder):
        command = suggest("verify", verification.place, "--destination", "FOLDER")
        yield f"{printable(os.path.normpath(folder))} does not exist. If it was moved: {command}"
    if verification.unrecorded:
        yield "to record the overlays of the interrupted run, run its command again"
    if found.keys() & {*REPAIRABLE, "broken"}:
        yield f"to repair the broken overlays, run: {suggest('verify', verification.place, *flags)}"
    yield from advice_on_foreign(verification, flags)


def advice_on_foreign(verification: Verification, flags: Sequence[str]) -> Iterator[str]:
    """Yield a sentence that says how to delete foreign objects, if there are any; ``flags`` are those of a repair."""
    if (newer := verification._newer_foreign) and verification.running is None:
        objects = "1 foreign object is" if newer == 1 else f"{newer:,} foreign objects are"
        yield (
            f"{objects} newer than the start of the last run with this manifest, so another run or program has stored "
            f"{'it' if newer == 1 else 'them'}. Give each manifest its own prefix"
        )
    elif "foreign" in verification.differences and verification.running is None:
        how = suggest("verify", verification.place, *flags, "--delete-foreign")
        yield f"to delete the foreign objects, check their list, then run: {how}"


def repair_flags(*, deep: bool, source: str | None = None, destination: str | None = None) -> list[str]:
    """Return the flags of a repair to suggest, after a verification or repair with these arguments."""
    places = {"--source": source, "--destination": destination}
    given = [word for flag, place in places.items() if place is not None for word in (flag, place)]
    return [*(("--deep",) if deep else ()), "--repair", *given]
