"""Dry runs: exact for names, counts, selection and files passed over; values are not read."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import async_maps as am
from async_maps.sources.formats import npy as npy_reader
from tests.support.commands import invoke
from tests.support.entries import STACK, save_tar
from tests.support.maps import MAP, npy, random_map

pytestmark = pytest.mark.runs

THREADS = am.Settings(workers=0)
BAD_VALUES = np.full((3, 4), 7.0)


def told(report: am.Report) -> set[tuple[str, str, str, str]]:
    return {(failure.name, failure.source, failure.stage, failure.reason) for failure in report.failures}


def save_good(folder: Path, *numbers: int) -> None:
    for number in numbers:
        np.save(folder / f"good-{number}.npy", random_map(number))


def save_bad_npy(folder: Path) -> None:
    np.save(folder / "integers.npy", np.zeros((3, 4), np.int64))
    np.save(folder / "complex.npy", np.zeros((3, 4), np.complex64))
    np.save(folder / "picture.npy", np.zeros((3, 4, 3), np.float32))
    np.save(folder / "line.npy", np.zeros(7))
    np.save(folder / "empty-map.npy", np.zeros((0, 4)))
    np.save(folder / "pickled.npy", np.array([{}], dtype=object))
    np.save(folder / "fortran.npy", np.asfortranarray(STACK))
    np.save(folder / "large.npy", np.zeros((100, 101), np.uint8))
    np.save(folder / "large-stack.npy", np.zeros((3, 100, 101), np.uint8))
    (folder / "nothing.npy").touch()
    (folder / "cut.npy").write_bytes(npy(MAP)[:-4])
    (folder / "text.npy").write_bytes(b"no array, and too long for none")
    (folder / "gone.npy").symlink_to(folder / "nowhere")
    (folder / "con\x01trol.npy").write_bytes(npy(MAP))
    (folder / "empty.npz").write_bytes(b"PK\x05\x06" + bytes(18))
    (folder / "packed.tar.gz").write_bytes(b"\x1f\x8b")


def save_bad_archives(folder: Path) -> None:
    np.savez(folder / "a.npz", good=MAP, integers=np.zeros((3, 4), int), line=np.zeros(3), large=np.zeros((101, 100)))
    save_tar(folder / "b.tar", {"good.npy": npy(MAP), "picture.npy": npy(np.zeros((3, 4, 3))), "text.npy": b"no array"})
    with tarfile.open(folder / "b.tar", "a") as archive:
        link = tarfile.TarInfo("link.npy")
        link.type, link.linkname = tarfile.SYMTYPE, "good.npy"
        archive.addfile(link)
    cut = io.BytesIO()
    with tarfile.open(fileobj=cut, mode="w") as archive:
        member = tarfile.TarInfo("a.npy")
        member.size = len(npy(STACK))
        archive.addfile(member, io.BytesIO(npy(STACK)))
    (folder / "cut.tar").write_bytes(cut.getvalue()[: 512 + 300])
    header = {
        "good": {"dtype": "BF16", "shape": [3, 4], "data_offsets": [0, 24]},
        "integers": {"dtype": "I32", "shape": [3, 4], "data_offsets": [0, 48]},
        "small": {"dtype": "F8_E5M2", "shape": [3, 4], "data_offsets": [0, 12]},
        "damaged": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 7]},
        "cut": {"dtype": "F32", "shape": [3, 4], "data_offsets": [48, 96]},
    }
    text = json.dumps(header).encode()
    (folder / "c.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(48))


def save_bad_hierarchies(folder: Path) -> None:
    h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")
    with h5py.File(folder / "d.h5", "w") as file:
        file["good"], file["integers"], file["picture"] = MAP, np.zeros((3, 4), int), np.zeros((3, 4, 3))
        file["large"], file["complex"] = np.zeros((2, 100, 101), "f4"), np.zeros((3, 4), complex)
        layout = h5py.VirtualLayout((3, 4), "f4")
        layout[:] = h5py.VirtualSource(str(folder / "x.h5"), "y", (3, 4))
        file.create_virtual_dataset("virtual", layout)
    group = zarr.open_group(folder / "e.zarr", mode="w")
    for name, array in (("good", MAP), ("integers", np.zeros((3, 4), int)), ("large", np.zeros((100, 101)))):
        group.create_array(name, shape=array.shape, dtype=array.dtype)[...] = array
    (folder / "e.zarr" / "good" / "zarr.json").write_text("{")


@pytest.mark.parametrize("save", [save_bad_npy, save_bad_archives, save_bad_hierarchies])
def test_what_headers_and_names_tell_fails_as_in_the_run(maps: Path, tmp_path: Path, save: Any) -> None:
    save_good(maps, 1, 2)
    save(maps)
    settings = am.Settings(workers=0, max_pixels=10_000)
    planned = am.dry_run(maps, tmp_path / "out", settings=settings)
    done = am.run(maps, tmp_path / "out", settings=settings)
    assert told(planned) == told(done)
    assert (planned.planned, planned.failed) == (done.uploaded, done.failed)
    assert planned.failed >= 5


@pytest.mark.parametrize("value_range", ["unit", "per-map", "0,1", "dataset"])
def test_a_range_decides_whether_integers_fail(maps: Path, tmp_path: Path, value_range: str) -> None:
    save_good(maps, 1)
    np.save(maps / "integers.npy", np.arange(12).reshape(3, 4))
    settings = am.Settings(workers=0, range=value_range)
    planned = am.dry_run(maps, tmp_path / "out", settings=settings)
    assert told(planned) == told(am.run(maps, tmp_path / "out", settings=settings))
    assert planned.failed == (value_range == "unit")


def test_names_and_keys_that_are_taken_fail_as_in_the_run(maps: Path, tmp_path: Path) -> None:
    for name in ("a/1", "b/1", "b/2"):
        (maps / name).parent.mkdir(exist_ok=True)
        np.save(maps / f"{name}.npy", MAP)
    np.savez(maps / "b" / "2.npz", MAP, MAP)
    (maps / "b" / "2.npz").rename(maps / "a" / "2.npz")
    (maps / "a" / "1.NPY").write_bytes(npy(MAP))
    settings = am.Settings(workers=0, key="{stem}.png")
    manifest = tmp_path / "m.sqlite"
    planned = am.dry_run(maps, tmp_path / "out", settings=settings, manifest=manifest)
    done = am.run(maps, tmp_path / "out", settings=settings, manifest=manifest)
    assert told(planned) == told(done)
    assert (planned.planned, planned.failed) == (done.uploaded, done.failed) == (4, 2)


def test_arrays_in_memory_fail_as_in_the_run() -> None:
    source = [("a", MAP), ("b", np.zeros((3, 4), int)), ("../c", MAP), ("d", np.zeros((2, 3, 4)))]
    planned, done = (do(source, "memory://", settings=THREADS) for do in (am.dry_run, am.run))
    assert told(planned) == told(done)
    assert (planned.planned, planned.failed) == (done.uploaded, done.failed) == (1, 3)


def test_values_are_not_read_and_the_report_says_so(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_good(maps, 1, 2)
    np.save(maps / "bad.npy", BAD_VALUES)

    def read(*_: object) -> None:
        pytest.fail("values were read")

    monkeypatch.setattr(npy_reader, "read_values", read)
    report = am.dry_run(maps, "memory://", settings=THREADS)
    assert report.dry_run
    assert (report.planned, report.failed) == (3, 0)
    assert report.summary() == (
        "3 maps listed: 3 would be done, 0 skipped as unchanged, 0 would fail by name or header; the values of 3 maps "
        "are not read yet; destination memory://"
    )


def test_what_selection_leaves_out_is_counted_and_named(maps: Path, tmp_path: Path) -> None:
    save_good(maps, 1, 2)
    np.save(maps / "bad.npy", BAD_VALUES)
    np.save(maps / "integers.npy", np.zeros((3, 4), int))
    manifest = tmp_path / "m.sqlite"
    am.run(maps, tmp_path / "out", settings=THREADS, manifest=manifest)
    save_good(maps, 3)
    expected: dict[Any, tuple[tuple[int, ...], str]] = {
        "changed": (
            (2, 2, 0, 1),
            "5 maps listed: 2 would be done, 2 skipped as unchanged, 1 would fail by name or header; ",
        ),
        "failed": ((1, 3, 3, 1), "1 would be done, 3 skipped because they did not fail before, 1 would fail"),
        "all": ((4, 0, 0, 1), "4 would be done, 0 skipped as unchanged"),
    }
    for select, (counts, said) in expected.items():
        report = am.dry_run(maps, tmp_path / "out", settings=THREADS, manifest=manifest, select=select)
        assert (report.planned, report.skipped, report.unselected, report.failed) == counts, select
        assert said in report.summary()
        done = am.run(maps, tmp_path / "out", settings=THREADS, manifest=manifest.with_name("copy"), select="changed")
        assert done.seen == report.seen


@pytest.mark.parametrize("pattern", ["", "*", "**"])
def test_files_that_are_no_maps_are_counted_by_suffix(maps: Path, tmp_path: Path, pattern: str) -> None:
    (maps / "deep").mkdir()
    save_good(maps, 1)
    save_good(maps / "deep", 2)
    np.save(maps / "stack.npy", STACK)
    (maps / "stack.names.txt").write_text("a\nb\nc\nd\ne\n")
    for name in ("a.jpg", "b.JPG", "c.pkl", "README", "d.text too long"):
        (maps / name).touch()
    (maps / "deep" / "e.jpg").touch()
    below = pattern != "*"
    expected = {".jpg": 2 + below, ".pkl": 1, "": 2}
    for do in (am.dry_run, am.run):
        report = do(maps / pattern, tmp_path / "out", settings=THREADS)
        assert report.passed_over == expected
        assert f"passed over: {2 + below} .jpg, 2 without a suffix, 1 .pkl" in report.summary()


# The command -------------------------------------------------------------------------------------------------------


def test_the_command_says_what_is_known_and_what_is_not(
    maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_good(maps, 1, 2)
    np.save(maps / "bad.npy", BAD_VALUES)
    assert invoke("run", maps, "out", "--dry-run") == 0
    said = capsys.readouterr()
    assert "3 would be done" in said.out
    assert "the values of 3 maps are not read yet" in said.out
    assert said.err == ""
    np.save(maps / "integers.npy", np.zeros((3, 4), int))
    (maps / "image.jpg").touch()
    assert invoke("run", maps, "out", "--dry-run", "--report", "r.json") == 1
    said = capsys.readouterr()
    assert "4 maps listed: 3 would be done, 0 skipped as unchanged, 1 would fail by name or header" in said.out
    assert "passed over: 1 .jpg" in said.out
    where = f"integers ({maps / 'integers.npy'})"
    assert f"async-maps: would fail: {where}: colorize: an activation map must be uint8, or float" in said.err
    assert "export" not in said.err  # nothing was written down
    report = json.loads(Path("r.json").read_text())
    assert (report["dry_run"], report["planned"], report["passed_over"]) == (True, 3, {".jpg": 1})
    assert not Path("async-maps.sqlite").exists()


def test_a_map_that_was_repaired_is_looked_at_again(maps: Path, tmp_path: Path) -> None:
    np.save(maps / "a.npy", np.zeros((3, 4), int))
    manifest = tmp_path / "m.sqlite"
    am.run(maps, tmp_path / "out", settings=THREADS, manifest=manifest)
    again = am.dry_run(maps, tmp_path / "out", settings=THREADS, manifest=manifest)
    assert (again.planned, again.failed) == (0, 1)
    np.save(maps / "a.npy", MAP)
    assert am.dry_run(maps, tmp_path / "out", settings=THREADS, manifest=manifest).planned == 1


def test_verbose_names_each_map(maps: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_good(maps, 1, 1)
    np.save(maps / "bad.npy", np.zeros((2, 2, 3), "f4"))
    with caplog.at_level("DEBUG", logger="async_maps"):
        am.dry_run(maps, tmp_path / "out", settings=THREADS)
    planned = [record.message for record in caplog.records if record.message.startswith("would")]
    assert len(planned) == 2
    assert any(line.startswith(f"would fail: bad ({maps / 'bad.npy'}): colorize: ") for line in planned)
    assert any(line.startswith("would be done: ") for line in planned)
