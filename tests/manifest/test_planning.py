"""Planning from a manifest: which maps of a listing are done, and which a run does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from async_maps.manifest.manifest import Manifest
from tests.support.manifests import (
    DESTINATION,
    SETTINGS,
    failure_for,
    make_map,
    make_plan,
    read_rows,
    receipt_for,
    write_run,
)

if TYPE_CHECKING:
    from async_maps.manifest.manifest import Select


pytestmark = pytest.mark.fast


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "manifest.sqlite"


def test_a_new_manifest_plans_every_map(path: Path) -> None:
    maps = [make_map("a"), make_map("b", fingerprint=None)]
    plan = make_plan(path, maps)
    assert (plan.todo, plan.skipped, plan.refused) == (maps, 0, [])


def test_done_and_unchanged_maps_are_skipped(path: Path) -> None:
    done, failed, moved, touched, memory = (make_map(name) for name in ("done", "failed", "moved", "touched", "memory"))
    memory = replace(memory, fingerprint=None)
    write_run(
        path, [receipt_for(done), failure_for(failed), receipt_for(moved), receipt_for(touched), receipt_for(memory)]
    )
    todo = [
        failed,
        replace(moved, source="/elsewhere/moved.npy"),
        replace(touched, fingerprint="1-2"),
        memory,
        make_map("new"),
    ]
    plan = make_plan(path, [done, *todo])
    assert (plan.todo, plan.skipped, plan.refused) == (todo, 1, [])


@pytest.mark.parametrize(
    ("select", "todo"), [("broken", "a"), ("moved", "ab"), ("failed", "abcf"), ("changed", "abcfn")]
)
def test_a_repair_selects_broken_maps_of_the_same_settings(path: Path, select: Select, todo: str) -> None:
    a, b, c, d = (receipt_for(make_map(name)) for name in "abcd")
    with Manifest(path) as manifest:
        manifest.begin(DESTINATION)
        manifest.write([a, b, d, failure_for(make_map("f"))], SETTINGS)
        manifest.write([c], "other settings")
        manifest.mark_broken((receipt.locator, receipt.name, "missing") for receipt in (a, b, c))
        # A row with another locator now is not marked.
        manifest.mark_broken([("s3://bucket/elsewhere.png", "d", "missing")])
        assert manifest.broken() == {SETTINGS: 2, "other settings": 1}
    maps = [
        make_map("a"),
        make_map("b", source="/moved/b.npy"),
        make_map("c"),
        make_map("d"),
        make_map("f"),
        make_map("n"),
    ]
    assert "".join(map_.name for map_ in make_plan(path, maps, select).todo) == todo
    row = read_rows(path)[0]
    assert (row["status"], row["stage"], row["error"]) == ("failed", "verify", "missing")
    assert (row["locator"], row["etag"], row["crc32"]) == (a.locator, a.etag, a.crc32)


def test_other_settings_plan_every_map_again(path: Path) -> None:
    write_run(path, [receipt_for(make_map("a"))])
    assert make_plan(path, [make_map("a")]).skipped == 1
    assert make_plan(path, [make_map("a")], settings="other").todo == [make_map("a")]


@pytest.mark.parametrize(("select", "todo"), [("changed", "bcd"), ("failed", "b"), ("all", "abcd")])
def test_select_chooses_the_planned_maps(path: Path, select: Select, todo: str) -> None:
    maps = {name: make_map(name) for name in "abcd"}
    write_run(
        path, [receipt_for(maps["a"]), failure_for(maps["b"]), receipt_for(replace(maps["c"], fingerprint="0-0"))]
    )
    plan = make_plan(path, list(maps.values()), select)
    assert [map_.name for map_ in plan.todo] == list(todo)
    assert plan.skipped == 4 - len(todo)


def test_known_maps_have_the_same_source_and_state(path: Path) -> None:
    done, failed, changed, arrays = (make_map(name) for name in ("done", "failed", "changed", "arrays"))
    arrays = replace(arrays, fingerprint=None)
    write_run(path, [receipt_for(done), failure_for(failed), receipt_for(changed), receipt_for(arrays)])
    listed = [done, failed, replace(changed, fingerprint="2-2"), arrays, make_map("new")]
    with Manifest(path, read_only=True) as manifest:
        assert manifest.known(listed) == {done.source, failed.source}
        assert manifest.known(listed, done_with=SETTINGS) == {done.source}
        assert manifest.known(listed, done_with="others") == set()


def test_a_duplicate_name_is_refused_with_both_sources(path: Path) -> None:
    first, second = make_map("a", source="/maps/a.npy"), make_map("a", source="/maps/a.NPY", fingerprint="2-2")
    with Manifest(path) as manifest:
        manifest.begin(DESTINATION)
        assert manifest.plan([first, make_map("b")], SETTINGS, "changed").todo == [first, make_map("b")]
        plan = manifest.plan([second, make_map("c")], SETTINGS, "changed")
    assert plan.todo == [make_map("c")]
    (failure,) = plan.refused
    assert (failure.name, failure.source, failure.fingerprint, failure.stage) == ("a", "/maps/a.NPY", "2-2", "source")
    assert failure.reason.startswith("another map of this run has the same name: '/maps/a.npy'; rename one of them")
    assert "/maps/a.npy" in str(failure)
    assert "/maps/a.NPY" in str(failure)


@pytest.mark.parametrize("select", ["changed", "failed", "all"])
def test_a_skipped_map_keeps_its_name(path: Path, select: Select) -> None:
    write_run(path, [receipt_for(make_map("a"))])
    plan = make_plan(path, [make_map("a"), make_map("a", source="/other/a.npy")], select)
    assert [failure.source for failure in plan.refused] == ["/other/a.npy"]


def test_the_next_run_may_use_the_same_names(path: Path) -> None:
    for _ in range(2):
        assert make_plan(path, [make_map("a")]).todo == [make_map("a")]
