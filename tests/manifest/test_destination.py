"""A manifest belongs to one destination, at every address of it."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.manifest.destination import ANOTHER
from tests.support.leftovers import leaves_nothing
from tests.support.manifests import DESTINATION, failure_for, make_map, read_rows, receipt_for, rows, write_run
from tests.support.maps import random_map
from tests.support.overlays import upload_overlays

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures(leaves_nothing.__name__)]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return tmp_path / "m.sqlite"


@pytest.fixture
def out(tmp_path: Path, maps: Path, manifest: Path) -> Path:
    """A folder with the overlays of a run."""
    upload_overlays(maps, tmp_path / "out", manifest)
    return tmp_path / "out"


def run(maps: Path, destination: object, manifest: Path, **settings: Any) -> am.Report:
    return am.run(maps, str(destination), settings=am.Settings(workers=0, **settings), manifest=manifest)


def refused(maps: Path, destination: object, manifest: Path, **settings: Any) -> str:
    """Return the message of a run and a dry run that are refused."""
    before = read_rows(manifest)
    for function in (am.run, am.dry_run):
        with pytest.raises(am.ManifestError) as refusal:
            function(maps, str(destination), settings=am.Settings(workers=0, **settings), manifest=manifest)
    assert read_rows(manifest) == before
    return str(refusal.value)


def test_a_manifest_without_maps_may_change_its_destination(maps: Path, manifest: Path, tmp_path: Path) -> None:
    write_run(manifest, [])
    np.save(maps / "a.npy", random_map(1))
    assert run(maps, tmp_path / "out", manifest).uploaded == 1


def test_another_destination_is_refused(maps: Path, manifest: Path, tmp_path: Path) -> None:
    write_run(manifest, [failure_for(make_map("a"))])
    np.save(maps / "a.npy", random_map(1))
    out = tmp_path / "out"
    for answer in ("ask", "yes", "no"):
        assert refused(maps, out, manifest, same_destination=answer) == (
            f"{manifest} is the manifest of {DESTINATION} at AWS, but this run writes to {out.as_uri()}: {ANOTHER}"
        )
    assert not out.exists()


@pytest.mark.parametrize("spelling", ["link", "link/../out/", "linked/out"])
def test_a_folder_under_another_name_is_the_same(
    spelling: str, out: Path, maps: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(out)
    (tmp_path / "linked").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert am.dry_run(maps, spelling, settings=am.Settings(workers=0), manifest=manifest).skipped == 8
    assert (run(maps, spelling, manifest).uploaded, run(maps, out, manifest).uploaded) == (0, 0)
    assert run(maps, f"file://{tmp_path / spelling}", manifest).skipped == 8


def test_a_moved_folder_is_recognized_by_its_files(out: Path, maps: Path, manifest: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved é"
    out.rename(moved)
    before = manifest.read_bytes()
    assert am.dry_run(maps, moved, settings=am.Settings(workers=0), manifest=manifest).skipped == 8
    assert manifest.read_bytes() == before
    report = run(maps, moved, manifest)
    assert (report.uploaded, report.skipped) == (0, 8)
    # The locators lead to the files again.
    assert all(locator.startswith(f"{moved.as_uri()}/") for locator in rows(manifest, "locator"))
    assert am.verify_locators(manifest, deep=True).right == 8


def test_locators_of_a_moved_folder_keep_their_claims(maps: Path, manifest: Path, tmp_path: Path) -> None:
    np.save(maps / "a.npy", random_map(1))
    run(maps, tmp_path / "out", manifest, key="{stem}.png")
    (tmp_path / "out").rename(tmp_path / "moved")
    (maps / "sub").mkdir()
    np.save(maps / "sub/a.npy", random_map(2))
    settings = am.Settings(workers=0, key="{stem}.png")
    for function in (am.dry_run, am.run):
        report = function(maps, tmp_path / "moved", settings=settings, manifest=manifest)
        assert (report.skipped, report.failed) == (1, 1)
        assert "is the overlay of another map, 'a'" in report.failures[0].reason


def test_an_export_of_a_folder_that_is_gone_is_noticed(
    out: Path, manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert am.export_manifest(manifest, tmp_path / "a.csv") == 8
    assert caplog.text == ""
    out.rename(tmp_path / "moved")
    assert am.export_manifest(manifest, tmp_path / "a.csv") == 8
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{out} does not exist, so no locator leads to a file. If it was moved, run")


@pytest.mark.parametrize("damage", ["missing", "shorter", "other bytes"])
def test_a_moved_folder_with_other_files_is_refused(
    damage: str, out: Path, maps: Path, manifest: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    out.rename(moved)
    for path in moved.rglob("*.png"):
        data = path.read_bytes()
        path.unlink()
        if damage != "missing":
            path.write_bytes(data[:-1] if damage == "shorter" else data[:-1] + b"x")
    for answer in ("ask", "yes"):
        message = refused(maps, moved, manifest, same_destination=answer)
        assert f"but this run writes to {moved.as_uri()}, where {moved.as_uri()}/" in message
        assert {"missing": "is missing", "shorter": "bytes instead of", "other bytes": "has other bytes"}[
            damage
        ] in message
        assert message.endswith(f": move the overlays there, or {ANOTHER}")


def test_a_copied_folder_is_a_question(out: Path, maps: Path, manifest: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    assert refused(maps, copy, manifest) == (
        f"{manifest} is the manifest of {out.as_uri()}, but this run writes to {copy.as_uri()}: "
        f"{ANOTHER}, or add --same-destination yes (in Python "
        'same_destination="yes") if its overlays were moved there'
    )
    assert refused(maps, copy, manifest, same_destination="no").endswith(f": {ANOTHER}")
    assert run(maps, copy, manifest, same_destination="yes").skipped == 8
    assert {locator.partition("/copy/")[0] for locator in rows(manifest, "locator")} == {tmp_path.as_uri()}
    # The first folder is another destination now.
    assert "is the manifest of" in refused(maps, out, manifest)


def test_failed_maps_keep_no_locator_in_a_moved_folder(maps: Path, manifest: Path, tmp_path: Path) -> None:
    np.save(maps / "a.npy", random_map(1))
    np.save(maps / "b.npy", np.full((2, 2), np.nan))
    assert run(maps, tmp_path / "out", manifest).failed == 1
    (tmp_path / "out").rename(tmp_path / "moved")
    run(maps, tmp_path / "moved", manifest)
    assert {row["name"]: row["locator"] for row in read_rows(manifest)} == {
        "a": (tmp_path / "moved/a.png").as_uri(),
        "b": None,
    }


def test_few_files_of_a_moved_folder_are_read(manifest: Path, maps: Path, tmp_path: Path) -> None:
    """One file in ten exists: those that are read, from the first to the last row."""
    count = 41
    for i in range(count):
        np.save(maps / f"{i:02}.npy", random_map(i))
    run(maps, tmp_path / "out", manifest)
    (tmp_path / "out").rename(tmp_path / "moved")
    sample = set()
    for name in rows(manifest, "name", "rowid % 10 = 1"):
        sample.add(f"{name}.png")
    for name in os.listdir(tmp_path / "moved"):
        if name not in sample:
            (tmp_path / "moved" / name).unlink()
    assert len(sample) == 5
    assert run(maps, tmp_path / "moved", manifest).skipped == count


def test_a_receipt_of_another_store_is_not_looked_up(maps: Path, manifest: Path) -> None:
    write_run(manifest, [receipt_for(make_map("a"))], "https://cdn.example.com/a at night")
    np.save(maps / "a.npy", random_map(1))
    with pytest.raises(
        am.ManifestError, match=r"is the manifest of https://cdn\.example\.com/a at night, but this run"
    ):
        am.run(maps, am.MemoryStore(), settings=am.Settings(workers=0, same_destination="yes"), manifest=manifest)
