"""Small files that unpack to gigabytes, or kill the library that decodes them, cost one map and no run."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.errors import SourceError
from async_maps.sources.isolated_listing import IsolatedListing
from async_maps.sources.isolation import DecoderProcess, IsolatedReaders, Line
from tests.support.bombs import GIB, HARMLESS, LISTED, PICTURES, READ, lying_hdf5, lying_zarr
from tests.support.leftovers import children, leaves_nothing
from tests.support.pipelines import until
from tests.support.s3 import upload

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BOMB = 2 * GIB
LITTLE = 512 * 2**20
"""Less than a bomb, more than a run takes."""
WRITERS: dict[str, Callable[[Path, int], None]] = {"x.h5": lying_hdf5, "x.zarr": lying_zarr, "x.nc": lying_hdf5}


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(source: object, **settings: Any) -> am.Report:
    """Run a source of a good map and a bomb; check that only the bomb fails, and this process takes little memory."""
    before = peak()
    report = am.run(source, "memory://", settings=am.Settings(**settings))  # type: ignore[arg-type]
    assert (report.uploaded, report.failed) == (1, 1)
    (failure,) = report.failures
    assert (failure.name, failure.stage) == ("x/b", "read")
    assert "unpack to far more than its header says" in failure.reason
    assert peak() < before + LITTLE
    return report


@pytest.mark.parametrize(
    ("file", "workers"),
    [("x.h5", 0)]
    + [pytest.param(*case, marks=pytest.mark.slow) for case in (("x.zarr", 0), ("x.h5", 1), ("x.nc", 0))]
    + [pytest.param(*case, marks=pytest.mark.long) for case in (("x.zarr", 1), ("x.nc", 1))],
)
def test_a_chunk_that_lies_costs_one_map(file: str, workers: int, maps: Path) -> None:
    WRITERS[file](maps / file, BOMB)
    run(maps, workers=workers)


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.long)])
def test_a_chunk_that_lies_costs_one_map_in_the_survey(workers: int, maps: Path) -> None:
    lying_hdf5(maps / "x.h5", BOMB)
    report = run(maps, workers=workers, range="dataset")
    assert (report.surveyed, report.unsurveyed) == (2, 1)
    assert (report.range_low, report.range_high) == (0.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["x.h5", "x.zarr"])
def test_a_chunk_that_lies_costs_one_map_in_s3(file: str, maps: Path, bucket: str) -> None:
    WRITERS[file](maps / file, BOMB)
    upload(bucket, {str(path.relative_to(maps)): path.read_bytes() for path in maps.rglob("*") if path.is_file()})
    run(f"s3://{bucket}/", workers=1)


# Every format ---------------------------------------------------------------------------------------------------------


def map_of(failure: am.Failure) -> str:
    return failure.name.partition("/")[0]


def write(folder: Path, *tables: Mapping[str, Any]) -> dict[str, str]:
    """Write the bombs of tables and a good map; return the reason of each failure by the name of its file."""
    np.save(folder / "good.npy", np.eye(8))
    reasons = {}
    for name, bomb in (item for table in tables for item in table.items()):
        writer, reason = bomb if isinstance(bomb, tuple) else (bomb, "")
        writer(folder / name)
        if reason:
            reasons[name.partition(".")[0]] = reason
    return reasons


def check(report: am.Report, reasons: Mapping[str, str], done: int) -> None:
    """Check that exactly the files with a reason fail, each for it."""
    found = {map_of(failure): failure.reason for failure in report.failures}
    assert found.keys() == reasons.keys()
    wrong = {name: reason for name, reason in found.items() if not any(map(reason.count, reasons[name].split("|")))}
    assert not wrong
    assert report.uploaded + report.planned == done


@pytest.mark.slow
def test_a_dry_run_of_files_that_lie_about_names_takes_little_memory(maps: Path) -> None:
    """No file is read, so each value that is unpacked is unpacked to list the file."""
    names = ("hdf5-names.h5", "safetensors-size.safetensors")
    reasons = write(maps, {name: LISTED[name] for name in names})
    before = peak()
    check(am.dry_run(maps, "memory://"), reasons, done=1)
    assert peak() < before + LITTLE


@pytest.mark.long
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("place", ["disk", "s3"])
@pytest.mark.parametrize(("workers", "value_range"), [(0, "dataset"), (1, "unit")])
def test_a_bomb_of_any_format_costs_itself(
    place: str,
    workers: int,
    value_range: str,
    maps: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # netCDF4 sets the variable when it is imported, for its own HDF5.
    monkeypatch.delenv("HDF5_PLUGIN_PATH", raising=False)
    reasons = write(maps, LISTED, READ, HARMLESS)
    source = str(maps)
    if place == "s3":
        bucket = request.getfixturevalue("bucket")
        upload(bucket, {str(path.relative_to(maps)): path.read_bytes() for path in maps.rglob("*") if path.is_file()})
        source = f"s3://{bucket}/"
    before = peak()
    settings = am.Settings(workers=workers, range=value_range, include=("*.tif", "*"))
    check(am.run(source, "memory://", settings=settings), reasons, done=len(HARMLESS) + 1)
    assert peak() < before + LITTLE


@pytest.mark.slow
def test_a_picture_that_unpacks_to_gigabytes_costs_itself(maps: Path) -> None:
    for name, writer in PICTURES.items():
        writer(maps / name)
    before = peak()
    report = am.run(maps, "memory://", settings=am.Settings(workers=0))
    check(report, dict.fromkeys(("text", "profile"), "Decompressed data too large"), done=1)
    assert peak() < before + LITTLE


@pytest.mark.slow
def test_a_listing_that_unpacks_to_gigabytes_ends_its_run_only(maps: Path) -> None:
    """The names of a listing in Parquet are 64 MiB each."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["n" * 2**26]))
    pq.write_table(pa.table({"name": names, "path": ["a.npy"] * 1000}), maps / "list.parquet", compression="zstd")
    before = peak()
    with pytest.raises(SourceError, match=r"list.parquet: .*memory"):
        am.dry_run(maps / "list.parquet", "memory://")
    assert peak() < before + LITTLE


# The process ----------------------------------------------------------------------------------------------------------


def pid(process: DecoderProcess) -> int:
    assert process._process is not None
    return process._process.pid


def good_file(folder: Path, maps: int = 40) -> str:
    import h5py

    with h5py.File(folder / "good.h5", "w") as file:
        for n in range(maps):
            file[f"m{n}"] = np.full((8, 8), n / 64, np.float32)
    return str(folder / "good.h5")


@pytest.mark.usefixtures(leaves_nothing.__name__)
def test_a_map_that_kills_its_decoder_twice_fails_alone(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child is killed by this process each time it starts to read one of the maps."""
    path = good_file(maps)
    killed: list[int] = []
    with DecoderProcess() as process, IsolatedReaders(process) as readers:
        ask = IsolatedReaders._ask

        def deadly(self: IsolatedReaders, path: str, part: Any, max_bytes: int) -> Any:
            if part[0] == "m3":
                self._line._opened()
                child = pid(process)
                os.kill(child, signal.SIGKILL)
                killed.append(child)
            return ask(self, path, part, max_bytes)

        monkeypatch.setattr(IsolatedReaders, "_ask", deadly)
        for n in range(6):
            if n == 3:
                with pytest.raises(SourceError, match="the process that decodes it was killed by signal 9"):
                    readers.read(path, [f"m{n}", None])
            else:
                assert readers.read(path, [f"m{n}", None])[0, 0] == n / 64
    assert len(set(killed)) == 2


@pytest.mark.usefixtures(leaves_nothing.__name__)
@pytest.mark.parametrize("times", [1, 2])
def test_a_file_that_kills_the_process_that_lists_it_twice_fails_alone(
    times: int, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child is killed by this process when it starts to list one of the files."""
    shutil.copy(good_file(maps), maps / "deadly.h5")
    good_file(maps)
    killed: list[int] = []
    ask = IsolatedListing._batch

    def deadly(self: IsolatedListing, line: Line, request: list[Any], seen: int) -> Any:
        if "deadly" in request[1] and len(killed) < times:
            line._opened()
            killed.append(pid(self._process))
            os.kill(killed[-1], signal.SIGKILL)
        return ask(self, line, request, seen)

    monkeypatch.setattr(IsolatedListing, "_batch", deadly)
    report = am.dry_run(maps, "memory://")
    assert len(set(killed)) == times
    assert report.planned == (80 if times == 1 else 40)
    assert [failure.name for failure in report.failures] == ([] if times == 1 else ["deadly"])
    assert all("was killed by signal 9" in failure.reason for failure in report.failures)


@pytest.mark.usefixtures(leaves_nothing.__name__)
def test_a_dead_decoder_costs_no_map_of_others(maps: Path) -> None:
    path = good_file(maps)
    with DecoderProcess() as process, IsolatedReaders(process) as readers:
        for n in range(4):
            assert readers.read(path, [f"m{n}", None])[0, 0] == n / 64
            os.kill(pid(process), signal.SIGKILL)


@pytest.mark.usefixtures(leaves_nothing.__name__)
def test_stopping_ends_the_threads_that_wait_for_the_decoder(maps: Path) -> None:
    path = good_file(maps)
    with DecoderProcess() as process, IsolatedReaders(process) as first, IsolatedReaders(process) as second:
        assert first.read(path, ["m1", None])[0, 0] == 1 / 64
        # A child that does not answer, for instance because its store does not.
        os.kill(pid(process), signal.SIGSTOP)
        with ThreadPoolExecutor(2) as threads:
            waiting = [threads.submit(readers.read, path, ["m2", None]) for readers in (first, second)]
            time.sleep(0.2)
            assert not any(future.done() for future in waiting)
            process.stop()
            for future in waiting:
                with pytest.raises(SourceError, match="was stopped"):
                    future.result(timeout=30)


@pytest.mark.usefixtures(leaves_nothing.__name__)
async def test_closing_does_not_wait_for_a_decoder_that_does_not_answer(
    maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good_file(maps, 2000)
    started: list[DecoderProcess] = []
    start = DecoderProcess._start

    def noted(self: DecoderProcess) -> None:
        start(self)
        started.append(self)

    monkeypatch.setattr(DecoderProcess, "_start", noted)
    async with asyncio.timeout(60):
        async with am.Pipeline("memory://", settings=am.Settings(workers=0, drain_timeout_s=1.0)) as pipeline:
            running = asyncio.create_task(pipeline.run(maps))
            await until(lambda: pipeline.statistics().uploaded > 0)
            os.kill(pid(started[-1]), signal.SIGSTOP)
        with pytest.raises(am.PipelineClosedError):
            await running


@pytest.mark.usefixtures(leaves_nothing.__name__)
def test_files_are_read_here_if_no_process_can_be_started(
    maps: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good_file(maps)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    report = am.run(maps, "memory://", settings=am.Settings(workers=0))
    assert (report.uploaded, report.failed) == (40, 0)
    warnings = [record.getMessage() for record in caplog.records if "in this process" in record.getMessage()]
    assert [warning.split()[2] for warning in warnings] == ["listed", "decoded"]
    assert all("No such file or directory" in warning for warning in warnings)


@pytest.mark.usefixtures(leaves_nothing.__name__)
def test_npy_files_start_no_process(maps: Path) -> None:
    np.save(maps / "a.npy", np.eye(8))
    before = children()
    with DecoderProcess() as process, IsolatedReaders(process) as readers:
        assert readers.read(str(maps / "a.npy"), None).shape == (8, 8)
        assert children() == before
