"""Plans since another plan: what that one has done is left out."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.plans import states
from async_maps.plans.commits import acommit_plan, aplan_status
from async_maps.plans.manifests import manifest_name
from async_maps.plans.parts import list_name, read_list
from async_maps.plans.planning import aplan
from async_maps.shares.share import arun_plan
from tests.support.leftovers import leaves_nothing
from tests.support.maps import npy, random_map
from tests.support.s3 import upload

if TYPE_CHECKING:
    from pathlib import Path

    from async_maps.plans.document import Plan

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

SETTINGS = am.Settings(workers=0)


def save(maps: Path, *names: str, seed: int = 1) -> None:
    for name in names:
        path = maps / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, random_map(seed, (4, 5 + seed)))


def names_in(place: Path, plan: Plan) -> list[str]:
    lists = [list_name(plan.id, part) for part in range(1, plan.parts + 1)]
    return [file.name for name in lists for file in read_list((place / name).read_bytes(), name)]


class Job:
    """Nightly plans of one folder."""

    def __init__(self, maps: Path, folder: Path) -> None:
        self.maps, self.folder, self.nights = maps, folder, 0

    async def plan(self, *, since: int | None = -1, **settings: Any) -> list[str]:
        """Make the plan of this night; by default since the last one; return its files."""
        before = None if since is None else self.folder / str(self.nights + since)
        self.place = self.folder / str(self.nights)
        self.nights += 1
        chosen = am.Settings(**settings)
        self.made = await aplan(self.maps, self.folder / "out", self.place, settings=chosen, part_size=2, since=before)
        names = names_in(self.place, self.made)
        assert len(set(names)) == self.made.files
        return names

    async def run(self) -> None:
        await arun_plan(self.place, settings=SETTINGS)


@pytest.fixture
def job(maps: Path, tmp_path: Path) -> Job:
    return Job(maps, tmp_path)


async def test_only_new_and_changed_files_are_planned(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    save(job.maps, *"abcd")
    assert await job.plan(since=None) == [*"abcd"]
    await job.run()
    save(job.maps, "e")
    save(job.maps, "b", seed=2)
    assert await job.plan() == ["b", "e"]
    assert (job.made.since, job.made.left_out) == ((job.folder / "0").as_uri(), 3)
    await job.run()
    # The overlay that is replaced is the one of the plan before.
    assert not caplog.records
    # What an earlier plan has done is left out, too.
    save(job.maps, "f")
    assert await job.plan() == ["f"]
    assert job.made.left_out == 5


async def test_a_night_with_nothing_new_commits_as_done(job: Job) -> None:
    save(job.maps, *"abc")
    await job.plan(since=None)
    await job.run()
    assert await job.plan() == []
    assert (job.made.parts, job.made.files, job.made.left_out) == (0, 0, 3)
    await job.run()
    status = await acommit_plan(job.place)
    assert (status.is_complete, status.rows, status.commits) == (True, 0, 1)
    assert (await aplan_status(job.place)).is_complete
    am.export_manifest(job.place, job.folder / "a.csv")
    save(job.maps, "d")
    assert await job.plan() == ["d"]


async def test_files_that_failed_or_are_not_committed_stay(job: Job) -> None:
    save(job.maps, *"abcdef")
    np.savez(job.maps / "g.npz", good=random_map(1), bad=np.full((3, 3), 7.0))
    await job.plan(since=None)
    (job.maps / "c.npy").write_bytes(b"no map")
    await job.run()
    (job.place / manifest_name(job.made.id, 1)).unlink()
    assert await job.plan() == ["a", "b", "c", "g"]


async def test_a_stack_is_done_when_all_its_pieces_are(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "_LARGE", 0)
    np.save(job.maps / "one.npy", np.stack([random_map(i) for i in range(5)]))
    np.save(job.maps / "two.npy", np.stack([random_map(i) for i in range(5)]))
    await job.plan(since=None)
    await job.run()
    (job.place / manifest_name(job.made.id, 2)).unlink()
    assert await job.plan() == ["one", "one", "one"]


async def test_other_settings_plan_all_and_say_so(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    save(job.maps, *"ab")
    await job.plan(since=None)
    await job.run()
    assert await job.plan(range="per-map") == ["a", "b"]
    assert "was planned with another range: what it has done is planned again" in caplog.text
    assert await job.plan(since=-2) == []


async def test_a_file_stays_beside_a_new_folder_of_its_name(job: Job) -> None:
    save(job.maps, "a", "a-b", "a.b", "c", "d/x", "d/y/z", "e")
    await job.plan(since=None)
    await job.run()
    save(job.maps, "a/new", "d", "e/f/g")
    assert await job.plan() == ["a", "a/new", "d", "d/x", "d/y/z", "e", "e/f/g"]


async def test_a_plan_before_that_was_deleted_is_planned_again(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    save(job.maps, "a")
    await job.plan(since=None)
    await job.run()
    save(job.maps, "b")
    await job.plan()
    await job.run()
    (job.folder / "0" / "plan.json").unlink()
    assert await job.plan() == ["a"]
    assert "does not exist anymore: files that only this plan has done are planned again" in caplog.text
    with pytest.raises(am.PlanError, match=r"has no plan\.json: make the plan first, or correct its address"):
        await job.plan(since=-3)


async def test_a_plan_that_was_moved_to_the_place_of_the_one_before_ends_the_chain(
    job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    save(job.maps, "a")
    await job.plan(since=None)
    await job.run()
    save(job.maps, "b")
    await job.plan()
    await job.run()
    # As a job does whose plan has one address each night, and the last one another.
    shutil.rmtree(job.folder / "0")
    (job.folder / "1").rename(job.folder / "0")
    assert await job.plan(since=-2) == ["a"]
    assert "/0 is a later plan than it was, perhaps moved: files that only the one before has done" in caplog.text
    await job.run()
    (job.folder / "out" / "c.png").write_bytes(b"foreign")
    found = await am.averify_locators(job.folder / "0")
    assert (found.locators, found.right) == (1, 1)


async def test_an_object_in_s3_is_left_out_by_its_etag(bucket: str) -> None:
    await asyncio.to_thread(upload, bucket, {f"maps/{name}.npy": npy(random_map(1)) for name in "abc"})
    address = f"s3://{bucket}"
    await aplan(f"{address}/maps/", f"{address}/out", f"{address}/0", part_size=2)
    await arun_plan(f"{address}/0", settings=SETTINGS)
    await asyncio.to_thread(upload, bucket, {"maps/b.npy": npy(random_map(2))})
    plan = await aplan(f"{address}/maps/", f"{address}/out", f"{address}/1", part_size=2, since=f"{address}/0")
    assert (plan.files, plan.left_out, plan.since) == (1, 2, f"{address}/0")


@pytest.mark.fast
def test_sqlite_compares_the_ends_of_places_as_bytes() -> None:
    database = sqlite3.connect(":memory:")
    query = "SELECT CAST(? || x'01' AS BLOB), CAST(? || x'00' AS BLOB)"
    place = "é\0b".encode() + b"\xed\xb3\xbf"
    assert database.execute(query, (place, place)).fetchone() == (place + b"\x01", place + b"\x00")
    database.close()
