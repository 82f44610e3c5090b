"""The commit of a plan: what is missing, and what is done."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

import async_maps as am
from async_maps.plans import commits
from async_maps.plans.commits import acommit_plan, aplan_status
from async_maps.plans.document import Plan
from async_maps.plans.manifests import manifest_name
from async_maps.plans.planning import aplan
from async_maps.shares.share import arun_plan
from tests.support.maps import random_map

SETTINGS = am.Settings(workers=0)
PLAN = Plan(
    id="0" * 32, source="/maps", destination="file:///out", shaping={"range": "unit", "s3": {}}, choice={},
    encoder="2", parts=1, files=1, size=1, since=None, left_out=0, created_at="2026-01-01T00:00:00+00:00",
)  # fmt: skip


async def test_a_commit_before_all_parts_are_done_names_them_and_changes_nothing(maps: Path, tmp_path: Path) -> None:
    for i in range(20):
        np.save(maps / f"{i:02}.npy", random_map(i))
    plan = await aplan(maps, tmp_path / "out", tmp_path / "plan", part_size=5)
    assert (await aplan_status(tmp_path / "plan")).missing == [1, 2, 3, 4]
    await arun_plan(tmp_path / "plan", settings=SETTINGS)
    (tmp_path / "plan" / manifest_name(plan.id, 3)).unlink()
    status = await acommit_plan(tmp_path / "plan")
    assert (status.is_complete, status.committed, status.missing, status.rows) == (False, 3, [3], 15)
    assert (status.started, status.commits) == (1, 0)
    assert not list((tmp_path / "plan").rglob("_SUCCESS*"))


async def test_a_commit_names_the_manifest_of_each_part_once(maps: Path, tmp_path: Path) -> None:
    for i in range(20):
        np.save(maps / f"{i:02}.npy", random_map(i))
    (maps / "99.npy").write_bytes(b"no map")
    plan = await aplan(maps, tmp_path / "out", tmp_path / "plan", part_size=5)
    await arun_plan(tmp_path / "plan", settings=SETTINGS)
    commits = [acommit_plan(tmp_path / "plan") for _ in range(4)]
    statuses = [*await asyncio.gather(*commits), await aplan_status(tmp_path / "plan")]
    assert {(status.is_complete, status.rows, status.failures, status.commits) for status in statuses} == {
        (True, 21, 1, 1)
    }
    (commit,) = (tmp_path / "plan").rglob("_SUCCESS*")
    found = json.loads(commit.read_bytes())
    assert [part[:2] for part in found["parts"]] == [[number, 0] for number in range(1, plan.parts + 1)]
    assert len({part[2] for part in found["parts"]}) == plan.parts


async def test_a_footer_that_is_longer_than_expected_is_read(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        np.save(maps / f"{i}.npy", random_map(i))
    await aplan(maps, tmp_path / "out", tmp_path / "plan")
    await arun_plan(tmp_path / "plan", settings=SETTINGS)
    monkeypatch.setattr(commits, "FOOTER_BYTES", 100)
    assert (await aplan_status(tmp_path / "plan")).rows == 3


@pytest.mark.fast
@pytest.mark.parametrize(
    "change",
    [
        {"id": "../../elsewhere"}, {"id": "0" * 31 + "G"}, {"parts": "3"}, {"parts": -1}, {"parts": 10**9},
        {"source": 7}, {"destination": None}, {"since": 5}, {"shaping": {}}, {"shaping": []}, {"choice": None},
    ],
)  # fmt: skip
def test_a_damaged_plan_is_refused_by_the_name_of_the_value(change: dict[str, object]) -> None:
    found = json.loads(PLAN.dump()) | change
    with pytest.raises(am.PlanError, match=rf"^here is no plan of async-maps: {next(iter(change))}: "):
        Plan.parse(json.dumps(found).encode(), "here")
    assert Plan.parse(json.dumps({**json.loads(PLAN.dump()), "of_a_later_version": 1}).encode(), "here") == PLAN


async def test_files_of_others_in_the_place_of_a_plan_are_no_parts(maps: Path, tmp_path: Path) -> None:
    np.save(maps / "0.npy", random_map(0))
    plan = await aplan(maps, tmp_path / "out", tmp_path / "plan")
    await arun_plan(tmp_path / "plan", settings=SETTINGS)
    await acommit_plan(tmp_path / "plan")
    expected = await aplan_status(tmp_path / "plan")
    for name in ("done/.DS_Store", "done/0000009.0.parquet", "started/.nfs0001", "commits/Thumbs.db"):
        (tmp_path / "plan" / plan.id / name).write_bytes(b"no object of a plan")
    assert await aplan_status(tmp_path / "plan") == expected == await acommit_plan(tmp_path / "plan")
    assert (await arun_plan(tmp_path / "plan", settings=SETTINGS)).committed == []


async def test_a_plan_that_others_own_is_only_read(maps: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    np.save(maps / "0.npy", random_map(0))
    with tempfile.TemporaryDirectory(prefix="others-") as folder:
        Path(folder).chmod(0o755)
        place, closed = Path(folder, "plan"), Path(folder, "closed")
        plan = await aplan(maps, tmp_path / "out", place)
        await arun_plan(place, settings=SETTINGS)
        shutil.copytree(place, closed)
        (closed / plan.id / "done").chmod(0o700)
        await aplan_status(place)
        if os.geteuid() != 0:
            pytest.skip("only root can make files of others")
        request.getfixturevalue("unprivileged")
        try:
            assert (await aplan_status(place)).is_complete
            with pytest.raises(am.StoreError, match="no permission"):
                await acommit_plan(place)
            # A folder that cannot be listed is not an empty one.
            with pytest.raises(am.PlanError, match=r"/done: cannot be listed: Permission denied"):
                await aplan_status(closed)
        finally:
            os.setresuid(0, 0, 0)
