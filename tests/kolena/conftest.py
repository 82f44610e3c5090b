"""A manifest, and a stand-in for Kolena's service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import async_maps as am
from tests.support.masks import UNCOUNTED, receipt, write_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.kolena_service import KolenaService


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A manifest of two uploaded maps and one failed map."""
    failed = am.Failure("c", "c.npy", None, "read", "no map")
    return write_manifest(tmp_path / "m.sqlite", receipt("a"), receipt("b", UNCOUNTED), failed)


@pytest.fixture
def pandas() -> Any:
    return pytest.importorskip("pandas")


@pytest.fixture
def service() -> Iterator[KolenaService]:
    from tests.support.kolena_service import serve_kolena

    with serve_kolena() as service:
        yield service
