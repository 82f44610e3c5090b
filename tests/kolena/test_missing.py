"""What the error says of rows without an overlay: both sides' names, what failed, and how the names differ."""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

import async_maps as am
from async_maps.kolena import results_frame
from tests.support.masks import receipt, write_manifest

pytestmark = pytest.mark.fast

pandas = pytest.importorskip("pandas")


EVERYTHING = (
    "the extension ('.PNG' in the results, none there) and the folder ('train/' in the results, 'val/' there) "
    "and upper and lower case"
)


def message(path: Path, known: list[str], results: list[Any], failed: tuple[str, ...] = (), **options: Any) -> str:
    failures = [am.Failure(name, f"{name}.npy", None, "read", f"found {name}") for name in failed]
    manifest = write_manifest(path / "m.sqlite", *map(receipt, known), *failures)
    with pytest.raises(am.InputValidationError) as raised:
        results_frame(manifest, pandas.DataFrame({"image": results}), **{"on": "image", **options})
    return str(raised.value)


@pytest.mark.parametrize(
    ("known", "results", "told", "advice"),
    [
        (
            ["img1", "img2"],
            ["img1.jpg", "img2.jpg"],
            "the extension ('.jpg' in the results, none there)",
            "row['image'].rsplit('.', 1)[0]",
        ),
        (
            ["val/img1", "val/img2"],
            ["img1", "img2"],
            "the folder (none in the results, 'val/' there)",
            "'val/' + row['image']",
        ),
        (
            ["img1", "img2"],
            ["/data/img1", "/data/img2"],
            "the folder ('/data/' in the results, none there)",
            "row['image'].rsplit('/', 1)[-1]",
        ),
        (["img1", "img2"], ["IMG1", "Img2"], "upper and lower case", "row['image'].lower()"),
        (
            ["val/img1", "val/img2"],
            ["train/IMG1.PNG", "train/img2.PNG"],
            EVERYTHING,
            "'val/' + row['image'].rsplit('.', 1)[0].rsplit('/', 1)[-1].lower()",
        ),
        (
            ["val/17", "val/18"],
            [17, 18],
            "the folder (none in the results, 'val/' there)",
            "'val/' + str(row['image'])",
        ),
    ],
)
def test_an_evident_difference_is_told_with_the_function_that_heals_it(
    tmp_path: Path, known: list[str], results: list[Any], told: str, advice: str
) -> None:
    said = message(tmp_path, known, results)
    assert f"except {told}: pass on=lambda row: {advice}\n" in said
    assert f"{str(results[0])!r} in the results looks like {known[0]!r} in the manifest" in said
    frame = pandas.DataFrame({"image": results})
    on = eval(f"lambda row: {advice}")  # noqa: S307  # what the message advises must work
    assert len(results_frame(tmp_path / "m.sqlite", frame, on=on)) == 2


@pytest.mark.parametrize(
    ("known", "results"),
    [
        (["IMG1", "img2"], ["img1", "img2"]),  # no step makes capitals
        (["img1", "B"], ["IMG1", "B"]),  # what would make the first would part the second
        (["train/img1", "val/img2"], ["img1", "img2"]),
        (["cafe\u0301", "b"], ["caf\xe9", "b"]),
        (["a/img1", "b"], ["a\\img1", "b"]),
    ],
)
def test_what_no_simple_step_heals_is_told_without_one(tmp_path: Path, known: list[str], results: list[str]) -> None:
    said = message(tmp_path, known, results)
    assert f"{results[0]!a} in the results looks like {known[0]!a} in the manifest" in said
    assert "pass a function as `on` that makes the manifest's name from a row" in said


def test_names_of_both_sides_are_told_where_nothing_looks_alike(tmp_path: Path) -> None:
    assert message(tmp_path, [f"k{n}" for n in range(9)], ["a", "b"]).split("\n")[1:] == [
        "missing: 'a', 'b'",
        "the manifest has other names: 'k0', 'k1', 'k2', 'k3', 'k4', ...",
        "2 names are not in the manifest: run async-maps on the maps",
        "missing='none' puts None where an overlay is missing",
    ]


def test_a_map_that_failed_is_told_by_its_reason(tmp_path: Path) -> None:
    said = message(tmp_path, ["a"], ["a", "b", "c"], failed=("b", "c"))
    assert "not in" not in said
    assert said.split("\n") == [
        f"2 of 3 overlays are missing; manifest: {tmp_path / 'm.sqlite'}",
        "missing: 'b', 'c'",
        (
            "2 maps failed: 'b' (read: found b), 'c' (read: found c); "
            "run them again with select='failed' (in the command: --retry-failed)"
        ),
        "missing='none' puts None where an overlay is missing",
    ]


def test_layers_that_are_not_there_are_told(tmp_path: Path) -> None:
    said = message(tmp_path, ["a/layer4", "b/layer4"], ["a", "b"], layers=["layer3", "layer4"])
    assert said.split("\n")[1:3] == [
        "missing of layer3: 'a', 'b'",
        "no name in the manifest ends in '/layer3'; it has 'a/layer4', 'b/layer4'",
    ]


def test_a_function_that_makes_the_names_gets_no_other_one(tmp_path: Path) -> None:
    said = message(tmp_path, ["a"], ["a.png"], on=lambda row: row["image"])
    assert "the extension ('.png' in the results, none there): pass a function as `on`" in said


def test_many_names_are_told_in_little_text(tmp_path: Path) -> None:
    said = message(tmp_path, [f"k{n}" for n in range(3000)], [f"r{n}" for n in range(3000)], failed=("r1", "r2"))
    assert len(said) < 700
    assert "2,998 names are not in the manifest" in said


def recommended(said: str) -> str | None:
    _, _, code = said.partition("pass on=")
    return code.split("\n")[0] or None


def test_names_that_match_two_folders_get_no_code(tmp_path: Path) -> None:
    names = [f"{number:04}" for number in range(150)]
    known = [f"{folder}/{name}" for folder in ("train", "val") for name in names]
    said = message(tmp_path, known, [f"{name}.npy" for name in names])
    assert recommended(said) is None
    assert "150 names are ambiguous: '0000.npy' looks like both 'train/0000' and 'val/0000' in the manifest; " in said
    assert "the manifest's name from a row" in said


def test_one_ambiguous_name_of_many_prevents_the_code(tmp_path: Path) -> None:
    names = [f"{number:04}" for number in range(300)]
    said = message(tmp_path, [*(f"train/{name}" for name in names), "val/0299"], names)
    assert recommended(said) is None
    assert "1 name is ambiguous: '0299' looks like both 'train/0299' and 'val/0299' in the manifest" in said


def test_a_match_that_another_row_has_is_ambiguous_too(tmp_path: Path) -> None:
    said = message(tmp_path, ["train/a", "val/a", "val/b"], ["train/a", "a", "b"])
    assert recommended(said) is None
    assert "1 name is ambiguous: 'a' looks like both 'train/a' and 'val/a'" in said


@pytest.mark.parametrize("results", [["x/img1", "y/img1"], ["img1", "x/img1", "x/img2"]])
def test_two_names_that_match_one_map_get_no_code(tmp_path: Path, results: list[str]) -> None:
    said = message(tmp_path, ["img1", "img2"], results)
    assert recommended(said) is None
    assert f"{results[0]!r} and {results[1]!r} in the results both look like 'img1' in the manifest" in said


def test_the_last_of_many_names_must_match_for_the_code(tmp_path: Path) -> None:
    names = [f"{number:04}" for number in range(300)]
    said = message(tmp_path, [f"val/{name}" for name in names[:-1]], names)
    assert recommended(said) is None
    assert "1 name is not in the manifest ('0299'): run async-maps on the maps" in said


def test_the_code_must_make_the_last_of_many_names(tmp_path: Path) -> None:
    names = [f"{number:04}" for number in range(300)]
    known = [*(f"train/{name}" for name in names[:-1]), "val/0299"]
    assert recommended(message(tmp_path, known, names)) is None


def test_a_map_that_was_refused_as_a_duplicate_is_not_ambiguous(tmp_path: Path) -> None:
    refused = am.Failure("val/a", "other.npy", None, "source", "two maps have this name")
    manifest = write_manifest(tmp_path / "m.sqlite", receipt("val/a"), refused)
    with pytest.raises(am.InputValidationError) as raised:
        results_frame(manifest, pandas.DataFrame({"image": ["a"]}), on="image")
    assert recommended(str(raised.value)) == "lambda row: 'val/' + row['image']"


def test_a_name_that_failed_stays_as_it_is(tmp_path: Path) -> None:
    assert recommended(message(tmp_path, ["val/a"], ["a", "b"], failed=("b",))) is None


def test_a_name_that_another_layer_has_gets_no_code(tmp_path: Path) -> None:
    said = message(tmp_path, ["a/layer4", "val/a/layer3"], ["a"], layers=["layer3", "layer4"])
    assert recommended(said) is None
    assert "'a' in the results looks like 'val/a' in the manifest" in said


def test_names_in_equal_files_of_many_folders_match_by_folder(tmp_path: Path) -> None:
    names = [f"n{folder:02}/{number}" for folder in range(20) for number in range(20)]
    said = message(tmp_path, names, [f"{name}.jpg" for name in names])
    assert recommended(said) == "lambda row: row['image'].rsplit('.', 1)[0]"


@pytest.mark.parametrize(
    ("known", "results", "code"),
    [
        (["val/1", "val/2"], [1.0, 2.0, math.nan], "'val/' + str(int(row['image'])) if row['image'] >= 0 else None"),
        (
            ["1", "2"],
            ["1.npy", "2.npy", None],
            "row['image'].rsplit('.', 1)[0] if isinstance(row['image'], str) else None",
        ),
        (["1"], ["1.npy", math.nan], "row['image'].rsplit('.', 1)[0] if isinstance(row['image'], str) else None"),
        (
            ["v/1"],
            pandas.array([1, None], dtype="Int64"),
            "'v/' + str(row['image']) if str(row['image']).isdigit() else None",
        ),
        (["v/a"], [PurePosixPath("a.npy")], "'v/' + str(row['image']).rsplit('.', 1)[0]"),
        (
            ["a"],
            [PurePosixPath("a.npy"), None],
            "str(row['image']).rsplit('.', 1)[0] if row['image'] is not None else None",
        ),
        (["v/n/a", "v/m/b"], ["n/a", "m/b"], "'v/' + row['image']"),
    ],
)
def test_the_code_makes_the_names_of_the_values_that_are_there(
    tmp_path: Path, known: list[str], results: Any, code: str
) -> None:
    assert recommended(message(tmp_path, known, results)) == f"lambda row: {code}"
    on = eval(f"lambda row: {code}")  # noqa: S307  # what the message advises must work
    made = [on({"image": value}) for value in pandas.DataFrame({"image": results})["image"]]
    assert made == [*known, *[None] * (len(results) - len(known))]


@pytest.mark.parametrize(
    ("known", "results"),
    [
        (["val/1", "val/2.5"], [1.0, 2.5]),
        (["val/-1", "val/2"], [-1.0, 2.0, math.nan]),
        (["val/1", "val/b"], ["1.npy", PurePosixPath("B.npy")]),
    ],
)
def test_values_without_simple_code_get_words(tmp_path: Path, known: list[str], results: list[Any]) -> None:
    said = message(tmp_path, known, results)
    assert recommended(said) is None
    assert "pass a function as `on` that makes the manifest's name from a row" in said


def test_a_column_named_by_a_number_gets_working_code(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.sqlite", receipt("val/a"))
    with pytest.raises(am.InputValidationError, match=r"pass on=lambda row: 'val/' \+ row\['0'\]\n"):
        results_frame(manifest, pandas.DataFrame({0: ["a"]}), on=0)
