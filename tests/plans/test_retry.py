"""Retries of the failed maps of a plan: a further generation of a part, with the rows that change."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.pipeline import Pipeline
from async_maps.plans.commits import acommit_plan, read_plan
from async_maps.plans.manifests import read_footer, read_rows
from async_maps.plans.place import opened_place
from async_maps.plans.planning import aplan
from async_maps.plans.rows import PlanRows
from async_maps.shares.part import PartDone
from async_maps.shares.retry import retry_part
from async_maps.shares.share import arun_plan
from tests.support.leftovers import leaves_nothing
from tests.support.maps import decode, random_map

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

SETTINGS = am.Settings(workers=0)


def save(maps: Path, count: int = 8) -> None:
    for i in range(count):
        np.save(maps / f"{i}.npy", random_map(i))


def break_(*files: Path) -> None:
    """Let maps fail, and leave their fingerprints as they are."""
    for file in files:
        file.rename(f"{file}.away")


def repair(*files: Path) -> None:
    for file in files:
        file.with_name(f"{file.name}.away").rename(file)


async def retry(place: Path, folder: Path, *parts: int, settings: am.Settings = SETTINGS) -> list[PartDone]:
    async with opened_place(str(place), settings) as opened:
        plan = await read_plan(opened)
        async with Pipeline(plan.destination, settings=plan.settings(settings)) as pipeline:
            return [await retry_part(opened, plan, pipeline, folder, part) for part in parts]


def rows_of(place: Path) -> dict[str, tuple[Any, ...]]:
    with PlanRows(str(place)) as opened:
        return {str(row[0]): row for _, rows in opened.parts() for row in rows}


def generation(place: Path, part: int, number: int) -> tuple[Any, list[tuple[Any, ...]]]:
    (path,) = place.glob(f"*/done/{part:07}.{number}.parquet")
    return read_footer(path.read_bytes(), ""), list(read_rows(path.read_bytes(), ""))


async def test_a_retry_writes_the_rows_that_change(maps: Path, tmp_path: Path) -> None:
    save(maps)
    await aplan(maps, tmp_path / "out", tmp_path / "plan", part_size=4)
    break_(maps / "1.npy", maps / "2.npy")
    await arun_plan(tmp_path / "plan", settings=SETTINGS)
    assert (await acommit_plan(tmp_path / "plan")).failures == 2
    before = rows_of(tmp_path / "plan")
    repair(maps / "1.npy")
    (done,) = await retry(tmp_path / "plan", tmp_path, 1)
    assert done == PartDone(1, is_ours=True, uploaded=1, failed=1)
    footer, rows = generation(tmp_path / "plan", 1, 1)
    first, _ = generation(tmp_path / "plan", 1, 0)
    assert [(row[0], row[2]) for row in rows] == [("1", "done")]
    assert (footer.rows, footer.failures, footer.parent) == (4, 1, first.digest)
    assert (footer.first, footer.last) == tuple((tmp_path / "out" / f"{i}.png").as_uri() for i in (0, 3))
    after = rows_of(tmp_path / "plan")
    assert {name for name in after if after[name] != before[name]} == {"1"}
    expected = am.colorize_activation_map(random_map(1))
    assert np.array_equal(decode((tmp_path / "out" / "1.png").read_bytes()), expected)
    status = await acommit_plan(tmp_path / "plan")
    assert (status.rows, status.failures, status.commits) == (8, 1, 2)
    assert (await acommit_plan(tmp_path / "plan")).commits == 2


async def test_a_retry_without_a_change_writes_nothing(maps: Path, tmp_path: Path) -> None:
    save(maps)
    await aplan(maps, tmp_path / "out", tmp_path / "plan", part_size=4)
    break_(maps / "1.npy")
    await arun_plan(tmp_path / "plan", settings=SETTINGS)
    done = await retry(tmp_path / "plan", tmp_path, 1, 2)
    assert done == [PartDone(1, is_ours=False, failed=1), PartDone(2, is_ours=False)]
    assert len(list(tmp_path.glob("plan/*/done/*"))) == 2


async def test_a_retry_continues_the_last_one(maps: Path, tmp_path: Path) -> None:
    save(maps)
    await aplan(maps, tmp_path / "out", tmp_path / "plan")
    files = [maps / f"{i}.npy" for i in range(3)]
    break_(*files)
    await arun_plan(tmp_path / "plan", settings=SETTINGS)
    for number, file in enumerate(files, 1):
        repair(file)
        assert await retry(tmp_path / "plan", tmp_path, 1) == [PartDone(1, True, 1, len(files) - number)]
    assert {row[2] for row in rows_of(tmp_path / "plan").values()} == {"done"}
    parents = [generation(tmp_path / "plan", 1, number)[0].parent for number in range(4)]
    assert parents == ["", *(generation(tmp_path / "plan", 1, number)[0].digest for number in range(3))]


async def test_the_row_of_a_file_goes_when_its_maps_are_read(maps: Path, tmp_path: Path) -> None:
    save(maps, 2)
    np.savez(maps / "many.npz", a=random_map(5), b=random_map(6))
    await aplan(maps, tmp_path / "out", tmp_path / "plan")
    break_(maps / "many.npz")
    await arun_plan(tmp_path / "plan", settings=SETTINGS)
    assert sorted(rows_of(tmp_path / "plan")) == ["0", "1", "many"]
    repair(maps / "many.npz")
    assert await retry(tmp_path / "plan", tmp_path, 1) == [PartDone(1, is_ours=True, uploaded=2)]
    assert {name: row[2] for name, row in rows_of(tmp_path / "plan").items()} == dict.fromkeys(
        ("0", "1", "many/a", "many/b"), "done"
    )


async def test_a_map_that_was_done_stays_done_without_its_file(maps: Path, tmp_path: Path) -> None:
    save(maps)
    await aplan(maps, tmp_path / "out", tmp_path / "plan")
    break_(maps / "1.npy")
    await arun_plan(tmp_path / "plan", settings=SETTINGS)
    repair(maps / "1.npy")
    (maps / "2.npy").unlink()
    np.save(maps / "3.npy", random_map(99, (5, 5)))
    assert await retry(tmp_path / "plan", tmp_path, 1) == [PartDone(1, is_ours=True, uploaded=1)]
    assert {row[2] for row in rows_of(tmp_path / "plan").values()} == {"done"}


@pytest.mark.parametrize("if_exists", ["overwrite", "error"])
async def test_two_retries_of_one_generation_have_one_result(if_exists: Any, maps: Path, tmp_path: Path) -> None:
    save(maps)
    await aplan(maps, tmp_path / "out", tmp_path / "plan", part_size=4)
    broken = [maps / "1.npy", maps / "2.npy", maps / "6.npy"]
    break_(*broken)
    settings = SETTINGS.model_copy(update={"if_exists": if_exists})
    await arun_plan(tmp_path / "plan", settings=settings)
    repair(*broken[:2])
    retries = [retry(tmp_path / "plan", tmp_path, 1, 2, settings=settings) for _ in range(3)]
    done = [part for parts in await asyncio.gather(*retries) for part in parts]
    assert sorted(part.part for part in done if part.is_ours) == [1]
    assert {name for name, row in rows_of(tmp_path / "plan").items() if row[2] == "failed"} == {"6"}
    assert sorted(path.name for path in tmp_path.glob("plan/*/done/*")) == [
        f"{name}.parquet" for name in ("0000001.0", "0000001.1", "0000002.0")
    ]


async def test_a_part_that_is_not_committed_is_not_retried(maps: Path, tmp_path: Path) -> None:
    save(maps)
    await aplan(maps, tmp_path / "out", tmp_path / "plan")
    with pytest.raises(am.PlanError, match=r"part 1 of .* is not committed: run it before its failed maps"):
        await retry(tmp_path / "plan", tmp_path, 1)
