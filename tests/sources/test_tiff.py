"""TIFF files of tifffile, ImageJ and OME."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("tifffile")

import tifffile

from async_maps.errors import SourceError
from async_maps.filesystems.filesystem import LocalFilesystem
from async_maps.sources import open_source
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.formats.registry import Readers
from async_maps.sources.formats.tiff import TiffReader
from async_maps.sources.options import SourceOptions
from tests.support.entries import STACK, assert_same, kinds_of_numbers, only_failure, plane_by_plane, read_all, why_not
from tests.support.maps import MAP
from tests.support.pictures import run_advice

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

HYPERSTACK = np.random.default_rng(0).random((2, 3, 2, 6, 7), np.float32)
"""Times, slices, channels, rows, columns."""


def _tiff(*arrays: NDArray[Any], **how: Any) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, byteorder=how.pop("byteorder", None), bigtiff=how.pop("bigtiff", False)) as file:
        for array in arrays:
            file.write(array, **{"photometric": "minisblack"} | how)
    return buffer.getvalue()


@pytest.mark.parametrize("how", [{}, {"byteorder": ">"}, {"bigtiff": True}, {"metadata": None}, {"tile": (16, 16)}])
def test_values_of_all_types_are_read(maps: Path, how: dict[str, Any]) -> None:
    samples = kinds_of_numbers() | {"u16": (MAP * 65535).astype("u2"), "i32": MAP.astype("i4"), "bool": MAP > 0.5}
    if "tile" in how:
        del samples["bool"]
    for name, array in samples.items():
        (maps / f"{name}.tif").write_bytes(_tiff(array, **how))
    assert_same(read_all(maps), dict(sorted(samples.items())))
    # Maps with a part are read one by one from S3.
    assert {entry.part for entry in open_source(maps) if isinstance(entry, ActivationMap)} == {None}


@pytest.mark.parametrize("name", ["a.tif", "a.tiff", "a.TIF"])
def test_pages_of_one_size_are_a_stack(maps: Path, name: str) -> None:
    (maps / name).write_bytes(_tiff(STACK))
    assert_same(read_all(maps), plane_by_plane("a", STACK))
    entries = list(open_source(maps))
    assert isinstance(entries[0], ActivationMap)
    assert entries[0].header is not None
    assert (entries[0].header.shape, entries[0].max_bytes) == (STACK[0].shape, STACK[0].nbytes)


@pytest.mark.parametrize("page", range(5))
@pytest.mark.parametrize(
    ("tag", "field"), [(256, (1, 1)), (256, (4, 0)), (257, (11, 1)), (273, (11, 1)), (279, (5, 1))]
)
def test_a_size_or_an_offset_that_is_no_integer_is_refused(
    maps: Path, page: int, tag: int, field: tuple[int, int]
) -> None:
    content = bytearray(_tiff(*STACK))
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        offset = file.pages[page].aspage().tags[tag].offset
    struct.pack_into("<HI", content, offset + 2, *field)
    (maps / "a.tif").write_bytes(content)
    assert f"of page {page} is not an integer" in only_failure(maps).reason


@pytest.mark.parametrize("how", [{}, {"metadata": None}, {"truncate": True}], ids=["shaped", "plain", "one page"])
@pytest.mark.parametrize("order", [1, -1])
def test_the_maps_of_a_stack_can_be_read_in_any_order(maps: Path, how: dict[str, Any], order: int) -> None:
    (maps / "a.tif").write_bytes(_tiff(HYPERSTACK[:, :, 0].reshape(6, 6, 7), **how))
    reader = TiffReader(str(maps / "a.tif"), LocalFilesystem())
    (listed,) = reader.arrays()
    for index in range(6)[::order]:
        values = reader.read(listed.part, index)  # type: ignore[union-attr]  # an array
        np.testing.assert_array_equal(values, HYPERSTACK[index // 3, index % 3, 0])
    reader.close()


def test_the_shape_that_tifffile_wrote_is_kept(maps: Path) -> None:
    tifffile.imwrite(maps / "channel.tif", STACK[:, None], photometric="minisblack")
    tifffile.imwrite(maps / "one.tif", STACK[:1], photometric="minisblack")
    tifffile.imwrite(maps / "three.tif", STACK[:3], photometric="rgb", planarconfig="separate")
    expected = plane_by_plane("channel", STACK) | {"one": STACK[0]} | plane_by_plane("three", STACK[:3])
    assert_same(read_all(maps), expected)


def test_pages_of_different_sizes_are_maps_of_their_own(maps: Path) -> None:
    (maps / "a.tif").write_bytes(_tiff(MAP, MAP[:2], MAP.astype("f8")))
    assert_same(read_all(maps), {"a/000000": MAP, "a/000001": MAP[:2], "a/000002": MAP.astype("f8")})


def test_reduced_copies_are_passed_over(maps: Path) -> None:
    with tifffile.TiffWriter(maps / "a.tif") as file:
        file.write(MAP, metadata=None)
        for _ in range(2):
            file.write(MAP[::2, ::2], subfiletype=1, metadata=None)
    counted: list[str] = []
    assert [entry.name for entry in open_source(maps, pass_over=counted.append)] == ["a"]
    assert counted == ["reduced copies and masks in TIFF"] * 2


@pytest.mark.parametrize("how", [{"imagej": True}, {"ome": True}, {"imagej": True, "compression": "zlib"}])
def test_the_channels_of_a_hyperstack_are_an_axis(maps: Path, how: dict[str, Any]) -> None:
    pytest.importorskip("imagecodecs")
    tifffile.imwrite(maps / "a.tif", HYPERSTACK, metadata={"axes": "TZCYX"}, **how)
    reader = TiffReader(str(maps / "a.tif"), LocalFilesystem())
    (listed,) = reader.arrays()
    flat = HYPERSTACK.reshape(6, 2, 6, 7)
    np.testing.assert_array_equal(reader.read(listed.part, None), flat)  # type: ignore[union-attr]  # an array
    reader.close()
    entries = list(open_source(maps, options=SourceOptions(channels="sum")))
    assert [entry.name for entry in entries] == [f"a/{index:06}" for index in range(6)]
    (entry,) = open_source(maps)
    assert isinstance(entry, ActivationMap)
    assert entry.header is not None
    assert entry.header.shape == flat.shape


@pytest.mark.parametrize("how", [{"imagej": True}, {"ome": True}, {"imagej": True, "truncate": True}])
def test_times_and_slices_of_a_hyperstack_are_a_stack(maps: Path, how: dict[str, Any]) -> None:
    values = np.ascontiguousarray(HYPERSTACK[:, :, 0])
    tifffile.imwrite(maps / "a.tif", values, metadata={"axes": "TZYX"}, **how)
    assert_same(read_all(maps), plane_by_plane("a", values.reshape(6, 6, 7)))


@pytest.mark.parametrize("codec", ["zlib", "lzw", "packbits", "lzma", "zstd"])
@pytest.mark.parametrize("how", [{}, {"predictor": True}, {"tile": (16, 32)}, {"rowsperstrip": 2}])
def test_compressed_files_are_read(maps: Path, codec: str, how: dict[str, Any]) -> None:
    pytest.importorskip("imagecodecs")
    values = np.random.default_rng(0).random((2, 50, 60), np.float32)
    (maps / "a.tif").write_bytes(_tiff(values, compression=codec, **how))
    assert_same(read_all(maps), plane_by_plane("a", values))


def test_a_codec_without_a_limit_is_refused_with_advice(maps: Path) -> None:
    pytest.importorskip("imagecodecs")
    values = (MAP * 255).astype("u1")
    (maps / "a.tif").write_bytes(_tiff(values, compression="jpeg2000"))
    (entry,) = open_source(maps)
    reason = why_not(entry)
    assert reason.startswith("it is compressed with JPEG2000, which is not read; run tifffile.imwrite(")
    run_advice(reason, maps / "a.tif", maps / "b.tif")
    assert_same(read_all(maps / "b.tif"), {"b": values})


def test_without_imagecodecs_a_compressed_file_names_the_package(maps: Path) -> None:
    (maps / "a.tif").write_bytes(_tiff(MAP))
    (maps / "b.tif").write_bytes(_tiff(MAP, compression="zlib"))
    (maps / "c.tif").write_bytes(_tiff(STACK)[:300])  # tifffile logs each damaged tag
    program = (
        "import sys; from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "PathFinder.find_spec = lambda name, *rest: None if name == 'imagecodecs' else find(name, *rest)\n"
        "from async_maps.sources import open_source\n"
        "for entry in open_source(sys.argv[1]): print(entry.name, getattr(entry, 'problem', 'failed'))\n"
    )
    answer = subprocess.run([sys.executable, "-c", program, maps], capture_output=True, text=True, check=True)
    assert not answer.stderr
    expected = "it is compressed with Deflate, which needs the package imagecodecs: pip install imagecodecs"
    assert answer.stdout.splitlines() == ["a ", f"b {expected}", "c failed"]


@pytest.mark.parametrize("layout", ["contig", "separate"])
def test_colors_are_refused(maps: Path, layout: str) -> None:
    shape = (3, 4, 3) if layout == "contig" else (3, 3, 4)
    (maps / "a.tif").write_bytes(_tiff(np.zeros(shape, "u1"), photometric="rgb", planarconfig=layout))
    (entry,) = open_source(maps)
    assert isinstance(entry, ActivationMap)
    assert entry.problem == why_not(entry)
    assert entry.problem.startswith("already a picture: its colors are RGB")


def test_labels_with_a_palette_are_refused_with_advice(maps: Path) -> None:
    palette = np.zeros((3, 256), "u2")
    (maps / "a.tif").write_bytes(_tiff(np.zeros((3, 4), "u1"), photometric="palette", colormap=palette))
    (entry,) = open_source(maps)
    run_advice(why_not(entry), maps / "a.tif", maps / "b.npy")
    np.testing.assert_array_equal(np.load(maps / "b.npy"), np.zeros((3, 4), "u1"))


def test_floats_with_three_samples_keep_their_axis(maps: Path) -> None:
    (maps / "a.tif").write_bytes(_tiff(STACK[:, :, :3], photometric="rgb"))
    (entry,) = open_source(maps)
    assert isinstance(entry, ActivationMap)
    assert entry.header is not None
    assert (entry.header.shape, entry.problem) == ((5, 3, 3), "")


@pytest.mark.parametrize("how", [{}, {"truncate": True}, {"compression": "zlib"}], ids=["pages", "one page", "zlib"])
def test_a_truncated_file_never_gives_wrong_values(maps: Path, how: dict[str, Any]) -> None:
    pytest.importorskip("imagecodecs")
    values = np.random.default_rng(0).random((4, 10, 10), np.float32) + 1
    content = _tiff(values, **how)
    for length in [*range(0, len(content), 41), len(content)]:
        (maps / "a.tif").write_bytes(content[:length])
        reasons, read = [], 0
        with Readers() as readers:
            for entry in open_source(maps):
                if not isinstance(entry, ActivationMap):
                    reasons.append(entry.reason)
                    continue
                assert entry.path is not None
                try:
                    array = readers.read(entry.path, entry.part)
                except SourceError as error:
                    reasons.append(str(error))
                else:
                    read += 1
                    np.testing.assert_array_equal(array, values[int(entry.name[-1])])
        assert (read == 4 and not reasons) if length == len(content) else reasons
        assert all("truncated" in reason or "expected a TIFF file" in reason for reason in reasons), reasons


def test_a_circle_of_pages_ends(maps: Path) -> None:
    content = bytearray(_tiff(MAP, metadata=None))
    (offset,) = struct.unpack_from("<I", content, 4)
    (tags,) = struct.unpack_from("<H", content, offset)
    struct.pack_into("<I", content, offset + 2 + 12 * tags, offset)
    (maps / "a.tif").write_bytes(content)
    assert only_failure(maps).reason == "the TIFF file is damaged: its pages form a circle"


@pytest.mark.parametrize("before", range(4))
@pytest.mark.timeout(60)
def test_a_circle_behind_other_pages_of_a_large_file_ends(maps: Path, before: int) -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for _ in range(before + 3):
            writer.write(MAP, metadata=None)
    with tifffile.TiffFile(io.BytesIO(buffer.getvalue())) as tiff:
        offsets = [page.offset for page in tiff.pages]
    content = bytearray(buffer.getvalue())
    (tags,) = struct.unpack_from("<H", content, offsets[-1])
    struct.pack_into("<I", content, offsets[-1] + 2 + 12 * tags, offsets[before])
    with (maps / "a.tif").open("wb") as file:
        file.write(content)
        file.truncate(2**30)
    assert only_failure(maps).reason == "the TIFF file is damaged: its pages form a circle"


@pytest.mark.timeout(60)
def test_a_description_of_very_many_dimensions_is_ignored(maps: Path) -> None:
    content = _tiff(MAP, metadata=None, description='{"shape": [' + "4294967295, " * 400_000 + "1]}")
    (maps / "a.tif").write_bytes(content)
    np.testing.assert_array_equal(read_all(maps)["a"], MAP)


def _with_tag(content: bytes, code: int, value: int) -> bytes:
    """Return a TIFF whose first page has another value of a tag."""
    changed = bytearray(content)
    (offset,) = struct.unpack_from("<I", changed, 4)
    (tags,) = struct.unpack_from("<H", changed, offset)
    for place in range(offset + 2, offset + 2 + 12 * tags, 12):
        if struct.unpack_from("<H", changed, place)[0] == code:
            struct.pack_into("<HII", changed, place + 2, 4, 1, value)
    return bytes(changed)


@pytest.mark.parametrize("tag", ["width", "length", "tile"])
def test_sizes_are_checked_before_memory_is_allocated(maps: Path, tag: str) -> None:
    pytest.importorskip("imagecodecs")
    content = _tiff(np.zeros((64, 64), "f4"), metadata=None, compression="zlib", tile=(64, 64))
    code = {"width": 256, "length": 257, "tile": 323}[tag]
    (maps / "a.tif").write_bytes(_with_tag(content, code, 2**30))
    reader = TiffReader(str(maps / "a.tif"), LocalFilesystem())
    (listed,) = reader.arrays()
    with pytest.raises(SourceError, match="too large"):
        reader.read(listed.part, None, 100_000)  # type: ignore[union-attr]  # an array
    reader.close()


def test_a_strip_that_inflates_to_more_than_its_size_is_refused(maps: Path) -> None:
    pytest.importorskip("imagecodecs")
    content = _tiff(np.zeros((4000, 1000), "f4"), metadata=None, compression="zlib", rowsperstrip=4000)
    (maps / "a.tif").write_bytes(_with_tag(_with_tag(content, 257, 4), 278, 4))
    (entry,) = open_source(maps)
    assert why_not(entry).startswith("the TIFF file is damaged: ")
