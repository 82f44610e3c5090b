"""One range for a whole set: found in a first pass, kept in the manifest, used by other runs."""

from __future__ import annotations

import json
import logging
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import async_maps as am
from async_maps.manifest.manifest import Manifest
from async_maps.report import Report
from async_maps.sources.batches import list_maps
from async_maps.survey import survey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from numpy.typing import NDArray

    from async_maps.render.quantize import Invalid

pytestmark = pytest.mark.runs

LOCAL: dict[str, Any] = {"workers": 0}


def logits(seed: int, scale: float = 4.0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal((24, 32)) * scale).astype(np.float32)


@pytest.fixture
def stored(maps: Path) -> NDArray[np.float64]:
    """All values of the twenty maps in the folder."""
    arrays = [logits(seed, 1 + seed / 5) for seed in range(20)]
    for index, array in enumerate(arrays):
        np.save(maps / f"{index:02}.npy", array)
    return np.stack(arrays).astype(np.float64).ravel()


def plane_of(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


def spans(manifest: Path) -> set[tuple[float, float]]:
    """Return the value ranges of the maps of a manifest."""
    table = manifest.with_suffix(".jsonl")
    am.export_manifest(manifest, table)
    return {(row["range_low"], row["range_high"]) for row in map(json.loads, table.read_text().splitlines())}


def test_a_dataset_range_spans_the_values_of_all_maps(maps: Path, stored: NDArray[np.float64], tmp_path: Path) -> None:
    report = am.run(maps, tmp_path / "out", settings=am.Settings(range="dataset", **LOCAL))
    assert (report.surveyed, report.uploaded) == (20, 20)
    low, high = stored.min(), stored.max()
    assert (report.range_low, report.range_high) == (low, high)
    for index in (0, 7, 19):
        values = np.load(maps / f"{index:02}.npy").astype(np.float64)
        expected = np.rint((values - low) * (255 / (high - low)))
        np.testing.assert_array_equal(plane_of(tmp_path / "out" / f"{index:02}.png"), expected)


def test_percentiles_of_all_maps_are_within_the_stated_error(
    maps: Path, stored: NDArray[np.float64], tmp_path: Path
) -> None:
    report = am.run(maps, tmp_path / "out", settings=am.Settings(range="dataset:1,99", **LOCAL))
    assert report.range_low == pytest.approx(np.percentile(stored, 1), rel=1 / 2048)
    assert report.range_high == pytest.approx(np.percentile(stored, 99), rel=1 / 2048)


@pytest.mark.usefixtures("stored")
def test_a_later_run_keeps_the_range_without_a_first_pass(maps: Path, tmp_path: Path) -> None:
    manifest, out = tmp_path / "m.sqlite", tmp_path / "out"
    settings = am.Settings(range="dataset:1,99", **LOCAL)
    first = am.run(maps, out, settings=settings, manifest=manifest)
    np.save(maps / "new.npy", logits(99, scale=50))
    second = am.run(maps, out, settings=settings, manifest=manifest)
    assert (second.surveyed, second.uploaded, second.skipped) == (0, 1, 20)
    assert spans(manifest) == {(first.range_low, first.range_high)}
    # Other percentiles of the same values need no first pass either.
    third = am.run(maps, out, settings=am.Settings(range="dataset", **LOCAL), manifest=manifest)
    assert (third.surveyed, third.uploaded) == (0, 21)
    # select="all" makes another first pass, which includes the new map.
    fourth = am.run(maps, out, settings=settings, manifest=manifest, select="all")
    assert (fourth.surveyed, fourth.uploaded) == (21, 21)
    assert len(spans(manifest)) == 1
    assert spans(manifest) != {(first.range_low, first.range_high)}


@pytest.mark.usefixtures("stored")
async def test_a_drained_run_resumes_with_the_same_range(maps: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.sqlite"
    settings = am.Settings(range="dataset", chunk_maps=1, **LOCAL)
    report = Report()
    async with am.Pipeline(tmp_path / "out", settings=settings) as pipeline:

        class Draining(list[Any]):
            """A source that drains the run during its second iteration."""

            passes = 0

            def __iter__(self) -> Iterator[Any]:
                self.passes += 1
                for index, item in enumerate(super().__iter__()):
                    if self.passes == 2 and index == 5:
                        pipeline.drain()
                    yield item

        source = Draining((path.stem, np.load(path)) for path in sorted(maps.iterdir()))
        report = await pipeline.run(source, manifest=manifest)
    assert report.drained
    assert report.uploaded < 20
    async with am.Pipeline(tmp_path / "out", settings=settings) as pipeline:
        again = await pipeline.run([(path.stem, np.load(path)) for path in maps.iterdir()], manifest=manifest)
    assert (again.surveyed, again.uploaded) == (0, 20)
    assert spans(manifest) == {(report.range_low, report.range_high)}


@pytest.mark.usefixtures("stored")
async def test_a_drained_first_pass_leaves_no_range(maps: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.sqlite"
    async with am.Pipeline(tmp_path / "out", settings=am.Settings(range="dataset", **LOCAL)) as pipeline:

        class Draining(list[Any]):
            def __iter__(self) -> Iterator[Any]:
                pipeline.drain()
                return super().__iter__()

        report = await pipeline.run(Draining([("a", logits(1))]), manifest=manifest)
    assert (report.drained, report.uploaded) == (True, 0)
    with Manifest(manifest, read_only=True) as opened, pytest.raises(am.ManifestError, match="it has no run yet"):
        opened.value_range()


def test_an_unreadable_map_causes_another_first_pass(maps: Path, tmp_path: Path) -> None:
    manifest, settings = tmp_path / "m.sqlite", am.Settings(range="dataset", **LOCAL)
    np.save(maps / "a.npy", np.full((2, 2), 10.0))
    np.save(maps / "b.npy", np.array([[40.0, 20.0]]))
    whole = (maps / "b.npy").read_bytes()
    (maps / "b.npy").write_bytes(whole[:-1])
    first = am.run(maps, tmp_path / "out", settings=settings, manifest=manifest)
    assert (first.surveyed, first.unsurveyed, first.range_high) == (2, 1, 10)
    assert "1 map could not be read for the range" in first.summary()
    (maps / "b.npy").write_bytes(whole)
    second = am.run(maps, tmp_path / "out", settings=settings, manifest=manifest)
    assert (second.surveyed, second.unsurveyed, second.uploaded) == (2, 0, 2)
    assert (second.range_low, second.range_high) == (10, 40)


@pytest.mark.parametrize("what", ["nowhere", "empty"])
def test_an_invalid_source_keeps_the_earlier_range(maps: Path, tmp_path: Path, what: str) -> None:
    manifest, settings = tmp_path / "m.sqlite", am.Settings(range="dataset", **LOCAL)
    np.save(maps / "a.npy", logits(1))
    kept = am.run(maps, tmp_path / "out", settings=settings, manifest=manifest).range_high
    (tmp_path / "empty").mkdir()
    for other in (settings, am.Settings(**LOCAL)):
        with pytest.raises(am.SourceError):
            am.run(tmp_path / what, tmp_path / "out", settings=other, manifest=manifest)
        with pytest.raises(am.SourceError):
            am.run(tmp_path / what, tmp_path / "out", settings=other, manifest=manifest, select="all")
    with Manifest(manifest, read_only=True) as opened:
        assert opened.value_range().high == kept


async def test_the_first_pass_is_bounded_by_queue_bytes(tmp_path: Path) -> None:
    alive: set[int] = set()
    most = 0

    class Maps:
        """A source that tracks which of its arrays are alive."""

        def __iter__(self) -> Iterator[tuple[str, Any]]:
            nonlocal most
            for index in range(120):
                array = np.zeros((512, 512), np.float32)
                alive.add(index)
                weakref.finalize(array, alive.discard, index)
                most = max(most, len(alive))
                yield f"{index}", array

    settings = am.Settings(queue_bytes=4 * 2**20, prefetch=16, **LOCAL)
    sketch = (await survey(list_maps(Maps()), settings, Report())).sketch
    assert sketch.count == 120 * 512 * 512
    # A queue, a listed batch (16 MiB), the next batch, and one that a thread has counted but not yet released.
    assert most <= 4 + 3 * 17


@pytest.mark.parametrize("kind", ["flat", "sparse"])
def test_a_range_of_a_single_value_is_warned_about(
    maps: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    sparse = np.zeros((40, 40))
    sparse[3, 4] = 9
    for index in range(3):
        np.save(maps / f"{index}.npy", sparse if kind == "sparse" else np.zeros((3, 3)))
    for setting, said in (
        ("percentile:1,99", "is constant, or almost all"),
        ("dataset:1,99", "is the single value 0"),
    ):
        caplog.clear()
        am.run(maps, tmp_path / "out", settings=am.Settings(range=setting, **LOCAL))
        invisible = ["3 of 3 overlays are fully transparent: all values are 0"] if kind == "flat" else []
        expected = [said, *invisible]
        assert len(caplog.messages) == len(expected)
        assert all(part in message for part, message in zip(expected, caplog.messages, strict=True))


def test_rates_exclude_the_first_pass() -> None:
    report = Report(uploaded=1_000, surveyed=1_000, survey_s=3_600, elapsed_s=3_605)
    assert "200 maps/s" in report.summary()
    assert "first pass: 1,000 maps in 3600.0 s" in report.summary()


@pytest.mark.parametrize(("invalid", "low"), [("transparent", 1.0), ("zero", 0.0), ("error", 3.0)])
def test_invalid_values_count_in_the_range_as_set(maps: Path, tmp_path: Path, invalid: Any, low: float) -> None:
    np.save(maps / "whole.npy", np.array([[3.0, 4.0]]))
    np.save(maps / "holes.npy", np.array([[1.0, np.nan, np.inf]]))
    np.save(maps / "labels.npy", np.array([["no", "map"]]))
    (maps / "broken.npy").write_bytes(b"nothing")
    report = am.run(maps, tmp_path / "out", settings=am.Settings(range="dataset", invalid=invalid, **LOCAL))
    # A map that fails does not shape the colors of the others.
    assert (report.range_low, report.range_high) == (low, 4.0)
    assert report.surveyed == 3
    assert report.failed == (2 if invalid == "error" else 1)


@pytest.mark.usefixtures("stored")
def test_another_invalid_setting_causes_another_first_pass(maps: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.sqlite"
    runs: list[tuple[Invalid, int]] = [("error", 20), ("zero", 20), ("zero", 0)]
    for invalid, surveyed in runs:
        settings = am.Settings(range="dataset", invalid=invalid, **LOCAL)
        assert am.run(maps, tmp_path / "out", settings=settings, manifest=manifest).surveyed == surveyed


def test_a_set_without_valid_values_names_the_failure(maps: Path, tmp_path: Path) -> None:
    np.save(maps / "a.npy", np.full((2, 2), np.nan))
    report = am.run(maps, tmp_path / "out", settings=am.Settings(range="dataset", **LOCAL))
    assert (report.uploaded, report.failed) == (0, 1)
    assert "found NaN at index (0, 0)" in report.failures[0].reason


async def test_the_first_pass_reads_stacks_and_archives(maps: Path) -> None:
    np.save(maps / "stack.npy", np.arange(60.0).reshape(2, 5, 6))
    np.savez(maps / "some.npz", a=np.full((2, 2), -5), b=np.full((2, 2), 99, np.uint8))
    sketch = (await survey(list_maps(maps), am.Settings(), Report())).sketch
    assert (sketch.count, sketch.minimum, sketch.maximum) == (68, -5, 99)


async def once() -> AsyncIterator[tuple[str, Any]]:
    yield "a", logits(1)


@pytest.mark.parametrize("source", ["iterator", "async iterator", "stdin"])
async def test_a_source_that_can_be_read_only_once_is_refused(tmp_path: Path, source: str) -> None:
    given: Any = {"iterator": iter([("a", logits(1))]), "async iterator": once(), "stdin": "-"}[source]
    async with am.Pipeline(tmp_path, settings=am.Settings(range="dataset", **LOCAL)) as pipeline:
        with pytest.raises(am.SettingsError, match="pass a source that can be read twice"):
            await pipeline.run(given)
        with pytest.raises(am.SettingsError, match="pass a source that can be read twice"):
            await anext(pipeline.stream(given))
    if source == "iterator":
        assert next(given)[0] == "a"
    elif source == "async iterator":
        await given.aclose()


async def test_put_refuses_a_dataset_range_and_an_index(tmp_path: Path) -> None:
    for settings, what in (
        (am.Settings(range="dataset:1,99", **LOCAL), "range dataset:1,99 needs a whole source"),
        (am.Settings(key="{index:06}.png", **LOCAL), "an {index} in the key needs a whole source"),
    ):
        async with am.Pipeline(tmp_path, settings=settings) as pipeline:
            with pytest.raises(am.SettingsError, match=what):
                await pipeline.put("a", logits(1))
            names = [outcome.name async for outcome in pipeline.stream([("a", np.eye(3)), ("b", np.eye(4))])]
            assert sorted(names) == ["a", "b"]


# From another run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["dataset:1,99", "-3,5", "unit"])
@pytest.mark.usefixtures("stored")
async def test_a_run_can_take_the_range_of_another_manifest(maps: Path, tmp_path: Path, setting: str) -> None:
    if setting == "unit":
        for path in maps.iterdir():
            np.save(path, np.random.default_rng(0).random((4, 4)))
    a, b = tmp_path / "a.sqlite", tmp_path / "b.sqlite"
    async with am.Pipeline(tmp_path / "a", settings=am.Settings(range=setting, **LOCAL)) as pipeline:
        await pipeline.run(maps, manifest=a)
    async with am.Pipeline(tmp_path / "b", settings=am.Settings(range=f"from:{a}", **LOCAL)) as pipeline:
        receipt = await pipeline.put("one", np.eye(4) / 2)
        await pipeline.run(maps, manifest=b)
    assert spans(b) == spans(a)
    assert receipt.statistics is not None
    assert {(receipt.statistics.range_low, receipt.statistics.range_high)} == spans(a)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [("per-map", "its run used range per-map"), ("symmetric", "symmetric"), ("percentile:1,99", "percentile:1,99")],
)
@pytest.mark.usefixtures("stored")
def test_a_manifest_without_a_range_is_refused_as_its_source(
    maps: Path, tmp_path: Path, setting: str, reason: str
) -> None:
    manifest = tmp_path / "a.sqlite"
    am.run(maps, tmp_path / "a", settings=am.Settings(range=setting, **LOCAL), manifest=manifest)
    with pytest.raises(am.ManifestError, match=rf"has no range for other runs: .*{reason}; run it with range dataset"):
        am.run(maps, tmp_path / "b", settings=am.Settings(range=f"from:{manifest}", **LOCAL))
    assert not (tmp_path / "b").exists()


def test_a_missing_manifest_is_refused_as_the_source_of_a_range(maps: Path, tmp_path: Path) -> None:
    with pytest.raises(am.ManifestError, match="no such manifest"):
        am.run(maps, tmp_path / "out", settings=am.Settings(range=f"from:{tmp_path}/none.sqlite", **LOCAL))


# Dry runs, and constant maps --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stored")
async def test_a_dry_run_has_no_first_pass_and_knows_a_found_range(maps: Path, tmp_path: Path) -> None:
    manifest, out = tmp_path / "m.sqlite", tmp_path / "out"
    settings = am.Settings(range="dataset", **LOCAL)
    assert (await am.adry_run(maps, out, settings=settings, manifest=manifest)).planned == 20
    assert not manifest.exists()
    async with am.Pipeline(out, settings=settings) as pipeline:
        await pipeline.run(maps, manifest=manifest)
    report = await am.adry_run(maps, out, settings=settings, manifest=manifest)
    assert (report.planned, report.skipped, report.surveyed) == (0, 20, 0)


@pytest.mark.parametrize(("setting", "warnings"), [("per-map", 1), ("symmetric", 1), ("unit", 0), ("0,1", 0)])
def test_constant_maps_in_a_relative_range_are_warned_about_once(
    maps: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, setting: str, warnings: int
) -> None:
    for index in range(5):
        np.save(maps / f"{index}.npy", np.full((3, 4), index / 10))
    with caplog.at_level(logging.WARNING, "async_maps"):
        report = am.run(maps, tmp_path / "out", settings=am.Settings(range=setting, **LOCAL))
    assert sum("is constant" in message for message in caplog.messages) == warnings
    assert report.constant == 5
    assert "constant maps, with one color: 5" in report.summary()
