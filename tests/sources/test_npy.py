"""Arrays in .npy files, whole or damaged."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from async_maps.errors import SourceError
from async_maps.sources.formats import npy
from async_maps.sources.formats.npy import StoredArray
from async_maps.sources.formats.registry import Readers
from tests.support.entries import BYTES, HEADER, read_map, save_map, with_header
from tests.support.maps import MAP
from tests.support.properties import examples

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("dtype", ["u1", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "g", "i8", "?", "c8"])
@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (3, 5, 1), (7,), (), (0, 4), (2, 3, 4)])
def test_an_array_is_read_with_its_dtype_shape_and_order(maps: Path, dtype: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(3).random(shape) * 100
    for order in ("C", "F"):
        array = np.asarray(values, order=order).astype(dtype)
        path = save_map(maps / "a.npy", array)
        read = read_map(str(path), None)
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert read.flags.f_contiguous == array.flags.f_contiguous
        np.testing.assert_array_equal(read, array)
        np.savez(maps / "a.npz", x=array)
        np.testing.assert_array_equal(read_map(str(maps / "a.npz"), "x"), array)


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "u1"])
def test_pieces_of_any_size_are_the_array(maps: Path, dtype: str) -> None:
    stack = (np.random.default_rng(3).random((2, 300, 1000)) * 100).astype(dtype)
    path = str(save_map(maps / "a.npy", stack))
    with Readers() as readers:
        for count in (1, 7777, 300_000, 10**9):
            found = readers.find(path, [None, 1])
            assert isinstance(found, StoredArray)
            assert (found.shape, found.dtype) == ((300, 1000), stack.dtype)
            pieces = [piece.copy() for piece in islice(found.pieces(count), 50)]
            np.testing.assert_array_equal(np.concatenate(pieces), stack[1].reshape(-1)[: count * 50])
            np.testing.assert_array_equal(found.whole(), stack[1])


def test_the_maps_of_a_stack_share_one_read_of_its_header(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = np.random.default_rng(3).random((5, 14, 14), np.float32)
    path = str(save_map(maps / "a.npy", stack))
    sizes = []
    original = npy.read_header

    def read_header(file: IO[bytes], size: int) -> npy.Header:
        sizes.append(size)
        return original(file, size)

    monkeypatch.setattr(npy, "read_header", read_header)
    with Readers() as readers:
        for index in (3, 0, 4):
            np.testing.assert_array_equal(readers.find(path, [None, index]), stack[index])
            np.testing.assert_array_equal(readers.read(path, [None, index]), stack[index])
    assert sizes == [os.path.getsize(path)]


def test_small_arrays_and_those_in_fortran_order_are_read_whole(maps: Path) -> None:
    for array in (MAP, np.asfortranarray(np.ones((300, 1000), np.float32))):
        with Readers() as readers:
            found = readers.find(str(save_map(maps / "a.npy", array)), None)
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, array)


def test_a_file_that_shrinks_while_it_is_read_in_pieces_is_refused(maps: Path) -> None:
    path = save_map(maps / "a.npy", np.zeros((300, 1000), np.float32))
    with Readers() as readers:
        found = readers.find(str(path), None)
        assert isinstance(found, StoredArray)
        pieces = found.pieces(1000)
        next(pieces)
        os.truncate(path, 900_000)
        with pytest.raises(SourceError, match=r"^truncated while it was read$"):
            list(pieces)


def test_a_header_of_version_2_is_read(maps: Path) -> None:
    path = maps / "a.npy"
    with path.open("wb") as file:
        np.lib.format.write_array(file, MAP, version=(2, 0))
    np.testing.assert_array_equal(read_map(str(path), None), MAP)


def test_bytes_after_the_array_are_ignored(maps: Path) -> None:
    path = save_map(maps / "a.npy")
    with path.open("ab") as file:
        file.write(b"more")
    np.testing.assert_array_equal(read_map(str(path), None), MAP)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "expected an .npy file, found an empty one"),
        (b"\x93NUM", "expected an .npy file, found one of 4 bytes"),
        (b"GIF89a" + bytes(100), "expected an .npy file: the magic string is not correct"),
        (b"\x93NUMPY\x03\x00" + bytes(100), "expected an .npy file: version 3.0 of the format is for structured"),
        (
            b"\x93NUMPY\x09\x09" + bytes(100),
            "expected an .npy file: version 9.9 of the format is not known; the file may be damaged",
        ),
        (
            b"\x93NUMPY\x01\x00\xff\xff" + b" " * 0xFFFF,
            "expected an .npy file: the header claims 65,535 bytes",
        ),
        ("{'descr': '<f4'", "expected an .npy file: "),
        ("'descr': '<f4'}", "expected an .npy file: "),
        ("{'descr': '<f4', 1: 2}", "expected an .npy file: "),
        ("[" * 3000, "expected an .npy file: "),
        ("{'descr': (), 'fortran_order': False, 'shape': (3, 4), }", "expected an .npy file: "),
        (HEADER.replace("False", "7"), "expected an .npy file: fortran_order is not a valid bool: 7"),
        (HEADER.replace("<f4", "no such"), "expected an .npy file: "),
        (HEADER.replace("3, 4", "-3, 4"), "expected an array of numbers, found shape (-3, 4) and dtype float32"),
        (HEADER.replace("3, 4", "-3, -4"), "expected an array of numbers, found shape (-3, -4) and dtype float32"),
        (HEADER.replace("3, 4", "0, -4"), "expected an array of numbers, found shape (0, -4) and dtype float32"),
        (HEADER.replace("<f4", "S0"), "expected an array of numbers, found shape (3, 4) and dtype |S0"),
        (HEADER.replace("'<f4'", "('<f4', (2,))"), "expected an array of numbers, found shape (3, 4) and dtype ("),
        (HEADER, "truncated: its header promises 48 bytes of data (shape (3, 4), float32), found 0"),
        (HEADER.replace("<f4", "|O"), "pickled Python objects, which are never read"),
    ],
)
def test_an_invalid_file_is_refused_with_a_short_reason(maps: Path, content: bytes | str, reason: str) -> None:
    path = maps / "a.npy"
    path.write_bytes(content if isinstance(content, bytes) else with_header(content))
    with pytest.raises(SourceError) as refusal:
        read_map(str(path), None)
    assert str(refusal.value).startswith(reason) or reason in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("cut", [1, 48, 49, 100, 120, 170])
def test_a_file_truncated_anywhere_is_refused(maps: Path, cut: int) -> None:
    path = save_map(maps / "a.npy")
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(SourceError, match=r"truncated: its header promises 48 bytes of data|expected an \.npy file"):
        read_map(str(path), None)


class _Payload:
    def __init__(self, evidence: Path) -> None:
        self._evidence = evidence

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._evidence),)


def test_pickled_objects_are_never_executed(maps: Path, tmp_path: Path) -> None:
    evidence = tmp_path / "executed"
    array = np.empty(1, object)
    array[0] = _Payload(evidence)
    np.save(maps / "a.npy", array, allow_pickle=True)
    np.savez(maps / "b.npz", x=array)
    (maps / "c.npy").write_bytes(pickle.dumps(_Payload(evidence)))
    with pytest.raises(SourceError, match="found pickled Python objects, which are never read"):
        read_map(str(maps / "a.npy"), None)
    with pytest.raises(SourceError, match="found pickled Python objects, which are never read"):
        read_map(str(maps / "b.npz"), "x")
    with pytest.raises(SourceError, match="the magic string is not correct"):
        read_map(str(maps / "c.npy"), None)
    assert not evidence.exists()
    # The bait was live.
    np.load(maps / "a.npy", allow_pickle=True)
    assert evidence.exists()


def test_objects_hidden_in_a_field_are_refused(maps: Path) -> None:
    np.save(maps / "a.npy", np.zeros(2, [("x", "f4"), ("y", "O")]), allow_pickle=True)
    with pytest.raises(SourceError, match="found pickled Python objects"):
        read_map(str(maps / "a.npy"), None)


def test_a_structured_array_is_read(maps: Path) -> None:
    array = np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")])
    read = read_map(str(save_map(maps / "a.npy", array)), None)
    assert read.dtype == array.dtype


@pytest.mark.parametrize("shape", ["1000000, 1000000", "1" + "0" * 300 + ",", "1" + "0" * 3000 + ","])
def test_a_huge_claimed_shape_is_refused_without_allocating(maps: Path, shape: str) -> None:
    path = maps / "a.npy"
    path.write_bytes(with_header(HEADER.replace("3, 4", shape)) + bytes(100))
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match="truncated: its header promises"):
            read_map(str(path), None)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_an_unknown_file_type_is_refused(maps: Path) -> None:
    with pytest.raises(SourceError, match=r"a\.txt is not a file of activation maps"):
        read_map("a.txt", None)


_NPY = b"\x93NUMPY\x01\x00v\x00" + HEADER.ljust(117).encode() + b"\n" + MAP.tobytes()
_CHANGES = st.lists(st.tuples(st.integers(0, 10_000), BYTES), max_size=6)


@examples(300)
@given(changes=_CHANGES)
@example(changes=[])
def test_a_damaged_file_is_an_array_or_a_source_error(maps: Path, changes: list[tuple[int, int]]) -> None:
    content = bytearray(_NPY)
    for position, value in changes:
        content[position % len(content)] = value
    path = maps / "a.npy"
    path.write_bytes(content)
    with suppress(SourceError):
        assert read_map(str(path), None).nbytes <= len(content)


def test_a_large_file_is_read_without_a_second_copy(maps: Path) -> None:
    array = np.random.default_rng(1).random((1500, 1000))
    path = save_map(maps / "a.npy", array)
    tracemalloc.start()
    try:
        read = read_map(str(path), None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(read, array)
    assert peak < 1.2 * array.nbytes
