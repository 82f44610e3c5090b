"""Mistakes that users make. Each marked line is an error in mypy and pyright; both refuse a mark without an error."""

from __future__ import annotations

import numpy as np

import async_maps as am
from async_maps import kolena

# Settings ---------------------------------------------------------------------------------------------------------

am.Settings(worker=1)  # type: ignore[call-arg]
am.Settings("viridis")  # type: ignore[call-arg]
am.Settings(workers="many")  # type: ignore[arg-type]
am.Settings(concurrency="32")  # type: ignore[arg-type]
am.Settings(concurrency=None)  # type: ignore[arg-type]
am.Settings(chunk_bytes=1.5)  # type: ignore[arg-type]
am.Settings(png="jpg")  # type: ignore[arg-type]
am.Settings(invalid="drop")  # type: ignore[arg-type]
am.Settings(if_exists="replace")  # type: ignore[arg-type]
am.Settings(alpha="perhaps")  # type: ignore[arg-type]
am.Settings(alpha=(0, 1))  # type: ignore[arg-type]
am.Settings(range=5)  # type: ignore[arg-type]
am.Settings(range=(0, 1, 2))  # type: ignore[arg-type]
am.Settings(range=("0", "1"))  # type: ignore[arg-type]
am.Settings(colormap=5)  # type: ignore[arg-type]
am.Settings(colormap=am.ColormapJet)  # type: ignore[arg-type]
am.Settings(colormap=np.zeros((256, 4), np.int64))  # type: ignore[arg-type]
am.Settings(s3=5)  # type: ignore[arg-type]
am.Settings(s3=am.FilesSettings())  # type: ignore[arg-type]
am.Settings(files=True)  # type: ignore[arg-type]

am.S3Settings(max_attempt=3)  # type: ignore[call-arg]
am.S3Settings(max_attempts="3")  # type: ignore[arg-type]
am.S3Settings(metadata={"run": 7})  # type: ignore[dict-item]
am.S3Settings(client="boto3")  # type: ignore[arg-type]
am.S3Settings(server_side_encryption="rot13")  # type: ignore[arg-type]
am.FilesSettings(sync=True)  # type: ignore[call-arg]
am.FilesSettings(fsync="perhaps")  # type: ignore[arg-type]

settings = am.Settings()
settings.workers = 1  # type: ignore[misc]
settings.range = "unit"  # type: ignore[misc]
settings.s3.max_attempts = 1  # type: ignore[misc]
_ = settings.worker  # type: ignore[attr-defined]
am.load_settings(b"my.toml")  # type: ignore[arg-type]

# Images -----------------------------------------------------------------------------------------------------------


class Unfinished(am.Colormap):
    def red(self, intensity: str) -> int:  # type: ignore[override]
        return len(intensity)


Unfinished()  # type: ignore[abstract]
am.Colormap()  # type: ignore[abstract]
am.ColormapJet(fade=True)  # type: ignore[call-arg]
am.colorize_activation_map([[0.0, 1.0]])  # type: ignore[arg-type]
am.colorize_activation_map(np.zeros((2, 2)), "jet")  # type: ignore[arg-type]
am.encode_png(np.zeros((2, 2), np.uint8))  # type: ignore[call-arg]

# Outcomes ---------------------------------------------------------------------------------------------------------


def outcomes(outcome: am.Outcome, receipt: am.Receipt) -> None:
    _ = outcome.locator  # type: ignore[union-attr]
    _ = outcome.reason  # type: ignore[union-attr]
    _ = receipt.statistics.mean + 1  # type: ignore[operator]
    receipt.locator = "s3://bucket/key"  # type: ignore[misc]


# Whole sources ----------------------------------------------------------------------------------------------------


def print_report(report: am.Report) -> None:
    print(report.summary())  # noqa: T201


def whole_sources() -> None:
    am.run("maps/")  # type: ignore[call-arg]
    am.run("maps/", "out", workers=1)  # type: ignore[call-arg]
    am.run("maps/", "out", am.Settings())  # type: ignore[call-arg]
    am.run("maps/", "out", settings={"workers": 1})  # type: ignore[arg-type]
    am.run("maps/", "out", select="done")  # type: ignore[arg-type]
    am.run("maps/", "out", select="broken")  # type: ignore[arg-type]
    am.run("maps/", "out", on_progress=print_report)  # type: ignore[arg-type]
    am.run([np.zeros((2, 2))], "out")  # type: ignore[arg-type]
    am.arun("maps/", "out")  # type: ignore[unused-coroutine]
    am.verify_locators("m.sqlite", depth=True)  # type: ignore[call-arg]
    am.export_manifest("m.sqlite", "t.csv", export_format="excel")  # type: ignore[arg-type]
    am.export_manifest("m.sqlite", "t.csv", rows="broken")  # type: ignore[arg-type]
    am.run("maps/", "out", limit="100")  # type: ignore[arg-type]


# Stores -----------------------------------------------------------------------------------------------------------


class Unchecked:
    async def put(self, key: str, data: bytes) -> None:
        pass


class Blocking(am.MemoryStore):
    def put(self, key: str, data: bytes) -> str:  # type: ignore[override]
        return f"{key} {len(data)}"


am.Pipeline(Unchecked())  # type: ignore[arg-type]
am.Pipeline(5)  # type: ignore[arg-type]
am.Store()  # type: ignore[misc]

# Services ---------------------------------------------------------------------------------------------------------


async def service(pipeline: am.Pipeline) -> None:
    await pipeline.put("img-1")  # type: ignore[call-arg]
    await pipeline.put(1, np.zeros((2, 2)))  # type: ignore[arg-type]
    pipeline.put("img-1", np.zeros((2, 2)))  # type: ignore[unused-coroutine]
    _ = (await pipeline.put("img-1", np.zeros((2, 2)))).reason  # type: ignore[attr-defined]
    kolena.bitmap_mask(pipeline.put_nowait("img-1", np.zeros((2, 2))))  # type: ignore[arg-type]


# Kolena -----------------------------------------------------------------------------------------------------------

with kolena.bitmap_uploader("s3://bucket/prefix") as create_and_upload_bitmap:
    create_and_upload_bitmap("img-1")  # type: ignore[call-arg]
    create_and_upload_bitmap(1, np.zeros((2, 2)))  # type: ignore[arg-type]

# The package ------------------------------------------------------------------------------------------------------

_ = am.verison  # type: ignore[attr-defined]

# Plans ------------------------------------------------------------------------------------------------------------

am.plan("maps", "out")  # type: ignore[call-arg]
am.run_plan("plan", "3/8")  # type: ignore[arg-type]
am.run_plan("plan", engine="spark")  # type: ignore[arg-type]
am.commit_plan()  # type: ignore[call-arg]
