"""Rows follow the truth: failed rows whose map is gone are forgotten, and with ``prune`` all rows and overlays."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.manifest.manifest import Manifest
from async_maps.sources import members
from async_maps.sources.formats import registry
from async_maps.sources.formats.registry import translate_format_errors
from tests.support.commands import invoke
from tests.support.entries import STACK, save_map
from tests.support.manifests import rows
from tests.support.maps import MAP, npy

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_maps.filesystems.filesystem import Filesystem
    from async_maps.manifest.manifest import Select
    from async_maps.sources.formats.registry import Reader

BAD = np.full((3, 4), 7.0)
"""A map that fails when its values are read."""


class Job:
    """A folder of maps, a destination folder and a manifest."""

    def __init__(self, folder: Path) -> None:
        self.maps, self.out, self.manifest = folder / "maps", folder / "out", folder / "m.sqlite"
        self.maps.mkdir()

    def run(self, source: Path | None = None, do: Callable[..., am.Report] = am.run, **how: Any) -> am.Report:
        settings = {name: how.pop(name) for name in list(how) if name in am.Settings.model_fields}
        return do(
            source or self.maps,
            self.out,
            manifest=self.manifest,
            settings=am.Settings(workers=0, **settings),
            **how,
        )

    def save(self, *names: str, array: Any = MAP) -> None:
        for name in names:
            save_map(self.maps / f"{name}.npy", array)

    def done(self) -> list[str]:
        return sorted(rows(self.manifest, "name", "status = 'done'"))

    def failed(self) -> list[str]:
        return sorted(rows(self.manifest, "name", "status = 'failed'"))

    def overlays(self) -> list[str]:
        return sorted(path.relative_to(self.out).as_posix() for path in self.out.rglob("*.png"))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


# Files that are read again -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [b"no array at all", npy(MAP)[:-4], npy(BAD)], ids=["text", "cut", "values"])
@pytest.mark.parametrize("select", ["failed", "changed"])
def test_a_repaired_file_that_is_now_a_stack_is_done_and_its_failed_row_goes(
    job: Job, broken: bytes, select: Select
) -> None:
    job.save("a")
    (job.maps / "bad.npy").write_bytes(broken)
    assert job.run().failed == 1
    job.save("bad", array=STACK)
    report = job.run(select=select)
    assert (report.uploaded, report.failed, report.forgotten) == (5, 0, 1)
    assert report.forgotten_names == ["bad"]
    assert job.done() == ["a", *(f"bad/{n:06}" for n in range(5))]
    assert job.failed() == []


def test_a_stack_that_is_now_one_map_is_done_and_its_failed_rows_go(job: Job) -> None:
    job.save("c", array=STACK + 7)
    assert job.run().failed == 5
    job.save("c")
    report = job.run(select="failed")
    assert (report.uploaded, report.failed, report.forgotten) == (1, 0, 5)
    assert (job.done(), job.failed()) == (["c"], [])


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has only names in UTF-8")
@pytest.mark.parametrize("select", ["failed", "changed"])
def test_a_file_whose_name_is_not_utf_8_does_not_end_the_next_run(job: Job, select: Select) -> None:
    job.save("a", os.fsdecode(b"caf\xe9"))
    for how in ("changed", select):
        report = job.run(select=how)
        assert (report.failed, report.exit_code) == (1, 1)
    assert job.failed() == [r"caf\udce9"]
    (job.maps / os.fsdecode(b"caf\xe9.npy")).unlink()
    report = job.run(select=select)
    assert (report.forgotten, job.failed()) == (1, [])


def test_a_setting_that_changes_names_replaces_failed_rows(job: Job) -> None:
    job.save("c", array=STACK + 7)
    job.run()
    report = job.run(channels="mean", range="per-map", select="failed")
    assert (report.uploaded, report.forgotten) == (1, 5)
    assert (job.done(), job.failed()) == (["c"], [])


def test_a_renamed_member_replaces_the_failed_row_of_the_old_name(job: Job) -> None:
    np.savez(job.maps / "c.npz", x=MAP, y=BAD)
    job.run()
    np.savez(job.maps / "c.npz", x=MAP, z=MAP)
    report = job.run(select="failed")
    # x was done before, so it is not selected.
    assert (report.uploaded, report.unselected, report.forgotten) == (1, 1, 1)
    assert (job.done(), job.failed()) == (["c/x", "c/z"], [])


def test_retry_of_a_member_leaves_its_done_neighbors(job: Job) -> None:
    np.savez(job.maps / "c.npz", x=MAP, y=BAD)
    job.run()
    before = rows(job.manifest, "*", "name = 'c/x'")
    np.savez(job.maps / "c.npz", x=MAP, y=MAP)
    assert job.run(select="failed").uploaded == 1
    assert rows(job.manifest, "*", "name = 'c/x'") == before


def test_a_file_that_was_broken_in_between_is_done_with_retry_failed(job: Job) -> None:
    np.savez(job.maps / "c.npz", x=MAP, y=MAP)
    job.run()
    (job.maps / "c.npz").write_bytes(b"broken")
    assert job.run().failed == 1
    np.savez(job.maps / "c.npz", x=MAP, y=1 - MAP)
    assert job.run(select="failed").uploaded == 2
    assert (job.done(), job.failed()) == (["c/x", "c/y"], [])


def test_a_done_map_that_is_refused_now_has_one_failed_row(job: Job) -> None:
    job.save("a")
    np.savez(job.maps / "b.npz", MAP)
    job.run()
    (job.maps / "b.npz").write_bytes(b"broken")
    job.run()
    assert (job.done(), job.failed()) == (["a"], ["b"])


def test_a_limited_run_replaces_the_failed_rows_of_the_files_that_it_read(job: Job) -> None:
    job.save("a", "c", array=BAD)
    job.save("z")
    job.run()
    job.save("a", "c", array=STACK)
    job.run(limit=7)
    assert job.failed() == ["c"]
    job.run(limit=11)
    assert job.failed() == []


def test_a_drained_run_forgets_nothing(job: Job) -> None:
    job.save("a", array=BAD)
    job.save("b")
    job.run()
    job.save("a", array=STACK)

    async def drained() -> am.Report:
        async with am.Pipeline(job.out, settings=am.Settings(workers=0)) as pipeline:
            pipeline.drain()
            return await pipeline.run(job.maps, manifest=job.manifest)

    assert asyncio.run(drained()).forgotten == 0
    assert job.failed() == ["a"]


# Files that are gone ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("select", ["changed", "failed", "all"])
@pytest.mark.parametrize("broken", [b"no array at all", npy(BAD)], ids=["text", "values"])
def test_the_failed_row_of_a_deleted_file_goes(job: Job, select: Select, broken: bytes) -> None:
    job.save("a")
    for name in ("bad.npy", "deep/bad.npz"):
        (job.maps / name).parent.mkdir(exist_ok=True)
        (job.maps / name).write_bytes(broken)
    assert job.run().failed == 2
    (job.maps / "bad.npy").unlink()
    shutil.rmtree(job.maps / "deep")
    report = job.run(select=select)
    assert (report.failed, report.forgotten, sorted(report.forgotten_names)) == (0, 2, ["bad", "deep/bad"])
    assert (job.done(), job.failed()) == (["a"], [])
    assert "rows forgotten, whose map is no longer in the source: 2" in report.summary()


def test_rows_of_other_sources_stay(job: Job, tmp_path: Path) -> None:
    other = tmp_path / "other"
    save_map(other / "x.npy", BAD)
    (other / "y.npz").write_bytes(b"broken")
    save_map(other / "z.npy")
    listing = tmp_path / "list.csv"
    listing.write_text(f"name,path\nlisted,{other}/x.npy\n,nothing\n")
    job.save("a")
    for source in (other, listing, job.maps, job.maps / "*.npy"):
        job.run(source)
    for select in ("changed", "failed", "all"):
        assert job.run(select=select).forgotten == 0
    assert job.failed() == [f"{listing}, line 3", "listed", "x", "y"]
    # Of pairs in memory nobody knows which others there are.
    job.run([("b", np.zeros((3, 4), complex))])  # type: ignore[arg-type]
    assert job.run([("c", MAP)]).forgotten == 0  # type: ignore[arg-type]
    assert job.run().forgotten == 0
    assert "b" in job.failed()


def test_a_row_that_is_no_longer_listed_goes(job: Job, tmp_path: Path) -> None:
    job.save("a")
    job.save("b", array=BAD)
    listing = tmp_path / "list.csv"
    listing.write_text("name,path\nx,maps/a.npy\ny,maps/b.npy\n,maps/a.npy\n")
    assert job.run(listing).failed == 2
    listing.write_text("name,path\nx,maps/a.npy\n")
    assert job.run(listing).forgotten == 2
    assert (job.done(), job.failed()) == (["x"], [])


def test_a_glob_forgets_only_what_it_matches(job: Job) -> None:
    job.save("a")
    job.save("b", "c", array=BAD)
    np.savez(job.maps / "d.npz", BAD)
    job.run()
    for name in ("b.npy", "d.npz"):
        (job.maps / name).unlink()
    assert job.run(job.maps / "[ab].npy").forgotten == 1
    assert job.failed() == ["c", "d"]
    assert job.run(job.maps / "a.npy").forgotten == 0
    assert job.run().forgotten == 1
    assert job.failed() == ["c"]


def test_limits_and_filters_forget_no_gone_file(job: Job) -> None:
    job.save("a", "b")
    job.save("bad", array=BAD)
    job.run()
    (job.maps / "bad.npy").unlink()
    assert job.run(limit=2).forgotten == 0
    assert job.run(exclude="bad").not_found == 0
    report = job.run(include="b*")
    assert (report.failed, report.forgotten, report.not_found) == (0, 0, 1)
    assert job.failed() == ["bad"]
    assert invoke("run", job.maps, job.out, "--manifest", job.manifest, "--include", "b*", "--retry-failed") == 1
    assert invoke("run", job.maps, job.out, "--manifest", job.manifest, "--retry-failed") == 0


def test_a_filtered_run_touches_only_what_it_selects(job: Job) -> None:
    np.savez(job.maps / "c.npz", x=BAD, y=BAD)
    job.run()
    np.savez(job.maps / "c.npz", z=MAP, w=MAP)
    assert job.run(include=("x", "z")).forgotten == 1
    assert job.failed() == ["c/y"]


def test_a_folder_that_cannot_be_read_forgets_nothing(unprivileged: Path) -> None:
    job = Job(unprivileged)
    job.save("a", "deep/b", "e")
    job.save("c", "deep/d", array=BAD)
    job.run()
    for name in ("c", "e"):
        (job.maps / f"{name}.npy").unlink()
    (job.maps / "deep").chmod(0)
    try:
        report = job.run(prune="rows")
    finally:
        (job.maps / "deep").chmod(0o755)
    assert (report.failed, report.forgotten) == (1, 0)
    assert report.warnings == [
        f"nothing was pruned, because {job.maps / 'deep'} could not be read: correct the reason, and run again"
    ]
    assert (job.done(), job.failed()) == (["a", "deep/b", "e"], [str(job.maps / "deep"), "c", "deep/d"])
    assert job.run(select="failed").forgotten == 2
    assert job.failed() == ["deep/d"]


def test_an_overlay_with_two_names_is_kept_while_a_map_has_it(job: Job) -> None:
    """A folder of the destination is a link to another one."""
    (job.out / "b").mkdir(parents=True)
    (job.out / "a").symlink_to("b")
    job.save("a/x", "c", "d", "e")
    job.run()
    (job.maps / "b").mkdir()
    (job.maps / "a/x.npy").rename(job.maps / "b/x.npy")
    report = job.run(prune="objects")
    assert (report.forgotten, report.deleted, report.failed) == (1, 0, 0)
    assert job.done() == ["b/x", "c", "d", "e"]
    assert (job.out / "b/x.png").is_file()


@pytest.mark.parametrize("is_named", [False, True])
def test_a_file_that_was_listed_without_memory_forgets_nothing(
    job: Job, is_named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.save("a", "b", "c")
    job.save("d", array=STACK[:2])
    job.run()
    overlays = job.overlays()
    os.utime(job.maps / "d.npy", (1, 1))

    def open_reader(path: str, filesystem: Filesystem) -> Reader:
        if path.endswith("d.npy"):
            if is_named:
                with translate_format_errors("damaged"):
                    raise MemoryError
            raise MemoryError
        return registry.open_reader(path, filesystem)

    monkeypatch.setattr(members, "open_reader", open_reader)
    report = job.run(prune="objects")
    assert (report.failed, report.forgotten, report.deleted) == (1, 0, 0)
    assert report.warnings == [
        f"nothing was pruned, because {job.maps / 'd.npy'} could not be read: correct the reason, and run again"
    ]
    assert job.overlays() == overlays


def test_an_empty_source_forgets_nothing(job: Job) -> None:
    job.save("a", array=BAD)
    job.save("b")
    job.run()
    for path in job.maps.iterdir():
        path.unlink()
    with pytest.raises(am.SourceError, match="contains no activation maps"):
        job.run(prune="rows", prune_all=True)
    assert (job.done(), job.failed()) == (["b"], ["a"])


# Pruning ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["maps", "maps/**/*.npy"])
def test_a_link_to_a_folder_that_is_not_mounted_prevents_pruning(job: Job, source: str, tmp_path: Path) -> None:
    job.save("a", "b", "c", "disk/d")
    (job.maps / "disk").rename(tmp_path / "disk")
    (job.maps / "far").symlink_to(tmp_path / "disk")
    job.run(tmp_path / source)
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    report = job.run(tmp_path / source, prune="objects")
    assert (report.forgotten, report.deleted, report.exit_code) == (0, 0, 0)
    assert report.warnings == [
        f"nothing was pruned, because {job.maps / 'far'} could not be read: correct the reason, and run again"
    ]
    assert job.overlays() == ["a.png", "b.png", "c.png", "far/d.png"]
    (job.maps / "far").unlink()
    assert job.run(tmp_path / source, prune="objects").deleted == 1


def test_without_prune_done_rows_and_overlays_stay(job: Job) -> None:
    job.save("a", "b")
    job.run()
    (job.maps / "b.npy").unlink()
    assert job.run().forgotten == 0
    assert (job.done(), job.overlays()) == (["a", "b"], ["a.png", "b.png"])


@pytest.mark.parametrize("prune", ["rows", "objects"])
@pytest.mark.parametrize("select", ["changed", "all"])
def test_pruning_forgets_what_is_gone(job: Job, prune: str, select: str) -> None:
    job.save("a", "deep/b", "c", "stack", array=MAP)
    job.save("d", array=STACK[:2])
    job.run()
    (job.maps / "deep" / "b.npy").unlink()
    job.save("d")
    report = job.run(prune=prune, select=select)
    assert (report.forgotten, report.deleted) == (3, 3 if prune == "objects" else 0)
    assert job.done() == ["a", "c", "d", "stack"]
    kept = [] if prune == "objects" else ["d/000000.png", "d/000001.png", "deep/b.png"]
    assert job.overlays() == sorted(["a.png", "c.png", "d.png", "stack.png", *kept])


@pytest.mark.parametrize(
    ("broken", "key", "forgotten_before"),
    [
        (b"no array at all", "{name}.png", False),
        (npy(MAP)[:-4], "{digest}-{index}.png", True),
        (npy(BAD), "{name}.png", True),
    ],
    ids=["text", "cut", "values"],
)
def test_pruning_deletes_the_overlay_of_a_map_that_failed_and_is_gone(
    job: Job, broken: bytes, key: str, forgotten_before: bool
) -> None:
    job.save("a", "c", "d")
    job.save("b", array=1 - MAP)
    job.run(key=key)
    stored = job.overlays()
    (job.maps / "b.npy").write_bytes(broken)
    assert job.run(key=key, prune="objects").deleted == 0
    (job.maps / "b.npy").unlink()
    if forgotten_before:
        assert job.run(key=key).forgotten == 1
        # It is neither foreign nor called unrecorded.
        verification = am.verify_locators(job.manifest)
        assert (verification.is_clean, verification.of_failed, verification.unrecorded) == (True, 1, 0)
    assert job.run(key=key, prune="objects", do=am.dry_run).deleted == 1
    assert job.overlays() == stored
    report = job.run(key=key, prune="objects")
    assert (report.deleted, report.forgotten) == (1, 0 if forgotten_before else 1)
    assert (job.done(), job.failed(), len(job.overlays())) == (["a", "c", "d"], [], 3)
    with Manifest(job.manifest, read_only=True) as manifest:
        assert [*manifest.sent()] == []
    assert am.verify_locators(job.manifest).of_failed == 0


def test_overlays_of_maps_that_failed_and_are_gone_count_in_the_limit_of_a_half(job: Job) -> None:
    job.save("a", "b", "c")
    job.run()
    for name in ("a", "b"):
        (job.maps / f"{name}.npy").write_bytes(b"no array at all")
    job.run()
    for name in ("a", "b"):
        (job.maps / f"{name}.npy").unlink()
    with pytest.raises(am.SettingsError, match=r"2 of the 3 overlays of .* are of maps that are gone"):
        job.run(prune="objects")
    assert len(job.overlays()) == 3
    assert job.run(prune="objects", prune_all=True).deleted == 2


def test_an_overlay_of_another_row_is_not_deleted(job: Job) -> None:
    job.save("a", "b", "c")
    job.save("d", array=1 - MAP)
    job.run(key="{digest}.png")
    assert len(job.overlays()) == 2
    (job.maps / "a.npy").unlink()
    (job.maps / "d.npy").unlink()
    report = job.run(key="{digest}.png", prune="objects")
    assert (report.forgotten, report.deleted) == (2, 1)
    assert rows(job.manifest, "locator", "name = 'b'") == [(job.out / job.overlays()[0]).as_uri()]


def test_an_overlay_that_cannot_be_deleted_keeps_its_row(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.save("a", "b", "c", "d")
    job.run()
    for name in ("a", "b"):
        (job.maps / f"{name}.npy").unlink()
    (job.out / "a.png").unlink()
    (job.out / "a.png").mkdir()
    (job.out / "b.png").unlink()  # which somebody else has deleted already
    report = job.run(prune="objects")
    assert (report.forgotten, report.deleted, report.undeleted) == (1, 1, 1)
    (warning,) = report.warnings
    assert warning == (
        f"overlays could not be deleted, such as {(job.out / 'a.png').as_uri()}: Is a directory. Their rows stay: "
        "correct the reason, and run again"
    )
    assert job.done() == ["a", "c", "d"]
    assert invoke("run", job.maps, job.out, "--manifest", job.manifest, "--prune", "objects") == 1
    assert f"warning: {warning}" in capsys.readouterr().err


def test_more_than_half_is_pruned_only_with_prune_all(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.save("a", "b", "c", "d", "e")
    job.run()
    for name in "abc":
        (job.maps / f"{name}.npy").unlink()
    job.save("f", "g", "h", "i")
    said = (
        f"nothing is pruned, because 3 of the 5 overlays of {job.maps} are of maps that are gone, more than half: "
        "check that the source is complete; to prune them, add --prune-all"
    )
    assert job.run(do=am.dry_run, prune="objects").warnings == [said]
    command = ("run", job.maps, job.out, "--manifest", job.manifest, "--prune", "objects")
    assert invoke(*command) == 2
    assert said in capsys.readouterr().err
    assert job.done() == list("abcdefghi")
    # The new maps do not make the old ones fewer.
    assert invoke(*command) == 2
    assert "as many as were refused before" in capsys.readouterr().err
    assert invoke(*command, "--prune-all") == 0
    assert job.done() == list("defghi")
    assert job.overlays() == [f"{name}.png" for name in "defghi"]
    for name in "ghi":
        (job.maps / f"{name}.npy").unlink()
    # What was allowed once is not refused later.
    assert job.run(prune="objects").forgotten == 3


def test_a_source_that_is_complete_again_is_not_refused_later(job: Job) -> None:
    names = "abcdef"
    job.save(*names)
    job.run()
    for name in "abcd":
        (job.maps / f"{name}.npy").rename(job.maps.parent / f"{name}.npy")
    with pytest.raises(am.SettingsError, match="more than half"):
        job.run(prune="rows")
    for name in "abcd":
        (job.maps.parent / f"{name}.npy").rename(job.maps / f"{name}.npy")
    job.save(*"ghij")
    assert job.run(prune="rows").forgotten == 0
    for name in "abcd":
        (job.maps / f"{name}.npy").unlink()
    assert job.run(prune="rows").forgotten == 4


def test_thousands_of_failed_rows_go_in_batches(job: Job) -> None:
    job.save("a")
    job.save("c", array=np.full((2500, 5, 6), 7.0))
    assert job.run().failed == 2500
    job.save("c")
    report = job.run(limit=1)
    assert report.forgotten == 0
    report = job.run(include="c")
    assert (report.forgotten, len(report.forgotten_names)) == (2500, 1000)
    assert job.failed() == []


def test_half_is_pruned(job: Job) -> None:
    job.save("a", "b", "c", "d")
    job.run()
    for name in "ab":
        (job.maps / f"{name}.npy").unlink()
    assert job.run(prune="rows").forgotten == 2


def test_a_dry_run_lists_what_would_go_and_changes_nothing(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.save("a", "b", "c")
    job.save("bad", array=BAD)
    job.run()
    for name in ("b", "bad"):
        (job.maps / f"{name}.npy").unlink()
    before = rows(job.manifest, "*")
    report = job.run(do=am.dry_run, prune="objects")
    assert (report.forgotten, sorted(report.forgotten_names), report.deleted) == (2, ["b", "bad"], 1)
    assert "rows would be forgotten, whose map is no longer in the source: 2" in report.summary()
    assert job.run(do=am.dry_run).forgotten_names == ["bad"]
    assert (rows(job.manifest, "*"), job.overlays()) == (before, ["a.png", "b.png", "c.png"])
    capsys.readouterr()
    assert invoke("run", job.maps, job.out, "--manifest", job.manifest, "--prune", "rows", "--dry-run") == 0
    said = capsys.readouterr().err
    assert said.splitlines() == ["async-maps: would be forgotten: b", "async-maps: would be forgotten: bad"]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"prune": "row"}, "prune: expected rows, objects, found 'row'"),
        ({"prune": "rows", "limit": 3}, "prune: it needs a whole run"),
        ({"prune": "rows", "select": "failed"}, "prune: it needs a whole run"),
        ({"prune": "rows", "include": "a"}, "prune: it needs a whole run"),
        ({"prune": "rows", "exclude": "a"}, "prune: it needs a whole run"),
        ({"prune": "rows", "source": [("a", MAP)]}, "prune: the source must be a path"),
        ({"prune_all": True}, "prune_all: choose with prune what to prune"),
    ],
)
def test_a_run_that_cannot_prune_says_why(job: Job, how: dict[str, Any], reason: str) -> None:
    job.save("a")
    for do in (am.run, am.dry_run):
        with pytest.raises(am.SettingsError, match=reason):
            job.run(do=do, **how)
    assert not job.manifest.exists()


def test_objects_in_memory_and_runs_without_a_manifest_are_not_pruned(job: Job) -> None:
    job.save("a")
    with pytest.raises(am.SettingsError, match="objects are deleted only in buckets and in folders"):
        am.run(job.maps, "memory://", manifest=job.manifest, prune="objects")
    with pytest.raises(am.SettingsError, match="prune: it needs a manifest"):
        am.run(job.maps, job.out, prune="rows")


def test_a_source_on_another_disk_does_not_look_like_a_deletion(job: Job, tmp_path: Path) -> None:
    job.save("a", "b")
    job.run()
    os.rename(job.maps, tmp_path / "moved")
    job.maps.mkdir()
    job.save("x", "y", "z")
    for _ in range(3):
        with pytest.raises(am.SettingsError, match="2 of the"):
            job.run(prune="objects")
    assert job.overlays() == [f"{name}.png" for name in "abxyz"]
