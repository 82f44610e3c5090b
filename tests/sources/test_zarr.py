"""Zarr hierarchies on disk."""

from __future__ import annotations

import json
import os
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("zarr")

import zarr

from async_maps.outcomes import Failure
from async_maps.sources import open_source
from async_maps.sources.formats import zarr as zarr_source
from tests.support.entries import (
    STACK,
    assert_same,
    kinds_of_numbers,
    names_of,
    only_failure,
    passed_over,
    plane_by_plane,
    read_all,
    why_not,
)
from tests.support.maps import MAP

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("version", [2, 3])
def test_arrays_of_a_hierarchy_become_maps_in_path_order(maps: Path, version: Any) -> None:
    arrays = kinds_of_numbers()
    root = zarr.open_group(maps / "a.zarr", mode="w", zarr_format=version)
    for name, array in arrays.items():
        root.create_array(name, data=array)
    root.create_array("z/deep/stack", data=STACK, chunks=(2, 3, 2))
    root.create_array("z/channel", data=STACK[:, None])
    root.create_array("labels", data=np.arange(5))
    root.create_array("a/one", data=MAP[..., None])
    written: dict[str, Any] = {"a/a/one": MAP[..., None]} | {f"a/{name}": arrays[name] for name in sorted(arrays)}
    written |= plane_by_plane("a/z/channel", STACK) | plane_by_plane("a/z/deep/stack", STACK)
    for place in (maps, maps / "a.zarr", maps / "*.zarr"):
        assert_same(read_all(place), written)


@pytest.mark.filterwarnings("ignore:.*does not have a Zarr V3 specification", "ignore:Consolidated metadata")
@pytest.mark.parametrize("version", [2, 3])
def test_hierarchies_of_xarray_have_names_and_coordinates(maps: Path, version: Any) -> None:
    xarray: Any = pytest.importorskip("xarray")
    names = [f"img-{index}" for index in range(5)]
    plane = STACK[0]
    places = {"lat": (("y", "x"), plane), "lon": (("y", "x"), plane)}
    stack = xarray.DataArray(STACK, dims=("image", "y", "x"), coords={"image": names, **places})
    stack.to_dataset(name="cam").to_zarr(maps / "a.zarr", zarr_format=version)
    data = xarray.Dataset({"cam": stack, "other": stack, "plain": (("t", "y", "x"), STACK)})
    data.to_zarr(maps / "b.zarr", zarr_format=version)
    named = {f"a/{name}": plane for name, plane in zip(names, STACK, strict=True)}
    for array in ("cam", "other"):
        named |= {f"b/{array}/{name}": plane for name, plane in zip(names, STACK, strict=True)}
    assert_same(read_all(maps), named | plane_by_plane("b/plain", STACK))
    assert passed_over(maps) == ["arrays of text", "coordinates", "coordinates"] * 2


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("name", ["a.zarr", "A.ZARR", "a"])
def test_a_zarr_array_is_named_by_its_folder(maps: Path, version: Any, name: str) -> None:
    zarr.create_array(maps / name, data=STACK, chunks=(2, 3, 5), zarr_format=version)
    zarr.create_array(maps / "deep" / "one.zarr", data=MAP, zarr_format=version)
    np.save(maps / "z.npy", MAP)
    stem = name.partition(".")[0]
    for place in (maps, maps / "**"):
        assert_same(read_all(place), plane_by_plane(stem, STACK) | {"deep/one": MAP, "z": MAP})
    assert_same(read_all(maps / name), plane_by_plane(stem, STACK))
    assert_same(read_all(maps / "deep" / "one.zarr"), {"one": MAP})


def test_a_zarr_folder_may_be_the_working_folder(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zarr.create_array(maps / "a.zarr", data=MAP)
    monkeypatch.chdir(maps / "a.zarr")
    for place in (".", "../a.zarr/"):
        assert names_of(open_source(place)) == ["a"]


@pytest.mark.parametrize("pattern", ["*/c", "*/*.npy", "*/*/*/*", "x*.zarr"])
def test_a_glob_does_not_match_inside_a_zarr_folder(maps: Path, pattern: str) -> None:
    zarr.create_array(maps / "a.zarr", data=STACK)
    np.save(maps / "a.zarr" / "not ours.npy", MAP)
    assert list(open_source(maps / pattern)) == []


def test_sharded_and_unwritten_chunks_are_read(maps: Path) -> None:
    sharded = zarr.create_array(
        maps / "s.zarr", shape=(10, 3, 5), chunks=(2, 3, 5), shards=(4, 3, 5), dtype="f4", fill_value=0.25
    )
    written = np.full((10, 3, 5), 0.25, "f4")
    written[5] = STACK[1]
    sharded[5] = STACK[1]
    zarr.create_array(maps / "v.zarr", shape=(3, 3, 5), chunks=(1, 3, 5), dtype="u1", fill_value=9, zarr_format=2)
    assert_same(read_all(maps), plane_by_plane("s", written) | plane_by_plane("v", np.full((3, 3, 5), 9, "u1")))


def _count_chunk_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    reads: list[str] = []
    get = zarr.storage.LocalStore.get

    async def counted(self: Any, key: str, *arguments: Any, **options: Any) -> Any:
        if "/c/" in f"/{key}":
            reads.append(key)
        return await get(self, key, *arguments, **options)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", counted)
    return reads


def test_a_chunk_shared_by_maps_is_read_once(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = np.random.default_rng(1).random((20, 6, 6))
    zarr.create_array(maps / "a.zarr", data=stack, chunks=(8, 4, 6))
    reads = _count_chunk_reads(monkeypatch)
    assert_same(read_all(maps), plane_by_plane("a", stack))
    assert len(reads) == len(set(reads)) == 3 * 2


def test_a_block_of_chunks_above_the_limit_is_read_map_by_map(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zarr_source, "_MAX_BLOCK", STACK[:2].nbytes - 1)
    zarr.create_array(maps / "a.zarr", data=STACK, chunks=(2, 3, 5))
    reads = _count_chunk_reads(monkeypatch)
    assert_same(read_all(maps), plane_by_plane("a", STACK))
    assert len(reads) == len(STACK)


def test_the_fingerprint_changes_with_any_file_of_the_folder(maps: Path) -> None:
    array = zarr.create_array(maps / "a.zarr", data=STACK, chunks=(1, 3, 5))

    def fingerprint() -> str | None:
        (mark,) = {str(entry.fingerprint).partition(" ")[0] for entry in open_source(maps)}
        return mark

    seen = [fingerprint()]
    assert fingerprint() == seen[0]
    array[3] = 0.5
    seen.append(fingerprint())
    chunk = next(path for path in (maps / "a.zarr").rglob("*") if path.is_file() and path.name != "zarr.json")
    os.utime(chunk, ns=(0, chunk.stat().st_mtime_ns + 1))
    seen.append(fingerprint())
    chunk.rename(chunk.with_name("99"))
    seen.append(fingerprint())
    chunk.with_name("99").unlink()
    seen.append(fingerprint())
    assert len(set(seen)) == 5


def test_a_link_loop_inside_a_zarr_folder_is_a_failure(maps: Path) -> None:
    zarr.open_group(maps / "a.zarr", mode="w").create_array("x", data=MAP)
    (maps / "a.zarr" / "loop").symlink_to(maps)
    assert only_failure(maps).reason == "a symbolic link in it points to a folder above it"


def test_an_invalid_hierarchy_is_a_failure(maps: Path) -> None:
    (maps / "a.zarr").mkdir()
    (maps / "b.zarr").mkdir()
    (maps / "b.zarr" / "zarr.json").write_text("{")
    (maps / "c.zarr").write_bytes(b"")
    zarr.open_group(maps / "d.zarr", mode="w")
    reasons = {entry.name: entry.reason for entry in open_source(maps) if isinstance(entry, Failure)}
    assert list(reasons) == ["a", "b", "c", "d"]
    assert reasons["a"] == "expected a Zarr hierarchy, found no zarr.json, .zgroup or .zarray"
    assert reasons["b"].startswith("expected a Zarr hierarchy: ")
    assert reasons["c"] == "expected a folder, found a regular file"
    assert reasons["d"] == "the hierarchy contains no array"


@pytest.mark.parametrize("version", [2, 3])
def test_a_damaged_array_fails_alone_and_stray_files_are_ignored(maps: Path, version: Any) -> None:
    root = zarr.open_group(maps / "a.zarr", mode="w", zarr_format=version)
    for name in ("a", "b", "c"):
        root.create_array(name, data=MAP)
    (maps / "a.zarr" / "b" / ("zarr.json" if version == 3 else ".zarray")).write_text('{"shape": 7')
    chunk = maps / "a.zarr" / "c" / ("c/0/0" if version == 3 else "0.0")
    chunk.write_bytes(b"damaged" * 5)
    (maps / "a.zarr" / "README.md").write_text("no array")
    (maps / "a.zarr" / "folder").mkdir()
    entries = list(open_source(maps))
    assert names_of(entries) == ["a/a", "a/b", "a/c"]
    assert why_not(entries[1]).startswith("the hierarchy is damaged at 'b': ")
    assert why_not(entries[2]).startswith("the hierarchy is damaged at 'c': ")


class _Payload:
    def __init__(self, evidence: Path) -> None:
        self._evidence = evidence

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._evidence),)


@pytest.mark.parametrize("codecs", [{"compressor": {"id": "pickle"}}, {"filters": [{"id": "pickle"}]}])
def test_pickles_in_a_zarr_hierarchy_are_never_executed(maps: Path, tmp_path: Path, codecs: dict[str, Any]) -> None:
    evidence = tmp_path / "executed"
    chunk = pickle.dumps(_Payload(evidence))
    root = zarr.open_group(maps / "a.zarr", mode="w", zarr_format=2)
    for name, kind in (("numbers", "<f4"), ("objects", "|O")):
        root.create_array(name, data=MAP, compressors=None)
        description = json.loads((maps / "a.zarr" / name / ".zarray").read_text()) | codecs | {"dtype": kind}
        (maps / "a.zarr" / name / ".zarray").write_text(json.dumps(description))
        (maps / "a.zarr" / name / "0.0").write_bytes(chunk)
    for entry in open_source(maps):
        assert why_not(entry).startswith("the hierarchy is damaged at ")
    assert not evidence.exists()
    # The bait was live.
    pickle.loads(chunk)  # noqa: S301  # our own
    assert evidence.exists()
