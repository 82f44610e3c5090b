"""Broken overlays are repaired with their original settings and maps; nothing else changes."""

from __future__ import annotations

import asyncio
import importlib
import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from anyio import to_thread

import async_maps as am
from async_maps.filesystems.objects import Objects
from async_maps.manifest.manifest import Manifest
from async_maps.outcomes import Failure
from tests.support.leftovers import leaves_nothing
from tests.support.manifests import rows
from tests.support.maps import random_map
from tests.support.overlays import NAMES, flipped, found, upload_overlays

if TYPE_CHECKING:
    from pathlib import Path

    from async_maps.render.colormap import AnyColormap

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures(leaves_nothing.__name__)]

SETTINGS = am.Settings(workers=0)


async def test_overlays_in_a_folder_are_repaired(tmp_path: Path, maps: Path, manifest: Path, puts: list[str]) -> None:
    out = tmp_path / "out"
    await to_thread.run_sync(upload_overlays, maps, out, manifest)
    before = {path: path.read_bytes() for path in out.rglob("*.png")}
    (out / "a/missing.png").unlink()
    (out / "a/truncated.png").write_bytes(b"")
    (out / "b/flipped.png").write_bytes(flipped((out / "b/flipped.png").read_bytes()))
    foreign = [out / f"foreign {i}.png" for i in range(3)]
    for path in foreign:
        path.touch()
    puts.clear()
    # Without deep, too, a file of the right size is compared by its bytes.
    verification = await am.arepair_overlays(manifest, settings=SETTINGS)
    assert sorted(puts) == ["a/missing.png", "a/truncated.png", "b/flipped.png"]
    assert (verification.repaired, verification.differences) == (3, {"foreign": 3})
    assert all(path.exists() for path in foreign)
    verification = await am.arepair_overlays(manifest, settings=SETTINGS, deep=True, delete_foreign=True)
    assert (verification.repaired, verification.deleted, verification.right, verification.first) == (0, 3, 8, [])
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    puts.clear()
    assert (await am.arepair_overlays(manifest, settings=SETTINGS, deep=True, delete_foreign=True)).is_clean
    assert puts == []


async def test_foreign_objects_that_cannot_be_deleted_are_named(
    tmp_path: Path, maps: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await to_thread.run_sync(upload_overlays, maps, tmp_path / "out", manifest)
    (tmp_path / "out/g.png").touch()

    def refused(path: str, **_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("async_maps.filesystems.objects.os.unlink", refused)
    verification = await am.arepair_overlays(manifest, settings=SETTINGS, delete_foreign=True)
    assert (verification.deleted, verification.differences) == (0, {"foreign": 1})
    assert verification.advice == [f"not deleted: {(tmp_path / 'out/g.png').as_uri()}: Permission denied"]


async def test_maps_and_manifests_beside_overlays_are_not_deleted(maps: Path) -> None:
    manifest = maps / "manifest.db"
    await to_thread.run_sync(upload_overlays, maps, maps, manifest)
    kept = ["x.h5", "x.names.txt", "report.json", "notes.txt", "photo.jpg", "model.ckpt", "other.db"]
    for name in [*kept, "stale.PNG"]:
        (maps / name).touch()
    (maps / "e.png").unlink()
    verification = await am.arepair_overlays(manifest, settings=SETTINGS, delete_foreign=True)
    assert (verification.first, verification.repaired, verification.deleted) == ([], 1, 1)
    overlays = [f"{name}{suffix}" for name in NAMES for suffix in (".npy", ".png")]
    left = {str(path.relative_to(maps)) for path in maps.rglob("*") if path.is_file()}
    assert left == {"manifest.db", *kept, *overlays}


async def test_a_foreign_file_with_an_undecodable_name_is_deleted(tmp_path: Path, maps: Path, manifest: Path) -> None:
    out = tmp_path / "out \udcff"
    np.save(maps / "\ufffd.npy", random_map(1))
    await to_thread.run_sync(lambda: am.run(maps, out, settings=SETTINGS, manifest=manifest))
    (out / "\udcfe.png").touch()
    verification = await am.arepair_overlays(manifest, settings=SETTINGS, deep=True, delete_foreign=True)
    assert (verification.is_clean, verification.repaired, verification.deleted) == (True, 0, 1)
    assert [path.name for path in out.iterdir()] == ["\ufffd.png"]


async def test_repair_leaves_foreign_objects_and_names_the_command(tmp_path: Path, maps: Path, manifest: Path) -> None:
    await to_thread.run_sync(upload_overlays, maps, tmp_path / "out", manifest)
    (tmp_path / "out/strange.png").touch()
    os.utime(tmp_path / "out/strange.png", (1, 1))
    verification = await am.arepair_overlays(manifest, settings=SETTINGS)
    assert (verification.differences, verification.deleted, verification.repaired) == ({"foreign": 1}, 0, 0)
    (advice,) = verification.advice
    assert "--repair --delete-foreign" in advice
    assert (tmp_path / "out/strange.png").exists()


async def test_repair_keeps_failures_of_maps_it_does_not_read(tmp_path: Path, maps: Path, manifest: Path) -> None:
    await to_thread.run_sync(upload_overlays, maps, tmp_path / "out", manifest)
    with Manifest(manifest) as opened:
        opened.begin((tmp_path / "out").as_uri())
        opened.write([Failure("twice", "/twice.npy", None, "source", "another map has this name")], "x")
    (tmp_path / "out/e.png").unlink()
    verification = await am.arepair_overlays(manifest, settings=SETTINGS)
    assert (verification.repaired, verification.failed) == (1, 1)
    assert rows(manifest, "name", "status = 'failed'") == ["twice"]


async def test_repair_of_nothing_deletes_nothing(tmp_path: Path, maps: Path, manifest: Path) -> None:
    await to_thread.run_sync(upload_overlays, maps, tmp_path / "out", manifest)
    verification = await am.arepair_overlays(manifest, settings=SETTINGS, delete_foreign=True)
    assert (verification.is_clean, verification.deleted, verification.advice) == (True, 0, [])


@pytest.mark.parametrize("listed_as", ["D%20E%CC%81.png", "d%20%C3%89.PNG"])
async def test_an_overlay_listed_in_another_case_is_not_deleted(
    listed_as: str, tmp_path: Path, maps: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that ignores case or changes the Unicode form of an accent."""
    await to_thread.run_sync(upload_overlays, maps, tmp_path / "out", manifest)
    original = importlib.import_module("async_maps.filesystems.objects")._files_below

    def folded(folder: str) -> Any:
        for file in original(folder):
            yield file._replace(locator=file.locator.replace("d%20%C3%A9.png", listed_as))

    monkeypatch.setattr("async_maps.filesystems.objects._files_below", folded)
    verification = await am.arepair_overlays(manifest, settings=SETTINGS, delete_foreign=True)
    assert (verification.first, verification.deleted, verification.advice) == ([], 0, [])


async def test_overlays_behind_a_link_are_not_deleted(tmp_path: Path, maps: Path, manifest: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "disk/elsewhere").mkdir(parents=True)
    out.symlink_to(tmp_path / "disk")
    (out / "a").symlink_to("elsewhere")
    await to_thread.run_sync(upload_overlays, maps, out, manifest)
    (out / "elsewhere/stale.png").touch()
    verification = await am.arepair_overlays(manifest, settings=SETTINGS, delete_foreign=True)
    assert (verification.first, verification.deleted, verification.repaired) == ([], 1, 0)
    assert {path.name for path in (out / "elsewhere").iterdir()} == {"missing.png", "truncated.png"}


async def test_nothing_is_deleted_if_no_overlay_is_there(tmp_path: Path, maps: Path, manifest: Path) -> None:
    """The manifest may belong to another destination."""
    await to_thread.run_sync(upload_overlays, maps, tmp_path / "out", manifest)
    for path in (tmp_path / "out").rglob("*.png"):
        path.rename(path.with_stem(f"{path.stem} of before"))
    verification = await am.arepair_overlays(manifest, settings=SETTINGS, delete_foreign=True)
    assert verification.advice[0].startswith("nothing was deleted: no overlay of ")
    assert (verification.deleted, verification.repaired, verification.differences) == (0, 8, {"foreign": 8})


async def test_without_foreign_objects_nothing_is_said_of_them(tmp_path: Path, maps: Path, manifest: Path) -> None:
    await to_thread.run_sync(upload_overlays, maps, tmp_path / "out", manifest)
    for path in (tmp_path / "out").rglob("*.png"):
        path.unlink()
    verification = await am.arepair_overlays(manifest, settings=SETTINGS, delete_foreign=True)
    assert (verification.deleted, verification.repaired, verification.advice) == (0, 8, [])


@pytest.mark.parametrize("then", ["run", "repair"])
async def test_an_interrupted_repair_is_completed_by_the_next_command(
    then: str, tmp_path: Path, maps: Path, manifest: Path, puts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    await to_thread.run_sync(upload_overlays, maps, out, manifest)
    (out / "e.png").unlink()
    (out / "f.png").write_bytes(b"short")

    async def interrupted(*_: Any, **__: Any) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(am.Pipeline, "_repair", interrupted)
        with pytest.raises(asyncio.CancelledError):
            await am.arepair_overlays(manifest, settings=SETTINGS)
    assert rows(manifest, "name, stage, locator, error", "status = 'failed' ORDER BY name") == [
        ("e", "verify", (out / "e.png").as_uri(), "missing: expected 1,742 bytes, found nothing"),
        ("f", "verify", (out / "f.png").as_uri(), "size: expected 1,742 bytes, found 5 bytes"),
    ]
    # Broken overlays are not exported and not foreign.
    assert am.export_manifest(manifest, tmp_path / "locators.csv") == len(NAMES) - 2
    verification = await am.averify_locators(manifest, settings=SETTINGS)
    assert found(verification) == {"broken": {"e", "f"}}
    assert "missing: expected 1,742 bytes, found nothing" in verification.first[0].found
    puts.clear()
    if then == "run":
        report = await to_thread.run_sync(lambda: am.run(maps, out, settings=SETTINGS, manifest=manifest))
        assert (report.uploaded, report.skipped) == (2, len(NAMES) - 2)
    else:
        assert (await am.arepair_overlays(manifest, settings=SETTINGS)).repaired == 2
    assert sorted(puts) == ["e.png", "f.png"]
    assert (await am.averify_locators(manifest, settings=SETTINGS, deep=True)).is_clean


@pytest.mark.parametrize("where", ["_files_below", "examine"])
async def test_a_cancelled_verification_changes_nothing(
    where: str, tmp_path: Path, maps: Path, manifest: Path, puts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await to_thread.run_sync(upload_overlays, maps, tmp_path / "out", manifest)
    (tmp_path / "out/e.png").unlink()
    module = "filesystems.objects" if where == "_files_below" else "verify.reading"
    original = getattr(importlib.import_module(f"async_maps.{module}"), where)
    looking, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        looking.set()
        go_on.wait()
        return original(*arguments)

    monkeypatch.setattr(f"async_maps.{module}.{where}", slow)
    puts.clear()
    repairing = asyncio.create_task(am.arepair_overlays(manifest, settings=SETTINGS, deep=True))
    assert await to_thread.run_sync(looking.wait, 60)
    repairing.cancel()
    asyncio.get_running_loop().call_later(0.05, go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await repairing
    with Manifest(manifest) as opened:
        assert opened.counts() == {"done": len(NAMES)}
    assert puts == []


async def test_each_overlay_is_repaired_with_its_own_source_and_settings(
    tmp_path: Path, manifest: Path, puts: list[str]
) -> None:
    """Two sources share a name; runs use two colormaps and a table of colors."""
    out = tmp_path / "out"
    colors = np.random.default_rng(0).integers(0, 256, (256, 4), np.uint8)
    runs: list[tuple[str, str, AnyColormap]] = [
        ("one", "ab", "jet"),
        ("two", "bc", "jet"),
        ("two", "cd", "gray"),
        ("three", "e", colors),
        ("one", "f", "jet"),
    ]
    for seed, (source, names, colormap) in enumerate(runs):
        for number, name in enumerate(names):
            (tmp_path / source).mkdir(exist_ok=True)
            np.save(tmp_path / source / f"{name}.npy", random_map(10 * seed + number))
        settings = am.Settings(workers=0, colormap=colormap, range="per-map", alpha=0.25)
        place = tmp_path / source / "*.npy"
        await to_thread.run_sync(lambda: am.run(place, out, settings=settings, manifest=manifest))  # noqa: B023
    with Manifest(manifest, read_only=True) as opened:
        assert len(opened.runs()) == 4
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for path in out.iterdir():
        path.unlink()
    puts.clear()
    verification = await am.arepair_overlays(manifest, settings=SETTINGS)
    assert (verification.repaired, verification.first, verification.advice) == (6, [], [])
    assert sorted(puts) == [f"{name}.png" for name in "abcdef"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


async def test_a_shared_overlay_is_repaired_if_one_map_changed(tmp_path: Path, maps: Path, manifest: Path) -> None:
    out, settings = tmp_path / "out", am.Settings(workers=0, key="{digest}.png")
    for name in "ab":
        np.save(maps / f"{name}.npy", random_map(1))
    await to_thread.run_sync(lambda: am.run(maps, out, settings=settings, manifest=manifest))
    (overlay,) = out.iterdir()
    before = overlay.read_bytes()
    overlay.write_bytes(flipped(before))
    np.save(maps / "a.npy", random_map(2))
    verification = await am.arepair_overlays(manifest, settings=SETTINGS, deep=True)
    assert (verification.repaired, verification.locators, verification.first) == (2, 2, [])
    assert overlay.read_bytes() == before
    assert (await am.averify_locators(manifest, settings=SETTINGS, deep=True)).right == 2


async def test_a_missing_source_that_is_not_needed_is_not_reported(tmp_path: Path, maps: Path, manifest: Path) -> None:
    out = tmp_path / "out"
    for source in ("gone", "there", "gone too"):
        (tmp_path / source).mkdir()
        np.save(tmp_path / source / f"{source}.npy", random_map(1))
        await to_thread.run_sync(lambda: am.run(tmp_path / source, out, settings=SETTINGS, manifest=manifest))  # noqa: B023
    for source in ("gone", "gone too"):
        (tmp_path / source).rename(maps / source)
    (out / "there.png").unlink()
    verification = await am.arepair_overlays(manifest, settings=SETTINGS)
    assert (verification.is_clean, verification.repaired, verification.advice) == (True, 1, [])


async def test_moved_maps_are_repaired_from_the_given_source(
    tmp_path: Path, maps: Path, manifest: Path, puts: list[str]
) -> None:
    out, moved = tmp_path / "out", tmp_path / "moved"
    await to_thread.run_sync(upload_overlays, maps, out, manifest)
    before = (out / "e.png").read_bytes()
    maps.rename(moved)
    (out / "e.png").unlink()
    puts.clear()
    verification = await am.arepair_overlays(manifest, settings=SETTINGS)
    assert found(verification) == {"missing": {"e"}}
    assert verification.advice[0] == f"cannot be repaired from {maps}: no such file or folder: {maps}"
    assert verification.advice[1].startswith("1 overlay could not be repaired. If the maps have moved")
    assert f"--manifest {manifest} --retry-failed" in verification.advice[1]
    assert puts == []
    (tmp_path / "another").mkdir()
    np.save(tmp_path / "another/x.npy", random_map(1))
    await am.arepair_overlays(manifest, settings=SETTINGS, source=tmp_path / "another")
    with Manifest(manifest, read_only=True) as opened:
        assert [run.source for run in opened.runs()] == [str(maps)]
    verification = await am.arepair_overlays(manifest, settings=SETTINGS, source=moved)
    assert (verification.is_clean, verification.advice, puts) == (True, [], ["e.png"])
    assert (out / "e.png").read_bytes() == before
    # The manifest keeps the new source.
    (out / "e.png").unlink()
    assert (await am.arepair_overlays(manifest, settings=SETTINGS)).repaired == 1


async def test_an_overlay_of_an_array_is_named_with_advice(tmp_path: Path, maps: Path, manifest: Path) -> None:
    out = tmp_path / "out"
    arrays = [(str(i), random_map(i)) for i in range(3)]
    await to_thread.run_sync(lambda: am.run(arrays, out, settings=SETTINGS, manifest=manifest))
    (out / "1.png").unlink()
    verification = await am.arepair_overlays(manifest, settings=SETTINGS)
    assert found(verification) == {"missing": {"1"}}
    assert "--retry-failed" in verification.advice[0]
    np.save(maps / "1.npy", random_map(1))
    assert (await am.arepair_overlays(manifest, settings=SETTINGS, source=maps)).is_clean


async def test_a_changed_map_is_repaired_and_a_failed_one_stays_broken(
    tmp_path: Path, maps: Path, manifest: Path
) -> None:
    out = tmp_path / "out"
    await to_thread.run_sync(upload_overlays, maps, out, manifest)
    for name in ("d é", "e", "f"):
        (out / f"{name}.png").unlink()
    np.save(maps / "d é.npy", random_map(99))
    (maps / "e.npy").write_bytes(b"no map")
    (maps / "f.npy").unlink()
    (maps / "not asked for.npy").write_bytes(b"no map either")
    verification = await am.arepair_overlays(manifest, settings=SETTINGS)
    assert (verification.repaired, verification.right) == (1, 6)
    assert found(verification) == {"broken": {"e", "f"}}
    assert verification.advice[0].startswith(f"failed: e ({maps / 'e.npy'}): ")
    assert "not asked for" not in str(verification.advice)
    assert sorted(rows(manifest, "name, stage", "status = 'failed'")) == [("e", "verify"), ("f", "verify")]
    assert (await am.averify_locators(manifest, settings=SETTINGS, deep=True)).right == 6


async def test_an_unreadable_overlay_is_not_repaired(
    tmp_path: Path, maps: Path, manifest: Path, puts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    await to_thread.run_sync(upload_overlays, maps, out, manifest)
    (out / "f.png").unlink()
    original = Objects.read

    def refused(self: Objects, locator: str) -> Any:
        if locator.endswith("e.png"):
            raise am.SourceError("refused with AccessDenied: no")
        return original(self, locator)

    monkeypatch.setattr(Objects, "read", refused)
    puts.clear()
    verification = await am.arepair_overlays(manifest, settings=SETTINGS, deep=True)
    assert puts == ["f.png"]
    assert found(verification) == {"unreadable": {"e"}}
    assert verification.first[0].found == "refused with AccessDenied: no"


@pytest.mark.parametrize(
    "settings",
    [
        am.Settings(),
        am.Settings(colormap="viridis_r", alpha="opaque", png="rgba", png_level=3, invalid="zero", key="x/{name}"),
        am.Settings(colormap="red,#00ff0080", alpha=0.3, range=(-2.5, 1e-9), key="{stem}.{digest:.16}.png"),
        am.Settings(range="percentile:0.123456789012,99.9", png="compact", invalid="transparent"),
        am.Settings(s3=am.S3Settings(cache_control="no-cache", metadata={"a": "b"}, storage_class="STANDARD_IA")),
        am.Settings(s3=am.S3Settings(acl="private", tagging={"a": "b"}, bucket_key=True)),
    ],
)
def test_settings_are_equal_after_a_round_trip(settings: am.Settings) -> None:
    others = am.Settings(workers=3, concurrency=7, s3=am.S3Settings(max_attempts=3, kms_key_id="other"))
    again = others.shaped_as(settings.shaping(settings.value_range))
    assert again.fingerprint() == settings.fingerprint()
    assert (again.workers, again.concurrency, again.s3.max_attempts) == (3, 7, 3)
    headers = {"cache_control", "metadata", "storage_class", "server_side_encryption", "kms_key_id", "acl", "tagging"}
    assert again.s3.model_dump(include=headers) == settings.s3.model_dump(include=headers)
