"""A create-only run that is killed can be completed: the overlays that it had sent are its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from async_maps.filesystems.objects import Objects
from tests.support.commands import done_rows, start
from tests.support.leftovers import leaves_nothing
from tests.support.maps import random_map

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

_MAPS = 400
_AT_LEAST = 20


@pytest.mark.parametrize("if_exists", ["error", "skip"])
@pytest.mark.parametrize("place", ["s3", "folder"])
def test_a_killed_create_only_run_can_be_completed(
    place: str, if_exists: str, bucket: str, maps: Path, tmp_path: Path
) -> None:
    for number in range(_MAPS):
        np.save(maps / f"{number:04}.npy", random_map(number, (12, 16)))
    destination = f"s3://{bucket}/p" if place == "s3" else (tmp_path / "out").as_uri()
    manifest = str(tmp_path / "m.sqlite")
    options = ("--if-exists", if_exists, "--workers", 0, "--concurrency", 4, "--progress", "none")

    def overlays() -> int:
        with Objects() as objects:
            return sum(1 for _ in objects.below(f"{destination}/"))

    while overlays() <= done_rows(manifest):  # the kill came after a commit, or nothing was sent yet
        before = overlays()
        # Otherwise all maps are stored before the kill, on a fast machine, or on one that stands still meanwhile.
        running = start("run", maps, destination, "--manifest", manifest, "--rate", 40, *options)
        try:
            while overlays() < before + _AT_LEAST:
                assert running.poll() is None
        finally:
            running.kill()
            running.communicate()
    running = start("run", maps, destination, "--manifest", manifest, *options)
    out, err = running.communicate()
    assert (running.returncode, err) == (0, "")
    assert "0 failed" in out
    assert overlays() == done_rows(manifest) == _MAPS
    # For another manifest they are those of another run.
    other = start("run", maps, destination, "--manifest", tmp_path / "other.sqlite", "--limit", 3, *options)
    _, err = other.communicate()
    assert (other.returncode, "exist" in err) == ((2, True) if if_exists == "error" else (0, False))
