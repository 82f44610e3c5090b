"""The rows of a plan: what export, results and ranges read of it, in place of a manifest."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.errors import PlanError
from async_maps.kolena import results_frame
from async_maps.plans import manifests
from async_maps.plans.commits import aplan_status
from async_maps.plans.manifests import GONE, Footer, manifest_name, read_footer, write_rows
from async_maps.plans.planning import aplan
from async_maps.plans.rows import PlanRows, open_rows
from async_maps.shares.share import arun_plan
from tests.support.commands import invoke
from tests.support.exports import read_any
from tests.support.leftovers import leaves_nothing
from tests.support.maps import npy, random_map
from tests.support.s3 import upload

if TYPE_CHECKING:
    from async_maps.plans.document import Plan

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

SETTINGS = am.Settings(workers=0)
TIMES = {"time", "crc32", "etag"}


async def planned(maps: Path, place: Path, count: int = 12, **settings: Any) -> Plan:
    """Run a plan of this number of maps and of one damaged file, 5 in a part."""
    for i in range(count):
        np.save(maps / f"{i:02}.npy", random_map(i))
    (maps / "bad.npy").write_bytes(b"no map")
    plan = await aplan(maps, place.parent / "out", place, settings=am.Settings(**settings), part_size=5)
    await arun_plan(place, settings=SETTINGS)
    return plan


def retry(place: Path, plan: Plan, part: int, changes: list[tuple[object, ...]]) -> None:
    """Write the next generation of a part, whose counts do not matter here."""
    (before,) = (place / plan.id / "done").glob(f"{part:07}.*")
    parent = read_footer(before.read_bytes(), "").digest
    footer, data = write_rows(changes, Footer(plan.id, part, 1, "w", parent=parent))
    (place / footer.name).write_bytes(data)


async def test_an_export_of_a_plan_is_that_of_a_manifest(maps: Path, tmp_path: Path) -> None:
    await planned(maps, tmp_path / "plan")
    await am.arun(maps, tmp_path / "out", manifest=tmp_path / "m.sqlite", settings=SETTINGS)
    for rows in ("done", "failed", "all"):
        tables = []
        for of in (tmp_path / "plan", tmp_path / "m.sqlite"):
            table = tmp_path / f"{of.name}-{rows}.jsonl"
            count = await asyncio.to_thread(partial(am.export_manifest, of, table, rows=rows))
            found = [{key: row[key] for key in row.keys() - TIMES} for row in read_any(table)]
            assert len(found) == count
            tables.append(sorted(found, key=lambda row: str(row["name"])))
        assert tables[0] == tables[1]
        assert len(tables[0]) == {"done": 12, "failed": 1, "all": 13}[rows]


async def test_the_settings_of_a_plan_are_those_of_its_rows(maps: Path, tmp_path: Path) -> None:
    await planned(maps, tmp_path / "plan", colormap="viridis", range="per-map")
    with open_rows(tmp_path / "plan") as rows:
        (run,) = rows.runs()
        assert rows.done() == {run.settings: 12}
        assert (run.source, run.shaping["colormap"], run.shaping["range"]) == (str(maps), "viridis", "per-map")
        assert rows.lists_overlays()
        assert rows.has_any([(tmp_path / "out" / "03.png").as_uri()])
        assert not rows.has_any([(tmp_path / "out" / "bad.png").as_uri(), "s3://other/03.png"])


def test_an_incomplete_plan_is_not_exported(maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = asyncio.run(planned(maps, tmp_path / "plan"))
    for part in (1, 3):
        (tmp_path / "plan" / manifest_name(plan.id, part)).unlink()
    expected = "is not done: of its 3 parts, 1, 3 are not committed; run its shares first"
    with pytest.raises(PlanError, match=expected) as error:
        am.export_manifest(tmp_path / "plan", tmp_path / "a.csv")
    assert error.value.may_pass
    assert not (tmp_path / "a.csv").exists()
    assert invoke("export", str(tmp_path / "plan"), str(tmp_path / "a.csv")) == 3
    assert expected in capsys.readouterr().err


async def test_the_newest_row_of_a_map_counts(maps: Path, tmp_path: Path) -> None:
    plan = await planned(maps, tmp_path / "plan")
    with PlanRows(str(tmp_path / "plan")) as rows:
        before = {row[0]: row for _, part in rows.parts() for row in part}
    done = before["00"]
    repaired = ("bad/x", f"{tmp_path.as_uri()}/out/bad/x.png", *done[2:])
    gone = (*before["bad"][:2], GONE, *before["bad"][3:])
    retry(tmp_path / "plan", plan, 3, [gone, repaired])
    with PlanRows(str(tmp_path / "plan")) as rows:
        after = {row[0]: row for _, part in rows.parts() for row in part}
        assert list(rows.failures()) == []
        assert rows.done() == {done[13]: 13}
    assert after == {name: row for name, row in before.items() if name != "bad"} | {"bad/x": repaired}


async def test_a_generation_of_another_parent_is_refused(maps: Path, tmp_path: Path) -> None:
    plan = await planned(maps, tmp_path / "plan")
    retry(tmp_path / "plan", plan, 3, [])
    place = tmp_path / "plan" / plan.id / "done"
    (place / "0000003.0.parquet").write_bytes(write_rows([], Footer(plan.id, 3, 0, "another"))[1])
    with PlanRows(str(tmp_path / "plan")) as rows, pytest.raises(PlanError, match=r"does not belong to .*0000003\.0"):
        list(rows.rows())
    (place / "0000003.0.parquet").unlink()
    with pytest.raises(PlanError, match=r"0000003.0.parquet was deleted: the plan is damaged"):
        open_rows(tmp_path / "plan")


async def test_a_manifest_of_another_schema_is_refused(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = await planned(maps, tmp_path / "plan")
    with monkeypatch.context() as later:
        later.setattr(manifests, "SCHEMA", 9)
        footer, data = write_rows([], Footer(plan.id, 3, 1, "w"))
    (tmp_path / "plan" / footer.name).write_bytes(data)
    with PlanRows(str(tmp_path / "plan")) as rows, pytest.raises(PlanError, match="parquet has schema 9") as error:
        list(rows.rows())
    assert "this version of async-maps reads 1: use the version that wrote it" in str(error.value)


async def test_results_get_the_masks_of_a_plan_in_s3(bucket: str, tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    maps = {f"maps/{i:02}.npy": npy(random_map(i)) for i in range(7)}
    await asyncio.to_thread(upload, bucket, maps)
    place = f"s3://{bucket}/plan"
    await aplan(f"s3://{bucket}/maps/", f"s3://{bucket}/out", place, part_size=3)
    await arun_plan(place, settings=SETTINGS)

    def use() -> Any:
        am.export_manifest(place, tmp_path / "a.csv", export_format="kolena", presign_hours=1)
        results = pd.DataFrame({"name": ["05", "00", "xx"]})
        return results_frame(place, results, on="name", missing="none")

    frame = await asyncio.to_thread(use)
    locators = [mask and mask.locator for mask in frame["activation_map"]]
    assert locators == [f"s3://{bucket}/out/05.png", f"s3://{bucket}/out/00.png", None]
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 8


async def test_a_run_takes_the_range_of_a_plan(maps: Path, tmp_path: Path) -> None:
    await planned(maps, tmp_path / "plan", range="-1,3")
    settings = SETTINGS.model_copy(update={"range": f"from:{tmp_path / 'plan'}"})
    report = await am.arun(maps / "00.npy", tmp_path / "one", settings=settings)
    assert report.uploaded == 1
    assert (tmp_path / "one" / "00.png").read_bytes() == (tmp_path / "out" / "00.png").read_bytes()


async def test_a_range_of_each_map_is_none_for_others(maps: Path, tmp_path: Path) -> None:
    await planned(maps, tmp_path / "plan", range="per-map")
    settings = SETTINGS.model_copy(update={"range": f"from:{tmp_path / 'plan'}"})
    with pytest.raises(PlanError, match="has no range for other maps: it has range per-map; use that setting"):
        await am.arun(maps / "00.npy", tmp_path / "one", settings=settings)


@pytest.mark.fast
def test_an_address_without_a_slash_is_named(tmp_path: Path) -> None:
    with pytest.raises(am.SettingsError, match=r"'s3:/bucket/plan' has one slash instead of two"):
        am.export_manifest(Path("s3://bucket/plan"), tmp_path / "a.csv")


def test_a_manifest_in_place_of_a_plan_is_named(tmp_path: Path) -> None:
    (tmp_path / "async-maps.sqlite").touch()
    with pytest.raises(am.SettingsError, match=r"sqlite is a file, but a plan is a folder or a prefix in a bucket"):
        am.commit_plan(tmp_path / "async-maps.sqlite")


def test_a_folder_without_a_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"has no plan\.json: make the plan first, or correct its address"):
        am.export_manifest(tmp_path, tmp_path / "a.csv")


async def test_a_manifest_that_is_damaged_or_of_another_part_is_named(maps: Path, tmp_path: Path) -> None:
    plan = await planned(maps, tmp_path / "plan")
    first, second = (tmp_path / "plan" / manifest_name(plan.id, part) for part in (1, 2))
    whole = first.read_bytes()
    first.write_bytes(second.read_bytes())
    copied = rf"0000001.0.parquet is a copy of {manifest_name(plan.id, 2)}: "
    with pytest.raises(PlanError, match=copied):
        await aplan_status(tmp_path / "plan")
    with pytest.raises(PlanError, match=copied):
        await asyncio.to_thread(export_to, tmp_path / "a.csv", tmp_path / "plan")
    # The footer is whole, the rows are not.
    first.write_bytes(whole[:4] + bytes(200) + whole[204:])
    assert (await aplan_status(tmp_path / "plan")).is_complete
    with pytest.raises(PlanError, match=r"0000001.0.parquet is damaged: "):
        await asyncio.to_thread(export_to, tmp_path / "a.csv", tmp_path / "plan")
    assert not (tmp_path / "a.csv").exists()


def export_to(table: Path, place: Path) -> int:
    return am.export_manifest(place, table)
