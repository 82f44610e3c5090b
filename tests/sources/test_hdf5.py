"""HDF5 files: datasets that are read, objects that are ignored, and damage."""

from __future__ import annotations

import io
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("h5py")

import h5py

from async_maps.filesystems.filesystem import LocalFilesystem
from async_maps.sources import open_source
from async_maps.sources.formats.registry import open_reader
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


def test_datasets_become_maps_and_stacks_in_path_order(maps: Path) -> None:
    arrays = kinds_of_numbers()
    with h5py.File(maps / "a.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file["z/deep/stack"] = STACK
        file["z/channel"] = STACK[:, None]
        file["z/one"] = MAP[..., None]
    written: dict[str, Any] = {f"a/{name}": arrays[name] for name in sorted(arrays)}
    written |= plane_by_plane("a/z/channel", STACK) | plane_by_plane("a/z/deep/stack", STACK)
    written["a/z/one"] = MAP[..., None]
    read = read_all(maps)
    assert_same(read, written)
    assert read["a/f64be"].dtype == np.dtype(">f8")


def test_objects_that_are_not_maps_are_ignored(maps: Path, tmp_path: Path) -> None:
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
    assert_same(read_all(maps), {"a": MAP})
    assert passed_over(maps).count("links, which are not followed") == 3


def test_external_and_virtual_datasets_are_not_read(maps: Path, tmp_path: Path) -> None:
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
    assert names_of(entries) == ["a/external", "a/virtual"]
    for entry in entries:
        assert "of a virtual or external dataset are in other files" in why_not(entry)


@pytest.mark.parametrize("chunks", [None, (1, 3, 5), (2, 2, 3), (5, 3, 5)])
def test_a_chunked_and_compressed_stack_is_read_map_by_map(maps: Path, chunks: tuple[int, ...] | None) -> None:
    with h5py.File(maps / "a.h5", "w") as file:
        file.create_dataset(
            "x", data=STACK, chunks=chunks, compression="gzip" if chunks else None, shuffle=bool(chunks)
        )
    assert_same(read_all(maps), plane_by_plane("a", STACK))


def test_a_chunk_shared_by_maps_is_read_once(maps: Path) -> None:
    stack = np.random.default_rng(1).random((36, 256, 256)).astype(np.float32)
    with h5py.File(maps / "a.h5", "w") as file:
        # One chunk of 9 MiB, larger than HDF5's default cache.
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
            np.testing.assert_array_equal(reader.read("x", index), stack[index])
    assert unpacked < 1.1 * (maps / "a.h5").stat().st_size


@pytest.mark.parametrize("cut", [0, 1, 100, 3000])
def test_a_damaged_file_is_a_failure_with_a_short_reason(maps: Path, cut: int) -> None:
    with h5py.File(maps / "a.h5", "w") as file:
        file["x"] = np.zeros((40, 40))
    content = (maps / "a.h5").read_bytes()
    (maps / "a.h5").write_bytes(content[:-cut] if cut else b"no HDF5" * 100)
    failure = only_failure(maps)
    assert failure.reason.startswith("expected an HDF5 file: ")
    assert "\n" not in failure.reason
    assert len(failure.reason) < 300


def test_a_damaged_dataset_fails_alone(maps: Path) -> None:
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
    assert names_of(entries) == [f"a/a/{index:06}" for index in range(5)] + ["a/b"] + [
        f"a/c/{index:06}" for index in range(5)
    ]
    assert why_not(entries[5]).startswith("the file is damaged at 'b': ")
    assert why_not(entries[6]).startswith("the file is damaged at 'c': ")


def test_a_file_without_datasets_is_a_failure(maps: Path) -> None:
    with h5py.File(maps / "a.h5", "w") as file:
        file.create_group("empty")
    assert only_failure(maps).reason == "the file contains no dataset"


def test_a_dataset_that_shrank_is_a_failure(maps: Path) -> None:
    with h5py.File(maps / "a.h5", "w") as file:
        file["x"] = STACK
        file["y"] = STACK
    *_, last_x, _, _, _, _, last_y = open_source(maps)
    with h5py.File(maps / "a.h5", "w") as file:
        file["x"] = STACK[:3]
    assert why_not(last_x) == "the dataset 'x' has no map 4 anymore: its shape is (3, 3, 5)"
    assert "'y'" in why_not(last_y)
