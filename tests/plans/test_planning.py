"""Plans of folders: which files are in which part, and that a plan is made once."""

from __future__ import annotations

import asyncio
import io
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")

import pyarrow as pa
import pyarrow.parquet as pq

import async_maps as am
from async_maps.errors import PlanError
from async_maps.plans import states
from async_maps.plans.document import Plan
from async_maps.plans.parts import PartFile, list_name, read_list, write_list
from async_maps.plans.planning import aplan
from async_maps.shares.share import arun_plan
from tests.support.maps import random_map
from tests.support.s3 import upload

if TYPE_CHECKING:
    from pathlib import Path


def parts_of(place: Path, plan: Plan) -> list[list[PartFile]]:
    names = [list_name(plan.id, part) for part in range(1, plan.parts + 1)]
    return [read_list((place / name).read_bytes(), name) for name in names]


def save(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, random_map(1))


async def test_each_file_is_in_one_part_with_its_state(maps: Path, tmp_path: Path) -> None:
    save(maps, *(f"{i:02}" for i in range(25)))
    plan = await aplan(maps, tmp_path / "out", tmp_path / "plan", part_size=10)
    assert (plan.parts, plan.files) == (3, 25)
    assert plan.size == sum(path.stat().st_size for path in maps.iterdir())
    parts = parts_of(tmp_path / "plan", plan)
    assert [len(part) for part in parts] == [10, 10, 5]
    files = [file for part in parts for file in part]
    assert [file.name for file in files] == [f"{i:02}" for i in range(25)]
    assert all(file.path == str(maps / f"{file.name}.npy") and file.fingerprint and file.size for file in files)


async def test_a_file_and_a_folder_of_the_same_name_are_in_one_part(maps: Path, tmp_path: Path) -> None:
    save(maps, "a", "a-b", "a.b", "a/b", "a/c", "b")
    plan = await aplan(maps, tmp_path / "out", tmp_path / "plan", part_size=1)
    names = [[file.name for file in part] for part in parts_of(tmp_path / "plan", plan)]
    assert names == [["a", "a/b", "a/c"], ["a-b"], ["a.b"], ["b"]]


async def test_a_large_stack_is_shared_out_by_its_maps(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "_LARGE", 0)
    np.save(maps / "stack.npy", np.zeros((25, 4, 5)))
    save(maps, "a", "z")
    plan = await aplan(maps, tmp_path / "out", tmp_path / "plan", part_size=10)
    pieces = [[(file.name, file.first, file.end) for file in part] for part in parts_of(tmp_path / "plan", plan)]
    assert pieces == [[("a", 0, None)], [("stack", 0, 8)], [("stack", 8, 16)], [("stack", 16, 25), ("z", 0, None)]]
    assert plan.files == 3


@pytest.mark.parametrize("place", ["folder", "s3"])
async def test_a_large_zarr_array_is_shared_out_by_its_maps(
    place: str, maps: Path, tmp_path: Path, bucket: str
) -> None:
    zarr = pytest.importorskip("zarr")
    zarr.save(maps / "stack.zarr", np.stack([random_map(i) for i in range(25)]))
    group = zarr.open_group(maps / "two.zarr", mode="w")
    for name in "xy":
        group.create_array(name, data=np.stack([random_map(i) for i in range(12)]))
    source: Path | str = maps
    if place == "s3":
        source = f"s3://{bucket}/maps/"
        files = [path for path in maps.rglob("*") if path.is_file()]
        objects = {f"maps/{path.relative_to(maps)}": path.read_bytes() for path in files}
        await asyncio.to_thread(upload, bucket, objects)
    plan = await aplan(source, tmp_path / "out", tmp_path / "plan", part_size=10)
    pieces = [[(file.name, file.first, file.end) for file in part] for part in parts_of(tmp_path / "plan", plan)]
    assert pieces == [[("stack", 0, 8)], [("stack", 8, 16)], [("stack", 16, 25), ("two", 0, None)]]
    settings = am.Settings(workers=0)
    report = await arun_plan(tmp_path / "plan", settings=settings)
    single = await am.arun(source, tmp_path / "single", settings=settings)
    assert (report.uploaded, single.uploaded) == (49, 49)
    for path in (tmp_path / "single").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "single")).read_bytes()


async def test_a_plan_is_made_once(maps: Path, tmp_path: Path) -> None:
    save(maps, "a", "b")
    first = await aplan(maps, tmp_path / "out", tmp_path / "plan")
    save(maps, "c")
    assert await aplan(maps, tmp_path / "out", tmp_path / "plan") == first
    assert first.files == 2


@pytest.mark.parametrize(
    ("source", "destination", "settings", "message"),
    [
        ("other", "out", {}, r"with source '\S+/maps', not '\S+/other': plan this at another place"),
        ("maps", "elsewhere", {}, r"with destination '\S+/out', not '\S+/elsewhere'"),
        (
            "maps",
            "out",
            {"colormap": "viridis", "include": ("a*",)},
            r"colormap 'jet', not 'viridis', include \[\], not",
        ),
    ],
)
async def test_a_plan_of_something_else_at_the_same_place_is_refused(
    source: str, destination: str, settings: dict[str, Any], message: str, maps: Path, tmp_path: Path
) -> None:
    save(maps, "a", "b")
    shutil.copytree(maps, tmp_path / "other")
    await aplan(maps, tmp_path / "out", tmp_path / "plan")
    with pytest.raises(am.SettingsError, match=message):
        await aplan(tmp_path / source, tmp_path / destination, tmp_path / "plan", settings=am.Settings(**settings))


async def test_two_planners_at_the_same_time_get_one_plan(maps: Path, tmp_path: Path) -> None:
    save(maps, *"abcd")
    plans = await asyncio.gather(*(aplan(maps, tmp_path / "out", tmp_path / "plan", part_size=1) for _ in range(4)))
    assert len(set(map(Plan.dump, plans))) == 1
    assert Plan.parse((tmp_path / "plan" / "plan.json").read_bytes(), "") == plans[0]


async def test_a_file_that_cannot_be_planned_is_in_its_part_with_the_reason(maps: Path, tmp_path: Path) -> None:
    save(maps, "a")
    (tmp_path / "list.csv").write_text(f"name,path\ngood,{maps / 'a.npy'}\ngone,{maps / 'gone.npy'}\nodd,\n")
    plan = await aplan(tmp_path / "list.csv", tmp_path / "out", tmp_path / "plan")
    (part,) = parts_of(tmp_path / "plan", plan)
    assert {file.name: file.reason for file in part} == {
        "gone": "the file does not exist: it was moved or deleted, or it is a broken symbolic link",
        "good": "",
        "odd": "the row has no path",
    }


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"key": "{stem}.png"}, "overlays of different parts could get the same key; use {name} or {digest}"),
        ({"key": "{index:06}.png"}, "overlays of different parts could get the same key"),
        ({"png_level": 3}, "its bytes depend on the CPU; a plan needs 0 to 2"),
    ],
)
async def test_settings_that_do_not_fit_are_refused(
    settings: dict[str, object], reason: str, maps: Path, tmp_path: Path
) -> None:
    with pytest.raises(am.SettingsError, match=reason.replace("{", r"\{")):
        await aplan(maps, tmp_path / "out", tmp_path / "plan", settings=am.Settings(**settings))  # type: ignore[arg-type]
    assert not (tmp_path / "plan").exists()


def test_a_plan_of_another_schema_is_refused() -> None:
    with pytest.raises(PlanError, match="has schema 9, and this version of async-maps reads 1"):
        Plan.parse(b'{"schema": 9}', "plan.json")
    with pytest.raises(PlanError, match="is no plan of async-maps"):
        Plan.parse(b"{}", "plan.json")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("column", "values"), [("path", None), ("name", [None]), ("path", [None]), ("size", ["1"]), ("first", [None])]
)
def test_a_part_list_with_other_columns_is_refused(column: str, values: list[Any] | None) -> None:
    data = write_list([PartFile("a", "/maps/a.npy")])
    assert read_list(data, "here") == [PartFile("a", "/maps/a.npy")]
    table = pq.read_table(io.BytesIO(data)).drop_columns([column])
    if values is not None:
        table = table.append_column(column, pa.array(values, None if values[0] else pa.string()))
    changed = io.BytesIO()
    pq.write_table(table, changed)
    with pytest.raises(PlanError, match=rf"^here is no part list of a plan: column {column} is missing"):
        read_list(changed.getvalue(), "here")
