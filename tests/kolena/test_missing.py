"""What the error says of rows without an overlay: both sides' names, what failed, and how the names differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import async_maps as am
from async_maps.kolena import results_frame
from tests.support.masks import receipt, write_manifest

if TYPE_CHECKING:
    from pathlib import Path

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
    assert said.split("\n")[1:] == [
        "missing: 'b', 'c'",
        "2 failed: 'b' (read: found b), 'c' (read: found c); run them again (--retry-failed, select='failed')",
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
