"""Two keys that the server takes as one object never replace each other; SeaweedFS takes a backslash as a slash."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from anyio import to_thread

import async_maps as am
from tests.support.leftovers import leaves_nothing

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.seaweedfs, pytest.mark.usefixtures(leaves_nothing.__name__)]

SETTINGS = am.Settings(workers=0)


async def run(names: list[str], destination: str, manifest: Path) -> am.Report:
    maps = [(name, np.full((5, 5 + len(name)), 0.5)) for name in names]
    return await to_thread.run_sync(lambda: am.run(maps, destination, settings=SETTINGS, manifest=manifest))


@pytest.mark.parametrize("names", [["a\\b", "a/b"], ["a/b", "a\\b"], ["a\\b"]])
async def test_a_key_that_the_server_spells_otherwise_fails_by_name(
    names: list[str], bucket: str, tmp_path: Path
) -> None:
    manifest = tmp_path / "m.sqlite"
    for _ in range(2):
        report = await run(names, f"s3://{bucket}/p", manifest)
        (failure,) = report.failures
        assert failure.name == "a\\b"
        assert "takes the keys 'p/a\\\\b.png' and 'p/a/b.png' as one object: rename the map" in failure.reason
        verification = await am.averify_locators(manifest, settings=SETTINGS, deep=True)
        assert verification.right == len(names) - 1


async def test_odd_keys_that_the_server_distinguishes_are_stored(bucket: str, tmp_path: Path) -> None:
    names = ["a b", "a+b", "a%20b", "a%2Fb", "caf\u00e9", "cafe\u0301", "\u65e5\u672c"]
    report = await run(names, f"s3://{bucket}/p", tmp_path / "m.sqlite")
    assert [failure.reason for failure in report.failures] == []
    verification = await am.averify_locators(tmp_path / "m.sqlite", settings=SETTINGS, deep=True)
    assert verification.right == len(names)
