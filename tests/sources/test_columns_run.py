"""Columns of arrays through whole runs, from a disk and from S3; datasets of Hugging Face; large tables."""

from __future__ import annotations

import io
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
from PIL import Image

import async_maps as am
from async_maps.filesystems.filesystem import Filesystems
from async_maps.render.colorize import colorize_activation_map
from async_maps.sources import open_source
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.formats.registry import Readers
from tests.support.entries import assert_same, failures_of, only_failure, read_all
from tests.support.memory import MIB, pss
from tests.support.s3 import upload

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

CAMS = np.linspace(0, 1, 30 * 20 * 15, dtype=np.float32).reshape(30, 20, 15)


def table_of(cams: NDArray[Any] = CAMS) -> pa.Table:
    column = pa.array(cams.tolist(), pa.list_(pa.list_(pa.float32())))
    return pa.table({"id": [f"img-{index}" for index in range(len(cams))], "cam": column})


def parquet(table: pa.Table, **how: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **how)
    return file.getvalue()


def stream(table: pa.Table) -> bytes:
    file = io.BytesIO()
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return file.getvalue()


def feather(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pyarrow.feather.write_feather(table, file, chunksize=8)
    return file.getvalue()


def dataset(tables: list[pa.Table]) -> dict[str, bytes]:
    """Return the files of a Hugging Face dataset by name, as ``save_to_disk`` writes them."""
    names = [f"data-{index:05}-of-{len(tables):05}.arrow" for index in range(len(tables))]
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": None}
    files = {name: stream(table) for name, table in zip(names, tables, strict=True)}
    return files | {"dataset_info.json": b"{}", "state.json": json.dumps(state).encode()}


def save(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def assert_overlays(folder: Path, expected: dict[str, NDArray[Any]]) -> None:
    written = {str(path.relative_to(folder))[:-4]: path for path in folder.rglob("*.png")}
    assert written.keys() == expected.keys()
    for name, path in written.items():
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(image.convert("RGBA")), colorize_activation_map(expected[name]))


def all_kinds() -> dict[str, bytes]:
    """Return files of each kind by name, each with the 30 maps."""
    table = table_of()
    numbers = table.drop_columns(["id"])
    return {
        "p.parquet": parquet(table, row_group_size=11),
        "f.feather": feather(table),
        "deep/s.arrow": stream(table),
        **{f"hf/{name}": content for name, content in dataset([numbers[:13], numbers[13:]]).items()},
    }


def expected_of_all_kinds() -> dict[str, NDArray[Any]]:
    named = {f"{name}/img-{index}": cam for name in ("p", "f", "deep/s") for index, cam in enumerate(CAMS)}
    return named | {f"hf/{index:06}": cam for index, cam in enumerate(CAMS)}


@pytest.mark.parametrize("workers", [0, 2])
def test_columns_on_a_disk_become_overlays(maps: Path, tmp_path: Path, workers: int) -> None:
    save(maps, all_kinds())
    settings = am.Settings(workers=workers, chunk_maps=4)
    for skipped in (0, 120):
        report = am.run(maps, tmp_path / "out", settings=settings, manifest=tmp_path / "m.sqlite")
        assert (report.uploaded, report.skipped, report.failed, report.passed_over) == (120 - skipped, skipped, 0, {})
    assert_overlays(tmp_path / "out", expected_of_all_kinds())
    (maps / "p.parquet").write_bytes(parquet(table_of(1 - CAMS)))
    report = am.run(maps, tmp_path / "out", settings=settings, manifest=tmp_path / "m.sqlite")
    assert (report.uploaded, report.skipped) == (30, 90)


def test_columns_in_s3_become_overlays(bucket: str, tmp_path: Path) -> None:
    upload(bucket, {f"maps/{name}": content for name, content in all_kinds().items()})
    expected, settings = expected_of_all_kinds(), am.Settings(workers=0)
    report = am.run(f"s3://{bucket}/maps/", tmp_path / "out", settings=settings, manifest=tmp_path / "m.sqlite")
    assert (report.uploaded, report.failed, report.passed_over) == (120, 0, {})
    assert_overlays(tmp_path / "out", expected)
    # A single file or dataset has its own name, as on a disk.
    for place, name in (("p.parquet", "p"), ("f.feather", "f"), ("hf", "hf"), ("hf/", "hf"), ("*.parquet", "p")):
        report = am.run(f"s3://{bucket}/maps/{place}", tmp_path / place, settings=settings)
        assert (report.uploaded, report.failed) == (30, 0), place
        assert_overlays(tmp_path / place, {key: cam for key, cam in expected.items() if key.startswith(f"{name}/")})
    again = am.run(f"s3://{bucket}/maps/", tmp_path / "out", settings=settings, manifest=tmp_path / "m.sqlite")
    assert (again.uploaded, again.skipped) == (0, 120)


def test_an_arrow_stream_in_s3_is_read_in_ranges(bucket: str) -> None:
    cams = np.random.default_rng(0).random((24, 400, 400), np.float32)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(cams)
    content = stream(pa.table({"image": [bytes(3 * 10**6)] * 24, "cam": tensors}))
    upload(bucket, {"x.arrow": content})
    with Filesystems() as filesystems:
        s3, read = filesystems.remote("s3://bucket"), 0
        get = s3.get

        def counting(*arguments: Any, **options: Any) -> Any:
            nonlocal read
            found = get(*arguments, **options)
            read += len(found.data)
            return found

        s3.get = counting  # type: ignore[method-assign]
        with Readers(filesystems) as readers:
            for index in (3, 17):
                np.testing.assert_array_equal(readers.read(f"s3://{bucket}/x.arrow", ["cam", index]), cams[index])
    assert read < len(content) / 10


# Hugging Face


def test_a_dataset_is_one_source_wherever_it_is(maps: Path) -> None:
    numbers = table_of().drop_columns(["id"])
    save(maps / "ds", dataset([numbers[:1], numbers[1:1], numbers[1:20], numbers[20:]]))
    save(maps / "other.arrow", dataset([numbers[:2]]))
    expected = {f"ds/{index:06}": cam for index, cam in enumerate(CAMS)}
    assert_same(read_all(maps / "ds"), expected)
    assert_same(read_all(maps), expected | {"other/000000": CAMS[0], "other/000001": CAMS[1]})


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("text", "its state.json lists no files"),
        ("[]", "its state.json lists no files"),
        ('{"_data_files": []}', "lists files outside of its folder, or none"),
        ('{"_data_files": [{"filename": "../secret.arrow"}]}', "lists files outside of its folder, or none"),
        ('{"_data_files": [{"filename": 7}]}', "lists files outside of its folder, or none"),
        ('{"_data_files": [{"filename": "gone.arrow"}]}', "the file does not exist"),
        ('{"_data_files": [{"filename": "a.arrow"}], "_indices_data_files": [{"filename": "i"}]}', "table of indices"),
        ("[" * 100_000, "its state.json lists no files"),
    ],
)
def test_a_damaged_dataset_is_one_failure(maps: Path, state: str, reason: str) -> None:
    save(maps, {"secret.arrow": stream(table_of()), "ds/state.json": state.encode(), "ds/dataset_info.json": b"{}"})
    save(maps, {"ds/a.arrow": stream(table_of())})
    (failure,) = failures_of(open_source(maps))
    assert failure.name == "ds"
    assert reason in failure.reason


def test_a_dataset_with_a_truncated_file_fails_as_a_whole(maps: Path) -> None:
    files = dataset([table_of(), table_of()])
    files["data-00001-of-00002.arrow"] = files["data-00001-of-00002.arrow"][:-3000]
    save(maps / "ds", files)
    assert only_failure(maps / "ds").reason.startswith("truncated: ")


@pytest.mark.slow
def test_datasets_of_the_real_library_are_read(maps: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    shapes = {"cam": (20, 15), "leading": (1, 20, 15)}
    features = datasets.Features(
        {
            "cam": datasets.Array2D(shapes["cam"], "float32"),
            "leading": datasets.Array3D(shapes["leading"], "float16"),
            "nested": datasets.List(datasets.List(datasets.Value("float64"))),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )
    columns = {"cam": CAMS, "leading": CAMS[:, None].astype("f2"), "nested": CAMS.astype("f8").tolist()}
    made = datasets.Dataset.from_dict(columns | {"label": [0, 1] * 15}, features=features)
    made.save_to_disk(maps / "sharded", num_shards=3)
    datasets.DatasetDict(train=made.shuffle(seed=1).select([4, 2]), test=made).save_to_disk(maps / "splits")
    made.to_parquet(maps / "hub.parquet")
    for column, arrays in (("cam", CAMS), ("leading", CAMS.astype("f2")), ("nested", CAMS.astype("f8"))):
        options = am.Settings(column=column, workers=0, range="per-map")
        report = am.run(maps, am.MemoryStore(), settings=options)
        assert (report.uploaded, report.failed) == (92, 0)
        # This process has imported the library, so that its extension types are registered.
        kept = read_all_of(maps, column)
        for name in ("sharded", "splits/test", "hub"):
            assert_same(
                {key: array for key, array in kept.items() if key.startswith(f"{name}/")},
                {f"{name}/{index:06}": array for index, array in enumerate(arrays)},
            )


def read_all_of(place: Path, column: str) -> dict[str, NDArray[Any]]:
    from async_maps.sources.options import SourceOptions

    with Readers() as readers:
        return {
            entry.name: readers.read(str(entry.path), entry.part).copy()
            for entry in open_source(place, options=SourceOptions(column=column))
            if isinstance(entry, ActivationMap)
        }


# Large tables


@pytest.mark.slow
@pytest.mark.alone
def test_a_table_of_a_million_rows_is_never_in_memory(tmp_path: Path) -> None:
    rows, path = 1_000_000, tmp_path / "x.parquet"
    kind = pa.schema([("name", pa.string()), ("cam", pa.list_(pa.list_(pa.float32(), 7), 7))])
    with pq.ParquetWriter(path, kind) as writer:
        leaf = pa.array(np.random.default_rng(0).random(rows // 4 * 49, np.float32))
        column = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(leaf, 7), 7)
        for start in range(0, rows, rows // 4):
            names = pa.array([f"map-{index}" for index in range(start, start + rows // 4)])
            writer.write_table(pa.table([names, column], schema=kind), row_group_size=rows)
    del leaf, column, names
    assert path.stat().st_size > 150 * MIB
    pa.default_memory_pool().release_unused()
    held, before, most, peak, count, total = pa.total_allocated_bytes(), pss(os.getpid()), 0, 0, 0, 0.0
    with Readers() as readers:
        for entry in open_source(path):
            assert isinstance(entry, ActivationMap)
            if count % 500 == 0:
                total += float(readers.read(str(path), entry.part).mean())
                most = max(most, pa.total_allocated_bytes() - held)
            if count % 50_000 == 0:
                peak = max(peak, pss(os.getpid()) - before)
            count += 1
    assert count == rows
    assert abs(total / (rows / 500) - 0.5) < 0.01
    assert most < 48 * MIB
    assert peak < 100 * MIB
