"""What of a plan is done: the footers of its parts, and the commit of the whole."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from itertools import count, islice
from typing import TYPE_CHECKING

from anyio import CapacityLimiter, to_thread

from async_maps.blocking import blocking
from async_maps.concurrency.tasks import in_tasks
from async_maps.errors import PlanError
from async_maps.plans.document import SCHEMA, Plan
from async_maps.plans.manifests import Footer, footer_size, manifest_name, part_in, read_footer
from async_maps.plans.place import DOCUMENT, opened_place
from async_maps.report import counted
from async_maps.settings import given_or_default

if TYPE_CHECKING:
    from collections.abc import Collection
    from os import PathLike
    from typing import Any

    from async_maps.plans.place import Place, PlanObjects
    from async_maps.settings import Settings

FOOTER_BYTES = 64 * 2**10
_READERS = 16
_SHOWN = 5
DAMAGED = "the plan is damaged; delete the other manifests of this part, and run the plan again"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanStatus:
    """How far a plan is.

    Attributes:
        plan: the address of the plan.
        parts: the number of parts.
        committed: the number of committed parts.
        started: the number of parts that were started and are not committed: they run, or their process has ended.
        missing: the first parts that are not committed.
        rows: the number of maps in the committed parts.
        failures: the number of failed maps among them.
        commits: the number of commits of the whole plan.
    """

    plan: str
    parts: int
    committed: int
    started: int
    missing: list[int] = field(default_factory=list)
    rows: int
    failures: int
    commits: int

    def as_dict(self) -> dict[str, Any]:
        """Return the status as plain values, for JSON."""
        return {**asdict(self), "complete": self.is_complete}

    @property
    def is_complete(self) -> bool:
        """Whether all parts are committed."""
        return self.committed == self.parts


async def aplan_status(plan: str | PathLike[str], *, settings: Settings | None = None) -> PlanStatus:
    """Return how far a plan is, from anywhere.

    Args:
        plan: the address of the plan.
        settings: the time limits of requests.

    Raises:
        PlanError: there is no plan, or this version cannot read it.
        StoreError: the store of the plan cannot be used.
    """
    async with opened_place(str(plan), given_or_default(settings), is_written=False) as place:
        return (await _status(place, await read_plan(place)))[0]


plan_status = blocking(aplan_status)
"""Return how far a plan is, and block until that is known."""


async def acommit_plan(plan: str | PathLike[str], *, settings: Settings | None = None) -> PlanStatus:
    """Declare a plan done, whose parts are all committed: write an object ``_SUCCESS-1``.

    It names the manifest of each part with its digest. After a retry of failed maps, the next commit has the next
    number; without a change there is none.

    Args:
        plan: the address of the plan.
        settings: the time limits of requests.

    Returns:
        The status. If parts are missing, nothing is written.

    Raises:
        PlanError: there is no plan, or this version cannot read it.
        StoreError: the store of the plan cannot be used.
    """
    async with opened_place(str(plan), given_or_default(settings)) as place:
        found = await read_plan(place)
        status, footers = await _status(place, found)
        if not status.is_complete:
            return status
        parts = [[footer.part, footer.generation, footer.digest] for footer in footers]
        data = json.dumps({"schema": SCHEMA, "plan": found.id, "parts": parts}).encode()
        for number in count(max(1, status.commits)):
            # The last one may be this, or another process commits at the same time.
            if await place.create(f"{found.id}/commits/_SUCCESS-{number}", data):
                break
        return (await _status(place, found))[0]


commit_plan = blocking(acommit_plan)
"""Declare a plan done, and block until that is written."""


async def read_plan(place: Place) -> Plan:
    """Read the plan at a place; raise PlanError if there is none."""
    return await to_thread.run_sync(plan_at, place.objects)


def plan_at(place: PlanObjects) -> Plan:
    """Read the plan at a place, as :func:`read_plan`. Blocks."""
    data = place.read(DOCUMENT)
    if data is None:
        raise PlanError(
            f"{place.address} has no {DOCUMENT}: make the plan first, or correct its address. The manifest of a run "
            "without a plan is a file"
        )
    return Plan.parse(data, place.locator(DOCUMENT))


async def committed_parts(place: Place, plan: Plan) -> dict[int, tuple[int, int]]:
    """Return the parts that are committed, each with its newest generation and the bytes of its manifest."""
    found = await to_thread.run_sync(manifests_at, place.objects, plan)
    return {part: max(enumerate(sizes)) for part, sizes in found.items()}


async def started_parts(place: Place, plan: Plan) -> set[int]:
    """Return the parts that were started, committed ones included."""
    return await place.numbers(f"{plan.id}/started")


def manifests_at(place: PlanObjects, plan: Plan) -> dict[int, list[int]]:
    """Return the bytes of the manifests of each committed part, from generation 0 on. Blocks.

    Raises:
        PlanError: a generation is missing.
    """
    found: dict[int, dict[int, int]] = {}
    for name, size in place.sizes(f"{plan.id}/done").items():
        # Others are not ours, such as files of a file manager.
        if (numbers := part_in(name)) is not None and 1 <= numbers[0] <= plan.parts:
            found.setdefault(numbers[0], {})[numbers[1]] = size
    for part, sizes in found.items():
        if missing := {*range(max(sizes) + 1)} - {*sizes}:
            raise PlanError(f"{place.locator(manifest_name(plan.id, part, min(missing)))} was deleted: {DAMAGED}")
    return {part: [sizes[generation] for generation in range(len(sizes))] for part, sizes in found.items()}


def refuse_incomplete(address: str, plan: Plan, committed: Collection[int]) -> None:
    """Raise PlanError, which may pass, if parts are not committed; name the first of them."""
    missing = [*islice((part for part in range(1, plan.parts + 1) if part not in committed), _SHOWN)]
    if missing:
        more = plan.parts - len(committed) - len(missing)
        shown = ", ".join(f"{part:,}" for part in missing)
        raise PlanError(
            f"{address} is not done: of its {counted(plan.parts, 'part')}, {shown}{f' and {more:,} more' * bool(more)} "
            f"{'is' if len(missing) == 1 else 'are'} not committed; run its shares first",
            may_pass=True,
        )


def read_manifests(place: PlanObjects, plan: Plan, part: int, generations: int | None = None) -> list[bytes]:
    """Return the manifests of a part, from generation 0 on. Blocks.

    Args:
        place: where the plan lies.
        plan: the plan.
        part: the number of the part.
        generations: how many there are; None for all that are there now.

    Raises:
        PlanError: one of them was deleted, or belongs to another generation before it.
    """
    found, parent = list[bytes](), ""
    for generation in count() if generations is None else range(generations):
        name = manifest_name(plan.id, part, generation)
        data = place.read(name)
        if data is None:
            if generations is None:
                break
            raise PlanError(f"{place.locator(name)} was deleted: {DAMAGED}")
        footer = _footer(data, place, name)
        if footer.parent != parent:
            before = place.locator(manifest_name(plan.id, part, generation - 1))
            raise PlanError(f"{place.locator(name)} does not belong to {before}, which was replaced: {DAMAGED}")
        found.append(data)
        parent = footer.digest
    return found


def footer_at(place: PlanObjects, name: str, size: int) -> Footer:
    """Read the footer of the manifest of a part. Blocks.

    Args:
        place: where the plan lies.
        name: the name of the manifest there.
        size: its bytes.

    Raises:
        PlanError: it was deleted, or is none.
    """
    tail = FOOTER_BYTES
    while True:
        data = place.read(name, max(0, size - tail))
        if data is None:
            raise PlanError(f"{place.locator(name)} was deleted: {DAMAGED}")
        needed = footer_size(data)
        # That of a part with millions of rows is longer.
        if needed <= len(data) or tail >= size:
            return _footer(data, place, name)
        tail = needed


def _footer(data: bytes, place: PlanObjects, name: str) -> Footer:
    footer = read_footer(data, place.locator(name))
    if footer.name != name:
        raise PlanError(f"{place.locator(name)} is a copy of {footer.name}: delete it, and run the plan again")
    return footer


async def read_footers(place: Place, plan: Plan, parts: Collection[int] | None = None) -> list[Footer]:
    """Return the footers of the newest manifests of the committed ones of these parts, or of all, in their order."""
    found: dict[int, Footer] = {}
    limiter = CapacityLimiter(_READERS)
    waiting = iter((await committed_parts(place, plan)).items())

    async def read() -> None:
        for part, (generation, size) in waiting:
            if parts is None or part in parts:
                name = manifest_name(plan.id, part, generation)
                found[part] = await to_thread.run_sync(footer_at, place.objects, name, size, limiter=limiter)

    await in_tasks(_READERS, read)
    return [found[part] for part in sorted(found)]


async def _status(place: Place, plan: Plan) -> tuple[PlanStatus, list[Footer]]:
    footers = await read_footers(place, plan)
    committed = {footer.part for footer in footers}
    started = await started_parts(place, plan)
    missing = (part for part in range(1, plan.parts + 1) if part not in committed)
    status = PlanStatus(
        plan=place.address,
        parts=plan.parts,
        committed=len(committed),
        started=len(started - committed),
        missing=[*islice(missing, _SHOWN)],
        rows=sum(footer.rows for footer in footers),
        failures=sum(footer.failures for footer in footers),
        commits=len(await place.numbers(f"{plan.id}/commits", "_SUCCESS-")),
    )
    return status, footers
