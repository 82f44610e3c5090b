"""One range for all maps of a plan: surveyed part by part, combined once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
import pytest

import async_maps as am
from async_maps.errors import PlanError
from async_maps.plans.place import opened_place
from async_maps.plans.planning import aplan
from async_maps.plans.ranges import combine_sketches, known_range, surveyed_parts
from async_maps.shares.part import PartDone, PartFailed, PartStopped
from async_maps.shares.share import arun_plan
from async_maps.shares.survey import PartSurveys
from tests.support.leftovers import leaves_nothing

if TYPE_CHECKING:
    from pathlib import Path

    from async_maps.plans.document import Plan

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

SETTINGS = am.Settings(workers=0, range="dataset:1,99")


def save(maps: Path, count: int) -> None:
    random = np.random.default_rng(1)
    for i in range(count):
        np.save(maps / f"{i:03}.npy", random.standard_normal((9, 11)) * 10.0**i)


async def survey(tmp_path: Path, plan: Plan, *parts: int) -> list[PartDone | PartStopped | PartFailed]:
    async with opened_place(str(tmp_path / "plan"), SETTINGS) as place:
        surveys = PartSurveys(place, plan, SETTINGS)
        return [await surveys.run(part) for part in parts]


async def combine(tmp_path: Path, plan: Plan) -> tuple[list[int], str | None]:
    async with opened_place(str(tmp_path / "plan"), SETTINGS) as place:
        return await combine_sketches(place, plan), await known_range(place, plan)


async def test_the_range_of_a_plan_is_that_of_a_single_run(maps: Path, tmp_path: Path) -> None:
    save(maps, 10)
    np.save(maps / "011.npy", np.full((3, 3), np.nan))
    (maps / "012.npy").write_bytes((maps / "000.npy").read_bytes()[:-1])
    single = await am.arun(maps, tmp_path / "single", settings=SETTINGS)
    plan = await aplan(maps, tmp_path / "out", tmp_path / "plan", settings=SETTINGS, part_size=3)
    with pytest.raises(am.SettingsError, match="which is not known yet: survey its parts with run --survey"):
        await arun_plan(tmp_path / "plan", settings=SETTINGS)
    assert await survey(tmp_path, plan, 3, 1) == [PartDone(part, is_ours=True, surveyed=3) for part in (3, 1)]
    assert await combine(tmp_path, plan) == ([2, 4], None)
    await survey(tmp_path, plan, 2, 4)
    found = await asyncio.gather(*(combine(tmp_path, plan) for _ in range(4)))
    assert found == [([], f"{single.range_low!r},{single.range_high!r}")] * 4
    report = await arun_plan(tmp_path / "plan", settings=am.Settings(workers=0))
    assert (report.uploaded, report.failed) == (single.uploaded, single.failed) == (10, 2)
    for path in (tmp_path / "single").glob("*.png"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


async def test_a_part_that_cannot_be_read_now_has_no_sketch(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(maps, 4)
    plan = await aplan(maps, tmp_path / "out", tmp_path / "plan", settings=SETTINGS, part_size=2)

    def broken_disk(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("async_maps.survey.map_size", broken_disk)
        (failed,) = await survey(tmp_path, plan, 1)
    assert failed == PartFailed(1, "2 maps could not be read now")
    await survey(tmp_path, plan, 2)
    async with opened_place(str(tmp_path / "plan"), SETTINGS) as place:
        assert await surveyed_parts(place, plan) == {2}


async def test_a_plan_whose_values_are_all_equal_asks_for_a_range(maps: Path, tmp_path: Path) -> None:
    np.save(maps / "a.npy", np.full((4, 5), 7.0))
    plan = await aplan(maps, tmp_path / "out", tmp_path / "plan", settings=SETTINGS)
    await survey(tmp_path, plan, 1)
    with pytest.raises(am.SettingsError, match="is the single value 7: make another plan with a fixed range, such as"):
        await combine(tmp_path, plan)


async def test_a_sketch_of_another_version_is_refused_by_name(maps: Path, tmp_path: Path) -> None:
    save(maps, 1)
    plan = await aplan(maps, tmp_path / "out", tmp_path / "plan", settings=SETTINGS)
    await survey(tmp_path, plan, 1)
    (sketch,) = (tmp_path / "plan").rglob("sketches/*")
    sketch.write_text(sketch.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(PlanError, match=f"{sketch} has schema 2"):
        await combine(tmp_path, plan)
    sketch.write_text(sketch.read_text().replace('"sketch": ', '"range": '))
    with pytest.raises(PlanError, match=f"{sketch} is no object of the survey of a plan: 'sketch'"):
        await combine(tmp_path, plan)
