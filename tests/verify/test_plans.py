"""The overlays of a plan are verified by one listing of its destination."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
import pytest

import async_maps as am
from async_maps.plans.manifests import manifest_name
from async_maps.plans.planning import aplan
from async_maps.shares.share import arun_plan
from async_maps.verify import plans
from tests.support.commands import invoke
from tests.support.leftovers import leaves_nothing
from tests.support.maps import npy, random_map
from tests.support.s3 import upload

if TYPE_CHECKING:
    from pathlib import Path

    from async_maps.plans.document import Plan

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

SETTINGS = am.Settings(workers=0)
NAMES = ("a", "a-b", "a.b", "a/b", "a/c", "b", "é")


def differences(found: am.Verification) -> set[tuple[str, str]]:
    return {(one.kind, one.locator.rpartition("/out/")[2]) for one in found.first}


async def planned(maps: Path, folder: Path) -> Plan:
    for i, name in enumerate(NAMES):
        path = maps / f"{name}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, random_map(i))
    (maps / "bad.npy").write_bytes(b"no map")
    plan = await aplan(maps, folder / "out", folder / "plan", part_size=1)
    await arun_plan(folder / "plan", settings=SETTINGS)
    return plan


async def planned_in(bucket: str, names: tuple[str, ...] = NAMES, **settings: str) -> str:
    address = f"s3://{bucket}"
    maps = {f"maps/{name}.npy": npy(random_map(i)) for i, name in enumerate(names)}
    await asyncio.to_thread(upload, bucket, {**maps, "maps/bad.npy": b"no map"})
    made = am.Settings(**settings)  # type: ignore[arg-type]
    await aplan(f"{address}/maps/", f"{address}/out", f"{address}/plan", settings=made, part_size=1)
    await arun_plan(f"{address}/plan", settings=SETTINGS)
    return f"{address}/plan"


async def spoil(bucket: str) -> None:
    """Store foreign objects, and replace one overlay, as if before the verification."""
    strangers = {"out/a/x.png": b"1", "out/zz.png": b"12", "out/a.txt": b"no png", "out/bad.png": b"of a failed map"}
    await asyncio.to_thread(upload, bucket, {**strangers, "out/a.b.png": b"changed"})


async def test_overlays_of_overlapping_parts_in_s3_are_told_from_foreign_ones(bucket: str) -> None:
    place = await planned_in(bucket)
    clean = await am.averify_locators(place)
    assert (clean.is_clean, clean.right, clean.locators, clean.listed, clean.failed) == (True, 7, 7, 7, 1)
    await spoil(bucket)
    found = await am.averify_locators(place)
    assert differences(found) == {("foreign", "a/x.png"), ("foreign", "zz.png"), ("size", "a.b.png")}
    assert (found.right, found.locators, found.listed, found.of_failed) == (6, 7, 11, 1)
    assert any("delete the manifests of their parts" in line for line in found.advice)


async def test_parts_that_all_overlap_are_compared_on_disk(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "_MOST_ROWS", 0)
    place = await planned_in(bucket)
    await spoil(bucket)
    found = await am.averify_locators(place, deep=True)
    assert differences(found) == {("foreign", "a/x.png"), ("foreign", "zz.png"), ("size", "a.b.png")}
    assert (found.right, found.locators, found.read) == (6, 7, 6)


async def test_overlays_in_a_folder_are_read(maps: Path, tmp_path: Path) -> None:
    await planned(maps, tmp_path)
    out = tmp_path / "out"
    assert (await am.averify_locators(tmp_path / "plan")).is_clean
    overlay = bytearray((out / "a.b.png").read_bytes())
    overlay[-20] ^= 1
    (out / "a.b.png").write_bytes(overlay)
    (out / "a" / "b.png").unlink()
    (out / "a" / "d.png").write_bytes(b"new")
    found = await am.averify_locators(tmp_path / "plan")
    assert differences(found) == {("digest", "a.b.png"), ("missing", "a/b.png"), ("foreign", "a/d.png")}
    out.rename(tmp_path / "moved")
    moved = await am.averify_locators(tmp_path / "plan", destination=tmp_path / "moved")
    assert moved.differences == found.differences


async def test_broken_overlays_are_stored_again_by_running_their_part(maps: Path, tmp_path: Path) -> None:
    plan = await planned(maps, tmp_path)
    (tmp_path / "out" / "a-b.png").unlink()
    found = await am.averify_locators(tmp_path / "plan")
    (advice,) = found.advice
    part = int(advice.rpartition(": ")[2])
    (tmp_path / "plan" / manifest_name(plan.id, part)).unlink()
    report = await arun_plan(tmp_path / "plan", settings=SETTINGS)
    assert (report.committed, report.uploaded) == ([part], 1)
    assert (await am.averify_locators(tmp_path / "plan")).is_clean


async def test_overlays_of_earlier_plans_are_not_foreign(maps: Path, tmp_path: Path) -> None:
    await planned(maps, tmp_path)
    np.save(maps / "new.npy", random_map(50))
    (maps / "bad.npy").unlink()
    for night in (1, 2):
        place = tmp_path / f"plan-{night}"
        since = tmp_path / ("plan" if night == 1 else "plan-1")
        plan = await aplan(maps, tmp_path / "out", place, since=since)
        await arun_plan(place, settings=SETTINGS)
        (tmp_path / "out" / "stranger.png").unlink(missing_ok=True)
        found = await am.averify_locators(place)
        assert (found.is_clean, found.locators, plan.parts) == (True, 2 - night, 2 - night)
        (tmp_path / "out" / "stranger.png").write_bytes(b"new")
        assert differences(await am.averify_locators(place)) == {("foreign", "stranger.png")}
    (tmp_path / "plan" / "plan.json").unlink()
    found = await am.averify_locators(place)
    assert found.differences == {"foreign": 8}
    (advice,) = found.advice
    assert advice.startswith(f"{(tmp_path / 'plan').as_uri()} does not exist anymore, or is another plan: its overlays")


def test_an_incomplete_plan_is_not_verified(maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = asyncio.run(planned(maps, tmp_path))
    (tmp_path / "plan" / manifest_name(plan.id, 2)).unlink()
    assert invoke("verify", tmp_path / "plan") == 3
    assert "of its 6 parts, 2 is not committed; run its shares first" in capsys.readouterr().err


def test_a_plan_is_not_repaired(maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(planned(maps, tmp_path))
    assert invoke("verify", tmp_path / "plan", "--repair") == 2
    assert "verify it without repair, which names the parts to run again" in capsys.readouterr().err
