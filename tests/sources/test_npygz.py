"""NumPy's .npy in gzip."""

from __future__ import annotations

import gzip
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from async_maps.errors import SourceError
from async_maps.filesystems.filesystem import LocalFilesystem
from async_maps.outcomes import Failure
from async_maps.sources import open_source
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.formats.npygz import NpygzReader
from async_maps.sources.formats.registry import Readers
from tests.support.entries import (
    HEADER,
    STACK,
    assert_same,
    only_failure,
    passed_over,
    plane_by_plane,
    read_all,
    try_to_read,
    why_not,
    with_header,
)
from tests.support.maps import MAP, npy

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fast


def test_a_map_and_a_stack_are_read(maps: Path) -> None:
    (maps / "a.npy.gz").write_bytes(gzip.compress(npy(MAP)))
    (maps / "B.NPY.GZ").write_bytes(gzip.compress(npy(STACK[:1])))
    (maps / "c.npy.gz").write_bytes(gzip.compress(npy(STACK)))
    assert_same(read_all(maps), {"B": STACK[0], "a": MAP, **plane_by_plane("c", STACK)})


def test_names_beside_the_file_name_the_maps(maps: Path) -> None:
    (maps / "c.npy.gz").write_bytes(gzip.compress(npy(STACK)))
    (maps / "c.names.txt").write_text("a\nb\nc\nd\ne\n")
    assert list(read_all(maps)) == ["c/a", "c/b", "c/c", "c/d", "c/e"]


def test_a_file_of_several_gzip_members_is_read(maps: Path) -> None:
    content = npy(STACK)
    (maps / "c.npy.gz").write_bytes(gzip.compress(content[:150]) + gzip.compress(content[150:]))
    assert_same(read_all(maps), plane_by_plane("c", STACK))


def test_maps_in_order_unpack_the_stream_once(maps: Path) -> None:
    stack = np.random.default_rng(0).random((50, 100, 100))
    (maps / "c.npy.gz").write_bytes(gzip.compress(npy(stack), 1))
    reads: list[int] = []

    class Counted(io.FileIO):
        def readinto(self, buffer: Any, /) -> int:
            reads.append(super().readinto(buffer))
            return reads[-1]

    class Counting(LocalFilesystem):
        def open(self, path: str) -> io.BufferedReader:
            return io.BufferedReader(Counted(path))

    reader = NpygzReader(str(maps / "c.npy.gz"), Counting())
    for index in range(50):
        np.testing.assert_array_equal(reader.read(None, index), stack[index])
    assert sum(reads) < 1.1 * (maps / "c.npy.gz").stat().st_size
    np.testing.assert_array_equal(reader.read(None, 3), stack[3])
    reader.close()


def test_a_bomb_is_refused_by_its_header(maps: Path) -> None:
    packed = gzip.compress(with_header(HEADER.replace("(3, 4)", "(40000, 40000)")) + bytes(10**7))
    (maps / "a.npy.gz").write_bytes(packed)
    assert only_failure(maps).reason.startswith("the file is damaged: its header promises 6,400,000,000 bytes")
    (maps / "a.npy.gz").write_bytes(gzip.compress(npy(np.zeros((2000, 2000)))))
    (entry,) = open_source(maps)
    assert isinstance(entry, ActivationMap)
    assert entry.path is not None
    with Readers(max_pixels=10**6) as readers, pytest.raises(SourceError, match="max_pixels allows 1,000,000"):
        readers.read(entry.path, entry.part)


def test_a_stack_of_claimed_maps_is_one_failure(maps: Path) -> None:
    header = HEADER.replace("(3, 4)", "(1000000000, 3, 7)")
    (maps / "a.npy.gz").write_bytes(gzip.compress(with_header(header)))
    assert only_failure(maps).reason.startswith("the file is damaged: its header promises 84,000,000,000 bytes")


@pytest.mark.parametrize(
    "content", [b"", b"short", npy(MAP), gzip.compress(b"", mtime=0), gzip.compress(b"text", mtime=0)]
)
def test_another_content_is_a_failure(maps: Path, content: bytes) -> None:
    (maps / "a.npy.gz").write_bytes(content)
    assert only_failure(maps).reason.startswith("expected an .npy file")


def test_a_wrong_checksum_is_a_failure_of_the_last_map(maps: Path) -> None:
    content = bytearray(gzip.compress(npy(np.random.default_rng(0).random((3, 400, 400))), 1))
    content[-8] ^= 1
    (maps / "a.npy.gz").write_bytes(content)
    first, _, last = open_source(maps)
    assert isinstance(first, ActivationMap)
    assert first.path is not None
    with Readers() as readers:
        assert readers.read(first.path, first.part).shape == (400, 400)
    assert why_not(last).startswith("the file is damaged: CRC check failed")


def test_a_truncated_file_is_never_a_crash(maps: Path) -> None:
    content = gzip.compress(npy(STACK))
    for end in range(len(content)):
        (maps / "a.npy.gz").write_bytes(content[:end])
        entries = list(open_source(maps))
        if isinstance(entries[-1], Failure):
            assert len(entries) == 1
        else:
            assert why_not(entries[-1])
        try_to_read(maps)


def test_pickled_objects_and_fortran_stacks_are_refused_and_labels_passed_over(maps: Path) -> None:
    (maps / "a.npy.gz").write_bytes(gzip.compress(_pickled()))
    (maps / "b.npy.gz").write_bytes(gzip.compress(npy(np.asfortranarray(STACK))))
    (maps / "c.npy.gz").write_bytes(gzip.compress(npy(np.arange(3))))
    pickled, *fortran = open_source(maps)
    assert "pickled Python objects" in why_not(pickled)
    assert len(fortran) == 5
    assert "np.ascontiguousarray" in why_not(fortran[0])
    assert passed_over(maps) == ["arrays below two dimensions"]


def _pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([[{}]]), allow_pickle=True)
    return file.getvalue()
