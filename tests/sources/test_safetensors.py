"""Safetensors files, read without their library."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_maps.sources import open_source
from async_maps.sources.formats.registry import Readers
from tests.support.entries import (
    CHANGES,
    STACK,
    assert_same,
    damaged,
    kinds_of_numbers,
    names_of,
    only_failure,
    plane_by_plane,
    read_all,
    try_to_read,
    why_not,
)
from tests.support.maps import MAP
from tests.support.properties import examples

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fast

safetensors = pytest.importorskip("safetensors.numpy")


def test_tensors_of_a_safetensors_file_become_maps_and_stacks(maps: Path) -> None:
    # The library's own writer swaps the bytes of big-endian arrays.
    arrays = {name: array for name, array in kinds_of_numbers().items() if not name.endswith("be")}
    arrays |= {"layer.4/stack": STACK, "one": MAP[..., None]}
    others = {"bias": np.ones(3, "f4"), "step": np.array(7)}
    safetensors.save_file(arrays | {"channel": STACK[:, None]} | others, maps / "a.safetensors", {"made": "here"})
    written: dict[str, Any] = {f"a/{name}": array for name, array in arrays.items() if name != "layer.4/stack"}
    written |= plane_by_plane("a/layer.4/stack", STACK) | plane_by_plane("a/channel", STACK)
    read = read_all(maps)
    assert_same({name: read[name] for name in sorted(read)}, {name: written[name] for name in sorted(written)})
    assert list(read_all(maps)) == list(read)


def _save_raw(path: Path, header: dict[str, Any] | bytes, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_bfloat16_is_read_as_float32_exactly(maps: Path) -> None:
    values = np.array([[0, 1, 0.5], [0.333984375, 2**-126, 255]], np.float32)
    bits = (values.view(np.uint32) >> 16).astype("<u2")
    _save_raw(
        maps / "a.safetensors", {"x": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}, bits.tobytes()
    )
    assert_same(read_all(maps), {"a": values})


def test_a_tensor_with_a_dtype_that_numpy_lacks_fails_alone(maps: Path) -> None:
    header = {
        "x": {"dtype": "F8_E4M3", "shape": [5, 3, 5], "data_offsets": [0, 75]},
        "y": {"dtype": "U8", "shape": [3, 4], "data_offsets": [75, 87]},
    }
    _save_raw(maps / "a.safetensors", header, bytes(87))
    x, y = open_source(maps)
    assert why_not(x) == "NumPy has no dtype F8_E4M3: save the tensor as float16, bfloat16 or float32"
    assert y.name == "a/y"


def test_a_truncated_file_loses_only_the_tensors_cut_off(maps: Path) -> None:
    safetensors.save_file({"a": MAP, "b": MAP, "c": MAP}, maps / "a.safetensors")
    content = (maps / "a.safetensors").read_bytes()
    (maps / "a.safetensors").write_bytes(content[:-1])
    entries = list(open_source(maps))
    assert names_of(entries) == ["a/a", "a/b", "a/c"]
    assert why_not(entries[2]).startswith("truncated: tensor 'c' ends at byte")
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
def test_an_invalid_tensor_description_fails_alone(maps: Path, change: dict[str, Any]) -> None:
    sound = {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}
    _save_raw(maps / "a.safetensors", {"x": sound | change, "y": sound, "z": 7}, MAP.tobytes())
    x, y, z = open_source(maps)
    assert why_not(x) == "the header is damaged at the tensor 'x'"
    assert y.name == "a/y"
    assert why_not(z) == "the header is damaged at the tensor 'z'"


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
def test_an_invalid_safetensors_file_is_a_failure(maps: Path, content: bytes) -> None:
    (maps / "a.safetensors").write_bytes(content)
    assert only_failure(maps).reason.startswith("expected a safetensors file: ")


def test_a_file_without_tensors_is_a_failure(maps: Path) -> None:
    safetensors.save_file({}, maps / "a.safetensors")
    assert only_failure(maps).reason == "the file contains no tensor"


@examples(150)
@given(changes=CHANGES, cut=st.sampled_from([0, 0, 0, 1, 100, 300]))
def test_a_damaged_file_gives_only_maps_and_failures(maps: Path, changes: list[tuple[int, int]], cut: int) -> None:
    content = safetensors.save({"é": MAP, "stack": STACK, "bias": np.ones(3)})
    (maps / "a.safetensors").write_bytes(damaged(content, changes, cut))
    try_to_read(maps)
