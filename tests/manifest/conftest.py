"""A manifest of a run with unusual names and with failures."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from async_maps.manifest.manifest import Manifest
from async_maps.outcomes import Failure, MapStatistics
from tests.support.exports import EXPORTED_NAMES
from tests.support.installed import kolena_client
from tests.support.manifests import COUNTED, make_map, receipt_for

if TYPE_CHECKING:
    from pathlib import Path


UNCOUNTED = MapStatistics(None, None, None, None, None, None, None, None, None, 12, False, True, False)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    path = folder / "manifest.sqlite"
    done = [
        replace(
            receipt_for(make_map(name)),
            locator=f"s3://bucket/{name}.png",
            size=2**40 + n,
            etag="etag" if n else None,
            statistics=UNCOUNTED if n else COUNTED,
        )
        for n, name in enumerate(EXPORTED_NAMES)
    ]
    failed = [
        Failure("broken", "/maps/broken.npy", None, "read", 'two\nlines\r\nand "quotes", é 🧠'),
        Failure(r"caf\udce9", r"/maps/caf\udce9.npy", "1-1", "source", "is not UTF-8"),
    ]
    with Manifest(path) as opened:
        opened.begin("s3://bucket")
        opened.write([*done, *failed], "settings")
    return path


@pytest.fixture(scope="module")
def kolena() -> Any:
    """Kolena's own reader of tables."""
    return kolena_client("kolena.io")
