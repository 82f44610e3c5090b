"""Runs a share of the parts of a plan, and then those that no other share has committed."""

from __future__ import annotations

import os
import random
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from async_maps.blocking import blocking
from async_maps.plans.commits import committed_parts, read_plan
from async_maps.plans.place import opened_place
from async_maps.plans.schedulers import share_of
from async_maps.settings import given_or_default
from async_maps.shares.engine import LocalEngine, Work
from async_maps.shares.part import PartDone

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from os import PathLike

    from async_maps.plans.document import Plan
    from async_maps.plans.place import Place
    from async_maps.settings import Settings
    from async_maps.shares.engine import PartOutcome

_IN_FLIGHT = 2
"""Parts at a time: while the last maps of one are stored, the next one is read."""


@dataclass(slots=True)
class ShareReport:
    """What a share has done.

    Attributes:
        plan: the address of the plan.
        part: which share of how many, from 1.
        committed: the parts that it has committed.
        done_by_others: the parts that others had committed meanwhile.
        uploaded: the maps that it has stored.
        failed: the failed maps in the parts that it has committed.
    """

    plan: str
    part: tuple[int, int]
    committed: list[int] = field(default_factory=list)
    done_by_others: list[int] = field(default_factory=list)
    uploaded: int = 0
    failed: int = 0

    def count(self, outcome: PartOutcome) -> None:
        """Count the outcome of a part."""
        assert isinstance(outcome, PartDone)  # noqa: S101
        self.uploaded += outcome.uploaded
        self.failed += outcome.failed
        (self.committed if outcome.is_ours else self.done_by_others).append(outcome.part)


async def arun_plan(
    plan: str | PathLike[str],
    part: tuple[int, int] = (1, 1),
    *,
    settings: Settings | None = None,
    on_progress: Callable[[ShareReport], object] | None = None,
) -> ShareReport:
    """Run a share of the parts of a plan, then those that no share has committed yet.

    Args:
        plan: the address of the plan.
        part: which share of how many, from 1: ``(3, 8)``.
        settings: how to run; what shapes the overlays comes from the plan.
        on_progress: called with the report after each part.

    Returns:
        The report. A part with failed maps is committed, too: ``commit`` tells of them.

    Raises:
        PlanError: there is no plan, or this version cannot run it.
        SettingsError: the share does not exist.
        StoreError: a store cannot be used. Run the share again for the rest.
    """
    part = share_of(f"{part[0]}/{part[1]}")
    own = given_or_default(settings)
    async with opened_place(os.fspath(plan), own) as place:
        report = ShareReport(place.address, part)
        found = await read_plan(place)
        work, engine = Work(place.address, own), LocalEngine()
        async with (
            aclosing(_parts(place, found, part)) as parts,
            aclosing(engine.run(work, parts, _IN_FLIGHT)) as outcomes,
        ):
            async for outcome in outcomes:
                report.count(outcome)
                if on_progress is not None:
                    on_progress(report)
    return report


run_plan = blocking(arun_plan)
"""Run a share of the parts of a plan, and block until all parts are committed."""


async def _parts(place: Place, plan: Plan, share: tuple[int, int]) -> AsyncGenerator[int, None]:
    """Yield the parts of a share, and then those that no other share has committed."""
    index, count = share
    # In a random order, the same for all: neighbors in the order of keys would meet one partition of S3.
    order = random.Random(plan.id).sample(range(1, plan.parts + 1), plan.parts)  # noqa: S311
    own = order[index - 1 :: count]
    committed = {*await committed_parts(place, plan)}
    for part in own:
        if part not in committed:
            yield part
    committed = {*await committed_parts(place, plan), *own}
    left = [part for part in order if part not in committed]
    for part in random.sample(left, len(left)):
        yield part
