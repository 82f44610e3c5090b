"""Retries of the failed maps of a plan: a further generation of a part, with the rows that change."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.plans.commits import acommit_plan
from async_maps.plans.manifests import manifest_name, read_footer, read_rows
from async_maps.plans.place import Place
from async_maps.plans.planning import aplan
from async_maps.plans.rows import PlanRows
from async_maps.shares.report import ShareReport
from async_maps.shares.share import arun_plan
from tests.support.commands import invoke
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


async def retry(place: Path, settings: am.Settings = SETTINGS) -> ShareReport:
    return await arun_plan(place, settings=settings, retry_failed=True)


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
    report = await retry(tmp_path / "plan")
    assert (report.committed, report.uploaded, report.failed, report.exit_code) == ([1], 1, 1, 0)
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
    report = await retry(tmp_path / "plan")
    assert (report.committed, report.unchanged, report.to_do, report.failed) == ([], [1], 1, 1)
    assert "0 parts committed, 1 unchanged, of 2 in the plan" in report.summary()
    assert len(list(tmp_path.glob("plan/*/done/*"))) == 2


async def test_a_retry_continues_the_last_one(maps: Path, tmp_path: Path) -> None:
    save(maps)
    await aplan(maps, tmp_path / "out", tmp_path / "plan")
    files = [maps / f"{i}.npy" for i in range(2)]
    break_(*files)
    await arun_plan(tmp_path / "plan", settings=SETTINGS)
    for number, file in enumerate(files, 1):
        repair(file)
        report = await retry(tmp_path / "plan")
        assert (report.committed, report.uploaded, report.failed) == ([1], 1, len(files) - number)
    assert {row[2] for row in rows_of(tmp_path / "plan").values()} == {"done"}
    parents = [generation(tmp_path / "plan", 1, number)[0].parent for number in range(3)]
    assert parents == ["", *(generation(tmp_path / "plan", 1, number)[0].digest for number in range(2))]


async def test_the_row_of_a_file_goes_when_its_maps_are_read(maps: Path, tmp_path: Path) -> None:
    save(maps, 2)
    np.savez(maps / "many.npz", a=random_map(5), b=random_map(6))
    await aplan(maps, tmp_path / "out", tmp_path / "plan")
    break_(maps / "many.npz")
    await arun_plan(tmp_path / "plan", settings=SETTINGS)
    assert sorted(rows_of(tmp_path / "plan")) == ["0", "1", "many"]
    repair(maps / "many.npz")
    assert (await retry(tmp_path / "plan")).uploaded == 2
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
    assert (await retry(tmp_path / "plan")).uploaded == 1
    assert {row[2] for row in rows_of(tmp_path / "plan").values()} == {"done"}


async def test_two_retries_of_one_generation_have_one_result(maps: Path, tmp_path: Path) -> None:
    save(maps)
    await aplan(maps, tmp_path / "out", tmp_path / "plan", part_size=4)
    broken = [maps / "1.npy", maps / "2.npy", maps / "6.npy"]
    break_(*broken)
    settings = SETTINGS.model_copy(update={"if_exists": "error"})
    await arun_plan(tmp_path / "plan", settings=settings)
    repair(*broken[:2])
    reports = await asyncio.gather(*(retry(tmp_path / "plan", settings) for _ in range(3)))
    assert [part for report in reports for part in report.committed] == [1]
    assert {report.exit_code for report in reports} == {0}
    assert {name for name, row in rows_of(tmp_path / "plan").items() if row[2] == "failed"} == {"6"}
    assert sorted(path.name for path in tmp_path.glob("plan/*/done/*")) == [
        f"{name}.parquet" for name in ("0000001.0", "0000001.1", "0000002.0")
    ]


async def test_a_retry_that_loses_starts_from_the_rows_of_the_winner(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(maps)
    await aplan(maps, tmp_path / "out", tmp_path / "plan")
    broken = [maps / "1.npy", maps / "2.npy", maps / "3.npy"]
    break_(*broken)
    await arun_plan(tmp_path / "plan", settings=SETTINGS)
    repair(broken[0])
    create, winner = Place.create, list[ShareReport]()

    async def late(self: Place, name: str, data: bytes) -> bool:
        """Let another retry commit first, after a second file is back; the third one is back for this retry only."""
        if "/done/" in name and not winner:
            repair(broken[1])
            winner.append(ShareReport())
            winner[0] = await retry(tmp_path / "plan")
            repair(broken[2])
        return await create(self, name, data)

    monkeypatch.setattr(Place, "create", late)
    report = await retry(tmp_path / "plan")
    assert (winner[0].committed, winner[0].uploaded, winner[0].failed) == ([1], 2, 1)
    assert (report.committed, report.failed, report.exit_code) == ([1], 0, 0)
    names = [[row[0] for row in generation(tmp_path / "plan", 1, number)[1]] for number in (1, 2)]
    assert names == [["1", "2"], ["3"]]
    assert {row[2] for row in rows_of(tmp_path / "plan").values()} == {"done"}


async def test_only_committed_parts_are_retried(maps: Path, tmp_path: Path) -> None:
    save(maps)
    plan = await aplan(maps, tmp_path / "out", tmp_path / "plan", part_size=4)
    broken = [maps / "1.npy", maps / "6.npy"]
    break_(*broken)
    await arun_plan(tmp_path / "plan", settings=SETTINGS)
    repair(*broken)
    (tmp_path / "plan" / manifest_name(plan.id, 1)).unlink()
    report = await retry(tmp_path / "plan")
    assert (report.committed, report.uploaded) == ([2], 1)
    assert not (tmp_path / "plan" / manifest_name(plan.id, 1)).exists()


def test_the_command_retries_and_commits_again(maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(maps)
    place = tmp_path / "plan"
    quick = ("--workers", 0, "--progress", "none")
    assert invoke("plan", maps, tmp_path / "out", "--to", place, "--part-size", 3) == 0
    break_(maps / "1.npy", maps / "6.npy")
    assert invoke("run", "--plan", place, *quick) == 0
    assert invoke("commit", place) == 1
    repair(maps / "1.npy", maps / "6.npy")
    for share in ("1/2", "2/2"):
        assert invoke("run", "--plan", place, "--part", share, "--retry-failed", *quick) == 0
    capsys.readouterr()
    assert invoke("commit", place, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["failures"], found["commits"], found["complete"]) == (8, 0, 2, True)
