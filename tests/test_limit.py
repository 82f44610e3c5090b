"""Runs and dry runs of the first maps of a source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.progress import SourceCount
from tests.support.commands import invoke
from tests.support.leftovers import leaves_nothing
from tests.support.manifests import read_rows
from tests.support.maps import random_map
from tests.support.progress import make_report, make_statistics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures(leaves_nothing.__name__)]

THREADS = am.Settings(workers=0)


@pytest.fixture
def twenty(maps: Path) -> Path:
    for number in range(20):
        np.save(maps / f"{number:02}.npy", random_map(number))
    return maps


@pytest.mark.parametrize("limit", [1, 7, 20, 100])
def test_the_first_maps_are_tried_and_a_later_run_does_the_rest(twenty: Path, tmp_path: Path, limit: int) -> None:
    manifest, done = tmp_path / "m.sqlite", min(limit, 20)
    planned = am.dry_run(twenty, tmp_path / "out", settings=THREADS, manifest=manifest, limit=limit)
    first = am.run(twenty, tmp_path / "out", settings=THREADS, manifest=manifest, limit=limit)
    assert planned.planned == first.uploaded == done
    assert [row["name"] for row in read_rows(manifest)] == [f"{number:02}" for number in range(done)]
    for report in planned, first:
        assert report.limit == limit
        assert ("limited to the first" in report.summary()) == (limit <= 20)
    again = am.run(twenty, tmp_path / "out", settings=THREADS, manifest=manifest, limit=limit)
    assert (again.uploaded, again.skipped) == (0, done)
    rest = am.run(twenty, tmp_path / "out", settings=THREADS, manifest=manifest)
    assert (rest.uploaded, rest.skipped) == (20 - done, done)


def test_maps_that_fail_and_maps_that_are_skipped_count(twenty: Path, tmp_path: Path) -> None:
    (twenty / "00.npy").write_bytes(b"")
    (twenty / "a\x01.npy").write_bytes(b"")
    report = am.run(twenty, tmp_path / "out", settings=THREADS, manifest=tmp_path / "m.sqlite", limit=3)
    assert (report.uploaded, report.failed) == (2, 1)
    selected = am.run(
        twenty, tmp_path / "out", settings=THREADS, manifest=tmp_path / "m.sqlite", limit=3, select="failed"
    )
    assert (selected.skipped, selected.failed) == (2, 1)


def test_what_was_refused_beyond_the_limit_is_not_forgotten(twenty: Path, tmp_path: Path) -> None:
    (twenty / "z\x01.npy").write_bytes(b"")
    manifest = tmp_path / "m.sqlite"
    am.run(twenty, tmp_path / "out", settings=THREADS, manifest=manifest)
    am.run(twenty, tmp_path / "out", settings=THREADS, manifest=manifest, limit=3)
    assert [row["stage"] for row in read_rows(manifest) if row["status"] == "failed"] == ["source"]


@pytest.mark.parametrize("kind", ["iterator", "async iterator"])
async def test_no_item_beyond_the_limit_is_taken_from_an_iterator(kind: str) -> None:
    taken: list[int] = []

    def pairs() -> Iterator[tuple[str, NDArray[Any]]]:
        for number in range(1000):
            taken.append(number)
            yield str(number), random_map(number, (3, 4))

    async def pairs_async() -> AsyncIterator[tuple[str, NDArray[Any]]]:
        for pair in pairs():
            yield pair

    source = pairs() if kind == "iterator" else pairs_async()
    report = await am.arun(source, "memory://", settings=THREADS, limit=300)
    assert report.uploaded == 300
    assert taken == list(range(300))


def test_streams_are_limited(twenty: Path) -> None:
    outcomes = list(am.stream(twenty, "memory://", settings=THREADS, ordered=True, limit=3))
    assert [outcome.name for outcome in outcomes] == ["00", "01", "02"]


def test_a_trial_has_the_range_of_the_whole_dataset(twenty: Path, tmp_path: Path) -> None:
    np.save(twenty / "99.npy", np.full((3, 4), 50.0))
    settings = am.Settings(workers=0, range="dataset")
    manifest = tmp_path / "m.sqlite"
    trial = am.run(twenty, tmp_path / "out", settings=settings, manifest=manifest, limit=2)
    assert (trial.surveyed, trial.uploaded, trial.range_high) == (21, 2, 50.0)
    rest = am.run(twenty, tmp_path / "out", settings=settings, manifest=manifest)
    assert (rest.surveyed, rest.uploaded, rest.skipped, rest.range_high) == (0, 19, 2, 50.0)


@pytest.mark.parametrize("limit", [0, -1, 1.5, "3", True])
def test_a_limit_that_is_not_positive_is_refused(limit: int) -> None:
    for do in (am.run, am.dry_run):
        with pytest.raises(am.SettingsError, match=f"limit: expected 1 or more maps, found {limit!r}"):
            do([("a", random_map(1))], "memory://", settings=THREADS, limit=limit)
    with pytest.raises(am.SettingsError, match="limit"):
        list(am.stream([("a", random_map(1))], "memory://", settings=THREADS, limit=limit))


def test_the_total_is_that_of_the_limit_and_in_the_first_pass_that_of_the_source() -> None:
    count = SourceCount("maps")
    count.total = 10_000
    report = make_report()
    report.limit = 2500
    progress = am.Progress(report, make_statistics(), count)
    assert (progress.total, progress.eta_s) == (2500, 600 * 20 / 400)
    first_pass = am.Progress(am.Report(surveyed=5, limit=2500), make_statistics(), count)
    assert first_pass.total == 10_000
    assert am.Progress(am.Report(limit=20_000), make_statistics(), count).total == 10_000


def test_no_more_than_the_limit_is_counted(twenty: Path) -> None:
    for limit, total in ((5, 5), (None, 20), (100, 20)):
        count = SourceCount(twenty, limit)
        count.run()
        assert count.total == total


# The command -------------------------------------------------------------------------------------------------------


def test_the_command_has_the_limit(
    twenty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("run", twenty, "out", "--workers", 0, "--progress", "none")
    assert invoke(*arguments, "--limit", 3, "--dry-run") == 0
    assert "3 maps listed: 3 would be done" in capsys.readouterr().out
    assert invoke(*arguments, "--limit", 3) == 0
    said = capsys.readouterr().out
    assert "3 uploaded, 0 skipped, 0 failed" in said
    assert "limited to the first 3 maps of the source; run without the limit for all maps" in said
    assert invoke(*arguments) == 0
    assert "17 uploaded, 3 skipped, 0 failed" in capsys.readouterr().out
    assert invoke(*arguments, "--limit", 0) == 2
    assert "error: limit: expected 1 or more maps, found 0" in capsys.readouterr().err
