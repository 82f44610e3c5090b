"""Two runs with two manifests in one prefix: what one of them has just stored is not foreign to the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio import to_thread

import async_maps as am
from async_maps.manifest.manifest import Manifest
from async_maps.verify import meanwhile
from tests.support.leftovers import leaves_nothing
from tests.support.manifests import make_map
from tests.support.maps import random_map
from tests.support.overlays import found
from tests.support.s3 import keys, upload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

SETTINGS = am.Settings(workers=0)


@pytest.fixture
def place(bucket: str) -> str:
    return f"s3://{bucket}/p"


@pytest.fixture
def now(a_minute_later: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge objects as young as they are."""
    monkeypatch.setattr(meanwhile, "_OTHERS_S", 600.0)


async def run(place: str, manifest: Path, *names: str) -> None:
    report = await am.arun([(name, random_map(1)) for name in names], place, manifest=manifest, settings=SETTINGS)
    assert report.uploaded == len(names)


@pytest.mark.usefixtures("now")
async def test_overlays_of_a_run_that_goes_on_are_neither_foreign_nor_deleted(
    place: str, bucket: str, manifest: Path, tmp_path: Path
) -> None:
    other, go_on = tmp_path / "other.sqlite", anyio.Event()

    async def source() -> AsyncIterator[tuple[str, Any]]:
        yield "b1", random_map(1)
        yield "b2", random_map(2)
        await go_on.wait()
        yield "b3", random_map(3)

    await run(place, manifest, "a1", "a2")
    async with am.Pipeline(place, settings=SETTINGS) as pipeline, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: pipeline.run(source(), manifest=other))
        while pipeline.statistics().uploaded < 2:  # noqa: ASYNC110  # it is counted, not announced
            await anyio.sleep(0.01)
        verification = await am.averify_locators(manifest, settings=SETTINGS)
        repaired = await am.arepair_overlays(manifest, settings=SETTINGS, delete_foreign=True)
        go_on.set()
    for found_now in (verification, repaired):
        assert (found_now.is_clean, found_now.shared, found_now.unsettled, found_now.deleted) == (True, True, 2, 0)
        (advice,) = found_now.advice
        assert "Give each manifest its own prefix" in advice
        assert "delete" not in found_now.summary().lower()
        assert "2 objects are new or may be of another run that stores objects there, and not judged" in (
            found_now.summary()
        )
    assert await keys(bucket) == {f"p/{name}.png" for name in ("a1", "a2", "b1", "b2", "b3")}


@pytest.mark.usefixtures("now")
async def test_a_run_of_each_manifest_judges_nothing_of_the_other(place: str, manifest: Path, tmp_path: Path) -> None:
    """Both are locked, as while their runs write, and the other run has begun before this one."""
    await run(place, tmp_path / "other.sqlite", "b1", "b2")
    await run(place, manifest, "a1")
    with Manifest(manifest), Manifest(tmp_path / "other.sqlite"):
        verification = await am.averify_locators(manifest, settings=SETTINGS)
    assert (verification.differences, verification.shared, verification.unsettled) == ({}, True, 2)
    assert verification.advice == ["verify again when the run has ended"]
    assert "or were replaced since, or may be of another run that stores objects there, and" in verification.summary()


async def test_after_both_runs_no_deletion_is_advised(place: str, manifest: Path, tmp_path: Path) -> None:
    await run(place, manifest, "a1")
    await run(place, tmp_path / "other.sqlite", "b1", "b2")
    verification = await am.averify_locators(manifest, settings=SETTINGS)
    assert (found(verification), verification.shared) == ({"foreign": {"b1", "b2"}}, False)
    (advice,) = verification.advice
    assert advice == (
        "2 foreign objects are newer than the start of the last run with this manifest, so another run or program has "
        "stored them. Give each manifest its own prefix"
    )


@pytest.mark.usefixtures("now")
async def test_what_a_killed_run_has_sent_shows_no_other_run(place: str, bucket: str, manifest: Path) -> None:
    await run(place, manifest, "a1")
    with Manifest(manifest) as opened:
        (kept,) = opened.runs()
        opened.note_sending([make_map("a2")], kept.settings)
    await to_thread.run_sync(upload, bucket, {"p/a2.png": b"sent"})
    verification = await am.averify_locators(manifest, settings=SETTINGS)
    assert (verification.differences, verification.shared, verification.unrecorded) == ({}, False, 1)
