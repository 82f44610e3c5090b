"""Verifies locators by listing their folders and, with ``deep``, by reading all objects. Runs on the event loop."""

from __future__ import annotations

from os import fspath
from typing import TYPE_CHECKING, TypeAlias

from async_maps.blocking import blocking
from async_maps.concurrency.tasks import OrderlyTask, calling_every
from async_maps.errors import SettingsError
from async_maps.filesystems.objects import Objects
from async_maps.plans.place import is_plan
from async_maps.settings import Settings, given_or_default
from async_maps.tables import is_table
from async_maps.verify.advice import advice_on, repair_flags
from async_maps.verify.check import Check
from async_maps.verify.comparison import Comparison
from async_maps.verify.plans import PlanCheck
from async_maps.verify.verification import Verification

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from os import PathLike
    from typing import Any

OnVerification: TypeAlias = "Callable[[Verification], object]"

_INTERVAL_S = 0.2


async def averify_locators(
    place: str | PathLike[str],
    *,
    settings: Settings | None = None,
    deep: bool = False,
    destination: str | PathLike[str] | None = None,
    on_progress: OnVerification | None = None,
) -> Verification:
    """Verify that every locator of a manifest, a table or a plan has the bytes that were uploaded.

    Listed objects are compared by size and ETag, files by size and CRC32. A PNG under the destination that is not in
    the manifest is reported as foreign, unless another run has stored objects there just now. You can verify a manifest
    while a run writes it: overlays that the run changes meanwhile, and objects without a row that are newer than its
    start, are not judged but counted as ``unsettled``.

    Args:
        place: a manifest; or a table of results (``.csv``, ``.jsonl``, ``.parquet``), ours or Kolena's. A table may
            list only some of the overlays, so no object is foreign to it. Or the address of a plan whose parts are all
            committed: a PNG that neither it nor an earlier plan (``since``) has is foreign. The memory is that of a
            sorted listing's parts: those whose span of keys contains the key at hand, at most 200,000 rows. Where more
            parts overlap, of files and with ``deep``, both lists are on disk.
        settings: the time-outs and attempts of requests, and the limits of concurrent reads (``concurrency``,
            ``queue_bytes``).
        deep: also read every object, and compare its digest, its content type and its size in pixels.
        destination: the current place of the overlays, if they were moved or copied; by default that of the manifest.
        on_progress: called with a copy of the verification five times a second and at the end, on the event loop, which
            it must not block. An error that it raises ends the verification.

    Returns:
        The verification; its ``is_clean`` is true if nothing differs.

    Raises:
        PlanError: the plan cannot be read, or parts of it are not committed.
        ManifestError: the manifest cannot be read, or its overlays are not at the endpoint of the AWS environment.
        SourceError: the table cannot be read.
        SettingsError: the table has no locator, or the manifest's overlays were in memory.
        StoreError: the folder cannot be listed, or the store cannot be reached.
    """
    settings = given_or_default(settings)
    if destination is not None and is_table(str(place)):
        raise SettingsError(f"destination: {place} is a table, whose locators are complete; leave destination out")
    verification = Verification(settings=settings.model_dump(mode="json"))
    moved = None if destination is None else fspath(destination)

    async def look(objects: Objects) -> None:
        with Comparison() as comparison:
            kind = PlanCheck if is_plan(place) and not is_table(str(place)) else Check
            check = kind(comparison, objects, settings, verification)
            await check.look(place, deep=deep, destination=moved)
            await check.finish()
            verification.advice.extend(advice_on(verification, repair_flags(deep=deep, destination=moved)))

    await watched(look, settings, verification, on_progress)
    return verification


verify_locators = blocking(averify_locators)
"""Verify that every locator of a manifest, a table or a plan has the bytes that were uploaded."""


async def watched(
    work: Callable[[Objects], Coroutine[Any, Any, None]],
    settings: Settings,
    verification: Verification,
    on_progress: OnVerification | None,
) -> None:
    """Run ``work``, which fills the verification, and report its progress."""
    objects = Objects(settings.s3)

    async def main() -> None:
        if on_progress is None:
            await work(objects)
            return

        def show(_: bool) -> None:
            verification.tick()
            on_progress(verification.copy())

        async with calling_every(_INTERVAL_S, show):
            await work(objects)

    try:
        with objects:
            await OrderlyTask(main).result(objects.close)
    except BaseException as error:
        verification.end(error)
        raise
    verification.end()
