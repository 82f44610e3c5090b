"""Create-only runs: what an earlier run with the same manifest has sent, or may have sent, is its own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.manifest.manifest import Manifest
from tests.support.entries import save_map
from tests.support.manifests import DESTINATION, SETTINGS, failure_for, make_map, receipt_for
from tests.support.maps import MAP

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.runs


def create(maps: Path, tmp_path: Path, manifest: str = "m.sqlite", **settings: Any) -> am.Report:
    """Run with ``if_exists="error"``."""
    return am.run(
        maps,
        tmp_path / "out",
        manifest=tmp_path / manifest,
        settings=am.Settings(workers=0, if_exists="error", **settings),
    )


def test_an_equal_file_of_another_manifest_fails_on_every_run(maps: Path, tmp_path: Path) -> None:
    save_map(maps / "a.npy")
    assert create(maps, tmp_path).uploaded == 1
    save_map(maps / "0.npy")
    assert create(maps, tmp_path, "other.sqlite", include=("0",)).uploaded == 1
    for _ in range(3):
        (failure,) = create(maps, tmp_path, "other.sqlite").failures
        assert failure.reason.startswith("the same file already exists, and is not replaced")


def test_a_map_whose_file_is_newer_but_equal_is_done_again(maps: Path, tmp_path: Path) -> None:
    save_map(maps / "a.npy")
    create(maps, tmp_path)
    os.utime(maps / "a.npy", (1, 1))
    assert create(maps, tmp_path).uploaded == 1
    save_map(maps / "a.npy", 1 - MAP)
    (failure,) = create(maps, tmp_path).failures
    assert failure.reason.startswith("another file already exists")


@pytest.mark.parametrize("broken", [b"no array", None], ids=["read", "values"])
def test_a_done_map_that_was_broken_in_between_is_done_again(maps: Path, tmp_path: Path, broken: bytes | None) -> None:
    save_map(maps / "a.npy")
    create(maps, tmp_path)
    if broken is None:
        save_map(maps / "a.npy", np.full((3, 4), 7.0))
    else:
        (maps / "a.npy").write_bytes(broken)
    for _ in range(2):
        assert create(maps, tmp_path).failed == 1
    save_map(maps / "a.npy")
    assert create(maps, tmp_path).uploaded == 1


def test_a_new_key_has_not_been_sent(maps: Path, tmp_path: Path) -> None:
    save_map(maps / "a.npy")
    create(maps, tmp_path)
    create(maps, tmp_path, "other.sqlite", key="new/{name}.png")
    assert create(maps, tmp_path, key="new/{name}.png").failed == 1


def test_what_a_dead_run_may_have_sent_is_marked(tmp_path: Path) -> None:
    path, names = tmp_path / "m.sqlite", "abcd"
    a, b, c, d = maps = [make_map(name) for name in names]

    def marked() -> str:
        with Manifest(path) as manifest:
            manifest.begin(DESTINATION)
            todo = manifest.plan(maps, SETTINGS, "all").todo
            return "".join(map_.name for map_ in todo if map_.maybe_at == "")

    with Manifest(path) as manifest:
        manifest.begin(DESTINATION)
        manifest.note_sending(maps, SETTINGS)
        manifest.write([receipt_for(a), failure_for(b)], SETTINGS)
        manifest.write([am.Failure(c.name, c.source, "1-1", "upload", "no answer", maybe_stored=True)], SETTINGS)
    assert marked() == "cd"
    with Manifest(path) as manifest:
        manifest.begin(DESTINATION)
        manifest.note_sending([c, d], SETTINGS)
        # That it fails now says nothing about what was sent earlier.
        manifest.write([failure_for(c), receipt_for(d)], SETTINGS)
    assert marked() == "c"
    with Manifest(path) as manifest:
        manifest.begin(DESTINATION)
        todo = manifest.plan(maps, "other settings", "all").todo
        assert [map_.maybe_at for map_ in todo] == [f"{DESTINATION}/a.png", None, None, f"{DESTINATION}/d.png"]
