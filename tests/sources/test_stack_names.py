"""A names file beside a stack."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest

import async_maps as am
from async_maps.outcomes import Failure
from async_maps.sources import open_source
from tests.support.entries import STACK, assert_same, names_of, only_failure, read_all
from tests.support.maps import MAP

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("end", ["\n", "", "\r\n"])
def test_a_names_file_names_the_maps_of_a_stack(maps: Path, end: str) -> None:
    np.save(maps / "cams.npy", STACK)
    names = ["dog 1", "b/c", "é", "000001", "x.y"]
    separator = end or "\n"
    (maps / "cams.names.txt").write_bytes((separator.join(names) + end).encode())
    assert_same(read_all(maps), {f"cams/{name}": plane for name, plane in zip(names, STACK, strict=True)})
    assert_same(read_all(maps / "cams.npy"), {f"cams/{name}": plane for name, plane in zip(names, STACK, strict=True)})


def test_a_names_file_may_start_with_a_byte_order_mark(maps: Path) -> None:
    np.save(maps / "a.npy", STACK[:2])
    (maps / "a.names.txt").write_text("x\ny\n", "utf-8-sig")
    assert names_of(open_source(maps)) == ["a/x", "a/y"]


def test_a_names_file_beside_a_single_map_is_ignored(maps: Path) -> None:
    np.save(maps / "a.npy", MAP)
    (maps / "a.names.txt").write_text("x\ny\n")
    assert names_of(open_source(maps)) == ["a"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a\nb\nc\nd\n", "the list of names has 4 lines, but the stack has 5 maps"),
        (b"a\nb\nc\nd\ne\nf\ng", "the list of names has 7 lines, but the stack has 5 maps"),
        (b"", "the list of names has 0 lines, but the stack has 5 maps"),
        (b"a\nb\n\nd\ne\n", "line 3 of the list of names is empty"),
        (b"a\nb\nc\nd\ne\n\n", "line 6 of the list of names is empty"),
        (b"a\nb\n\xff\nd\ne\n", "the list of names is not UTF-8 after line 0"),
        (b"a\n" + b"x" * 10_000, "line 2 of the list of names has 4,096 or more characters"),
    ],
)
def test_a_names_file_that_does_not_fit_is_one_failure(maps: Path, content: bytes, reason: str) -> None:
    np.save(maps / "a.npy", STACK)
    (maps / "a.names.txt").write_bytes(content)
    (failure,) = open_source(maps)
    assert isinstance(failure, Failure)
    assert (failure.name, failure.reason) == ("a", reason)


def test_an_invalid_name_in_a_names_file_fails_alone(maps: Path) -> None:
    np.save(maps / "a.npy", STACK[:2])
    (maps / "a.names.txt").write_text("../../x\ny\n")
    assert "'..' is not allowed" in only_failure(maps).reason
    assert names_of(open_source(maps)) == ["a/y"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_names_file(maps: Path) -> None:
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


def test_swapped_names_upload_their_maps_again(tmp_path: Path) -> None:
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
