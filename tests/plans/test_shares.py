"""Shares of a plan: each part is stored and committed once, whoever runs it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.errors import PlanError
from async_maps.plans import states
from async_maps.plans.manifests import manifest_name, read_footer, read_rows
from async_maps.plans.planning import aplan
from async_maps.shares.share import arun_plan
from tests.support.leftovers import leaves_nothing
from tests.support.maps import decode, npy, random_map
from tests.support.s3 import keys, upload

if TYPE_CHECKING:
    from pathlib import Path

    from async_maps.plans.document import Plan

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

SETTINGS = am.Settings(workers=0)


def save(maps: Path, count: int) -> None:
    for i in range(count):
        np.save(maps / f"{i:03}.npy", random_map(i))


def check_overlays(out: Path, count: int) -> None:
    assert sorted(path.name for path in out.glob("*.png")) == [f"{i:03}.png" for i in range(count)]
    for i in range(count):
        expected = am.colorize_activation_map(random_map(i))
        assert np.array_equal(decode((out / f"{i:03}.png").read_bytes()), expected)


def rows_of(place: Path, plan: Plan) -> dict[str, tuple[Any, ...]]:
    found: dict[str, tuple[Any, ...]] = {}
    for part in range(1, plan.parts + 1):
        data = (place / manifest_name(plan.id, part)).read_bytes()
        rows = list(read_rows(data, ""))
        footer = read_footer(data, "")
        assert (footer.part, footer.rows) == (part, len(rows))
        found |= {str(row[0]): row for row in rows}
    return found


async def test_shares_together_do_each_part_once(maps: Path, tmp_path: Path) -> None:
    save(maps, 50)
    plan = await aplan(maps, tmp_path / "out", tmp_path / "plan", part_size=7)
    reports = await asyncio.gather(*(arun_plan(tmp_path / "plan", (i, 3), settings=SETTINGS) for i in (1, 2, 3)))
    assert sorted(part for report in reports for part in report.committed) == list(range(1, plan.parts + 1))
    check_overlays(tmp_path / "out", 50)
    rows = rows_of(tmp_path / "plan", plan)
    assert sorted(rows) == [f"{i:03}" for i in range(50)]
    assert {row[2] for row in rows.values()} == {"done"}


async def test_one_share_does_the_parts_of_those_that_never_come(maps: Path, tmp_path: Path) -> None:
    save(maps, 30)
    plan = await aplan(maps, tmp_path / "out", tmp_path / "plan", part_size=4)
    report = await arun_plan(tmp_path / "plan", (2, 5), settings=SETTINGS)
    assert sorted(report.committed) == list(range(1, plan.parts + 1))
    check_overlays(tmp_path / "out", 30)
    again = await arun_plan(tmp_path / "plan", (1, 5), settings=SETTINGS)
    assert (again.committed, again.uploaded) == ([], 0)


async def test_a_share_stores_the_maps_of_its_part_of_a_stack(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "_LARGE", 0)
    np.save(maps / "stack.npy", np.stack([random_map(i) for i in range(25)]))
    plan = await aplan(maps, tmp_path / "out", tmp_path / "plan", part_size=10)
    await arun_plan(tmp_path / "plan", settings=SETTINGS)
    assert sorted(rows_of(tmp_path / "plan", plan)) == [f"stack/{i:06}" for i in range(25)]
    assert len(list((tmp_path / "out" / "stack").iterdir())) == 25


async def test_files_that_changed_since_the_plan_fail_by_name(maps: Path, tmp_path: Path) -> None:
    save(maps, 5)
    plan = await aplan(maps, tmp_path / "out", tmp_path / "plan")
    np.save(maps / "001.npy", random_map(9, (40, 40)))
    (maps / "002.npy").unlink()
    report = await arun_plan(tmp_path / "plan", settings=SETTINGS)
    assert (report.uploaded, report.failed) == (3, 2)
    rows = rows_of(tmp_path / "plan", plan)
    errors = {name: row[11] for name, row in rows.items() if row[2] == "failed"}
    assert errors.keys() == {"001", "002"}
    assert errors["001"].startswith("changed since it was planned: expected ")


@pytest.mark.parametrize("if_exists", ["skip", "error", "overwrite"])
async def test_a_part_that_an_earlier_attempt_has_stored_is_its_own(if_exists: Any, maps: Path, tmp_path: Path) -> None:
    save(maps, 20)
    settings = SETTINGS.model_copy(update={"if_exists": if_exists})
    plan = await aplan(maps, tmp_path / "out", tmp_path / "plan", part_size=5)
    await arun_plan(tmp_path / "plan", settings=settings)
    # As if the share had been killed before the commit.
    for part in (1, 3):
        (tmp_path / "plan" / manifest_name(plan.id, part)).unlink()
    report = await arun_plan(tmp_path / "plan", settings=settings)
    assert sorted(report.committed) == [1, 3]
    assert (report.uploaded, report.failed) == (10, 0)


async def test_a_place_without_a_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="make the plan first, or correct its address"):
        await arun_plan(tmp_path / "plan")


@pytest.mark.parametrize("part", [(0, 3), (4, 3)])
async def test_a_share_that_does_not_exist_is_refused(part: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(am.SettingsError, match="expected 1/3 to 3/3"):
        await arun_plan(tmp_path / "plan", part)


async def test_a_plan_and_its_maps_lie_in_s3(bucket: str, tmp_path: Path) -> None:
    maps = {f"maps/{i:03}.npy": npy(random_map(i)) for i in range(30)}
    await asyncio.to_thread(upload, bucket, maps)
    place = f"s3://{bucket}/plan"
    plan = await aplan(f"s3://{bucket}/maps/", f"s3://{bucket}/out", place, part_size=8)
    assert (plan.files, plan.parts) == (30, 4)
    await asyncio.to_thread(upload, bucket, {"maps/004.npy": npy(random_map(99))})
    reports = await asyncio.gather(*(arun_plan(place, (i, 2), settings=SETTINGS) for i in (1, 2)))
    assert sorted(part for report in reports for part in report.committed) == [1, 2, 3, 4]
    assert sum(report.uploaded for report in reports) >= 29  # both may run the last part
    assert sum(report.failed for report in reports) >= 1
    found = {key for key in await keys(bucket) if key.startswith("out/")}
    assert found == {f"out/{i:03}.png" for i in range(30) if i != 4}
