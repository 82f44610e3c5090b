"""Which pictures in a folder are maps."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from async_maps.outcomes import Failure
from async_maps.sources import open_source
from async_maps.sources.options import SourceOptions
from tests.support.maps import MAP, npy
from tests.support.pictures import gray_png, overlay

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.fast


def _fill(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(npy() if name.endswith(".npy") else gray_png())


def _listed(place: object, **options: Any) -> tuple[list[str], dict[str, int]]:
    passed_over: list[str] = []
    entries = list(open_source(str(place), pass_over=passed_over.append, options=SourceOptions(**options)))
    assert not any(isinstance(entry, Failure) for entry in entries), entries
    return [entry.name for entry in entries], Counter(passed_over)


@pytest.mark.parametrize(
    ("names", "maps_of", "passed_over"),
    [
        (["a.png", "b/c.jpg", "d.JPEG"], ["a", "b/c", "d"], {}),
        (["a.png", "b.npy"], ["b"], {".png": 1}),
        (["b.npy", "c.png"], ["b"], {".png": 1}),
        (["a/1.png", "a/2.jpg", "z/deep/1.npy"], ["z/deep/1"], {".png": 1, ".jpg": 1}),
        (["a/1.npy", "z/1.png"], ["a/1"], {".png": 1}),
        (["a.png", "notes.txt", ".hidden.npy"], ["a"], {".txt": 1, "hidden files": 1}),
        (["a.png", "__MACOSX/x.npy"], ["a"], {"hidden files": 1}),
        (["a.png", "b.pkl"], [], {".png": 1, ".pkl": 1}),
        (["a/1.png", "z/b.nii.gz"], [], {".png": 1, ".gz": 1}),
    ],
)
def test_pictures_are_maps_if_the_folder_has_no_other_format(
    maps: Path, names: list[str], maps_of: list[str], passed_over: dict[str, int]
) -> None:
    _fill(maps, *names)
    assert _listed(maps) == (maps_of, passed_over)


def test_tiff_is_a_picture_beside_arrays_and_an_array_beside_pictures(maps: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(maps / "b.tif", MAP)
    _fill(maps, "a.png", "c.jpg")
    assert _listed(maps) == (["b"], {".png": 1, ".jpg": 1})
    _fill(maps, "d.npy")
    assert _listed(maps) == (["d"], {".png": 1, ".jpg": 1, ".tif": 1})


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        ("*.png", ["a", "val/b"]),
        ("val/*.png", ["val/b"]),
        ("a.png", ["a"]),
        ("*", ["c", "val/d"]),
        ("val/*", ["val/d"]),
        ("val", ["val/d"]),
        ("*.npy", ["c", "val/d"]),
    ],
)
def test_include_names_pictures_by_their_suffix(maps: Path, include: str, expected: list[str]) -> None:
    _fill(maps, "a.png", "val/b.png", "c.npy", "val/d.npy", "e.jpg")
    assert _listed(maps, include=(include,))[0] == expected


def test_what_exclude_leaves_out_is_no_other_format(maps: Path) -> None:
    _fill(maps, "a.png", "b.npy", "labels/c.npy")
    left_out = "maps left out by include or exclude"
    assert _listed(maps, exclude=("*.npy",)) == (["a"], {left_out: 2})
    assert _listed(maps, exclude=("labels",)) == (["b"], {".png": 1, left_out: 1})


@pytest.mark.parametrize(
    ("glob", "expected"), [("*.png", ["a"]), ("**/*.png", ["a", "z/b"]), ("*", ["c"]), ("**", ["c"]), ("z/*", ["b"])]
)
def test_a_glob_names_pictures_by_their_suffix(maps: Path, glob: str, expected: list[str]) -> None:
    _fill(maps, "a.png", "z/b.png", "c.npy")
    assert _listed(maps / glob)[0] == expected


def test_a_file_names_itself(maps: Path) -> None:
    _fill(maps, "a.png", "c.npy")
    assert _listed(maps / "a.png") == (["a"], {})


def test_the_first_map_waits_only_for_names_until_another_format(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fill(maps, *(f"{index:03}.jpg" for index in range(300)), *(f"{index:03}.npy" for index in range(300)))
    seen = 0
    scandir = os.scandir

    class Counting:
        def __init__(self, path: str) -> None:
            self._entries = scandir(path)

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            return self._count()

        def __exit__(self, *_: object) -> None:
            self._entries.close()

        def _count(self) -> Iterator[os.DirEntry[str]]:
            nonlocal seen
            for entry in self._entries:
                seen += 1
                yield entry

    monkeypatch.setattr(os, "scandir", Counting)
    names, passed_over = _listed(maps)
    assert (len(names), passed_over) == (300, {".jpg": 300})
    # Sorting reads all 600 names; the search for another format ends early.
    assert 600 < seen < 1_000


def test_the_same_maps_are_listed_each_time(maps: Path) -> None:
    _fill(maps, "a/1.png", "a/2.png", "b/3.npy", "c/4.jpg")
    source = open_source(maps)
    assert [[entry.name for entry in source] for _ in range(3)] == [["b/3"]] * 3


# The destination -----------------------------------------------------------------------------------------------------


def test_a_destination_within_the_source_is_passed_over(maps: Path) -> None:
    _fill(maps, "a.png", "out/b.png", "out/deep/c.npy", "outer/d.png")
    expected = {"folders of overlays (the destination)": 1}
    assert _listed(maps, destination=(maps / "out").as_uri()) == (["a", "outer/d"], expected)
    assert _listed(maps / "**" / "*.png", destination=(maps / "out").as_uri()) == (["a", "outer/d"], expected)


def test_a_destination_behind_a_link_is_passed_over(maps: Path, tmp_path: Path) -> None:
    _fill(tmp_path / "out", "b.png")
    _fill(maps, "a.png")
    (maps / "linked").symlink_to(tmp_path / "out")
    assert _listed(maps, destination=(tmp_path / "out").as_uri())[0] == ["a"]


def test_png_files_are_no_maps_if_the_source_is_the_destination(maps: Path) -> None:
    _fill(maps, "a.png", "b.jpg", "c/d.png")
    assert _listed(maps, destination=maps.as_uri()) == (["b"], {".png in the destination": 2})
    assert _listed(maps / "*.png", destination=maps.as_uri()) == ([], {".png in the destination": 1})


def test_a_source_within_the_destination_is_read(maps: Path) -> None:
    _fill(maps, "in/a.png")
    assert _listed(maps / "in", destination=maps.as_uri()) == (["a"], {})


def test_overlays_of_another_run_are_passed_over(maps: Path) -> None:
    _fill(maps, "a.png")
    (maps / "b.png").write_bytes(overlay())
    assert _listed(maps) == (["a"], {"overlays (PNG with a palette of transparent colors)": 1})
