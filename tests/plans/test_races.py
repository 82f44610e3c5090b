"""Planners, shares and commits that do the same thing at the same moment have one result, and no error."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.plans.commits import acommit_plan
from async_maps.plans.document import Plan
from async_maps.plans.manifests import manifest_name, read_footer
from async_maps.plans.parts import list_name, read_list
from async_maps.plans.place import DOCUMENT, Place, opened_place
from async_maps.plans.planning import aplan
from async_maps.shares.share import arun_plan
from tests.support.leftovers import leaves_nothing
from tests.support.maps import decode, random_map

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from async_maps.shares.report import ShareReport

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

_WAIT_S = 60
_NAMES = ("a", "a-b", "a.b", "a/b", "a/b-c", "ab", "b")
"""Names whose order as files, as keys and as places in a plan differs."""
# Kills itself when it has created a number of part lists.
_KILLED_PLANNER = """
import os, signal, sys
from async_maps.plans.place import Place
from async_maps.plans.planning import plan
left, create = int(sys.argv[1]), Place.create
async def counted(self, name, data):
    global left
    created = await create(self, name, data)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return created
Place.create = counted
plan(*sys.argv[2:], part_size=1)
"""
ROUNDS = [2, pytest.param(200, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, bucket: str, tmp_path: Path) -> str:
    """The address of a plan, in a folder and in a bucket."""
    return str(tmp_path / "plan") if request.param == "folder" else f"s3://{bucket}/plan"


class Meeting:
    """Lets two event loops wait for each other before both create an object of the same name."""

    def __init__(self, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arrived = threading.Event()
        self.met: Counter[str] = Counter()
        self._word = word
        self._barriers: dict[str, threading.Barrier] = {}
        create = Place.create

        async def create_together(place: Place, name: str, data: bytes) -> bool:
            if self._word in name:
                self.arrived.set()
                self.met[name] += 1
                await asyncio.to_thread(self._barriers.setdefault(name, threading.Barrier(2)).wait, _WAIT_S)
            return await create(place, name, data)

        monkeypatch.setattr(Place, "create", create_together)


def together(*work: Callable[[], Coroutine[Any, Any, Any]]) -> list[Any]:
    """Run each in an event loop of its own, and return all results."""
    with ThreadPoolExecutor(len(work)) as threads:
        return [running.result() for running in [threads.submit(asyncio.run, each()) for each in work]]


def save(maps: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = maps / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, random_map(number))


def objects(address: str, plan: Plan, folder: str) -> dict[str, bytes]:
    """Return the objects of a plan in one of its folders, after a check that the document is this plan."""

    async def read_all() -> dict[str, bytes]:
        async with opened_place(address, am.Settings()) as place:
            names = [DOCUMENT, *await place.sizes(f"{plan.id}/{folder}")]
            return {name: await place.read(name) or b"" for name in names}

    found = asyncio.run(read_all())
    assert Plan.parse(found.pop(DOCUMENT), "") == plan
    return found


def names_of(address: str, plan: Plan) -> list[str]:
    """Return the sorted names in all part lists of a plan, and check that there are no other lists."""
    found = objects(address, plan, "parts")
    assert [*found] == [list_name(plan.id, part) for part in range(1, plan.parts + 1)]
    return sorted(file.name for name, data in found.items() for file in read_list(data, name))


def check_parts(address: str, plan: Plan, reports: list[ShareReport]) -> None:
    """Check that each part has one manifest, and that one share has committed it."""
    parts = list(range(1, plan.parts + 1))
    assert sorted(part for report in reports for part in report.committed) == parts
    found = objects(address, plan, "done")
    assert [*found] == [manifest_name(plan.id, part) for part in parts]
    footers = [read_footer(data, name) for name, data in found.items()]
    assert [(footer.part, footer.rows, footer.failures) for footer in footers] == [(part, 1, 0) for part in parts]


@pytest.mark.slow
@pytest.mark.parametrize("rounds", ROUNDS)
def test_two_shares_commit_a_part_at_the_same_moment(
    rounds: int, place: str, maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(maps, *(f"{number:03}" for number in range(rounds)))
    plan = asyncio.run(aplan(maps, tmp_path / "out", place, part_size=1))
    meeting = Meeting("/done/", monkeypatch)
    # With workers=0, each second attempt would start a worker.
    settings = am.Settings(workers=1)
    # Both are the first of one, so that they run the same parts in the same order.
    reports = together(*[partial(arun_plan, place, settings=settings)] * 2)
    assert set(meeting.met.values()) == {2}
    assert len(meeting.met) == rounds
    check_parts(place, plan, reports)
    assert sorted(part for report in reports for part in report.done_by_others) == list(range(1, rounds + 1))
    assert len(list((tmp_path / "out").iterdir())) == rounds


@pytest.mark.parametrize("rounds", ROUNDS)
def test_two_planners_make_their_plans_at_the_same_moment(
    rounds: int, place: str, maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(maps, *_NAMES)
    for number in range(rounds):
        meeting = Meeting(DOCUMENT, monkeypatch)
        address = f"{place}-{number}"
        found = together(*[partial(aplan, maps, tmp_path / "out", address, part_size=1)] * 2)
        monkeypatch.undo()
        assert meeting.met == {DOCUMENT: 2}
        assert found[0] == found[1]
        assert names_of(address, found[0]) == sorted(_NAMES)


@pytest.mark.parametrize("rounds", ROUNDS)
def test_two_planners_of_a_source_that_changes_in_between(
    rounds: int, place: str, maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(rounds):
        save(maps, *_NAMES)
        meeting = Meeting(DOCUMENT, monkeypatch)
        address = f"{place}-{number}"
        later = [name for name in _NAMES if name != "a.b"] + ["aa"]

        async def plan_later(to: str = address, arrived: threading.Event = meeting.arrived) -> Plan:
            assert await asyncio.to_thread(arrived.wait, _WAIT_S)
            (maps / "a.b.npy").unlink()
            save(maps, "aa")
            return await aplan(maps, tmp_path / "out", to, part_size=1)

        found = together(partial(aplan, maps, tmp_path / "out", address, part_size=1), plan_later)
        monkeypatch.undo()
        assert meeting.met == {DOCUMENT: 2}
        assert found[0] == found[1]
        assert names_of(address, found[0]) in (sorted(_NAMES), sorted(later))
        (maps / "aa.npy").unlink()


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
def test_a_killed_planner_leaves_nothing_in_the_plan_of_the_next_one(rounds: int, maps: Path, tmp_path: Path) -> None:
    for number in range(rounds):
        save(maps, *_NAMES)
        place, lists = tmp_path / f"plan-{number}", 1 + number % 5
        command = [sys.executable, "-c", _KILLED_PLANNER, str(lists), str(maps), str(tmp_path / "out"), str(place)]
        killed = subprocess.run(command, check=False)
        assert killed.returncode == -signal.SIGKILL
        assert len([*place.rglob("*.parquet")]) >= lists
        (maps / "a-b.npy").unlink()
        save(maps, "a", "aa")
        found = asyncio.run(aplan(maps, tmp_path / "out", place, part_size=1))
        assert names_of(str(place), found) == sorted({*_NAMES, "aa"} - {"a-b"})
        (maps / "aa.npy").unlink()


def test_shares_store_names_that_begin_alike_once(maps: Path, tmp_path: Path) -> None:
    save(maps, *_NAMES)
    out, place = tmp_path / "out", str(tmp_path / "plan")
    plan = asyncio.run(aplan(maps, out, place, part_size=1))
    assert plan.parts == 5  # a, a/b and a/b-c are in one
    settings = am.Settings(workers=1)
    reports = together(*(partial(arun_plan, place, (index, 2), settings=settings) for index in (1, 2)))
    assert sorted(part for report in reports for part in report.committed) == [1, 2, 3, 4, 5]
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png")) == sorted(
        f"{name}.png" for name in _NAMES
    )
    for number, name in enumerate(_NAMES):
        expected = am.colorize_activation_map(random_map(number))
        assert np.array_equal(decode((out / f"{name}.png").read_bytes()), expected)


def test_two_commits_of_a_plan_at_the_same_moment(
    place: str, maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(maps, *_NAMES)
    plan = asyncio.run(aplan(maps, tmp_path / "out", place, part_size=1))
    asyncio.run(arun_plan(place, settings=am.Settings(workers=0)))
    meeting = Meeting("_SUCCESS", monkeypatch)
    found = together(*[partial(acommit_plan, place)] * 2)
    assert meeting.met == {f"{plan.id}/commits/_SUCCESS-1": 2}
    assert [*objects(place, plan, "commits")] == [f"{plan.id}/commits/_SUCCESS-1"]
    assert [(status.is_complete, status.rows, status.commits) for status in found] == [(True, len(_NAMES), 1)] * 2
