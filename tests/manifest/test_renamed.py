"""Notices about sources that are in the manifest under other names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import async_maps as am
from tests.support.entries import save_map
from tests.support.maps import MAP

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.runs


def test_a_source_that_is_in_the_manifest_under_other_names_is_noticed(
    maps: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("val/a", "val/b", "test/c"):
        save_map(maps / f"{name}.npy")
    manifest, out = tmp_path / "m.sqlite", tmp_path / "out"

    def notices(source: Path, do: Any = am.run, **how: Any) -> list[str]:
        caplog.clear()
        do(source, out, settings=am.Settings(workers=0), manifest=manifest, **how)
        return [record.message for record in caplog.records if "under other names" in record.message]

    assert notices(maps) == notices(maps) == []
    (planned,) = notices(maps / "val", am.dry_run)
    assert planned == (
        f"maps of this source are in the manifest under other names, such as {maps}/val/a.npy: 'val/a' there, 'a' now. "
        "They get new overlays, and the others stay. For the same names, run with the same source as before"
    )
    assert notices(maps / "val") == [planned]
    # Now both names are known.
    assert notices(maps / "val") == notices(maps) == []
    assert notices(maps, select="all") == []


def test_maps_in_memory_have_no_other_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for names in (("a", "b"), ("c", "d")):
        pairs = [(name, MAP) for name in names]
        am.run(pairs, "memory://", settings=am.Settings(workers=0), manifest=tmp_path / "m.sqlite")
    assert "under other names" not in caplog.text
