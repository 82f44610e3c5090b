"""Rows and overlays of maps that are gone, with sources and destinations in S3."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from tests.support.leftovers import leaves_nothing
from tests.support.manifests import rows
from tests.support.maps import MAP, npy
from tests.support.s3 import delete, keys, upload
from tests.support.s3_proxy import Refusal, counting

if TYPE_CHECKING:
    from pathlib import Path

    from async_maps.demo.seaweed import S3Server

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

BAD = npy(np.full((3, 4), 7.0))


def npz(**members: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **members)
    return file.getvalue()


@pytest.mark.parametrize("pattern", ["", "/", "/*"])
def test_pruning_deletes_the_overlays_of_objects_that_are_gone(bucket: str, tmp_path: Path, pattern: str) -> None:
    manifest, source, destination = tmp_path / "m.sqlite", f"s3://{bucket}/maps{pattern}", f"s3://{bucket}/out"
    good = {f"maps/{name}.npy": npy(MAP) for name in ("a", "b", "c", "d")}
    upload(bucket, good | {"maps/bad.npy": BAD, "maps/broken.npz": b"broken", "maps/e.npz": npz(x=MAP, y=1 - MAP)})

    def run(**how: Any) -> am.Report:
        return am.run(source, destination, manifest=manifest, settings=am.Settings(workers=0), **how)

    assert run().failed == 2
    for name in ("a.npy", "bad.npy", "broken.npz"):
        delete(bucket, f"maps/{name}")
    upload(bucket, {"maps/e.npz": npz(y=MAP, z=MAP)})
    assert run(select="failed").forgotten_names == ["bad", "broken"]
    assert am.dry_run(source, destination, manifest=manifest, prune="objects").deleted == 2
    report = run(prune="objects")
    assert (report.forgotten, report.deleted, report.failed) == (2, 2, 0)
    done = ["b", "c", "d", "e/y", "e/z"]
    assert sorted(rows(manifest, "name")) == done
    assert {key for key in asyncio.run(keys(bucket)) if key.startswith("out/")} == {f"out/{name}.png" for name in done}


def test_pruning_keeps_an_object_that_another_map_has(bucket: str, maps: Path, tmp_path: Path) -> None:
    for name, array in {"a": MAP, "b": MAP, "c": 1 - MAP}.items():
        np.save(maps / f"{name}.npy", array)

    def run(**how: Any) -> am.Report:
        settings = am.Settings(workers=0, key="{digest}.png")
        return am.run(maps, f"s3://{bucket}", manifest=tmp_path / "m.sqlite", settings=settings, **how)

    run()
    before = asyncio.run(keys(bucket))
    (maps / "a.npy").unlink()
    report = run(prune="objects")
    assert (report.forgotten, report.deleted) == (1, 0)
    assert asyncio.run(keys(bucket)) == before


def test_an_object_that_cannot_be_read_does_not_look_like_a_deletion(
    bucket: str, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, out = tmp_path / "m.sqlite", tmp_path / "out"
    upload(
        bucket, {"maps/a.npy": npy(MAP), "maps/b.npy": npy(MAP), "maps/bad.npy": BAD, "maps/e.npz": npz(x=MAP, y=MAP)}
    )

    def run(**how: Any) -> am.Report:
        return am.run(f"s3://{bucket}/maps", out, manifest=manifest, settings=am.Settings(workers=0), **how)

    with counting(s3, monkeypatch) as proxy:
        run()
        delete(bucket, "maps/b.npy")
        delete(bucket, "maps/bad.npy")
        proxy.refuse = lambda method, path, _: Refusal(403) if (method, path[-6:]) == ("GET", "/e.npz") else None
        report = run(prune="objects")
        assert (report.failed, report.forgotten, report.deleted) == (1, 0, 0)
        assert report.warnings[0].startswith(f"nothing was pruned, because s3://{bucket}/maps/e.npz could not be read")
        proxy.refuse = lambda *_: None
        report = run(prune="objects")
    assert (report.failed, report.forgotten, report.deleted) == (0, 3, 1)
    assert sorted(rows(manifest, "name")) == ["a", "e/x", "e/y"]
