"""List sources and read their maps."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import strategies as st

from async_maps.errors import SourceError
from async_maps.outcomes import Failure
from async_maps.sources import open_source
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.formats.registry import Readers
from tests.support.maps import MAP

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from async_maps.sources.batches import Entry

STACK = np.linspace(0, 1, 75, dtype=np.float32).reshape(5, 3, 5)


def read_all(place: Path) -> dict[str, NDArray[Any]]:
    """Return every map of a source by name, in the order of the listing. A failure fails the test."""
    arrays = {}
    with Readers() as readers:
        for entry in open_source(place):
            assert isinstance(entry, ActivationMap), entry
            assert entry.path is not None
            # Parts are sent to workers as JSON.
            array = readers.read(entry.path, json.loads(json.dumps(entry.part)))
            assert entry.name not in arrays
            assert array.nbytes <= max(entry.max_bytes, array.size * 4)
            arrays[entry.name] = array.copy()
    return arrays


def assert_same(read: dict[str, NDArray[Any]], written: dict[str, Any]) -> None:
    assert list(read) == list(written)
    for name, array in written.items():
        assert read[name].dtype.newbyteorder("=") == array.dtype.newbyteorder("="), name
        np.testing.assert_array_equal(read[name], array)


def names_of(entries: Iterable[Entry]) -> list[str]:
    return [entry.name for entry in entries if isinstance(entry, ActivationMap)]


def passed_over(place: Path) -> list[str]:
    """Return what is no map in a source, in the order of the listing."""
    found: list[str] = []
    list(open_source(place, pass_over=found.append))
    return found


def only_failure(place: Path) -> Failure:
    (failure,) = (entry for entry in open_source(place) if isinstance(entry, Failure))
    return failure


def why_not(entry: Entry) -> str:
    """Return the reason why a listed map cannot be read."""
    assert isinstance(entry, ActivationMap)
    assert entry.path is not None
    with Readers() as readers, pytest.raises(SourceError) as refusal:
        readers.read(entry.path, entry.part)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def try_to_read(place: Path) -> None:
    for entry in open_source(place):
        if isinstance(entry, ActivationMap):
            assert entry.path is not None
            with Readers() as readers, suppress(SourceError, OSError):
                readers.read(entry.path, entry.part)


def damaged(content: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
    changed = bytearray(content)
    for position, value in changes:
        changed[position % len(changed)] = value
    return bytes(changed[: len(changed) - cut % len(changed)])


def kinds_of_numbers(shape: tuple[int, ...] = (3, 4)) -> dict[str, NDArray[Any]]:
    values = np.random.default_rng(5).random(shape)
    kinds = {"f16": "<f2", "f16be": ">f2", "f32": "<f4", "f32be": ">f4", "f64": "<f8", "f64be": ">f8"}
    return {name: values.astype(kind) for name, kind in kinds.items()} | {"u8": (values * 255).astype(np.uint8)}


def plane_by_plane(name: str, stack: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {f"{name}/{index:06}": plane.squeeze() for index, plane in enumerate(stack)}


def save_tar(path: Path, members: dict[str, bytes], kind: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as archive:
        for name, content in members.items():
            add_member(archive, name, content)
    return path


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


CHANGES = st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 255)), max_size=6)


def failures_of(source: Iterable[Entry]) -> list[Failure]:
    return [entry for entry in source if isinstance(entry, Failure)]


def save_map(path: Path, array: NDArray[Any] = MAP) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    return path


def read_map(path: str, part: Any) -> NDArray[Any]:
    if isinstance(part, str):
        part = (part, None)
    with Readers() as readers:
        return readers.read(path, part)


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }"


def with_header(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode("latin1")


BYTES = st.integers(0, 255) | st.sampled_from(b"(){}[],'-09aOV|<S")


def only_names(source: Iterable[Entry]) -> list[str]:
    entries = list(source)
    assert all(isinstance(entry, ActivationMap) for entry in entries), entries
    return [entry.name for entry in entries]
