"""Tar archives in the layout of WebDataset."""

from __future__ import annotations

import tarfile
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_maps.outcomes import Failure
from async_maps.sources import open_source
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.options import SourceOptions
from tests.support.entries import (
    CHANGES,
    STACK,
    add_member,
    assert_same,
    damaged,
    kinds_of_numbers,
    names_of,
    only_failure,
    plane_by_plane,
    read_all,
    save_tar,
    try_to_read,
    why_not,
)
from tests.support.maps import MAP, npy
from tests.support.pictures import gray_png
from tests.support.properties import examples

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_arrays_of_a_webdataset_become_maps(maps: Path, kind: int) -> None:
    samples = kinds_of_numbers()
    members: dict[str, bytes] = {}
    for name, array in samples.items():
        members |= {f"{name}.jpg": b"an image", f"{name}.cam.npy": npy(array), f"{name}.json": b"{}"}
    members |= {"deep/er/x.NPY": npy(MAP), "stack.npy": npy(STACK), "channel.npy": npy(STACK[:, None])}
    save_tar(maps / "shard-000.tar", members, kind)
    written = {f"{name}.cam": array for name, array in samples.items()} | {"deep/er/x": MAP}
    written |= plane_by_plane("stack", STACK) | plane_by_plane("channel", STACK)
    assert_same(read_all(maps), {f"shard-000/{name}": array for name, array in written.items()})


def test_an_entry_has_the_offset_and_size_of_its_member(maps: Path) -> None:
    save_tar(maps / "a.tar", {"1.cls": b"7", "1.npy": npy(MAP), "2.npy": npy(STACK)})
    entries = list(open_source(maps))
    first, second = entries[0], entries[1]
    assert isinstance(first, ActivationMap)
    assert isinstance(second, ActivationMap)
    assert (first.source, first.max_bytes) == (f"{maps / 'a.tar'}[1]", MAP.nbytes)
    assert (second.source, second.max_bytes) == (f"{maps / 'a.tar'}[2/000000]", STACK[0].nbytes)
    (offset, size), index = first.part
    assert (maps / "a.tar").read_bytes()[offset : offset + size] == npy(MAP)
    assert index is None
    assert len({str(entry.fingerprint).partition(" ")[0] for entry in entries}) == 1


def test_long_names_and_a_leading_dot_are_read(maps: Path) -> None:
    long = "x" * 150
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        save_tar(maps / "a.tar", {"./1.npy": npy(MAP), f"{long}/é.npy": npy(MAP)}, kind)
        assert_same(read_all(maps), {"a/1": MAP, f"a/{long}/é": MAP})


@pytest.mark.parametrize("name", ["../../x", "/x", "a/../x", "a\nb", ""])
def test_a_member_name_cannot_escape_the_prefix(maps: Path, name: str) -> None:
    save_tar(maps / "a.tar", {f"{name}.npy": npy(MAP), "z.npy": npy(MAP)})
    assert "not allowed" in only_failure(maps).reason or "control character" in only_failure(maps).reason
    assert names_of(open_source(maps)) == ["a/z"]


def test_links_and_devices_in_a_tar_are_failures(maps: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "secret.npy", MAP)
    with tarfile.open(maps / "a.tar", "w") as archive:
        add_member(archive, "real.npy", npy(MAP))
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
        assert why_not(entry) == "the member is a link, a device or a sparse file; only plain files are read"


def test_a_damaged_array_in_a_tar_fails_alone(maps: Path) -> None:
    content = {"1.npy": npy(MAP), "2.npy": b"no array", "3.npy": b"", "4.npy": npy(MAP)[:-1], "5.npy": npy(MAP)}
    save_tar(maps / "a.tar", content)
    entries = list(open_source(maps))
    assert names_of(entries) == [f"a/{number}" for number in range(1, 6)]
    assert why_not(entries[1]).startswith("expected an .npy file: ")
    assert why_not(entries[2]) == "expected an .npy file, found an empty one"
    assert why_not(entries[3]).startswith("truncated: its header promises 48 bytes")


@pytest.mark.parametrize("cut_at", ["a header", "data", "between two members"])
def test_a_truncated_tar_lists_the_members_before_the_cut(maps: Path, cut_at: str) -> None:
    path = save_tar(maps / "a.tar", {f"{number}.npy": npy(MAP) for number in range(10)})
    # Each member takes a block of 512 bytes for its header and one for its array.
    path.write_bytes(path.read_bytes()[: 5 * 1024 + {"a header": 100, "data": 600, "between two members": 0}[cut_at]])
    *entries, failure = open_source(maps)
    assert isinstance(failure, Failure)
    assert failure.name == "a"
    whole = {"data": "5,720"}.get(cut_at, "5,120")
    assert failure.reason.startswith(f"the archive is truncated or damaged after {whole} bytes")
    assert names_of(entries)[:5] == [f"a/{number}" for number in range(5)]
    if cut_at == "data":
        # Its header is complete, so its name is known.
        assert why_not(entries[5]).startswith("truncated: ")
    else:
        assert len(entries) == 5


def test_a_damaged_header_lists_the_members_before_it(maps: Path) -> None:
    path = save_tar(maps / "a.tar", {f"{number}.npy": npy(MAP) for number in range(10)})
    content = bytearray(path.read_bytes())
    content[5 * 1024 + 10] ^= 1
    path.write_bytes(content)
    assert names_of(open_source(maps)) == [f"a/{number}" for number in range(5)]
    expected = "the archive is truncated or damaged after 5,120 bytes; later members are not listed"
    assert only_failure(maps).reason == expected


def test_a_member_of_negative_size_ends_the_listing(maps: Path) -> None:
    path = save_tar(maps / "a.tar", {"0.npy": npy(MAP), "1.npy": npy(MAP)})
    content = bytearray(path.read_bytes())
    header = content[1024:1536]
    # The size is base 256, two's complement. The checksum is computed with spaces in its own field.
    header[124:136] = (-1024).to_bytes(12, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[1024:1536] = header
    path.write_bytes(content)
    assert names_of(open_source(maps)) == ["a/0"]
    assert only_failure(maps).reason == "the archive is damaged after 1,024 bytes: a member of negative size"


@pytest.mark.parametrize("content", [b"", b"no archive", b"no archive" * 1000, b"\x1f\x8b\x08\x00" + bytes(2000)])
def test_an_invalid_tar_is_a_failure(maps: Path, content: bytes) -> None:
    (maps / "a.tar").write_bytes(content)
    save_tar(maps / "b.tar", {"x.npy": npy(MAP)})
    assert only_failure(maps).reason.startswith("expected a tar archive that is not compressed: ")
    assert names_of(open_source(maps)) == ["b"]


def test_a_tar_without_arrays_is_a_failure(maps: Path) -> None:
    save_tar(maps / "a.tar", {"1.json": b"{}"})
    assert (
        only_failure(maps).reason
        == "the archive contains no arrays (.npy, .npz, .npy.gz, .pt, .pth, .png, .jpg, .jpeg)"
    )


def test_pictures_in_a_tar_are_maps_if_it_has_nothing_else(maps: Path) -> None:
    save_tar(maps / "a.tar", {"1.png": gray_png(), "1.json": b"{}", "2.PNG": gray_png(), "3.jpg": b"no picture"})
    entries = list(open_source(maps))
    assert names_of(entries) == ["a/1", "a/2", "a/3"]
    assert why_not(entries[2]).startswith("expected a PNG or JPEG picture")


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        ((), ["a"]),
        (("*.png",), ["a/1"]),
        (("a/1.png", "*.npy"), ["a/1"]),
        (("a.tar",), ["a"]),
        (("*.png", "*"), ["a/1", "a/1.cam"]),
    ],
)
def test_pictures_beside_arrays_in_a_tar_must_be_named(
    maps: Path, include: tuple[str, ...], expected: list[str]
) -> None:
    save_tar(maps / "a.tar", {"1.png": gray_png(), "1.jpg": b"", "1.cam.npy": npy(MAP)})
    passed_over: list[str] = []
    entries = open_source(maps, options=SourceOptions(include=include), pass_over=passed_over.append)
    assert names_of(entries) == expected
    assert ".jpg" in passed_over
    assert (".png" in passed_over) == ("*.png" not in include and "a/1.png" not in include)


def test_repeated_pictures_in_a_tar_are_refused_and_those_beside_arrays_are_no_names(maps: Path) -> None:
    save_tar(maps / "a.tar", {"1.png": gray_png(), "1.jpg": gray_png(), "2.png": gray_png()})
    assert names_of(open_source(maps)) == ["a/2"]
    save_tar(maps / "a.tar", {"1.png": gray_png(), "1.jpg": gray_png(), "1.npy": npy(MAP), "2.npy": npy(MAP)})
    assert names_of(open_source(maps)) == ["a/1", "a/2"]


@pytest.mark.parametrize("name", ["a.tar.gz", "a.TGZ", "a.tar.xz", "a.tar.bz2"])
def test_a_compressed_tar_is_refused_with_advice(maps: Path, name: str) -> None:
    save_tar(maps / name, {"x.npy": npy(MAP)})
    for place in (maps, maps / name):
        failure = only_failure(place)
        assert failure.name == "a"
        assert failure.reason.endswith("decompress it first")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_members(maps: Path) -> None:
    content = npy(MAP)
    save_tar(maps / "a.tar", {f"{'x' * 80}{number}.npy": content for number in range(2000)})
    peaks = []
    for last in (500, 2000):
        tracemalloc.start()
        try:
            listing = iter(open_source(maps))
            assert sum(1 for _, _ in zip(range(last), listing, strict=False)) == last
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    # Keeping the members would take over a megabyte more.
    assert peaks[1] < peaks[0] + 300_000


@examples(150)
@given(changes=CHANGES, cut=st.sampled_from([0, 0, 0, 1, 700, 6000, 9500]))
def test_a_damaged_tar_gives_only_maps_and_failures(maps: Path, changes: list[tuple[int, int]], cut: int) -> None:
    path = save_tar(maps / "a.tar", {"é" * 60 + ".npy": npy(MAP), "1.json": b"{}", "2.npy": npy(STACK)})
    path.write_bytes(damaged(path.read_bytes(), changes, cut))
    try_to_read(maps)
