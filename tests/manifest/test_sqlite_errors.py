"""What an error of SQLite says."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

import pytest

from async_maps.errors import ManifestError
from async_maps.manifest.manifest import Manifest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("left", [0, 1])
def test_a_shortage_of_files_is_not_called_a_lack_of_permission(left: int, tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    with Manifest(path) as manifest:
        manifest.begin("memory://")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Each new file has the lowest free number: with this limit, as many can be opened as numbers below it are free.
    used = {int(number) for number in os.listdir("/proc/self/fd")}
    free = (number for number in range(before[0]) if number not in used)
    limit = [next(free) for _ in range(left + 1)][-1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        with pytest.raises(ManifestError) as caught, Manifest(path) as manifest:
            manifest.begin("memory://")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert "no file can be opened: the limit of open files" in str(caught.value)
    assert caught.value.may_pass
