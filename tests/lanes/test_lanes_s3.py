"""Runs with lanes to S3 do what a run without lanes does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from anyio import to_thread

import async_maps as am
from async_maps.manifest.manifest import Manifest
from async_maps.manifest.schema import COLUMNS
from tests.support.leftovers import leaves_nothing
from tests.support.maps import decode, npy, npz, random_map
from tests.support.pipelines import lane_pids
from tests.support.s3 import objects, upload
from tests.support.s3_proxy import Refusal, counting

if TYPE_CHECKING:
    from pathlib import Path

    from async_maps.demo.seaweed import S3Server

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

COUNT = 60


def write_source(kind: str, maps: Path) -> Path:
    arrays = [random_map(i, (12 + i % 5, 16)) for i in range(COUNT)]
    if kind == "folder":
        for i, array in enumerate(arrays):
            np.save(maps / f"{i}.npy", array)
        np.save(maps / "bad.npy", np.full((3, 3), 7.0))
        return maps
    path = maps / ("stack.npy" if kind == "stack" else "many.npz")
    if kind == "stack":
        np.save(path, np.stack([array[:12] for array in arrays]))
    else:
        named: dict[str, Any] = {f"a/{i}": array for i, array in enumerate(arrays)}
        np.savez(path, **named)
    return path


def rows(manifest: Path) -> list[dict[str, object]]:
    """Return the rows without what is different in each run."""
    with Manifest(manifest, read_only=True) as opened:
        found = [dict(zip(COLUMNS, row, strict=True)) for row in opened.rows(failed=True)]
    for row in found:
        assert row.pop("time")
        row["locator"] = str(row["locator"]).rpartition("/")[2]
    return found


def comparable(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report without times, places, and the workers, which a lane that is not ready has not told."""
    others = {"started_at", "ended_at", "elapsed_s", "destination", "manifest"}
    found = {key: report[key] for key in report if key not in others}
    found["settings"] = {**report["settings"], "processes": None}
    found["statistics"] = {**report["statistics"], "lanes": None, "upload_limit": None}
    for stage in ("fetch", "colorize", "encode", "upload"):
        found["statistics"][stage] = report["statistics"][stage]["maps"]
    return found


def comparable_status(manifest: Path) -> dict[str, Any]:
    """Return what ``status`` says, without times, speeds and limits."""
    found = am.status(manifest).as_dict()
    of_times = {"started_at", "ended_at", "last_progress_at", "last_write_at", "maps_per_s", "eta_s", "slowest_stage"}
    return {
        key: found[key]
        for key in found
        if key not in {*of_times, "busy", "queues", "upload_limit", "manifest", "destination"}
    }


@pytest.mark.parametrize(
    "kind", ["folder", pytest.param("stack", marks=pytest.mark.slow), pytest.param("npz", marks=pytest.mark.slow)]
)
async def test_lanes_do_what_a_single_run_does(kind: str, bucket: str, maps: Path, tmp_path: Path) -> None:
    source = write_source(kind, maps)
    reports, tables = {}, {}
    for processes in (1, 2):
        settings = am.Settings(workers=0, processes=processes)
        manifest = tmp_path / f"{processes}.sqlite"
        async with am.Pipeline(f"s3://{bucket}/{processes}", settings=settings) as pipeline:
            reports[processes] = await pipeline.run(source, manifest=manifest)
            if processes == 2:
                assert len(lane_pids()) == 2
        tables[processes] = rows(manifest)
    assert comparable(reports[1].as_dict()) == comparable(reports[2].as_dict())
    assert comparable_status(tmp_path / "1.sqlite") == comparable_status(tmp_path / "2.sqlite")
    assert reports[2].uploaded == COUNT
    stored = {key: data for key, (data, _) in (await objects(bucket)).items()}
    assert {key[2:]: data for key, data in stored.items() if key[0] == "1"} == {
        key[2:]: data for key, data in stored.items() if key[0] == "2"
    }
    assert tables[1] == tables[2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "npz"])
async def test_maps_in_s3_are_read_by_the_lanes(kind: str, bucket: str, s3: S3Server, monkeypatch: Any) -> None:
    named: dict[str, Any] = {f"a/{i}": random_map(i, (12, 16)) for i in range(COUNT)}
    files = {f"in/{name}.npy": npy(array) for name, array in named.items()} if kind == "folder" else {}
    await to_thread.run_sync(upload, bucket, files or {"in/many.npz": npz(**named)})
    with counting(s3, monkeypatch) as proxy:
        settings = am.Settings(workers=0, processes=2)
        async with am.Pipeline(f"s3://{bucket}/out", settings=settings) as pipeline:
            report = await pipeline.run(f"s3://{bucket}/in")
            found = pipeline.statistics()
        puts = [asked for asked in proxy.asked if asked.method == "PUT"]
        stored = [data for key, (data, _) in (await objects(bucket)).items() if key.startswith("out/")]
    assert (report.uploaded, report.failed) == (COUNT, 0)
    assert found.fetch.maps == COUNT
    assert len({asked.path for asked in puts}) == COUNT
    expected = [am.colorize_activation_map(array).tobytes() for array in named.values()]
    assert sorted(decode(data).tobytes() for data in stored) == sorted(expected)


@pytest.mark.slow
@pytest.mark.seaweedfs
@pytest.mark.parametrize("status", [403, 500])
async def test_a_refused_map_fails_though_its_lane_has_no_other(
    status: int, s3: S3Server, bucket: str, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first map is large, so that the other one goes to the other lane.
    np.save(maps / "a.npy", random_map(1, (600, 600)))
    np.save(maps / "bad.npy", random_map(2))
    code = "AccessDenied" if status == 403 else "InternalError"
    settings = am.Settings(workers=0, processes=2, s3=am.S3Settings(max_attempts=2, give_up_s=20))
    with counting(s3, monkeypatch) as proxy:
        proxy.refuse = lambda method, path, _: Refusal(status, code) if method == "PUT" and "bad" in path else None
        async with am.Pipeline(f"s3://{bucket}/x", settings=settings) as pipeline:
            report = await pipeline.run(maps)
    assert (report.uploaded, report.failed) == (1, 1)
    assert (report.failures[0].name, report.failures[0].stage) == ("bad", "upload")


@pytest.mark.slow
@pytest.mark.parametrize("status", [403, 500])
async def test_a_store_that_refuses_all_maps_ends_a_run_with_lanes(
    status: int, s3: S3Server, bucket: str, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(maps / "a.npy", random_map(1, (600, 600)))
    np.save(maps / "bad.npy", random_map(2))
    code = "AccessDenied" if status == 403 else "InternalError"
    settings = am.Settings(workers=0, processes=2, s3=am.S3Settings(max_attempts=2, give_up_s=20))
    with counting(s3, monkeypatch) as proxy:
        proxy.refuse = lambda method, *_: Refusal(status, code) if method == "PUT" else None
        with pytest.raises(am.StoreError) as caught:
            async with am.Pipeline(f"s3://{bucket}/x", settings=settings) as pipeline:
                await pipeline.run(maps)
    assert type(caught.value) is am.StoreError
    assert caught.value.may_pass == (status == 500)
    assert caught.value.report.uploaded == 0


@pytest.mark.seaweedfs
@pytest.mark.slow
async def test_refused_maps_fail_if_the_store_takes_objects_of_an_earlier_run(
    s3: S3Server, bucket: str, maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        np.save(maps / f"{i}.npy", random_map(i))
    settings = am.Settings(workers=0, processes=2, s3=am.S3Settings(max_attempts=2, give_up_s=60))

    async def run() -> am.Report:
        async with am.Pipeline(f"s3://{bucket}/x", settings=settings) as pipeline:
            return await pipeline.run(maps, manifest=tmp_path / "m.sqlite")

    with counting(s3, monkeypatch) as proxy:
        assert (await run()).uploaded == 3
        before = await objects(bucket)
        for i in range(8):
            np.save(maps / f"new{i}.npy", random_map(i))
        proxy.refuse = lambda method, path, _: (
            Refusal(403, "AccessDenied") if method == "PUT" and "new" in path else None
        )
        report = await run()
        assert (report.uploaded, report.failed, report.skipped) == (0, 8, 3)
        after = await objects(bucket)
        assert {key: data for key, (data, _) in before.items()} == {key: data for key, (data, _) in after.items()}
