"""Formats that are not read: the Python in the message uploads their maps."""

from __future__ import annotations

import ast
import importlib
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import async_maps as am
from async_maps.filesystems.locators import place_at
from async_maps.outcomes import Failure
from async_maps.sources import open_source
from async_maps.sources.formats.others import OTHER_FORMATS, advice_for
from tests.support.entries import names_of
from tests.support.maps import MAP

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.fast


def run_advice(reason: str, maps: Path, out: Path) -> set[str]:
    """Run the Python in a message; return the names of the overlays."""
    program = reason[reason.index("import ") :].replace('"FOLDER"', repr(str(maps))).replace('"FILE"', repr(str(maps)))
    program = program.replace('"DESTINATION")', f"{str(out)!r}, settings=am.Settings(workers=0, range='per-map'))")
    scope: dict[str, Any] = {}
    exec(program, scope)  # noqa: S102  # our own message
    return {str(path.relative_to(out).with_suffix("")) for path in out.rglob("*.png")}


def write_nifti(path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(np.stack([MAP, MAP], axis=-1), np.eye(4)), path)


def write_dicom(path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    examples = importlib.import_module("pydicom.examples")
    pydicom.dcmwrite(path, examples.ct)


def write_picture(path: Path) -> None:
    Image.fromarray((MAP * 255).astype(np.uint8)).save(path)


def write_joblib(path: Path) -> None:
    pytest.importorskip("joblib").dump(MAP, path)


WRITERS: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    ".pkl": (lambda path: path.write_bytes(pickle.dumps(MAP)), {"x"}),
    ".joblib": (write_joblib, {"x"}),
    ".nii": (write_nifti, {"x/000", "x/001"}),
    ".dcm": (write_dicom, {"x"}),
    ".bmp": (write_picture, {"x"}),
    ".txt": (lambda path: np.savetxt(path, MAP), {"x"}),
}


@pytest.mark.runs
@pytest.mark.parametrize("suffix", WRITERS)
def test_the_python_in_the_message_uploads_the_maps(maps: Path, tmp_path: Path, suffix: str) -> None:
    write, names = WRITERS[suffix]
    write(maps / f"x{suffix}")
    with pytest.raises(am.SourceError) as of_file:
        open_source(maps / f"x{suffix}")
    with pytest.raises(am.SourceError) as of_folder:
        am.run(maps, tmp_path / "none", settings=am.Settings(workers=0))
    assert f"passed over: 1 {suffix}" in str(of_folder.value)
    for number, reason in enumerate((of_file, of_folder)):
        assert run_advice(str(reason.value), maps, tmp_path / str(number)) == names


@pytest.mark.parametrize("suffix", OTHER_FORMATS)
def test_the_python_in_every_message_is_valid(suffix: str) -> None:
    advice = advice_for(f"some/X{suffix.upper()}")
    ast.parse(advice[advice.index("import ") :])
    assert "rglob" in advice
    assert ("trust" in advice) == ("pickle" in advice)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("x.ZIP", "unpack them, and choose the folder as the source"),
        ("x.npy.zst", "unpack them"),
        ("x.ckpt", "give it a name that ends in .pt"),
        ("x.he5", "give it a name that ends in .h5"),
        ("x.cdf", "give it a name that ends in .nc"),
        ("x.tsv", "a listing is a .csv or .jsonl file with the columns name and path"),
        ("x.txt", "for a list of paths, run: async-maps run - DESTINATION < FILE"),
    ],
)
def test_a_file_of_another_suffix_names_what_to_do(maps: Path, tmp_path: Path, name: str, advice: str) -> None:
    (maps / name).write_bytes(b"x")
    with pytest.raises(am.SourceError) as of_file:
        open_source(maps / name)
    with pytest.raises(am.SourceError) as of_folder:
        am.run(maps, tmp_path / "none", settings=am.Settings(workers=0))
    assert advice in str(of_file.value)
    assert advice in str(of_folder.value)


PICKLED = [np.array({"cat": MAP, "dog": MAP}, object), np.array([MAP, MAP[:2]], object)]


@pytest.mark.runs
@pytest.mark.parametrize(("array", "names"), [(PICKLED[0], {"cat", "dog"}), (PICKLED[1], {"000000", "000001"})])
def test_the_python_for_pickled_arrays_uploads_them(maps: Path, tmp_path: Path, array: Any, names: set[str]) -> None:
    np.save(maps / "x.npy", array)
    report = am.run(maps, tmp_path / "none", settings=am.Settings(workers=0))
    (failure,) = report.failures
    assert "never read" in failure.reason
    assert run_advice(failure.reason, maps / "x.npy", tmp_path / "out") == names


def test_a_place_may_begin_with_the_home_folder_or_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my maps").mkdir()
    np.save(tmp_path / "my maps" / "a.npy", MAP)
    (tmp_path / "list.csv").write_text("name,path\nx,~/my maps/a.npy\ny,file:///nowhere.npy\nz,C:\\maps\\a.npy\n")
    settings = am.Settings(workers=0)
    assert am.run("~/my maps", "~/out", settings=settings).uploaded == 1
    assert am.run(f"file://{tmp_path}/my%20maps", f"file://{tmp_path}/out", settings=settings).uploaded == 1
    assert (tmp_path / "out" / "a.png").exists()
    report = am.run("~/list.csv", "~/out", settings=settings)
    assert report.uploaded == 1
    nowhere, windows = sorted(report.failures, key=lambda failure: failure.name)
    assert "the file does not exist" in nowhere.reason
    assert "is a path of Windows" in windows.reason


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("s3:/bucket/x", "one slash instead of two"),
        ("file:/x", "one slash instead of two"),
        ("file://host/x", "has a host"),
        ("ftp://bucket/x", "unknown address"),
        (r"C:\maps", "is a path of Windows"),
        (r"\\server\maps", "is a path of Windows"),
    ],
)
def test_a_mistyped_place_is_one_sentence(place: str, reason: str) -> None:
    with pytest.raises(am.SourceError, match=reason):
        open_source(place)
    with pytest.raises(am.SettingsError, match=reason):
        am.run([("a", MAP)], place)


@pytest.mark.parametrize("path", ["a:b/c.npy", "12:30/x", "x/s3:/y", "run:7"])
def test_a_colon_in_a_path_is_kept(path: str) -> None:
    assert place_at(path) == path


@pytest.mark.parametrize(
    ("name", "format_"),
    [("a.npz", "npy"), ("a.pt", "npy"), ("a.npy.gz", "npy"), ("a.mat", "npy"), ("a.npy", "npz"), ("a.tif", "png")],
)
def test_a_file_with_the_suffix_of_another_format_names_its_own(maps: Path, name: str, format_: str) -> None:
    if format_ == "png":
        pytest.importorskip("tifffile")
        write_picture(maps / "x.png")
    else:
        (np.save if format_ == "npy" else np.savez)(maps / f"x.{format_}", MAP)
    (maps / f"x.{format_}").rename(maps / name)
    (entry,) = open_source(maps)
    reason = entry.reason if isinstance(entry, Failure) else entry.problem
    assert reason.endswith(f"; its first bytes are those of .{format_}: rename it")
    (maps / name).rename(maps / f"b.{format_}")
    assert names_of(open_source(maps)) == ["b"]
