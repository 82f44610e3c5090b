"""Code as users write it, and the types that they get. Type checkers find no error here; the file is not run."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, assert_never, assert_type

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import async_maps as am
from async_maps import kolena
from async_maps.metrics import PipelineCollector

# Settings ---------------------------------------------------------------------------------------------------------

am.Settings()
am.Settings(workers=1, colormap="viridis")
am.Settings(workers="auto", encode_threads=2, max_failures=None, drain_timeout_s=5)
am.Settings(invalid="transparent", png="rgba", png_level=3, key="{name}.{digest:.16}.png", if_exists="skip")

for text in ("unit", "per-map", "percentile:1,99", "-2,2"):
    am.Settings(range=text)
am.Settings(range=(-2, 2))
am.Settings(range=(-2.5, 2))
am.Settings(range=[0, 1])

am.Settings(alpha="fade")
am.Settings(alpha=0.5)
am.Settings(alpha=1)

am.Settings(s3=am.S3Settings(max_attempts=3, metadata={"run": "7"}, server_side_encryption="aws:kms"))
am.Settings(s3={"max_attempts": 3}, files={"fsync": True})
am.Settings(files=am.FilesSettings(fsync=True))


class Gray(am.Colormap):
    """Each method takes one intensity and returns a number."""

    def red(self, intensity: np.uint8) -> np.uint8:
        return intensity

    def green(self, intensity: np.uint8) -> int:
        return int(intensity)

    def blue(self, intensity: np.uint8) -> float:
        return float(intensity)

    def alpha(self, intensity: np.uint8) -> Any:
        return super().alpha(intensity)


class Red:
    """A colormap by its one method, without a base class."""

    def colorize(self, intensity: np.uint8) -> tuple[int, int, int, int]:
        return int(intensity), 0, 0, 255


am.Settings(colormap=am.ColormapJet(fade_low_activation=False))
am.Settings(colormap=Gray())
am.Settings(colormap=Red())
am.Settings(colormap=np.zeros((256, 4), np.uint8))
am.Settings(colormap=np.linspace(0, 1, 256 * 3).reshape(256, 3))
am.Settings(colormap=["black", "red", "#ffff0080"])
am.Settings(colormap=[(0, 0, 0), (255, 0, 0, 0.5)])
am.Settings(colormap=("black", (1.0, 0.0, 0.0)))

settings = am.load_settings(Path("my.toml"))
assert_type(settings, am.Settings)
assert_type(settings.range, str)
assert_type(settings.colormap, str)
assert_type(settings.s3, am.S3Settings)
assert_type(settings.s3.max_attempts, int)
assert_type(settings.s3.metadata, dict[str, str])
assert_type(settings.files.fsync, bool)
assert_type(settings.max_failures, int | None)
assert_type(settings.worker_count, int)
assert_type(settings.value_range.low, float)
assert_type(settings.table(), NDArray[np.uint8])

# Images -----------------------------------------------------------------------------------------------------------

pixels = am.colorize_activation_map(np.zeros((2, 2), np.float32))
assert_type(pixels, NDArray[np.uint8])
am.colorize_activation_map(np.zeros((2, 2, 1), np.uint8), colormap=am.ColormapJet(False))
am.colorize_activation_map(np.zeros((2, 2)), Gray(fade_low_activation=False))
am.colorize_activation_map(np.zeros((2, 2)), colormap=Red())
assert_type(am.encode_png(pixels, mode="RGBA"), io.BytesIO)

# Outcomes ---------------------------------------------------------------------------------------------------------


def by_class(outcome: am.Outcome) -> str:
    if isinstance(outcome, am.Receipt):
        assert_type(outcome, am.Receipt)
        return outcome.locator
    assert_type(outcome, am.Failure)
    return outcome.reason


def by_pattern(outcome: am.Outcome) -> float | None:
    match outcome:
        case am.Receipt(statistics=am.MapStatistics(mean=mean)):
            return mean
        case am.Failure(stage="source" | "read" | "colorize" | "encode" | "upload" | "verify"):
            return None
        case _:
            return assert_never(outcome)


# Whole sources ----------------------------------------------------------------------------------------------------


def named() -> Iterator[tuple[str, NDArray[np.float32]]]:
    yield "a", np.zeros((2, 2), np.float32)


async def named_async() -> AsyncIterator[tuple[str, NDArray[np.float32]]]:
    yield "a", np.zeros((2, 2), np.float32)


def whole_sources(path: Path) -> None:
    report = am.run("maps/", "s3://bucket/prefix")
    assert_type(report, am.Report)
    assert_type(report.uploaded, int)
    assert_type(report.failures, list[am.Failure])
    assert_type(report.failure_groups, list[am.FailureGroup])
    assert_type(report.failure_groups[0].examples, list[am.Failure])
    assert_type(report.passed_over, dict[str, int])
    assert_type(report.statistics, am.Statistics | None)
    am.run(path, path / "out", settings=settings, manifest="m.sqlite", select="failed", limit=100)
    am.run([("a", np.zeros((2, 2)))], "memory://")
    am.run(named(), "memory://")
    am.run(named_async(), "memory://")
    for outcome in am.stream(named(), "memory://", settings=settings, ordered=True, limit=100):
        assert_type(outcome, am.Receipt | am.Failure)
    assert_type(am.dry_run("maps/", "s3://bucket/prefix", manifest="m.sqlite").planned, int)
    assert_type(
        am.export_manifest("m.sqlite", path / "t.csv", columns=["name"], export_format="kolena", presign_hours=1), int
    )
    assert_type(am.export_manifest("m.sqlite", "failures.csv", rows="failed"), int)
    verification = am.verify_locators("m.sqlite", settings=settings, deep=True)
    assert_type(verification, am.Verification)
    assert_type(verification.is_clean, bool)
    assert_type(verification.first, list[am.Difference])
    assert_type(am.repair_overlays(path, source="maps/", delete_foreign=True), am.Verification)
    assert_type(am.diagnose("s3://bucket/prefix", settings, quick=True), list[am.Finding])


def show(progress: am.Progress) -> None:
    assert_type(progress.report, am.Report)
    assert_type(progress.statistics, am.Statistics | None)
    assert_type(progress.total, int | None)
    assert_type(progress.line(), str)


async def coroutines(path: Path) -> None:
    assert_type(await am.arun(named_async(), path, settings=settings, on_progress=show), am.Report)
    assert_type(await am.adry_run("maps/", path, on_progress=lambda progress: progress.eta_s), am.Report)
    async for outcome in am.astream([("a", np.zeros((2, 2)))], path, ordered=True):
        assert_type(outcome, am.Receipt | am.Failure)
    assert_type(await am.averify_locators("m.sqlite", on_progress=lambda found: found.line()), am.Verification)
    assert_type(await am.arepair_overlays("m.sqlite", settings=settings, deep=True), am.Verification)
    assert_type(await am.adiagnose(path), list[am.Finding])


# Stores -----------------------------------------------------------------------------------------------------------


class OwnStore:
    """A store by its two methods, without a base class."""

    async def check(self) -> None:
        pass

    async def put(self, key: str, data: bytes) -> None:
        if not data:
            raise am.TransientError(f"{key} cannot be stored now", slow_down=True)


def plans(path: Path) -> None:
    assert_type(am.plan("maps", "s3://b/out", path, part_size=100, on_progress=print), am.Plan)
    report = am.run_plan(path, (3, 8), settings=am.Settings(workers=1), on_progress=show)
    assert_type(report, am.ShareReport)
    assert_type(report.committed, list[int])
    assert_type(report.failure_groups, list[am.FailureGroup])
    assert_type(am.plan_status(path).missing, list[int])
    assert_type(am.commit_plan("s3://b/plan"), am.PlanStatus)


async def stores() -> None:
    memory = am.MemoryStore("prefix", replace=False)
    async with am.Pipeline(memory) as pipeline:
        await pipeline.put("a", np.zeros((2, 2)))
    assert_type(memory.objects, dict[str, bytes])
    am.run("maps/", OwnStore())
    store: am.Store = OwnStore()
    await am.arun("maps/", store)


# Services ---------------------------------------------------------------------------------------------------------


async def service(tensor: object) -> None:
    async with am.Pipeline("s3://bucket/prefix", settings=settings) as pipeline:
        assert_type(pipeline, am.Pipeline)
        receipt = await pipeline.put("img-1", np.zeros((2, 2)))
        assert_type(receipt, am.Receipt)
        assert_type(receipt.statistics, am.MapStatistics)
        await pipeline.put("img-2", tensor)
        await pipeline.put("img-3", [[0.0, 1.0]])
        try:
            task = pipeline.put_nowait("img-4", tensor)
        except am.PipelineFullError:
            return
        except am.MapFailedError as error:
            assert_type(error.failure, am.Failure)
            return
        assert_type(task, asyncio.Task[am.Receipt])
        assert_type(await task, am.Receipt)
        async for outcome in pipeline.stream("maps/"):
            assert_type(outcome, am.Receipt | am.Failure)
        async with aclosing(pipeline.stream(named_async(), ordered=True)) as outcomes:
            async for outcome in outcomes:
                by_class(outcome)
        assert_type(await pipeline.run(named(), manifest=Path("m.sqlite"), select="all"), am.Report)
        assert_type(pipeline.is_open, bool)
        statistics = pipeline.statistics()
        assert_type(statistics, am.Statistics)
        assert_type(statistics.stages, dict[str, am.StageStatistics])
        assert_type(statistics.slowest_stage(1.0), tuple[str, float])
        for metric in PipelineCollector({"overlays": pipeline}).collect():
            assert_type(metric.name, str)


# Kolena -----------------------------------------------------------------------------------------------------------


def one_by_one(receipt: am.Receipt) -> kolena.Mask:
    with kolena.bitmap_uploader("s3://bucket/prefix", settings=settings) as create_and_upload_bitmap:
        create_and_upload_bitmap("img-1", np.zeros((2, 2)), layer="layer4")
    kolena.create_and_upload_bitmap("img-1", np.zeros((2, 2)), destination="s3://bucket/prefix", layer="layer4")
    masks = kolena.inference_masks("m.sqlite", provenance=True, model="resnet50")
    assert_type(masks, dict[str, kolena.Mask])
    return kolena.bitmap_mask(receipt, provenance=True)


def whole_frames(results: pd.DataFrame) -> pd.DataFrame:
    kolena.results_frame("m.sqlite", results, on="name", statistics=["high_share"], missing="none")
    return kolena.results_frame({"layer4": "m.sqlite"}, results, on=lambda row: Path(row["locator"]).stem)


# The package ------------------------------------------------------------------------------------------------------

assert_type(am.__version__, str)
assert_type(am.__all__, list[str])
