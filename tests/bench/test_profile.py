"""``python -m bench profile`` counts CPU time for the stage and the thread that used it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import async_maps as am
from async_maps.manifest.recorder import Recorder
from async_maps.stages.encode import encode_stage
from async_maps.stages.upload import upload_stage
from bench.profile import Times, stage_of
from tests.support.leftovers import leaves_nothing

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures(leaves_nothing.__name__)]


async def test_a_run_is_counted_for_its_stages(tmp_path: Path) -> None:
    np.save(tmp_path / "maps.npy", np.zeros((50, 8, 8), np.float32))
    times = Times()
    with times.measuring():
        async with am.Pipeline(tmp_path / "out", settings=am.Settings(workers=0)) as pipeline:
            report = await pipeline.run(tmp_path / "maps.npy", manifest=tmp_path / "manifest.sqlite")
    assert report.uploaded == 50
    labels = {
        "event loop, upload", "event loop, colorize", "event loop, encode", "event loop, manifest",
        "threads, encode", "threads, manifest", "threads, sources", "threads, stores",
    }  # fmt: skip
    assert labels <= times.seconds.keys()
    assert all(seconds >= 0 for seconds in times.seconds.values())
    counted = dict(times.seconds)
    async with am.Pipeline(tmp_path / "out") as pipeline:
        await pipeline.put("after", np.zeros((8, 8), np.float32))
    assert times.seconds == counted


def test_a_function_belongs_to_its_stage_or_its_package() -> None:
    found = [
        stage_of(function.__code__)
        for function in (upload_stage, encode_stage, Recorder.close, test_a_run_is_counted_for_its_stages)
    ]
    assert found == ["upload", "encode", "manifest", None]
