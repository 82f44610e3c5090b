"""One range for all maps of a plan: a sketch of the values of each part, which are combined once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from anyio import CapacityLimiter, to_thread

from async_maps import survey
from async_maps.concurrency.tasks import in_tasks
from async_maps.errors import PlanError, SettingsError
from async_maps.filesystems.objects import Objects
from async_maps.manifest.destination import place_of_overlays
from async_maps.plans.commits import plan_at
from async_maps.plans.document import SCHEMA
from async_maps.plans.place import PlanObjects, is_plan
from async_maps.render.ranges import parse_range
from async_maps.render.sketch import QuantileSketch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from async_maps.manifest.manifest import RepairMode, Select
    from async_maps.manifest.recorder import Recorder
    from async_maps.plans.document import Plan
    from async_maps.plans.place import Place
    from async_maps.render.ranges import ValueRange
    from async_maps.settings import S3Settings, Settings

_READERS = 16


async def given_range(settings: Settings, recorder: Recorder | None, mode: Select | RepairMode) -> ValueRange:
    """Return the value range if it is known without reading the maps, as :func:`async_maps.survey.known_range`.

    The range of another plan is known, too.

    Raises:
        ManifestError: the manifest of ``from:`` cannot be read, or has no range.
        PlanError: the plan of ``from:`` cannot be read, or has no range.
    """
    wanted = settings.value_range
    if wanted.kind == "from" and is_plan(wanted.manifest):
        return await to_thread.run_sync(_range_of, wanted.manifest, settings.s3)
    return await survey.known_range(settings, recorder, mode)


def _range_of(address: str, s3: S3Settings) -> ValueRange:
    with Objects(s3) as objects:
        place = PlanObjects(place_of_overlays(address), objects)
        plan = plan_at(place)
        found = parse_range(range_at(place, plan) or plan.shaping["range"])
    if found.kind == "dataset":
        raise PlanError(f"{place.address} has no range yet: survey its parts with run --survey first", may_pass=True)
    if found.is_relative:
        raise PlanError(f"{place.address} has no range for other maps: it has range {found}; use that setting")
    return found


def needs_range(plan: Plan) -> bool:
    """Return whether the range of a plan depends on all of its maps."""
    return parse_range(plan.shaping["range"]).kind == "dataset"


async def settings_of(place: Place, plan: Plan, own: Settings) -> Settings:
    """Return the settings of a run of a plan's parts, as :meth:`Plan.settings`, with the range of its survey.

    Raises:
        PlanError: the encoder of this process makes other bytes.
        SettingsError: the plan needs a survey, and its range is not known yet.
    """
    settings = plan.settings(own)
    if not needs_range(plan):
        return settings
    found = await known_range(place, plan)
    if found is None:
        raise SettingsError(
            f"the plan has range {plan.shaping['range']}, which is not known yet: survey its parts with run --survey, "
            "then call plan again"
        )
    return settings.model_copy(update={"range": found})


async def known_range(place: Place, plan: Plan) -> str | None:
    """Return the range that the survey of a plan has found, as a setting; None if it is not known yet."""
    return await to_thread.run_sync(range_at, place.objects, plan)


def range_at(place: PlanObjects, plan: Plan) -> str | None:
    """Return the range that the survey of a plan has found, as :func:`known_range`. Blocks."""
    name = _range_name(plan)
    data = place.read(name)
    return None if data is None else _parse(data, plan, place.locator(name), "range")


async def is_surveyed(place: Place, plan: Plan, part: int) -> bool:
    """Return whether a part is surveyed."""
    return await place.has(_sketch_name(plan, part))


async def surveyed_parts(place: Place, plan: Plan) -> set[int]:
    """Return the parts that are surveyed."""
    return await place.numbers(f"{plan.id}/sketches", end=".json")


async def keep_sketch(place: Place, plan: Plan, part: int, sketch: QuantileSketch) -> bool:
    """Store the sketch of a part; return False if another process has done that with other values."""
    found = {"schema": SCHEMA, "plan": plan.id, "part": part, "sketch": await to_thread.run_sync(sketch.dump)}
    return await place.create(_sketch_name(plan, part), json.dumps(found).encode())


async def combine_sketches(place: Place, plan: Plan) -> list[int]:
    """Find the range of a plan from the sketches of its parts, and store it, if it is not known yet.

    Returns:
        The parts that are not surveyed; empty if the range is known now.

    Raises:
        PlanError: a sketch cannot be read.
        SettingsError: all values of all maps are equal.
    """
    if await known_range(place, plan) is not None:
        return []
    surveyed = await surveyed_parts(place, plan)
    if missing := [part for part in range(1, plan.parts + 1) if part not in surveyed]:
        return missing
    whole, wanted = QuantileSketch(), parse_range(plan.shaping["range"])
    await _add_all(whole, place, plan, sorted(surveyed))
    found = await survey.range_of_all(whole, wanted)
    if found.low == found.high:
        raise SettingsError(
            f"range {wanted} is the single value {found.low:g}: make another plan with a fixed range, such as "
            f"{found.low:g},{found.low + 1:g}"
        )
    # Another process may be faster: it has found the same.
    await place.create(_range_name(plan), json.dumps({"schema": SCHEMA, "plan": plan.id, "range": str(found)}).encode())
    return []


async def _add_all(whole: QuantileSketch, place: Place, plan: Plan, parts: Sequence[int]) -> None:
    adding, waiting = CapacityLimiter(1), iter(parts)

    async def add() -> None:
        for part in waiting:
            name = _sketch_name(plan, part)
            data = await place.read(name)
            if data is None:
                raise PlanError(f"{place.locator(name)} was deleted: survey the part again with run --survey")
            text = _parse(data, plan, place.locator(name), "sketch")
            try:
                await to_thread.run_sync(whole.add_dump, text, limiter=adding)
            except ValueError as error:
                raise PlanError(f"{place.locator(name)} cannot be read: {error}") from error

    await in_tasks(_READERS, add)


def _parse(data: bytes, plan: Plan, where: str, key: str) -> str:
    """Return a text in an object of the survey of this plan; raise PlanError if it is another object."""
    try:
        found = json.loads(data)
        schema, of, text = found["schema"], found["plan"], found[key]
    except (ValueError, TypeError, KeyError) as error:
        raise PlanError(f"{where} is no object of the survey of a plan: {error}") from error
    if schema != SCHEMA or of != plan.id:
        raise PlanError(f"{where} has schema {schema!r} and is of plan {of!r}; expected {SCHEMA} and {plan.id!r}")
    return str(text)


def _sketch_name(plan: Plan, part: int) -> str:
    return f"{plan.id}/sketches/{part:07}.json"


def _range_name(plan: Plan) -> str:
    return f"{plan.id}/range.json"
