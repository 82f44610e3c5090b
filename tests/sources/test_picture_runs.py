"""Pictures and TIFF files through a whole run, on disk and in S3, with overlays beside them."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
from PIL import Image

import async_maps as am
from async_maps.outcomes import Failure
from async_maps.render.colorize import colorize_activation_map
from async_maps.sources import open_source
from async_maps.sources.options import SourceOptions
from tests.support.maps import MAP, decode, npy, random_map
from tests.support.pictures import gray_png, overlay
from tests.support.s3 import upload

if TYPE_CHECKING:
    from numpy.typing import NDArray

SETTINGS = am.Settings(workers=0)
WIDE = random_map(0)
GRAY = (MAP * 255).astype(np.uint8)


def _encoded(values: NDArray[Any], kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "tif":
        tifffile.imwrite(file, values, photometric="minisblack")
    else:
        Image.fromarray(values).save(file, kind)
    return file.getvalue()


FILES = {
    "gray/a.png": _encoded(GRAY, "png"),
    "gray/b.jpg": _encoded(np.full((20, 30), 128, np.uint8), "jpeg"),
    "float/c.tif": _encoded(MAP, "tif"),
    "float/pages.tiff": _encoded(np.stack([WIDE, WIDE / 2]), "tif"),
}
EXPECTED: dict[str, NDArray[Any]] = {
    "gray/a": GRAY, "gray/b": np.full((20, 30), 128, np.uint8),
    "float/c": MAP, "float/pages/000000": WIDE, "float/pages/000001": WIDE / 2,
}  # fmt: skip


def _check(destination: Path) -> None:
    written = {str(path.relative_to(destination))[:-4]: path for path in destination.rglob("*.png")}
    assert written.keys() == EXPECTED.keys()
    for name, path in written.items():
        np.testing.assert_array_equal(decode(path.read_bytes()), colorize_activation_map(EXPECTED[name]))


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_and_tiff_files_on_disk_become_overlays(maps: Path, tmp_path: Path, workers: int) -> None:
    for name, content in FILES.items():
        (maps / name).parent.mkdir(exist_ok=True)
        (maps / name).write_bytes(content)
    settings = am.Settings(workers=workers, include=("*.png", "*.jpg", "*.tif*"))
    report = am.run(maps, tmp_path / "out", settings=settings, manifest=tmp_path / "m.sqlite")
    assert (report.uploaded, report.failed, report.passed_over) == (5, 0, {})
    _check(tmp_path / "out")
    again = am.run(maps, tmp_path / "out", settings=settings, manifest=tmp_path / "m.sqlite")
    assert (again.uploaded, again.skipped, again.failed) == (0, 5, 0)


def test_pictures_and_tiff_files_in_s3_become_overlays(bucket: str, tmp_path: Path) -> None:
    upload(bucket, {f"maps/{name}": content for name, content in FILES.items()})
    settings = am.Settings(workers=0, include=("*.png", "*.jpg", "*.tif*"))
    source, out = f"s3://{bucket}/maps/", tmp_path / "out"
    report = am.run(source, out, settings=settings, manifest=tmp_path / "m.sqlite")
    assert (report.uploaded, report.failed, report.passed_over) == (5, 0, {})
    _check(out)
    assert am.run(source, out, settings=settings, manifest=tmp_path / "m.sqlite").skipped == 5


def test_sixteen_bits_need_a_range_which_the_reason_names(maps: Path, tmp_path: Path) -> None:
    values = (MAP * 65535).astype(np.uint16)
    (maps / "a.png").write_bytes(_encoded(values, "png"))
    report = am.run(maps, tmp_path / "out", settings=SETTINGS)
    (failure,) = report.failures
    assert (
        "found uint16: for other values, set range to 0,65535 (all 16-bit values), per-map or LO,HI" in failure.reason
    )
    dry = am.dry_run(maps, tmp_path / "out", settings=SETTINGS)
    assert [found.reason for found in dry.failures] == [failure.reason]
    settings = am.Settings(workers=0, range=(0, 65535))
    assert am.run(maps, tmp_path / "out", settings=settings).uploaded == 1
    expected = colorize_activation_map(np.rint(values / 257).astype(np.uint8))
    np.testing.assert_array_equal(decode((tmp_path / "out" / "a.png").read_bytes()), expected)


@pytest.mark.parametrize("kind", ["palette", "rgba", "gray"])
@pytest.mark.parametrize("suffix", ["npy", "jpg"])
def test_overlays_within_or_beside_the_maps_are_never_read(maps: Path, kind: Any, suffix: str) -> None:
    content = npy() if suffix == "npy" else _encoded(GRAY, "jpeg")
    for name in ("a", "b/c"):
        path = maps / f"{name}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    settings = am.Settings(workers=0, png=kind)
    for destination in (maps / "overlays", maps):
        manifest = maps / f"{destination.name}.sqlite"
        for uploaded in (2, 0):
            report = am.run(maps, destination, settings=settings, manifest=manifest)
            assert (report.uploaded, report.failed, report.seen) == (uploaded, 0, 2)
        if destination != maps:
            for path in destination.rglob("*.png"):
                path.unlink()


def test_a_map_is_not_replaced_by_its_overlay(maps: Path, tmp_path: Path) -> None:
    (maps / "a.png").write_bytes(gray_png())
    (maps / "b.npy").write_bytes(npy())
    report = am.run(maps / "a.png", maps, settings=SETTINGS)
    (failure,) = report.failures
    assert failure.reason == "its overlay would replace it: choose another destination, or another key"
    assert (maps / "a.png").read_bytes() == gray_png()
    (tmp_path / "link").symlink_to(maps)
    assert am.run(maps / "a.png", tmp_path / "link", settings=SETTINGS).failures[0].reason == failure.reason
    settings = am.Settings(workers=0, key="{name}-overlay.png")
    assert am.run(maps / "a.png", maps, settings=settings).uploaded == 1
    (tmp_path / "list.csv").write_text("name,path\nmaps/a,maps/a.png\n")
    assert am.dry_run(tmp_path / "list.csv", tmp_path, settings=SETTINGS).failures[0].reason == failure.reason


def _listed(place: str, **options: Any) -> tuple[list[str], dict[str, int]]:
    passed_over: list[str] = []
    entries = list(open_source(place, pass_over=passed_over.append, options=SourceOptions(**options)))
    assert not any(isinstance(entry, Failure) for entry in entries), entries
    return [entry.name for entry in entries], Counter(passed_over)


def test_pictures_in_s3_are_maps_if_the_prefix_has_no_other_format(bucket: str) -> None:
    upload(bucket, {"m/a/1.png": gray_png(), "m/a/2.jpg": b"", "m/.x.npy": npy(), "mm/1.npy": npy()})
    assert _listed(f"s3://{bucket}/m/a/1.png")[0] == ["1"]
    assert _listed(f"s3://{bucket}/m/", exclude=("*.jpg",))[0] == ["a/1"]
    upload(bucket, {"m/z/1.npy": npy()})
    assert _listed(f"s3://{bucket}/m/") == (["z/1"], {".png": 1, ".jpg": 1, "hidden files": 1})
    assert _listed(f"s3://{bucket}/m/", include=("*.png",))[0] == ["a/1"]
    assert _listed(f"s3://{bucket}/m/**/*.png")[0] == ["a/1"]
    assert _listed(f"s3://{bucket}/m/**") == (["z/1"], {".png": 1, ".jpg": 1})


def test_a_zarr_hierarchy_in_s3_is_another_format(bucket: str) -> None:
    upload(bucket, {"m/a.png": gray_png(), "m/z.zarr/zarr.json": b"{}"})
    passed_over: list[str] = []
    entries = list(open_source(f"s3://{bucket}/m/", pass_over=passed_over.append))
    assert [entry.name for entry in entries] == ["z"]
    assert passed_over == [".png"]


def test_overlays_in_s3_are_never_read(bucket: str) -> None:
    upload(
        bucket, {"m/a.png": gray_png(), "m/out/b.png": gray_png(), "m/outer/c.png": gray_png(), "m/d.png": overlay()}
    )
    other = "overlays (PNG with a palette of transparent colors)"
    below = {"folders of overlays (the destination)": 1, other: 1}
    assert _listed(f"s3://{bucket}/m/", destination=f"s3://{bucket}/m/out") == (["a", "outer/c"], below)
    assert _listed(f"s3://{bucket}/m/", destination=f"s3://{bucket}/m") == ([], {".png in the destination": 4})
    assert _listed(f"s3://{bucket}/m/out/", destination=f"s3://{bucket}/m") == (["b"], {})
    assert _listed(f"s3://{bucket}/m/out/", destination=f"s3://{bucket}-2/m/out")[0] == ["b"]


def test_a_run_into_its_own_prefix_is_repeated_without_failures(bucket: str, tmp_path: Path) -> None:
    upload(bucket, {"m/a.npy": npy(), "m/b.jpg": _encoded(GRAY, "jpeg")})
    for destination, uploaded in ((f"s3://{bucket}/m/overlays", 1), (f"s3://{bucket}/m", 1)):
        manifest = tmp_path / f"{len(destination)}.sqlite"
        for expected in (uploaded, 0):
            report = am.run(f"s3://{bucket}/m/", destination, settings=SETTINGS, manifest=manifest)
            assert (report.uploaded, report.failed, report.seen) == (expected, 0, 1)


def test_an_object_is_not_replaced_by_its_overlay(bucket: str) -> None:
    upload(bucket, {"m/a.png": gray_png()})
    report = am.run(f"s3://{bucket}/m/a.png", f"s3://{bucket}/m", settings=SETTINGS)
    assert [failure.reason for failure in report.failures] == [
        "its overlay would replace it: choose another destination, or another key"
    ]
