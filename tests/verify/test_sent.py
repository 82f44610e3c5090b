"""Overlays without a row that are not foreign: of a killed run, and of maps that fail now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import async_maps as am
from async_maps.settings import IfExists
from tests.support.maps import random_map
from tests.support.overlays import found

KILLED = """
import os, sys
import async_maps as am
from async_maps.manifest.manifest import Manifest

maps, out, manifest, key = sys.argv[1:]
# The overlays are stored, and the process dies before it records them.
Manifest.write = lambda *_: os._exit(9)
am.run(maps, out, manifest=manifest, settings=am.Settings(workers=0, key=key))
"""


def run(maps: Path, out: Path, manifest: Path, key: str = "{name}.png") -> am.Report:
    return am.run(maps, out, manifest=manifest, settings=am.Settings(workers=0, key=key))


@pytest.mark.parametrize("key", ["{name}.png", "x/{index:06}[{stem}]-{digest:.16}.png"])
def test_overlays_that_a_killed_run_has_stored_are_not_foreign(
    key: str, maps: Path, tmp_path: Path, manifest: Path
) -> None:
    out = tmp_path / "out é"
    for number in range(3):
        np.save(maps / f"{number} [*].npy", random_map(number))
    killed = subprocess.run([sys.executable, "-c", KILLED, maps, out, manifest, key], check=False)
    assert killed.returncode == 9
    stored = len([*out.rglob("*.png")])
    assert stored > 0
    (out / "other.png").write_bytes(b"no overlay")
    verification = am.verify_locators(manifest)
    assert found(verification) == {"foreign": {"other"}}
    assert verification.unrecorded == stored
    assert f"{stored} overlay{'s are' if stored > 1 else ' is'} not recorded yet" in verification.summary()
    assert "to record the overlays of the interrupted run, run its command again" in verification.advice
    repaired = am.repair_overlays(manifest, delete_foreign=True)
    assert repaired.deleted == 0 or len([*out.rglob("*.png")]) == stored
    assert run(maps, out, manifest, key).done == 3
    assert am.verify_locators(manifest).unrecorded == 0


@pytest.mark.parametrize("if_exists", ["error", "skip"])
def test_overlays_whose_rows_fail_with_other_settings_are_not_foreign(
    if_exists: IfExists, maps: Path, tmp_path: Path, manifest: Path
) -> None:
    out = tmp_path / "out"
    for name in ("a", "b"):
        np.save(maps / f"{name}.npy", random_map(1))
    for colormap in ("jet", "matplotlib:viridis", "matplotlib:magma"):
        settings = am.Settings(workers=0, colormap=colormap, if_exists=if_exists)
        am.run(maps, out, manifest=manifest, settings=settings)
    verification = am.verify_locators(manifest)
    assert (verification.differences, verification.of_failed, verification.unrecorded) == ({}, 2, 0)
    assert not any("delete" in line for line in verification.advice)
    assert am.repair_overlays(manifest, delete_foreign=True).deleted == 0
    assert run(maps, out, manifest).done == 2
    assert am.verify_locators(manifest).of_failed == 0


def test_the_last_overlay_of_a_map_that_fails_now_is_not_foreign(maps: Path, tmp_path: Path, manifest: Path) -> None:
    out = tmp_path / "out"
    for name in ("a", "b"):
        np.save(maps / f"{name}.npy", random_map(1))
    run(maps, out, manifest)
    (maps / "b.npy").write_bytes(b"\x93NUMPY damaged")
    assert run(maps, out, manifest).failed == 1
    verification = am.verify_locators(manifest)
    assert verification.is_clean
    assert (verification.of_failed, verification.unrecorded, verification.failed) == (1, 0, 1)
    assert "the last overlay of a map that fails now" in verification.summary()
    assert not any("delete" in line for line in verification.advice)
    assert am.repair_overlays(manifest, delete_foreign=True).deleted == 0
    assert (out / "b.png").exists()
