"""Overlays that were moved or copied are verified and repaired at their present place."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import async_maps as am
from async_maps.filesystems.locators import file_path
from tests.support.commands import invoke, only_error
from tests.support.leftovers import leaves_nothing
from tests.support.manifests import rows
from tests.support.overlays import found, upload_overlays

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures(leaves_nothing.__name__)]

SETTINGS = am.Settings(workers=0)


@pytest.fixture
def out(tmp_path: Path, maps: Path, manifest: Path) -> Path:
    """A folder with the overlays of a run."""
    upload_overlays(maps, tmp_path / "out", manifest)
    return tmp_path / "out"


def test_a_copy_is_verified_at_its_place(out: Path, manifest: Path, tmp_path: Path) -> None:
    shutil.copytree(out, tmp_path / "copy é")
    (out / "e.png").unlink()
    (tmp_path / "copy é/f.png").write_bytes(b"damaged")
    (tmp_path / "copy é/x.png").touch()
    before = manifest.read_bytes()
    for destination in (tmp_path / "copy é", f"file://{tmp_path}/copy é/", (tmp_path / "copy é").as_uri()):
        verification = am.verify_locators(manifest, settings=SETTINGS, destination=destination)
        assert found(verification) == {"size": {"f"}, "foreign": {"x"}}
        assert (verification.right, verification.folders) == (7, [f"{(tmp_path / 'copy é').as_uri()}/"])
    assert found(am.verify_locators(manifest, settings=SETTINGS, deep=True)) == {"missing": {"e"}}
    assert manifest.read_bytes() == before


def test_a_moved_folder_is_named_and_repaired_at_its_place(
    out: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "moved"
    out.rename(moved)
    assert invoke("verify", manifest, "--progress", "none") == 1
    said = capsys.readouterr().out
    assert f"{out} does not exist. If it was moved: async-maps verify {manifest} --destination FOLDER\n" in said
    # Of eight rows, the first, second, fourth, sixth and last are looked up.
    third, last = (
        moved / Path(str(file_path(locator))).relative_to(out)
        for locator in rows(manifest, "locator", "rowid IN (3, 8) ORDER BY rowid")
    )
    whole = third.read_bytes()
    third.write_bytes(b"damaged")
    last.rename(tmp_path / "kept.png")
    command = ("verify", manifest, "--repair", "--destination", moved, "--workers", 0, "--progress", "none")
    assert invoke(*command) == 2
    assert "is missing: move the overlays there, or name the place of its overlays" in only_error(capsys.readouterr())
    assert all(locator.startswith(out.as_uri()) for locator in rows(manifest, "locator"))
    (tmp_path / "kept.png").rename(last)
    assert invoke(*command) == 0
    assert "1 repaired" in capsys.readouterr().out
    assert third.read_bytes() == whole
    assert all(locator.startswith(moved.as_uri()) for locator in rows(manifest, "locator"))
    assert not out.exists()


@pytest.mark.parametrize("option", ["--destination", "--source"])
def test_an_empty_place_is_not_the_working_folder(
    option: str, out: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke("verify", manifest, "--repair", option, "") == 2
    assert "the address is empty; expected s3://bucket/prefix, gs://bucket/prefix, " in capsys.readouterr().err


def test_a_table_has_no_other_destination(out: Path, manifest: Path, tmp_path: Path) -> None:
    am.export_manifest(manifest, tmp_path / "table.csv")
    with pytest.raises(am.SettingsError, match=r"table\.csv is a table, whose locators are complete"):
        am.verify_locators(tmp_path / "table.csv", destination=out)
