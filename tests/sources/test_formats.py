"""The formats beyond NumPy's own, each written by its own library; and a stack's list of names."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import tracemalloc
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import safetensors.numpy
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import async_maps as am
from async_maps.errors import MissingExtraError, SourceError
from async_maps.filesystems.filesystem import LocalFilesystem
from async_maps.outcomes import Failure
from async_maps.render.colorize import colorize_activation_map
from async_maps.sources import open_source
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.formats import zarr as zarr_source
from async_maps.sources.formats.registry import Readers, open_reader

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from async_maps.sources.batches import Entry

MAP = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
STACK = np.linspace(0, 1, 75, dtype=np.float32).reshape(5, 3, 5)

_quickly = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
_CHANGES = st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 255)), max_size=6)


def _read(place: Path) -> dict[str, NDArray[Any]]:
    """Every map of a place that has no failures, by name, in the order of the listing."""
    arrays = {}
    with Readers() as readers:
        for entry in open_source(place):
            assert isinstance(entry, ActivationMap), entry
            assert entry.path is not None
            # As it travels to a worker.
            array = readers.read(entry.path, json.loads(json.dumps(entry.part)))
            assert entry.name not in arrays
            assert array.nbytes <= max(entry.max_bytes, array.size * 4)
            arrays[entry.name] = array.copy()
    return arrays


def _assert_same(read: dict[str, NDArray[Any]], written: dict[str, Any]) -> None:
    assert list(read) == list(written)
    for name, array in written.items():
        assert read[name].dtype.newbyteorder("=") == array.dtype.newbyteorder("="), name
        np.testing.assert_array_equal(read[name], array)


def _names(entries: Iterable[Entry]) -> list[str]:
    return [entry.name for entry in entries if isinstance(entry, ActivationMap)]


def _failure(place: Path) -> Failure:
    (failure,) = (entry for entry in open_source(place) if isinstance(entry, Failure))
    return failure


def _why_not(entry: Entry) -> str:
    """Why a listed map cannot be read."""
    assert isinstance(entry, ActivationMap)
    assert entry.path is not None
    with Readers() as readers, pytest.raises(SourceError) as refusal:
        readers.read(entry.path, entry.part)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def _read_whatever_is_there(place: Path) -> None:
    for entry in open_source(place):
        if isinstance(entry, ActivationMap):
            assert entry.path is not None
            with Readers() as readers, suppress(SourceError, OSError):
                readers.read(entry.path, entry.part)


def _changed(content: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
    changed = bytearray(content)
    for position, value in changes:
        changed[position % len(changed)] = value
    return bytes(changed[: len(changed) - cut % len(changed)])


def _kinds_of_numbers(shape: tuple[int, ...] = (3, 4)) -> dict[str, NDArray[Any]]:
    values = np.random.default_rng(5).random(shape)
    kinds = {"f16": "<f2", "f16be": ">f2", "f32": "<f4", "f32be": ">f4", "f64": "<f8", "f64be": ">f8"}
    return {name: values.astype(kind) for name, kind in kinds.items()} | {"u8": (values * 255).astype(np.uint8)}


def _plane_by_plane(name: str, stack: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {f"{name}/{index:06}": plane.squeeze() for index, plane in enumerate(stack)}


# Tar ---------------------------------------------------------------------------------------------------------------


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _save_tar(path: Path, members: dict[str, bytes], kind: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as archive:
        for name, content in members.items():
            _add(archive, name, content)
    return path


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_arrays_of_a_webdataset_are_maps_and_what_lies_beside_them_is_not(maps: Path, kind: int) -> None:
    samples = _kinds_of_numbers()
    members: dict[str, bytes] = {}
    for name, array in samples.items():
        members |= {f"{name}.jpg": b"an image", f"{name}.cam.npy": _npy(array), f"{name}.json": b"{}"}
    members |= {"deep/er/x.NPY": _npy(MAP), "stack.npy": _npy(STACK), "channel.npy": _npy(STACK[:, None])}
    _save_tar(maps / "shard-000.tar", members, kind)
    written = {f"{name}.cam": array for name, array in samples.items()} | {"deep/er/x": MAP}
    written |= _plane_by_plane("stack", STACK) | _plane_by_plane("channel", STACK)
    _assert_same(_read(maps), {f"shard-000/{name}": array for name, array in written.items()})


def test_an_entry_of_a_tar_says_where_its_bytes_lie(maps: Path) -> None:
    _save_tar(maps / "a.tar", {"1.cls": b"7", "1.npy": _npy(MAP), "2.npy": _npy(STACK)})
    entries = list(open_source(maps))
    first, second = entries[0], entries[1]
    assert isinstance(first, ActivationMap)
    assert isinstance(second, ActivationMap)
    assert (first.source, first.max_bytes) == (f"{maps / 'a.tar'}[1]", MAP.nbytes)
    assert (second.source, second.max_bytes) == (f"{maps / 'a.tar'}[2/000000]", STACK[0].nbytes)
    offset, size, index = first.part
    assert (maps / "a.tar").read_bytes()[offset : offset + size] == _npy(MAP)
    assert index is None
    assert len({str(entry.fingerprint).partition(" ")[0] for entry in entries}) == 1


def test_long_names_and_those_under_a_dot_are_told(maps: Path) -> None:
    long = "x" * 150
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        _save_tar(maps / "a.tar", {"./1.npy": _npy(MAP), f"{long}/é.npy": _npy(MAP)}, kind)
        _assert_same(_read(maps), {"a/1": MAP, f"a/{long}/é": MAP})


@pytest.mark.parametrize("name", ["../../x", "/x", "a/../x", "a\nb", ""])
def test_a_member_of_a_tar_cannot_leave_its_place(maps: Path, name: str) -> None:
    _save_tar(maps / "a.tar", {f"{name}.npy": _npy(MAP), "z.npy": _npy(MAP)})
    assert "part" in _failure(maps).reason or "control character" in _failure(maps).reason
    assert _names(open_source(maps)) == ["a/z"]


def test_no_link_in_a_tar_is_followed(maps: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "secret.npy", MAP)
    with tarfile.open(maps / "a.tar", "w") as archive:
        _add(archive, "real.npy", _npy(MAP))
        kinds = {"soft": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "device": tarfile.CHRTYPE, "pipe": tarfile.FIFOTYPE}
        for name, kind in kinds.items():
            member = tarfile.TarInfo(f"{name}.npy")
            member.type, member.linkname = kind, str(tmp_path / "secret.npy") if name == "soft" else "real.npy"
            archive.addfile(member)
        folder = tarfile.TarInfo("folder.npy")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    real, *others = open_source(maps)
    assert real.name == "a/real"
    assert [entry.name for entry in others] == ["a/soft", "a/hard", "a/device", "a/pipe"]
    for entry in others:
        assert _why_not(entry) == "in the archive it is a link, a device or a sparse file: only plain files are read"


def test_a_damaged_array_in_a_tar_fails_alone(maps: Path) -> None:
    content = {"1.npy": _npy(MAP), "2.npy": b"no array", "3.npy": b"", "4.npy": _npy(MAP)[:-1], "5.npy": _npy(MAP)}
    _save_tar(maps / "a.tar", content)
    entries = list(open_source(maps))
    assert _names(entries) == [f"a/{number}" for number in range(1, 6)]
    assert _why_not(entries[1]).startswith("expected an .npy file: ")
    assert _why_not(entries[2]) == "expected an .npy file, found an empty one"
    assert _why_not(entries[3]).startswith("truncated: its header promises 48 bytes")


@pytest.mark.parametrize("cut_at", ["a header", "data", "between two members"])
def test_what_comes_before_the_cut_of_a_tar_is_listed_and_the_cut_is_told(maps: Path, cut_at: str) -> None:
    path = _save_tar(maps / "a.tar", {f"{number}.npy": _npy(MAP) for number in range(10)})
    # Each member takes a block of 512 bytes for its header and one for its array.
    path.write_bytes(path.read_bytes()[: 5 * 1024 + {"a header": 100, "data": 600, "between two members": 0}[cut_at]])
    *entries, failure = open_source(maps)
    assert isinstance(failure, Failure)
    assert failure.name == "a"
    whole = {"data": "5,720"}.get(cut_at, "5,120")
    assert failure.reason.startswith(f"the archive is cut off or damaged after {whole} bytes: ")
    assert _names(entries)[:5] == [f"a/{number}" for number in range(5)]
    if cut_at == "data":
        # Its header is whole, and so it is known by name.
        assert _why_not(entries[5]).startswith("truncated: ")
    else:
        assert len(entries) == 5


def test_a_damaged_header_in_a_tar_is_told_with_what_comes_before(maps: Path) -> None:
    path = _save_tar(maps / "a.tar", {f"{number}.npy": _npy(MAP) for number in range(10)})
    content = bytearray(path.read_bytes())
    content[5 * 1024 + 10] ^= 1
    path.write_bytes(content)
    assert _names(open_source(maps)) == [f"a/{number}" for number in range(5)]
    assert _failure(maps).reason == "the archive is cut off or damaged after 5,120 bytes: what follows is not listed"


def test_a_member_of_negative_size_does_not_keep_the_listing_for_ever(maps: Path) -> None:
    path = _save_tar(maps / "a.tar", {"0.npy": _npy(MAP), "1.npy": _npy(MAP)})
    content = bytearray(path.read_bytes())
    header = content[1024:1536]
    # In base 256, two's complement; then the checksum, taken as if it were spaces.
    header[124:136] = (-1024).to_bytes(12, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[1024:1536] = header
    path.write_bytes(content)
    assert _names(open_source(maps)) == ["a/0"]
    assert _failure(maps).reason == "the archive is damaged after 1,024 bytes: a member of negative size"


@pytest.mark.parametrize("content", [b"", b"no archive", b"no archive" * 1000, b"\x1f\x8b\x08\x00" + bytes(2000)])
def test_what_is_no_tar_is_a_failure_of_its_own(maps: Path, content: bytes) -> None:
    (maps / "a.tar").write_bytes(content)
    _save_tar(maps / "b.tar", {"x.npy": _npy(MAP)})
    assert _failure(maps).reason.startswith("expected a tar archive that is not compressed: ")
    assert _names(open_source(maps)) == ["b/x"]


def test_a_tar_without_arrays_is_a_failure(maps: Path) -> None:
    _save_tar(maps / "a.tar", {"1.jpg": b"an image"})
    assert _failure(maps).reason == "the archive holds no arrays (.npy)"


@pytest.mark.parametrize("name", ["a.tar.gz", "a.TGZ", "a.tar.xz", "a.tar.bz2"])
def test_a_compressed_tar_is_refused_with_what_to_do(maps: Path, name: str) -> None:
    _save_tar(maps / name, {"x.npy": _npy(MAP)})
    for place in (maps, maps / name):
        failure = _failure(place)
        assert failure.name == "a"
        assert failure.reason.endswith("decompress it first")


def test_the_memory_of_listing_a_tar_does_not_grow_with_its_members(maps: Path) -> None:
    content = _npy(MAP)
    _save_tar(maps / "a.tar", {f"{'x' * 80}{number}.npy": content for number in range(2000)})
    peaks = []
    for last in (500, 2000):
        tracemalloc.start()
        try:
            listing = iter(open_source(maps))
            assert sum(1 for _, _ in zip(range(last), listing, strict=False)) == last
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    # The members alone would be over a megabyte more.
    assert peaks[1] < peaks[0] + 300_000


@_quickly
@given(changes=_CHANGES, cut=st.sampled_from([0, 0, 0, 1, 700, 6000, 9500]))
def test_no_damage_to_a_tar_ends_in_anything_but_maps_and_failures(
    maps: Path, changes: list[tuple[int, int]], cut: int
) -> None:
    path = _save_tar(maps / "a.tar", {"é" * 60 + ".npy": _npy(MAP), "1.json": b"{}", "2.npy": _npy(STACK)})
    path.write_bytes(_changed(path.read_bytes(), changes, cut))
    _read_whatever_is_there(maps)


# HDF5 --------------------------------------------------------------------------------------------------------------


def test_the_datasets_of_an_hdf5_file_are_maps_and_stacks_sorted_by_their_paths(maps: Path) -> None:
    arrays = _kinds_of_numbers()
    with h5py.File(maps / "a.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file["z/deep/stack"] = STACK
        file["z/channel"] = STACK[:, None]
        file["z/one"] = MAP[..., None]
    written: dict[str, Any] = {f"a/{name}": arrays[name] for name in sorted(arrays)}
    written |= _plane_by_plane("a/z/channel", STACK) | _plane_by_plane("a/z/deep/stack", STACK)
    written["a/z/one"] = MAP[..., None]
    read = _read(maps)
    _assert_same(read, written)
    assert read["a/f64be"].dtype == np.dtype(">f8")


def test_what_is_no_map_in_an_hdf5_file_is_passed_over(maps: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = MAP
    with h5py.File(maps / "a.hdf5", "w") as file:
        file["cam"] = MAP
        file["label"] = 7
        file["labels"] = np.arange(5)
        file["text"] = "text"
        file["texts"] = [["a", "b"], ["c", "d"]]
        file["boxes"] = np.zeros((2, 2), [("x", "f4"), ("y", "f4")])
        file["nothing"] = h5py.Empty("f4")
        file["type"] = np.dtype("f4")
        file["soft"] = h5py.SoftLink("/cam")
        file["outside"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/secret")
        file["nowhere"] = h5py.SoftLink("/gone")
        file["group/again"] = file["/"]
    _assert_same(_read(maps), {"a/cam": MAP})


def test_data_that_lie_in_other_files_than_the_hdf5_file_are_not_read(maps: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(MAP.tobytes())
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["stack"] = STACK
    layout = h5py.VirtualLayout(STACK.shape, "f4")
    layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "stack", STACK.shape)
    with h5py.File(maps / "a.h5", "w") as file:
        file.create_dataset("external", MAP.shape, "f4", external=[(str(tmp_path / "raw"), 0, MAP.nbytes)])
        file.create_virtual_dataset("virtual", layout)
        np.testing.assert_array_equal(file["virtual"], STACK)
    entries = list(open_source(maps))
    assert _names(entries) == ["a/external", "a/virtual"]
    for entry in entries:
        assert "whose data lie in other files (virtual or external)" in _why_not(entry)


@pytest.mark.parametrize("chunks", [None, (1, 3, 5), (2, 2, 3), (5, 3, 5)])
def test_a_chunked_and_compressed_stack_is_read_map_by_map(maps: Path, chunks: tuple[int, ...] | None) -> None:
    with h5py.File(maps / "a.h5", "w") as file:
        file.create_dataset(
            "x", data=STACK, chunks=chunks, compression="gzip" if chunks else None, shuffle=bool(chunks)
        )
    _assert_same(_read(maps), _plane_by_plane("a/x", STACK))


def test_maps_that_share_a_chunk_of_an_hdf5_file_are_unpacked_once(maps: Path) -> None:
    stack = np.random.default_rng(1).random((36, 256, 256)).astype(np.float32)
    with h5py.File(maps / "a.h5", "w") as file:
        # One chunk: 9 MiB, more than HDF5 keeps by itself.
        file.create_dataset("x", data=stack, chunks=stack.shape, compression="gzip", compression_opts=1)
    unpacked = 0

    class Counting(LocalFilesystem):
        def open(self, path: str) -> Any:
            file = open(path, "rb")  # noqa: SIM115  # the reader closes it

            class Stream(io.BufferedReader):
                def readinto(self, buffer: Any) -> int:
                    nonlocal unpacked
                    unpacked += memoryview(buffer).nbytes
                    return super().readinto(buffer)

            return Stream(file.detach())

    with closing(open_reader(str(maps / "a.h5"), Counting())) as reader:
        for index in range(len(stack)):
            np.testing.assert_array_equal(reader.read(["x", index]), stack[index])
    assert unpacked < 1.1 * (maps / "a.h5").stat().st_size


@pytest.mark.parametrize("cut", [0, 1, 100, 3000])
def test_a_damaged_hdf5_file_is_told_in_one_sentence(maps: Path, cut: int) -> None:
    with h5py.File(maps / "a.h5", "w") as file:
        file["x"] = np.zeros((40, 40))
    content = (maps / "a.h5").read_bytes()
    (maps / "a.h5").write_bytes(content[:-cut] if cut else b"no HDF5" * 100)
    failure = _failure(maps)
    assert failure.reason.startswith("expected an HDF5 file: ")
    assert "\n" not in failure.reason
    assert len(failure.reason) < 300


def test_a_damaged_dataset_of_an_hdf5_file_fails_alone(maps: Path) -> None:
    with h5py.File(maps / "a.h5", "w", libver="latest") as file:
        for name in ("a", "b", "c"):
            file.create_dataset(name, data=STACK, chunks=STACK.shape, compression="gzip", fletcher32=True)
        offset = h5py.h5o.get_info(file["b"].id).addr
        data = file["c"].id.get_chunk_info(0).byte_offset
    content = bytearray((maps / "a.h5").read_bytes())
    content[offset + 8] ^= 0xFF
    content[data + 5] ^= 0xFF
    (maps / "a.h5").write_bytes(content)
    entries = list(open_source(maps))
    assert _names(entries) == [f"a/a/{index:06}" for index in range(5)] + ["a/b"] + [
        f"a/c/{index:06}" for index in range(5)
    ]
    assert _why_not(entries[5]).startswith("the file is damaged at 'b': ")
    assert _why_not(entries[6]).startswith("the file is damaged at 'c': ")


def test_an_hdf5_file_without_maps_is_a_failure(maps: Path) -> None:
    with h5py.File(maps / "a.h5", "w") as file:
        file["labels"] = np.arange(5)
    assert _failure(maps).reason == "the file holds no dataset of numbers in two or more dimensions"


def test_a_dataset_that_has_shrunk_is_told(maps: Path) -> None:
    with h5py.File(maps / "a.h5", "w") as file:
        file["x"] = STACK
        file["y"] = STACK
    *_, last_x, _, _, _, _, last_y = open_source(maps)
    with h5py.File(maps / "a.h5", "w") as file:
        file["x"] = STACK[:3]
    assert _why_not(last_x) == "the dataset 'x' holds no map 4 any more: its shape is (3, 3, 5)"
    assert "'y'" in _why_not(last_y)


# Zarr --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
def test_the_arrays_of_a_zarr_hierarchy_are_maps_and_stacks_sorted_by_their_paths(maps: Path, version: Any) -> None:
    arrays = _kinds_of_numbers()
    root = zarr.open_group(maps / "a.zarr", mode="w", zarr_format=version)
    for name, array in arrays.items():
        root.create_array(name, data=array)
    root.create_array("z/deep/stack", data=STACK, chunks=(2, 3, 2))
    root.create_array("z/channel", data=STACK[:, None])
    root.create_array("labels", data=np.arange(5))
    root.create_array("a/one", data=MAP[..., None])
    written: dict[str, Any] = {"a/a/one": MAP[..., None]} | {f"a/{name}": arrays[name] for name in sorted(arrays)}
    written |= _plane_by_plane("a/z/channel", STACK) | _plane_by_plane("a/z/deep/stack", STACK)
    for place in (maps, maps / "a.zarr", maps / "*.zarr"):
        _assert_same(_read(place), written)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("name", ["a.zarr", "A.ZARR", "a"])
def test_a_zarr_array_is_named_by_its_folder(maps: Path, version: Any, name: str) -> None:
    zarr.create_array(maps / name, data=STACK, chunks=(2, 3, 5), zarr_format=version)
    zarr.create_array(maps / "deep" / "one.zarr", data=MAP, zarr_format=version)
    np.save(maps / "z.npy", MAP)
    stem = name.partition(".")[0]
    for place in (maps, maps / "**"):
        _assert_same(_read(place), _plane_by_plane(stem, STACK) | {"deep/one": MAP, "z": MAP})
    _assert_same(_read(maps / name), _plane_by_plane(stem, STACK))
    _assert_same(_read(maps / "deep" / "one.zarr"), {"one": MAP})


def test_a_zarr_folder_is_found_from_within(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zarr.create_array(maps / "a.zarr", data=MAP)
    monkeypatch.chdir(maps / "a.zarr")
    for place in (".", "../a.zarr/"):
        assert _names(open_source(place)) == ["a"]


@pytest.mark.parametrize("pattern", ["*/c", "*/*.npy", "*/*/*/*", "x*.zarr"])
def test_no_glob_looks_for_maps_within_a_zarr_folder(maps: Path, pattern: str) -> None:
    zarr.create_array(maps / "a.zarr", data=STACK)
    np.save(maps / "a.zarr" / "not ours.npy", MAP)
    assert list(open_source(maps / pattern)) == []


def test_sharded_arrays_and_chunks_that_were_never_written_are_read(maps: Path) -> None:
    sharded = zarr.create_array(
        maps / "s.zarr", shape=(10, 3, 5), chunks=(2, 3, 5), shards=(4, 3, 5), dtype="f4", fill_value=0.25
    )
    written = np.full((10, 3, 5), 0.25, "f4")
    written[5] = STACK[1]
    sharded[5] = STACK[1]
    zarr.create_array(maps / "v.zarr", shape=(3, 3, 5), chunks=(1, 3, 5), dtype="u1", fill_value=9, zarr_format=2)
    _assert_same(_read(maps), _plane_by_plane("s", written) | _plane_by_plane("v", np.full((3, 3, 5), 9, "u1")))


def _count_chunk_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    reads: list[str] = []
    get = zarr.storage.LocalStore.get

    async def counted(self: Any, key: str, *arguments: Any, **options: Any) -> Any:
        if "/c/" in f"/{key}":
            reads.append(key)
        return await get(self, key, *arguments, **options)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", counted)
    return reads


def test_maps_that_share_a_zarr_chunk_are_unpacked_once(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = np.random.default_rng(1).random((20, 6, 6))
    zarr.create_array(maps / "a.zarr", data=stack, chunks=(8, 4, 6))
    reads = _count_chunk_reads(monkeypatch)
    _assert_same(_read(maps), _plane_by_plane("a", stack))
    assert len(reads) == len(set(reads)) == 3 * 2


def test_a_block_of_chunks_too_large_to_keep_is_read_map_by_map(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zarr_source, "_MAX_BLOCK", STACK[:2].nbytes - 1)
    zarr.create_array(maps / "a.zarr", data=STACK, chunks=(2, 3, 5))
    reads = _count_chunk_reads(monkeypatch)
    _assert_same(_read(maps), _plane_by_plane("a", STACK))
    assert len(reads) == len(STACK)


def test_the_fingerprint_of_a_zarr_folder_changes_with_any_of_its_files(maps: Path) -> None:
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


def test_links_within_a_zarr_folder_that_lead_back_are_a_failure(maps: Path) -> None:
    zarr.open_group(maps / "a.zarr", mode="w").create_array("x", data=MAP)
    (maps / "a.zarr" / "loop").symlink_to(maps)
    assert _failure(maps).reason == "a symbolic link in it leads back to a folder above"


def test_a_folder_that_is_no_zarr_hierarchy_and_a_file_that_is_no_folder_are_failures(maps: Path) -> None:
    (maps / "a.zarr").mkdir()
    (maps / "b.zarr").mkdir()
    (maps / "b.zarr" / "zarr.json").write_text("{")
    (maps / "c.zarr").write_bytes(b"")
    zarr.create_array(maps / "d.zarr", data=np.arange(5))
    reasons = {entry.name: entry.reason for entry in open_source(maps) if isinstance(entry, Failure)}
    assert list(reasons) == ["a", "b", "c", "d"]
    assert reasons["a"] == "expected a Zarr hierarchy, found no zarr.json, .zgroup or .zarray"
    assert reasons["b"].startswith("expected a Zarr hierarchy: ")
    assert reasons["c"] == "expected a folder, found a regular file"
    assert reasons["d"] == "the hierarchy holds no array of numbers in two or more dimensions"


@pytest.mark.parametrize("version", [2, 3])
def test_what_is_damaged_in_a_zarr_hierarchy_fails_alone_and_stray_files_do_no_harm(maps: Path, version: Any) -> None:
    root = zarr.open_group(maps / "a.zarr", mode="w", zarr_format=version)
    for name in ("a", "b", "c"):
        root.create_array(name, data=MAP)
    (maps / "a.zarr" / "b" / ("zarr.json" if version == 3 else ".zarray")).write_text('{"shape": 7')
    chunk = maps / "a.zarr" / "c" / ("c/0/0" if version == 3 else "0.0")
    chunk.write_bytes(b"damaged" * 5)
    (maps / "a.zarr" / "README.md").write_text("no array")
    (maps / "a.zarr" / "folder").mkdir()
    entries = list(open_source(maps))
    assert _names(entries) == ["a/a", "a/b", "a/c"]
    assert _why_not(entries[1]).startswith("the hierarchy is damaged at 'b': ")
    assert _why_not(entries[2]).startswith("the hierarchy is damaged at 'c': ")


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
        assert _why_not(entry).startswith("the hierarchy is damaged at ")
    assert not evidence.exists()
    # The bait was live.
    pickle.loads(chunk)  # noqa: S301  # our own
    assert evidence.exists()


# Safetensors -------------------------------------------------------------------------------------------------------


def test_the_tensors_of_a_safetensors_file_are_maps_and_stacks(maps: Path) -> None:
    # The library's own writer swaps what is big-endian.
    arrays = {name: array for name, array in _kinds_of_numbers().items() if not name.endswith("be")}
    arrays |= {"layer.4/stack": STACK, "one": MAP[..., None]}
    others = {"bias": np.ones(3, "f4"), "step": np.array(7)}
    safetensors.numpy.save_file(arrays | {"channel": STACK[:, None]} | others, maps / "a.safetensors", {"made": "here"})
    written: dict[str, Any] = {f"a/{name}": array for name, array in arrays.items() if name != "layer.4/stack"}
    written |= _plane_by_plane("a/layer.4/stack", STACK) | _plane_by_plane("a/channel", STACK)
    read = _read(maps)
    _assert_same({name: read[name] for name in sorted(read)}, {name: written[name] for name in sorted(written)})
    assert list(_read(maps)) == list(read)


def _save_raw(path: Path, header: dict[str, Any] | bytes, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_bfloat16_becomes_float32_value_for_value(maps: Path) -> None:
    values = np.array([[0, 1, 0.5], [0.333984375, 2**-126, 255]], np.float32)
    bits = (values.view(np.uint32) >> 16).astype("<u2")
    _save_raw(
        maps / "a.safetensors", {"x": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}, bits.tobytes()
    )
    _assert_same(_read(maps), {"a/x": values})


def test_a_tensor_of_a_dtype_that_numpy_lacks_fails_alone(maps: Path) -> None:
    header = {
        "x": {"dtype": "F8_E4M3", "shape": [5, 3, 5], "data_offsets": [0, 75]},
        "y": {"dtype": "U8", "shape": [3, 4], "data_offsets": [75, 87]},
    }
    _save_raw(maps / "a.safetensors", header, bytes(87))
    x, y = open_source(maps)
    assert _why_not(x) == "NumPy has no dtype F8_E4M3: save the tensor as float16, bfloat16 or float32"
    assert y.name == "a/y"


def test_a_truncated_safetensors_file_loses_only_what_was_cut_off(maps: Path) -> None:
    safetensors.numpy.save_file({"a": MAP, "b": MAP, "c": MAP}, maps / "a.safetensors")
    content = (maps / "a.safetensors").read_bytes()
    (maps / "a.safetensors").write_bytes(content[:-1])
    entries = list(open_source(maps))
    assert _names(entries) == ["a/a", "a/b", "a/c"]
    assert _why_not(entries[2]).startswith("truncated: the tensor 'c' ends at byte")
    with Readers() as readers:
        np.testing.assert_array_equal(readers.read(str(maps / "a.safetensors"), ["b", None]), MAP)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": None},
        {"dtype": 7},
        {"shape": [3, -4]},
        {"shape": [3, 4.0]},
        {"shape": 12},
        {"shape": [2**40, 2**40]},
        {"data_offsets": [0, 47]},
        {"data_offsets": [48, 0]},
        {"data_offsets": [-48, 0]},
        {"data_offsets": [0]},
        {"data_offsets": ["0", "48"]},
    ],
)
def test_a_tensor_that_cannot_be_fails_alone(maps: Path, change: dict[str, Any]) -> None:
    sound = {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}
    _save_raw(maps / "a.safetensors", {"x": sound | change, "y": sound, "z": 7}, MAP.tobytes())
    x, y, z = open_source(maps)
    assert _why_not(x) == "the header is damaged at the tensor 'x'"
    assert y.name == "a/y"
    assert _why_not(z) == "the header is damaged at the tensor 'z'"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        b"\xff" * 100,
        struct.pack("<Q", 3) + b"{{{",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        struct.pack("<Q", 2) + b"\xff\xff",
    ],
)
def test_what_is_no_safetensors_file_is_a_failure_of_its_own(maps: Path, content: bytes) -> None:
    (maps / "a.safetensors").write_bytes(content)
    assert _failure(maps).reason.startswith("expected a safetensors file: ")


def test_a_safetensors_file_without_maps_is_a_failure(maps: Path) -> None:
    safetensors.numpy.save_file({"bias": np.ones(3, "f4")}, maps / "a.safetensors")
    assert _failure(maps).reason == "the file holds no tensor of two or more dimensions"


@_quickly
@given(changes=_CHANGES, cut=st.sampled_from([0, 0, 0, 1, 100, 300]))
def test_no_damage_to_a_safetensors_file_ends_in_anything_but_maps_and_failures(
    maps: Path, changes: list[tuple[int, int]], cut: int
) -> None:
    content = safetensors.numpy.save({"é": MAP, "stack": STACK, "bias": np.ones(3)})
    (maps / "a.safetensors").write_bytes(_changed(content, changes, cut))
    _read_whatever_is_there(maps)


# The names of a stack ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "", "\r\n"])
def test_a_list_of_names_beside_a_stack_names_its_maps(maps: Path, end: str) -> None:
    np.save(maps / "cams.npy", STACK)
    names = ["dog 1", "b/c", "é", "000001", "x.y"]
    separator = end or "\n"
    (maps / "cams.names.txt").write_bytes((separator.join(names) + end).encode())
    _assert_same(_read(maps), {f"cams/{name}": plane for name, plane in zip(names, STACK, strict=True)})
    _assert_same(_read(maps / "cams.npy"), {f"cams/{name}": plane for name, plane in zip(names, STACK, strict=True)})


def test_a_list_of_names_that_an_editor_marked_as_utf_8_is_read(maps: Path) -> None:
    np.save(maps / "a.npy", STACK[:2])
    (maps / "a.names.txt").write_text("x\ny\n", "utf-8-sig")
    assert _names(open_source(maps)) == ["a/x", "a/y"]


def test_a_map_that_is_no_stack_needs_no_list_of_names(maps: Path) -> None:
    np.save(maps / "a.npy", MAP)
    (maps / "a.names.txt").write_text("x\ny\n")
    assert _names(open_source(maps)) == ["a"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a\nb\nc\nd\n", "its list of names has 4 lines, the stack has 5 maps"),
        (b"a\nb\nc\nd\ne\nf\ng", "its list of names has 7 lines, the stack has 5 maps"),
        (b"", "its list of names has 0 lines, the stack has 5 maps"),
        (b"a\nb\n\nd\ne\n", "line 3 of its list of names is empty"),
        (b"a\nb\nc\nd\ne\n\n", "line 6 of its list of names is empty"),
        (b"a\nb\n\xff\nd\ne\n", "its list of names is not UTF-8 after line 0"),
        (b"a\n" + b"x" * 10_000, "line 2 of its list of names is 4,096 characters long or more"),
    ],
)
def test_a_list_of_names_that_does_not_fit_is_one_failure(maps: Path, content: bytes, reason: str) -> None:
    np.save(maps / "a.npy", STACK)
    (maps / "a.names.txt").write_bytes(content)
    (failure,) = open_source(maps)
    assert isinstance(failure, Failure)
    assert (failure.name, failure.reason) == ("a", reason)


def test_a_name_of_a_list_that_cannot_be_a_key_fails_alone(maps: Path) -> None:
    np.save(maps / "a.npy", STACK[:2])
    (maps / "a.names.txt").write_text("../../x\ny\n")
    assert "'..' part" in _failure(maps).reason
    assert _names(open_source(maps)) == ["a/y"]


def test_the_memory_of_a_list_of_names_does_not_grow_with_it(maps: Path) -> None:
    np.save(maps / "a.npy", np.zeros((20_000, 1, 5), np.uint8))
    (maps / "a.names.txt").write_text("".join(f"{'x' * 50}{number}\n" for number in range(20_000)))
    tracemalloc.start()
    try:
        count = sum(1 for _ in open_source(maps))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 20_000
    # The names alone are over a megabyte.
    assert peak < 300_000


# All of them -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "module", "extra"), [("a.h5", "h5py", "hdf5"), ("a.hdf5", "h5py", "hdf5"), ("a.zarr", "zarr", "zarr")]
)
def test_a_format_whose_extra_is_missing_says_which_and_the_others_are_read(
    maps: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, extra: str
) -> None:
    (maps / name).mkdir() if name == "a.zarr" else (maps / name).write_bytes(b"")
    np.save(maps / "b.npy", MAP)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"async_maps.sources.formats.{extra}", raising=False)
    with pytest.raises(MissingExtraError, match=rf"pip install '\.\[{extra}\]'"):
        open_reader(str(maps / name), LocalFilesystem())
    assert _failure(maps).reason.endswith(
        f"needs the extra '{extra}': pip install '.[{extra}]' where this package was cloned"
    )
    assert _names(open_source(maps)) == ["b"]


def test_listing_and_reading_without_the_extras_imports_none_of_their_libraries(maps: Path) -> None:
    np.save(maps / "a.npy", MAP)
    _save_tar(maps / "b.tar", {"x.npy": _npy(MAP)})
    safetensors.numpy.save_file({"x": MAP}, maps / "c.safetensors")
    program = (
        "import sys; from async_maps.sources import open_source\n"
        "from async_maps.sources.formats.registry import Readers\n"
        "for entry in open_source(sys.argv[1]): print(Readers().read(entry.path, entry.part).sum())\n"
        "print([name for name in ('h5py', 'zarr', 'safetensors') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program, maps], capture_output=True, text=True, check=True)
    assert answer.stdout.split("\n") == [*[str(MAP.sum())] * 3, "[]", ""]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_of_all_formats_becomes_overlays(maps: Path, tmp_path: Path, workers: int) -> None:
    np.save(maps / "single.npy", MAP)
    np.save(maps / "named.npy", STACK[:2])
    (maps / "named.names.txt").write_text("dog\ncat/1\n")
    np.savez(maps / "npz.npz", x=MAP, y=STACK[:2])
    _save_tar(maps / "shard.tar", {"1.jpg": b"", "1.npy": _npy(MAP), "2.npy": _npy(STACK[:2])})
    with h5py.File(maps / "hdf5.h5", "w") as file:
        file["g/x"] = STACK[:2]
        file["label"] = 7
    zarr.open_group(maps / "group.zarr", mode="w").create_array("g/x", data=STACK[:2])
    zarr.create_array(maps / "array.zarr", data=STACK[:2], zarr_format=2)
    safetensors.numpy.save_file({"x": MAP, "y": STACK[:2]}, maps / "st.safetensors")
    expected = {
        "single": MAP, "named/dog": STACK[0], "named/cat/1": STACK[1], "npz/x": MAP, "shard/1": MAP, "st/x": MAP,
    }  # fmt: skip
    for name in ("npz/y", "shard/2", "hdf5/g/x", "group/g/x", "array", "st/y"):
        expected |= _plane_by_plane(name, STACK[:2])
    report = am.run(maps, tmp_path / "out", settings=am.Settings(workers=workers))
    assert (report.uploaded, report.failed) == (len(expected), 0)
    written = {str(path.relative_to(tmp_path / "out"))[:-4]: path for path in (tmp_path / "out").rglob("*.png")}
    assert written.keys() == expected.keys()
    for name, path in written.items():
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(image.convert("RGBA")), colorize_activation_map(expected[name]))


def test_names_that_change_places_mean_that_their_maps_are_done_again(tmp_path: Path) -> None:
    maps, out, manifest = tmp_path / "maps", tmp_path / "out", tmp_path / "m.sqlite"
    maps.mkdir()
    np.save(maps / "s.npy", np.random.default_rng(0).random((2, 8, 9)))
    (maps / "s.names.txt").write_text("cat\ndog\n")
    settings = am.Settings(workers=0)
    am.run(maps, out, settings=settings, manifest=manifest)
    cat, dog = ((out / "s" / f"{name}.png").read_bytes() for name in ("cat", "dog"))
    (maps / "s.names.txt").write_text("dog\ncat\n")
    assert am.run(maps, out, settings=settings, manifest=manifest).uploaded == 2
    assert ((out / "s" / "dog.png").read_bytes(), (out / "s" / "cat.png").read_bytes()) == (cat, dog)
