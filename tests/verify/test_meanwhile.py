"""``verify`` beside a run judges only what the run does not write."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import anyio
import numpy as np
import pytest
from anyio import to_thread

import async_maps as am
from async_maps.filesystems.objects import Objects
from async_maps.manifest.lock import Holder
from async_maps.manifest.manifest import Manifest
from async_maps.verify import meanwhile
from async_maps.verify.meanwhile import Window
from tests.support.commands import invoke
from tests.support.leftovers import leaves_nothing
from tests.support.maps import random_map
from tests.support.overlays import found, upload_overlays

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from async_maps.filesystems.objects import ObjectInfo

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures(leaves_nothing.__name__)]

SETTINGS = am.Settings(workers=0)
HOUR = 3600.0
WORDS = ("--repair", "delete", "repair")


@pytest.fixture
async def out(tmp_path: Path, maps: Path, manifest: Path) -> Path:
    """A folder with the overlays of a run an hour ago."""
    await to_thread.run_sync(upload_overlays, maps, tmp_path / "out", manifest)
    for path in (tmp_path / "out").rglob("*.png"):
        age(path, HOUR)
    return tmp_path / "out"


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_the_window_of_a_run_begins_before_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    start = datetime(2026, 11, 25, 12, tzinfo=UTC)
    now, run = time.time(), start.timestamp()
    holder = Holder("process 1", start, start)
    alone = Window.of(now, 0, None)
    assert alone[:2] == (now, now)
    assert now + 59 < alone.until < now + 120
    assert Window.of(now, 0, holder)[:2] == (now - 60, run - 60)
    # The clock of the store is an hour ahead, or behind.
    assert Window.of(now, HOUR, None).rows == now + HOUR + 2
    monkeypatch.setattr(meanwhile, "_OTHERS_S", 60.0)
    assert Window.of(now, 0, holder).fresh == now - 60
    assert Window.of(now, -HOUR, holder)[:2] == (now - HOUR + 2 - 60, run - HOUR - 60)
    # The start of the run is unknown, or it continues a killed one.
    assert Window.of(now, 0, Holder("", None, None)).others < 0
    assert Window.of(now, 0, Holder("", start, start.replace(hour=11))).others == run - HOUR - 60


async def test_objects_without_a_row_are_left_to_the_run_that_writes(out: Path, maps: Path, manifest: Path) -> None:
    """The run has stored two overlays and written no row when the verification looks."""
    stored, looked = anyio.Event(), anyio.Event()

    async def more() -> AsyncIterator[tuple[str, np.ndarray]]:
        yield "new/1", random_map(1)
        yield "new/2", random_map(2)
        stored.set()
        await looked.wait()

    (out / "old.png").write_bytes(b"foreign before the run")
    age(out / "old.png", HOUR)
    async with am.Pipeline(out, settings=SETTINGS) as pipeline, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: pipeline.run(more(), manifest=manifest))
        await stored.wait()
        (out / "beside.png").write_bytes(b"stored by the run, but its row is not written yet")
        verification = await am.averify_locators(manifest, settings=SETTINGS)
        looked.set()
    # Those of old.png alone are judged.
    assert found(verification) == {"foreign": {"old"}}
    assert verification.unsettled >= 1
    assert verification.running is not None
    assert verification.running.startswith(f"process {os.getpid()} on ")
    summary = verification.summary()
    assert f"a run is writing the manifest ({verification.running}): this result holds for the moment" in summary
    assert verification.advice == ["verify again when the run has ended"]
    # After the run, everything is judged.
    after = await am.averify_locators(manifest, settings=SETTINGS)
    assert (found(after), after.running, after.unsettled) == ({"foreign": {"old", "beside"}}, None, 0)
    assert after.advice[-1].startswith("1 foreign object is newer than the start of the last run with this manifest, ")


async def test_an_overlay_that_a_run_replaces_is_not_called_different(out: Path, manifest: Path) -> None:
    with Manifest(manifest):  # a run that writes
        png = out / "e.png"
        data = png.read_bytes()
        png.write_bytes(data[:-1])
        (out / "f.png").write_bytes(b"damaged long before")
        age(out / "f.png", HOUR)
        for deep in (False, True):
            verification = await am.averify_locators(manifest, settings=SETTINGS, deep=deep)
            assert found(verification) == {"size": {"f"}}
            assert (verification.unsettled, verification.right) == (1, 6)
            assert "1 object is newer than the start of that run, or " in verification.summary()
    assert found(await am.averify_locators(manifest, settings=SETTINGS)) == {"size": {"e", "f"}}


@pytest.mark.parametrize("deep", [False, True])
async def test_an_overlay_that_is_replaced_while_it_is_read_is_not_called_different(
    deep: bool, out: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had the expected size when it was listed."""
    original = Objects.below

    def then_replaced(self: Objects, folder: str) -> Iterator[ObjectInfo]:
        yield from original(self, folder)
        # A clock tick later than the start of the verification.
        began = time.time()
        while (out / "e.png").stat().st_mtime <= began:
            (out / "e.png").write_bytes((out / "f.png").read_bytes()[:-4] + b"1234")

    monkeypatch.setattr(Objects, "below", then_replaced)
    verification = await am.averify_locators(manifest, settings=SETTINGS, deep=deep)
    assert (verification.differences, verification.unsettled, verification.right) == ({}, 1, 7)
    assert "1 object is newer than this verification and not judged" in verification.summary()


async def test_objects_that_appear_during_a_verification_are_not_foreign(
    out: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Objects.below

    def with_a_new_one(self: Objects, folder: str) -> Iterator[ObjectInfo]:
        began = time.time()
        new = out / "new.png"
        new.touch()
        while new.stat().st_mtime <= began:
            new.touch()
        yield from original(self, folder)

    monkeypatch.setattr(Objects, "below", with_a_new_one)
    verification = await am.averify_locators(manifest, settings=SETTINGS)
    assert (verification.differences, verification.unsettled, verification.right) == ({}, 1, 8)
    monkeypatch.undo()
    age(out / "new.png", HOUR)
    assert found(await am.averify_locators(manifest, settings=SETTINGS)) == {"foreign": {"new"}}


async def test_overlays_that_a_run_prunes_meanwhile_are_not_missing(
    out: Path, maps: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Objects.below

    def with_a_run(self: Objects, folder: str) -> Iterator[ObjectInfo]:
        # The verification has read the rows before it lists objects.
        (maps / "e.npy").unlink(missing_ok=True)
        am.run(maps, out, settings=SETTINGS, manifest=manifest, prune="objects")
        yield from original(self, folder)

    (out / "f.png").unlink()
    monkeypatch.setattr(Objects, "below", with_a_run)
    verification = await am.averify_locators(manifest, settings=SETTINGS)
    assert not (out / "e.png").exists()
    assert (found(verification), verification.right, verification.unsettled) == ({"missing": {"f"}}, 6, 1)


async def test_a_change_in_the_future_is_judged(out: Path, manifest: Path) -> None:
    (out / "e.png").write_bytes(b"damaged")
    (out / "new.png").write_bytes(b"foreign")
    for name in ("e", "new"):
        age(out / f"{name}.png", -HOUR)
    with Manifest(manifest):
        verification = await am.averify_locators(manifest, settings=SETTINGS)
    assert found(verification) == {"size": {"e"}, "foreign": {"new"}}


def test_no_command_is_advised_beside_a_run(
    tmp_path: Path, maps: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upload_overlays(maps, tmp_path / "out", manifest)
    (tmp_path / "out/e.png").unlink()
    (tmp_path / "out/x.png").touch()
    age(tmp_path / "out/x.png", HOUR)
    with Manifest(manifest):
        assert invoke("verify", manifest, "--progress", "none") == 1
    out, _ = capsys.readouterr()
    assert "different: 1 foreign, 1 missing" in out
    assert out.endswith("verify again when the run has ended\n")
    assert not any(word in out for word in WORDS)


async def test_a_repair_names_no_run(out: Path, manifest: Path) -> None:
    (out / "x.png").touch()
    (out / "e.png").write_bytes(b"damaged")
    repaired = await am.arepair_overlays(manifest, settings=SETTINGS)
    assert (repaired.repaired, repaired.running, repaired.differences) == (1, None, {"foreign": 1})
