"""Shares of a plan: each part is stored and committed once, whoever runs it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.demo import seaweed
from async_maps.errors import PlanError
from async_maps.filesystems.temporary import unique_text
from async_maps.plans import states
from async_maps.plans.commits import aplan_status
from async_maps.plans.manifests import manifest_name, read_footer, read_rows
from async_maps.plans.place import opened_place
from async_maps.plans.planning import aplan
from async_maps.shares import part as part_module
from async_maps.shares.share import Share, arun_plan
from tests.support.leftovers import leaves_nothing
from tests.support.maps import decode, npy, random_map
from tests.support.reports import check_report
from tests.support.s3 import keys, upload

if TYPE_CHECKING:
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
    assert errors["001"].endswith("; make another plan with --since")


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


@pytest.mark.parametrize("if_exists", ["skip", "error"])
async def test_a_part_that_another_share_stores_meanwhile_is_no_failure(
    if_exists: Any, maps: Path, tmp_path: Path
) -> None:
    save(maps, 3)
    settings = SETTINGS.model_copy(update={"if_exists": if_exists})
    await aplan(maps, tmp_path / "out", tmp_path / "plan")
    # A share that sees nothing of the other one: its first attempt finds the overlays of the other one.
    shutil.copytree(tmp_path / "plan", tmp_path / "copy")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "001.png").write_bytes(b"of somebody else")
    for address in ("copy", "plan"):
        report = await arun_plan(tmp_path / address, settings=settings)
        assert [failure.name for failure in report.failures] == ["001"]
        assert (report.uploaded, report.committed) == (2, [1])
    assert (tmp_path / "out" / "001.png").read_bytes() == b"of somebody else"


async def test_a_source_whose_disk_is_not_mounted_fails_no_map(maps: Path, tmp_path: Path) -> None:
    save(maps, 3)
    await aplan(maps, tmp_path / "out", tmp_path / "plan")
    maps.rename(tmp_path / "elsewhere")
    for problem in ("does not exist", "is empty"):
        with pytest.raises(am.SourceError, match=f"{problem} on this machine: mount its disk"):
            await arun_plan(tmp_path / "plan", settings=SETTINGS)
        maps.mkdir(exist_ok=True)
    assert (await aplan_status(tmp_path / "plan")).started == 0


async def test_a_part_that_another_share_commits_meanwhile_is_left(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_module, "_LOOK_S", 0.01)
    save(maps, 40)
    plan = await aplan(maps, tmp_path / "out", tmp_path / "plan")
    await arun_plan(tmp_path / "plan", settings=SETTINGS)
    manifest = tmp_path / "plan" / manifest_name(plan.id, 1)
    data = manifest.read_bytes()
    manifest.unlink()

    def commit(progress: am.Progress) -> None:
        if progress.report.uploaded:
            manifest.write_bytes(data)

    slow = SETTINGS.model_copy(update={"rate": 20})
    report = await arun_plan(tmp_path / "plan", settings=slow, on_progress=commit)
    assert (report.committed, report.done_by_others) == ([], [1])
    assert 0 < report.uploaded < 40
    assert (report.complete, report.exit_code, report.selected) == (True, 0, report.uploaded)
    assert manifest.read_bytes() == data


async def test_a_share_takes_parts_that_nobody_has_started_before_others(maps: Path, tmp_path: Path) -> None:
    save(maps, 10)
    plan = await aplan(maps, tmp_path / "out", tmp_path / "plan", part_size=1)
    async with opened_place(str(tmp_path / "plan"), SETTINGS) as place:
        for number in (2, 3, 5, 7):
            await place.create(f"{plan.id}/started/{number:07}", b"another share")
        found = [number async for number in Share(tmp_path / "plan", (10, 10))._parts(place, plan)]
    own, *others = found
    assert sorted(found) == list(range(1, 11))
    started = {2, 3, 5, 7} - {own}
    assert {*others[-len(started) :]} == started


async def test_progress_is_that_of_all_parts_together(maps: Path, tmp_path: Path) -> None:
    save(maps, 60)
    (maps / "bad.npy").write_bytes(b"no map")
    await aplan(maps, tmp_path / "out", tmp_path / "plan", part_size=7)
    seen: list[am.Progress] = []
    slow = SETTINGS.model_copy(update={"rate": 60})
    report = await arun_plan(tmp_path / "plan", settings=slow, on_progress=seen.append)
    counts = [progress.report.uploaded for progress in seen]
    assert counts == sorted(counts)
    assert len(set(counts)) > 3
    assert [progress.ended for progress in seen] == [False] * (len(seen) - 1) + [True]
    assert all(isinstance(progress.report, am.ShareReport) for progress in seen)
    assert (report.uploaded, report.failed, report.selected, report.exit_code) == (60, 1, 61, 0)
    assert (
        seen[-1].report.uploaded_bytes
        == report.uploaded_bytes
        == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    )
    assert report.statistics is not None
    assert report.statistics.uploaded == 60
    assert seen[-1].line().startswith("9 of 9 parts, 61 maps, 1 failed")
    check_report(json.loads(json.dumps(report.as_dict())))


async def test_a_part_that_is_drained_before_its_end_is_not_committed(maps: Path, tmp_path: Path) -> None:
    count = 12_000  # more than are read ahead
    np.save(maps / "stack.npy", np.zeros((count, 4, 5)))
    plan = await aplan(maps, tmp_path / "out", tmp_path / "plan")
    share = Share(tmp_path / "plan", settings=SETTINGS)

    def drain(progress: am.Progress) -> None:
        if progress.report.uploaded:
            share.drain()

    report = await share.run(drain)
    assert (report.drained, report.complete, report.exit_code, report.committed) == (True, False, 3, [])
    assert 0 < report.uploaded <= report.selected < count
    assert not list((tmp_path / "plan" / plan.id).glob("done/*"))


async def test_warnings_of_parts_are_logged_a_few_times_only(
    maps: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(10):
        np.save(maps / f"{i}.npy", np.full((8, 8), 0.001 * i))
    await aplan(maps, tmp_path / "out", tmp_path / "plan", part_size=1)
    report = await arun_plan(tmp_path / "plan", settings=SETTINGS)
    logged = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(logged) == 3
    assert len(report.warnings) == 10
    assert all("overlay" in warning for warning in report.warnings)


async def test_overlays_that_the_plan_has_not_stored_are_told(
    maps: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(maps, 3)
    await am.arun(maps, tmp_path / "out", settings=SETTINGS)
    await aplan(maps, tmp_path / "out", tmp_path / "plan")
    await arun_plan(tmp_path / "plan", settings=SETTINGS)
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told.startswith(f"part 1: {(tmp_path / 'out').as_uri()}: 3 of the first 3 overlays exist already")
    assert "and this part of the plan does not list them. The run replaces them." in told


async def test_rates_are_for_all_shares_together(maps: Path, tmp_path: Path) -> None:
    save(maps, 1)
    await aplan(maps, tmp_path / "out", tmp_path / "plan")
    settings = SETTINGS.model_copy(update={"rate": 100.0, "bandwidth": 1_000_000})
    report = await arun_plan(tmp_path / "plan", (3, 8), settings=settings)
    assert (report.settings["rate"], report.settings["bandwidth"]) == (12.5, 125_000)


async def test_the_folders_of_killed_shares_are_deleted(maps: Path, tmp_path: Path) -> None:
    save(maps, 1)
    await aplan(maps, tmp_path / "out", tmp_path / "plan")
    machine, _, rest = unique_text().partition("-")
    ended = await asyncio.create_subprocess_exec("true")
    await ended.wait()
    dead, other = f"{machine}-{ended.pid}-1-0", f"{'0' * 8}-{rest}"
    names = [f"async-maps-parts-{name}" for name in (dead, other, unique_text(), "of somebody")]
    paths = [Path(tempfile.gettempdir(), name) for name in names]
    for path in paths:
        path.mkdir()
        (path / "0000001.sqlite").touch()
    await arun_plan(tmp_path / "plan", settings=SETTINGS)
    found = [path.exists() for path in paths]
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
    assert found == [False, True, True, True]


@pytest.mark.slow
async def test_a_share_runs_its_parts_in_lanes(maps: Path, tmp_path: Path) -> None:
    save(maps, 60)
    plan = await aplan(maps, tmp_path / "out", tmp_path / "plan", part_size=15)
    report = await arun_plan(tmp_path / "plan", settings=SETTINGS.model_copy(update={"processes": 2}))
    check_overlays(tmp_path / "out", 60)
    assert len(rows_of(tmp_path / "plan", plan)) == 60
    assert report.statistics is not None
    assert sum(lane.done for lane in report.statistics.lanes) == 60


@pytest.mark.slow
async def test_a_store_that_dies_leaves_its_parts_uncommitted(maps: Path, tmp_path: Path) -> None:
    save(maps, 60)
    plan = await aplan(maps, tmp_path / "out", tmp_path / "plan", part_size=10)
    with seaweed.serve(tmp_path / "server") as server, seaweed.in_environment(server):
        await seaweed.create_bucket(server, "dying")
        plan = await aplan(maps, "s3://dying/out", tmp_path / "plan-2", part_size=10)

        def kill(progress: am.Progress) -> None:
            if progress.report.uploaded:
                with suppress(ProcessLookupError):
                    os.kill(server.pid, signal.SIGKILL)

        settings = am.Settings(workers=0, rate=20, s3=am.S3Settings(give_up_s=0.5))
        with pytest.raises(am.StoreError, match="the store has accepted nothing") as error:
            await arun_plan(tmp_path / "plan-2", settings=settings, on_progress=kill)
    report = error.value.report
    assert (report.exit_code, report.complete, report.failed) == (3, False, 0)
    assert 0 < report.uploaded < 60
    assert len(report.committed) == len(list((tmp_path / "plan-2" / plan.id).glob("done/*"))) < 6


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
