"""A Zarr hierarchy in S3. The zarr library keeps its event loop and threads until the process ends."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.filesystems.addresses import parse_address
from async_maps.filesystems.s3 import S3Filesystem
from async_maps.sources import open_source
from async_maps.sources.formats.remote_zarr import RemoteZarrStore
from tests.support.s3 import upload
from tests.support.s3_proxy import Proxy, counting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from async_maps.demo import seaweed

zarr: Any = pytest.importorskip("zarr")


@pytest.fixture
def filesystem(s3: seaweed.S3Server) -> Iterator[S3Filesystem]:
    with closing(S3Filesystem()) as filesystem:
        yield filesystem


@pytest.fixture
def proxy(s3: seaweed.S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with counting(s3, monkeypatch) as proxy:
        yield proxy


def test_a_zarr_hierarchy_is_read_by_the_zarr_library(bucket: str, filesystem: S3Filesystem, tmp_path: Any) -> None:
    array = np.random.default_rng(0).random((6, 40, 50), np.float32)
    group = zarr.open_group(tmp_path / "maps.zarr", mode="w")
    group.create_array("val/cams", data=array, chunks=(1, 16, 16))
    group.create_array("packed", data=array, chunks=(1, 10, 10), shards=(2, 40, 50))
    folder = tmp_path / "maps.zarr"
    files = [path for path in folder.rglob("*") if path.is_file()]
    upload(bucket, {f"runs/maps.zarr/{path.relative_to(folder)}": path.read_bytes() for path in files})

    remote = zarr.open(RemoteZarrStore(filesystem, parse_address(f"s3://{bucket}/runs/maps.zarr")), mode="r")
    np.testing.assert_array_equal(remote["val/cams"][:], array)
    # Only a part of the shard is read.
    np.testing.assert_array_equal(remote["packed"][3, 11:19, 11:19], array[3, 11:19, 11:19])
    assert sorted(remote.group_keys()) == ["val"]
    assert sorted(remote.array_keys()) == ["packed"]
    assert "absent" not in remote
    with pytest.raises((ValueError, NotImplementedError)):
        remote["val/cams"][0] = 0


async def test_the_zarr_store_lists_and_reads_the_objects(s3: seaweed.S3Server, bucket: str) -> None:
    store_api = pytest.importorskip("zarr.abc.store")
    prototype = pytest.importorskip("zarr.core.buffer").default_buffer_prototype()
    await asyncio.to_thread(
        upload, bucket, {"x.zarr/a/b": b"0123456789", "x.zarr/a/c": b"", "x.zarr/d": b"d", "x.zarry": b""}
    )
    with closing(S3Filesystem()) as filesystem:
        store = RemoteZarrStore(filesystem, parse_address(f"s3://{bucket}/x.zarr"))
        assert [key async for key in store.list()] == ["a/b", "a/c", "d"]
        assert [key async for key in store.list_prefix("a/")] == ["a/b", "a/c"]
        assert sorted([key async for key in store.list_dir("")]) == ["a", "d"]
        assert sorted([key async for key in store.list_dir("a")]) == ["b", "c"]
        assert await store.exists("d")
        assert not await store.exists("a")

        async def get(key: str, wanted: Any = None) -> bytes | None:
            buffer = await store.get(key, prototype, wanted)
            return None if buffer is None else bytes(buffer.to_bytes())

        assert await get("a/b") == b"0123456789"
        assert await get("a/c") == b""
        assert await get("none") is None
        assert await get("none", store_api.SuffixByteRequest(3)) is None
        assert await get("a/b", store_api.RangeByteRequest(2, 5)) == b"234"
        assert await get("a/b", store_api.OffsetByteRequest(7)) == b"789"
        assert await get("a/b", store_api.SuffixByteRequest(3)) == b"789"
        assert await get("a/b", store_api.SuffixByteRequest(99)) == b"0123456789"
        pair = await store.get_partial_values(prototype, [("d", None), ("none", None)])
        assert [None if buffer is None else buffer.to_bytes() for buffer in pair] == [b"d", None]
        assert store == RemoteZarrStore(filesystem, parse_address(f"s3://{bucket}/x.zarr/"))
        assert store != RemoteZarrStore(filesystem, parse_address(f"s3://{bucket}/x"))


@pytest.mark.parametrize("value_range", ["unit", "dataset"])
def test_a_chunk_shared_by_maps_is_mostly_fetched_once(
    bucket: str, proxy: Proxy, tmp_path: Path, value_range: str
) -> None:
    array: Any = zarr.create_array(tmp_path / "stack.zarr", shape=(64, 32, 32), chunks=(16, 32, 32), dtype="f4")
    array[...] = np.random.default_rng(0).random((64, 32, 32), np.float32)
    folder = tmp_path / "stack.zarr"
    files = [path for path in folder.rglob("*") if path.is_file()]
    upload(bucket, {f"maps/stack.zarr/{path.relative_to(folder)}": path.read_bytes() for path in files})
    settings = am.Settings(workers=0, prefetch=16, range=value_range)
    report = am.run(f"s3://{bucket}/maps/", tmp_path / "out", settings=settings)
    assert (report.uploaded, report.failed) == (64, 0)
    chunks = [asked for asked in proxy.gets() if "/c/" in asked.path]
    # At best 4 requests a pass; without sharing, 64. A busy machine shares fewer.
    assert len(chunks) < (48 if value_range == "unit" else 96)


def test_names_of_many_stacks_take_one_listing(bucket: str, proxy: Proxy, tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "x.zarr", mode="w", zarr_format=2)
    for index in range(8):
        group.create_array(f"s{index}", data=np.zeros((2, 5, 5)))
    group.create_array("ids", data=np.array([b"a", b"b"]))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    upload(bucket, {str(path.relative_to(tmp_path)): path.read_bytes() for path in files})
    entries = list(open_source(f"s3://{bucket}/x.zarr"))
    assert [entry.name for entry in entries] == [f"x/s{index}/{name}" for index in range(8) for name in "ab"]
    assert not [asked.path for asked in proxy.gets() if "/names/" in asked.path or "/paths/" in asked.path]
