"""PyTorch's .pt and .pth, which are read without PyTorch."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import async_maps as am
from async_maps.sources import open_source
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.formats.registry import Readers
from tests.support.entries import (
    CHANGES,
    STACK,
    assert_same,
    damaged,
    names_of,
    only_failure,
    passed_over,
    read_all,
    try_to_read,
    why_not,
)
from tests.support.maps import MAP, npz
from tests.support.properties import examples
from tests.support.torch_files import claimed_tensor, torch_file, torch_zip

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.fast


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pth.tar"])
def test_tensors_in_dicts_and_lists_become_maps(maps: Path, suffix: str, old: bool) -> None:
    content = {"a": MAP, "b": {"c": [MAP + 1, STACK], "labels": np.arange(5)}, 7: (MAP * 2,), "epoch": 3}
    (maps / f"x{suffix}").write_bytes(torch_file(content, old=old))
    stack = {f"x/b/c/000001/{index:06}": plane for index, plane in enumerate(STACK)}
    assert_same(read_all(maps), {"x/a": MAP, "x/b/c/000000": MAP + 1, **stack, "x/7/000000": MAP * 2})
    assert passed_over(maps) == ["arrays below two dimensions"]


@pytest.mark.parametrize("old", [False, True])
def test_a_file_with_one_map_has_its_name(maps: Path, old: bool) -> None:
    (maps / "one.pt").write_bytes(torch_file(MAP, old=old))
    (maps / "two.pt").write_bytes(torch_file({"cam": MAP, "labels": np.arange(3)}, old=old))
    (maps / "three.pt").write_bytes(torch_file([STACK[:1]], old=old))
    assert_same(read_all(maps), {"one": MAP, "three": STACK[0], "two": MAP})


def test_texts_beside_a_stack_name_its_maps(maps: Path) -> None:
    names = [f"img-{index}" for index in range(5)]
    content = {"cams": STACK, "ids": ["x"] * 4, "names": names, "more": MAP}
    (maps / "x.pt").write_bytes(torch_file(content))
    assert list(read_all(maps)) == [*(f"x/cams/{name}" for name in names), "x/more"]


def test_a_map_of_a_stack_is_read_alone(maps: Path) -> None:
    (maps / "x.pt").write_bytes(torch_file(STACK))
    *_, last = open_source(maps)
    content = bytearray((maps / "x.pt").read_bytes())
    at = content.index(STACK[0].tobytes())
    content[at : at + STACK[0].nbytes] = bytes(STACK[0].nbytes)
    (maps / "x.pt").write_bytes(content)
    assert isinstance(last, ActivationMap)
    assert last.path is not None
    with Readers() as readers:
        np.testing.assert_array_equal(readers.read(last.path, last.part), STACK[-1])


def test_a_file_that_changed_after_its_listing_is_a_failure(maps: Path) -> None:
    (maps / "x.pt").write_bytes(torch_file({"a": MAP, "b": MAP}))
    first, _ = open_source(maps)
    (maps / "x.pt").write_bytes(torch_file({"a" * 200: MAP, "b": MAP}))
    assert why_not(first) == "truncated or damaged: the file does not have the values of the tensor"


def test_a_compiled_model_is_refused(maps: Path) -> None:
    with zipfile.ZipFile(maps / "a.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"a/{name}", b"\x80\x02).")
    assert only_failure(maps).reason == "expected a file of torch.save, found a model that torch.jit.save wrote"


# Malicious and damaged files


class _Command:
    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._mark}",)


@pytest.mark.parametrize("old", [False, True])
def test_a_command_in_a_pickle_is_not_run(maps: Path, tmp_path: Path, old: bool) -> None:
    mark = tmp_path / "mark"
    command = pickle.dumps({"a": _Command(mark)}, 2)
    tensors = torch_file({"cam": MAP})
    if old:
        content = torch_file(0, old=True)
        before, after = content.split(b"\x80\x02\x8a\x01\x00.")
        content = before + command + after
    else:
        content = torch_zip(command, {})
    (maps / "a.pt").write_bytes(content)
    (maps / "b.pt").write_bytes(tensors)
    assert_same(read_all(maps), {"b": MAP})
    assert passed_over(maps) == ["Python objects"]
    assert not mark.exists()
    pickle.loads(command)  # noqa: S301  # the command works
    assert mark.exists()


@pytest.mark.parametrize(
    ("shape", "strides", "length", "offset"),
    [
        ((10**6, 10**6), (10**6, 1), 10**12, 0),
        ((10**6, 10**6), (0, 0), 1, 0),
        ((10**12, 3, 4), (0, 4, 1), 12, 0),
        ((3, 4), (4, 1), 12, 1),
        ((3, 4), (4, 2), 12, 0),
        ((2**63, 2**63), (2**63, 1), 12, 0),
        ((3, 4), (4, 1), 12, 2**70),
        ((3, 4), (4,), 12, 0),
        ((3, 4), (-4, 1), 12, 0),
        ((-3, 4), (4, 1), 12, 0),
        ((1,) * 70, (1,) * 70, 12, 0),
    ],
)
def test_a_tensor_that_claims_more_than_its_storage_fails_alone(
    maps: Path, shape: tuple[int, ...], strides: tuple[int, ...], length: int, offset: int
) -> None:
    (maps / "x.pt").write_bytes(torch_zip(claimed_tensor(shape, strides, length, offset), {"0": MAP.tobytes()}))
    (entry,) = open_source(maps)
    assert why_not(entry)


def test_values_that_are_spread_too_far_are_refused(maps: Path) -> None:
    last = 17 * 2**20
    claim = claimed_tensor((2, 3, 5), (1, 2, last // 4), last + 10)
    (maps / "x.pt").write_bytes(torch_zip(claim, {"0": bytes(69 * 2**20)}))
    first, _ = open_source(maps)
    assert why_not(first) == "its values are spread over 71,303,188 bytes of the file: save tensor.contiguous()"


def test_a_stack_across_the_file_is_read_once(maps: Path) -> None:
    stack = np.ascontiguousarray(np.random.default_rng(0).random((30, 7, 50), np.float32)).transpose(2, 0, 1)
    (maps / "x.pt").write_bytes(torch_file(stack))
    found = read_all(maps)
    for index, plane in enumerate(stack):
        np.testing.assert_array_equal(found[f"x/{index:06}"], plane)


def test_a_tensor_of_too_many_pixels_is_refused(maps: Path) -> None:
    (maps / "x.pt").write_bytes(torch_file(MAP))
    (entry,) = open_source(maps)
    assert isinstance(entry, ActivationMap)
    assert entry.path is not None
    with Readers(max_pixels=11) as readers, pytest.raises(am.SourceError, match="max_pixels allows 11 pixels"):
        readers.read(entry.path, entry.part)


_DEEP = 20_000
_NESTED = b")" + b"2\x86" * 60
"""A tuple of 2^60 values; each level has the one below twice."""
_LONG = b"X\x80\x96\x98\x00" + b"a" * 10**7
_TENSOR = claimed_tensor((2, 2), (2, 1), 4)[2:-1]


def _array(code: bytes, order: bytes) -> bytes:
    dtype = b"cnumpy\ndtype\n" + code + b"\x85R(K\x03" + order + b"tb"
    return b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01K\x02K\x02\x86" + dtype + b"\x89C\x04aaaatb"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"]" * _DEEP + b"a" * (_DEEP - 1), "nested too deep"),
        (b")" + b"\x85" * _DEEP, "nested too deep"),
        (b"ctorch._utils\n_rebuild_parameter\n" * _DEEP + b")" + b"\x85R" * _DEEP, "damaged at this array"),
        (b")" + b"2\x86" * 100, "contains no tensor"),
        (b"]q\x00h\x00a", "contains no tensor"),
        (b"})" + b"2\x86" * 60 + b"Ns", "contains no tensor"),
        (b"]r\xff\xff\xff\xff", "contains no tensor"),
        (b"X\xff\xff\xff\x7fa", "too large"),
        (b"\x8d" + b"\xff" * 7 + b"\x7fa", "too large"),
        (b"I" + b"9" * 5000 + b"\n", "expected a file of torch.save"),
        (b"Q", "expected a file of torch.save"),
        (b"NR", "expected a file of torch.save"),
        (b"N)b", "expected a file of torch.save"),
        (b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R", "found an object of the class builtins.bytearray"),
        (b"X\x01\x00\x00\x00a", "found text"),
        (b"K\x01", "found a single value"),
        (b"}(X\x01\x00\x00\x00au", "expected a file of torch.save"),
        (b"}\x8b\x88\x13\x00\x00" + b"\x01" * 5000 + _TENSOR + b"s", "nested too deep, or a key"),
        (b"}(" + _LONG + b"q\x00" + b"h\x00" * 1000 + b"t" + _TENSOR + b"s", "nested too deep, or a key"),
        (b"](" + _LONG + b"q\x00" + b"h\x00h\x00\x93" * 1000 + b"e", "expected a file of torch.save: a name"),
        (_array(_NESTED, b"X\x01\x00\x00\x00<"), "damaged at this array"),
        (_array(b"X\x02\x00\x00\x00f4", _NESTED), "damaged at this array"),
    ],
)
def test_a_malicious_pickle_is_one_failure(maps: Path, body: bytes, reason: str) -> None:
    (maps / "x.pt").write_bytes(torch_zip(b"\x80\x02" + body + b".", {}))
    entries = list(open_source(maps))
    assert len(entries) == 1
    assert reason in (getattr(entries[0], "reason", "") or why_not(entries[0]))


def test_storages_with_malicious_keys_are_one_failure(maps: Path) -> None:
    content = torch_file([], old=True)
    start, keys, end = content.rpartition(b"](e.")
    (maps / "x.pt").write_bytes(start + b"](" + _NESTED + b"e." + end)
    assert keys
    assert only_failure(maps).reason == "expected a file of torch.save: a key that is no text"


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_list_of_names_that_is_named_often_is_compared_once(maps: Path) -> None:
    names = b"](" + b"N" * 300_000 + b"eq\x010"
    items = b"X\x05\x00\x00\x00namesh\x01" * 10_000
    (maps / "x.pt").write_bytes(
        torch_zip(b"\x80\x02" + names + b"}(" + items + b"K\x05" + _TENSOR + b"u.", {"0": bytes(16)})
    )
    assert names_of(open_source(maps)) == ["x"]


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_compressed_file_is_refused(maps: Path, compression: int) -> None:
    (maps / "x.pt").write_bytes(torch_zip(b"\x80\x02" + b"}0" * 10**5 + b"}.", {}, compression))
    assert only_failure(maps).reason == (
        "its members are compressed or encrypted, which torch.save never does: save it again"
    )


@pytest.mark.parametrize(
    "content",
    [b"", b"short", b"\x80\x02}.", pickle.dumps(MAP), b"PK\x03\x04", npz(a=MAP)],
    ids=["empty", "short", "pickle", "array", "zip", "npz"],
)
def test_another_file_with_the_suffix_is_a_failure(maps: Path, content: bytes) -> None:
    (maps / "x.pt").write_bytes(content)
    assert only_failure(maps).reason.startswith("expected a file of torch.save")


@pytest.mark.parametrize("old", [False, True])
def test_a_file_cut_anywhere_is_never_a_crash(maps: Path, old: bool) -> None:
    content = torch_file({"a": MAP, "b": [STACK]}, old=old)
    for end in range(0, len(content), 7):
        (maps / "x.pt").write_bytes(content[:end])
        try_to_read(maps)


@examples(150)
@given(changes=CHANGES, cut=st.sampled_from([0, 0, 0, 1, 100, 300]), old=st.booleans())
def test_a_damaged_pickle_gives_only_maps_and_failures(
    maps: Path, changes: list[tuple[int, int]], cut: int, old: bool
) -> None:
    content = torch_file({"a": MAP, "b": [STACK.T, 3], "names": ["x"]}, old=old)
    if old:
        content = damaged(content, changes, cut)
    else:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            pickled = archive.read("archive/data.pkl")
            storages = {key: archive.read(f"archive/data/{key}") for key in "01"}
        # The checksum in the archive is right.
        content = torch_zip(damaged(pickled, changes, cut), storages)
    (maps / "x.pt").write_bytes(content)
    try_to_read(maps)
