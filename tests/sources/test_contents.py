"""What in a file or folder is a map, and the names of maps."""

from __future__ import annotations

import zipfile
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.sources import open_source
from async_maps.sources.options import SourceOptions
from tests.support.entries import STACK, failures_of, names_of, only_names, save_map, save_tar
from tests.support.maps import MAP, npy

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fast

SIDE_DATA: dict[str, tuple[Any, str]] = {
    "labels": (np.arange(5), "arrays below two dimensions"),
    "count": (np.float32(3), "arrays below two dimensions"),
    "classes": (np.array([["cat"], ["dog"]]), "arrays of text"),
    "bytes": (np.array([[b"cat"]]), "arrays of text"),
    "times": (np.zeros((2, 2), "M8[s]"), "arrays that are not numbers"),
    "boxes": (np.zeros((2, 2), [("x", "f4")]), "arrays that are not numbers"),
    "objects": (np.array([[{"a": 1}]]), "arrays of objects"),
}


def listed(place: Path, **options: Any) -> tuple[list[str], dict[str, int]]:
    """Return the names of the maps of a source without failures, and what was passed over."""
    counts = Counter[str]()

    def count(what: str) -> None:
        counts[what] += 1

    return only_names(open_source(place, pass_over=count, options=SourceOptions(**options))), dict(counts)


@pytest.mark.parametrize("name", SIDE_DATA)
def test_side_data_in_an_archive_are_passed_over(maps: Path, name: str) -> None:
    array, what = SIDE_DATA[name]
    np.savez(maps / "a.npz", cams=STACK, **{name: array})
    assert listed(maps) == ([f"a/{index:06}" for index in range(5)], {what: 1})


@pytest.mark.parametrize("name", [name for name in SIDE_DATA if name != "objects"])
def test_side_data_in_a_tar_or_a_file_are_passed_over(maps: Path, name: str) -> None:
    array, what = SIDE_DATA[name]
    save_tar(maps / "a.tar", {"1.cam.npy": npy(MAP), f"1.{name}.npy": npy(np.asarray(array))})
    np.save(maps / "b.npy", array)
    assert listed(maps) == (["a"], {what: 2})


def test_a_source_of_side_data_alone_says_what_was_found(maps: Path, tmp_path: Path) -> None:
    np.savez(maps / "a.npz", labels=np.arange(5), names=np.array(["a", "b"]))
    (maps / "b.jpg").write_bytes(b"")
    with pytest.raises(am.SourceError, match=r"passed over: 1 \.jpg, arrays below two dim.*: 1, arrays of text: 1"):
        am.run(maps, tmp_path / "out", settings=am.Settings(workers=0))


def test_a_pickled_file_is_a_failure_and_never_read(maps: Path) -> None:
    np.save(maps / "a.npy", np.array([{"a": 1}], object))
    (entry,) = open_source(maps)
    assert "pickled Python objects, which are never read" in getattr(entry, "problem", "")


def test_a_single_map_in_a_file_has_the_name_of_the_file(maps: Path) -> None:
    save_map(maps / "stack-of-one.npy", MAP[None])
    save_map(maps / "with-channel.npy", MAP[None, None])
    np.savez(maps / "archive.npz", cam=MAP, label=np.int64(7))
    np.savez(maps / "archived-stack-of-one.npz", cam=MAP[None])
    save_tar(maps / "shard.tar", {"deep/cam.npy": npy(MAP), "deep/cam.cls": b"7"})
    assert listed(maps)[0] == ["archive", "archived-stack-of-one", "shard", "stack-of-one", "with-channel"]


def test_several_arrays_have_the_names_of_their_places(maps: Path) -> None:
    np.savez(maps / "a.npz", one=MAP[None], stack=STACK[:2], map=MAP)
    assert listed(maps)[0] == ["a/one", "a/stack/000000", "a/stack/000001", "a/map"]


def test_the_only_stack_in_a_file_is_not_named(maps: Path) -> None:
    np.savez(maps / "a.npz", cams=STACK[:2])
    np.savez(maps / "b.npz", cams=STACK[:2])
    (maps / "b.names.txt").write_text("cat\ndog\n")
    assert listed(maps)[0] == ["a/000000", "a/000001", "b/cat", "b/dog"]


def test_the_name_of_a_single_map_does_not_depend_on_filters(maps: Path) -> None:
    np.savez(maps / "a.npz", cam=MAP, onehot=MAP)
    assert listed(maps, exclude=("onehot",)) == (["a/cam"], {"maps left out by include or exclude": 1})


def test_two_maps_of_one_file_with_one_name_both_fail(maps: Path) -> None:
    np.save(maps / "s.npy", STACK[:3])
    (maps / "s.names.txt").write_text("cat\ndog\ncat\n")
    save_tar(maps / "t.tar", {"x.npy": npy(MAP), "y.npy": npy(MAP), "./x.npy": npy(MAP)})
    with zipfile.ZipFile(maps / "z.npz", "w") as archive:
        archive.writestr("x.npy", npy(MAP))
        archive.writestr("y.npy", npy(MAP))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("x.npy", npy(MAP))
    entries = list(open_source(maps))
    assert names_of(entries) == ["s/dog", "t/y", "z/y"]
    failures = failures_of(entries)
    assert [failure.name for failure in failures] == ["s/cat", "s/cat", "t/x", "t/x", "z/x", "z/x"]
    assert {failure.stage for failure in failures} == {"source"}
    assert all("has the same name" in failure.reason for failure in failures)


def test_hidden_files_and_what_macos_adds_are_passed_over(maps: Path) -> None:
    apple_double = bytes.fromhex("00051607") + bytes(100)
    save_map(maps / "a.npy")
    for name in ("._a.npy", ".DS_Store", ".git/b.npy", "__MACOSX/._a.npy", "__MACOSX/c.npy", "x.npy", "y.npz", "z.h5"):
        (maps / name).parent.mkdir(exist_ok=True)
        (maps / name).write_bytes(apple_double)
    save_tar(maps / "t.tar", {"1.npy": npy(MAP), "._1.npy": apple_double, "__MACOSX/2.npy": npy(MAP)})
    with zipfile.ZipFile(maps / "u.npz", "w") as archive:
        archive.writestr("cam.npy", npy(MAP))
        archive.writestr("__MACOSX/._cam.npy", apple_double)
    # Folders are counted once.
    assert listed(maps) == (["a", "t", "u"], {"hidden files": 4 + 3 + 2 + 1})


def test_a_hidden_file_that_is_named_is_read(maps: Path) -> None:
    save_map(maps / ".hidden" / ".a.npy")
    assert listed(maps / ".hidden" / ".a.npy")[0] == [".a"]
    assert listed(maps / ".hidden" / ".*.npy")[0] == [".a"]


PATTERNS = [
    ({"include": ("cam*",)}, ["a/cam", "b/cam/1", "b/cam/boxes", "cam"]),
    ({"include": ("a/*",)}, ["a/cam", "a/onehot"]),
    ({"include": ("a",)}, ["a/cam", "a/onehot"]),
    ({"include": ("*.npz",)}, ["a/cam", "a/onehot"]),
    ({"include": ("b/cam/*.npy",)}, ["b/cam/1", "b/cam/boxes"]),
    ({"exclude": ("onehot", "boxes")}, ["a/cam", "b/cam/1", "cam"]),
    ({"exclude": ("*/onehot", "b/*")}, ["a/cam", "cam"]),
    ({"include": ("cam",), "exclude": ("boxes", "b")}, ["a/cam", "cam"]),
    ({"exclude": ("CAM",)}, ["a/cam", "a/onehot", "b/cam/1", "b/cam/boxes", "cam"]),
]


@pytest.mark.parametrize(("options", "names"), PATTERNS)
def test_include_and_exclude_match_names_folders_and_files(
    maps: Path, options: dict[str, tuple[str, ...]], names: list[str]
) -> None:
    np.savez(maps / "a.npz", cam=MAP, onehot=MAP)
    for name in ("b/cam/1", "b/cam/boxes", "cam"):
        save_map(maps / f"{name}.npy")
    assert listed(maps, **options)[0] == names


def test_a_filter_that_leaves_nothing_is_named(maps: Path, tmp_path: Path) -> None:
    save_map(maps / "a.npy")
    with pytest.raises(am.SourceError, match=r"include and exclude leave no map of .*maps: 1 is left out"):
        am.run(maps, tmp_path / "out", settings=am.Settings(workers=0, include="cat"))


@pytest.mark.parametrize(("names", "asked"), [("", True), ("red\ngreen\nblue\n", False)])
def test_maps_with_names_of_their_own_are_no_channels(
    maps: Path, caplog: pytest.LogCaptureFixture, names: str, asked: bool
) -> None:
    np.save(maps / "a.npy", np.random.default_rng(0).random((3, 56, 56)))
    if names:
        (maps / "a.names.txt").write_text(names)
    assert am.run(maps, "memory://", settings=am.Settings(workers=0)).uploaded == 3
    assert ("--channels" in caplog.text) == asked


@pytest.mark.runs
def test_patterns_apply_to_arrays_in_memory(tmp_path: Path) -> None:
    def pairs() -> Any:
        for index in range(1000):
            yield f"cam/{index}", MAP
            yield f"onehot/{index}", MAP

    settings = am.Settings(workers=0, exclude="onehot", png_level=0)
    report = am.run(pairs(), "memory://", settings=settings)
    assert (report.uploaded, report.passed_over) == (1000, {"maps left out by include or exclude": 1000})


@pytest.mark.runs
@pytest.mark.parametrize("filters", [{"include": "a"}, {"exclude": "b"}])
def test_a_filter_holds_for_maps_that_an_earlier_run_knows(maps: Path, tmp_path: Path, filters: dict[str, Any]) -> None:
    for name in ("a", "b"):
        save_map(maps / f"{name}.npy")
    manifest, out = tmp_path / "m.sqlite", tmp_path / "out"
    assert am.run(maps, out, settings=am.Settings(workers=0), manifest=manifest).uploaded == 2
    changes: list[dict[str, Any]] = [{"colormap": "viridis"}, {}]
    for how in changes:
        settings = am.Settings(workers=0, **filters, **how)
        report = am.run(maps, out, settings=settings, manifest=manifest, select="all" if not how else "changed")
        assert (report.uploaded, report.skipped) == (1, 0)
        assert report.passed_over == {"maps left out by include or exclude": 1}


@pytest.mark.runs
def test_a_filtered_run_keeps_the_rows_of_other_failures(maps: Path, tmp_path: Path) -> None:
    save_map(maps / "good.npy")
    names: dict[str, Any] = {"../x": MAP, "y": MAP}
    np.savez(maps / "bad.npz", **names)
    manifest = tmp_path / "m.sqlite"
    settings = am.Settings(workers=0)
    assert am.run(maps, tmp_path / "out", settings=settings, manifest=manifest).failed == 1
    filtered = am.Settings(workers=0, include="good")
    assert am.run(maps, tmp_path / "out", settings=filtered, manifest=manifest).skipped == 1
    am.export_manifest(manifest, tmp_path / "failed.csv", rows="failed")
    assert "bad/../x" in (tmp_path / "failed.csv").read_text()
