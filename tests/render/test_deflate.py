"""Our Deflate: each stream decompresses to the scanlines, for any pixels; zlib and Pillow are the judges."""

from __future__ import annotations

import tracemalloc
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_maps.render import deflate_kernels as kernels
from async_maps.render import scanlines
from async_maps.render.kernel_cache import cache_of
from async_maps.render.png import deflate
from async_maps.render.scanlines import MARGIN, NONE, PAETH, SYMBOLS, UP, room_bytes, scanline_bytes, write_scanlines
from tests.support.chunks import unfiltered
from tests.support.properties import examples

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytestmark = pytest.mark.fast

SIDE = 310
"""An image of this size is compressed by our kernels."""


def rows_of(kind: str, shape: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Return an image of a kind."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(shape)
    waves = 127 + 60 * np.sin(x / 9 + seed) + 60 * np.cos(y / 13)
    images = {
        "smooth": waves,
        "noise": rng.integers(0, 256, shape),
        "few values": rng.integers(0, 3, shape),
        "zeros": np.zeros(shape),
        "ones": np.ones(shape),
        "steps": (x // 8 + y // 5) * 3 % 256,
        "mostly zeros": np.where(rng.random(shape) < 0.98, 0, rng.integers(0, 256, shape)),
        "noise below zeros": np.where(y < shape[0] // 2, 0, rng.integers(0, 256, shape)),
        "zeros below noise": np.where(y > shape[0] // 2, 0, rng.integers(0, 256, shape)),
        "noisy waves": waves + rng.integers(-8, 9, shape),
        "tiles": np.resize(rng.integers(0, 256, (16, 16)), (16, 16))[y % 16, x % 16],
    }
    return np.ascontiguousarray(images[kind], np.uint8)


KINDS = ("smooth", "noise", "few values", "zeros", "ones", "steps", "mostly zeros", "noise below zeros",
         "zeros below noise", "noisy waves", "tiles")  # fmt: skip


def written(image: NDArray[np.uint8], *, compress: bool = True) -> tuple[NDArray[np.uint8], int]:
    """Return the room and the size of the stream, and check that nothing beyond the room has changed."""
    memory = np.full(room_bytes(len(image), image[0].size, 1) + 64, 99, np.uint8)
    room = memory[:-64]
    stream = write_scanlines(image, room, compress=compress)
    assert (memory[-64:] == 99).all()
    return room, stream


def deflated(lines: bytes, share: int = 1) -> bytes | None:
    """Compress any scanlines with a code made of every nth chunk; None if that was given up."""
    memory = np.full((MARGIN + len(lines) + 7) // 8 * 8 + 64, 99, np.uint8)
    room = memory[: MARGIN + len(lines)]
    room[MARGIN:] = np.frombuffer(lines, np.uint8)
    words = room[: room.size // 8 * 8].view(np.uint64)
    counts, lengths = np.zeros(2 * SYMBOLS, np.int64), np.empty(SYMBOLS, np.int64)
    kernels.count_groups(words, MARGIN // 8, (MARGIN + len(lines)) // 8, share, counts)
    kernels.code_lengths(counts, 1, lengths)
    size = kernels.deflate(room, words, len(lines), lengths)
    assert (memory[room.size :] == 99).all()
    return room[:size].tobytes() if size else None


def inflated(stream: bytes) -> bytes:
    """Decompress a zlib stream without its checksum."""
    assert int.from_bytes(stream[:2], "big") % 31 == 0
    inflater = zlib.decompressobj(-15)
    data = inflater.decompress(stream[2:])
    assert inflater.eof
    assert inflater.unused_data == b""
    return data


# Streams


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(SIDE, SIDE), (1, 100_000), (100_000, 1), (700, 131)])
def test_an_image_of_any_kind_has_a_stream_or_scanlines_with_its_pixels(kind: str, shape: tuple[int, int]) -> None:
    image = rows_of(kind, shape)
    room, stream = written(image)
    data = room[: stream or scanline_bytes(*shape, 1)]
    np.testing.assert_array_equal(unfiltered(data, shape, stream=bool(stream)), image)


@examples(60)
@given(
    st.lists(
        st.one_of(
            st.binary(min_size=1, max_size=40),
            st.tuples(st.integers(0, 255), st.integers(1, 700)).map(lambda run: bytes([run[0]]) * run[1]),
            st.tuples(st.binary(min_size=2, max_size=9), st.integers(1, 30)).map(lambda tile: tile[0] * tile[1]),
        ),
        min_size=1,
        max_size=30,
    ).map(b"".join),
    st.sampled_from([1, 8]),
)
def test_any_bytes_decompress_to_themselves(lines: bytes, share: int) -> None:
    stream = deflated(lines, share)
    # A few incompressible bytes may overtake the scanlines.
    assert stream is not None
    assert inflated(stream) == lines


@pytest.mark.parametrize("groups", [1, 2, 31, 32, 33, 63, 64, 65, 100])
@pytest.mark.parametrize("after", range(9))
def test_runs_of_all_lengths_decompress_to_themselves(groups: int, after: int) -> None:
    lines = b"\1\2\3\4\5\6\7\7" + b"\7" * 8 * groups + bytes(range(after))
    stream = deflated(lines)
    assert stream is not None
    assert inflated(stream) == lines
    # A match has at most 32 groups, and about 2 bytes.
    assert len(stream) < 250 + 2 * groups


def test_the_first_group_is_no_run() -> None:
    """Its bytes are those of the number 256, times 0x0101..., in 64 bits."""
    lines = b"\0" + b"\1" * 500
    stream = deflated(lines)
    assert stream is not None
    assert inflated(stream) == lines


def test_a_symbol_that_the_sample_has_not_seen_has_a_code() -> None:
    lines = bytearray(20_000)
    lines[8 * 64 * 3 : 8 * 64 * 3 + 256] = bytes(range(256))
    stream = deflated(bytes(lines), 8)
    assert stream is not None
    assert inflated(stream) == lines


def test_a_stream_that_would_overtake_its_scanlines_is_given_up() -> None:
    # The sample sees zeros only: the other bytes get 13 bits each.
    lines = bytearray(np.random.default_rng(0).integers(0, 256, 60_000, np.uint8))
    for start in range(0, len(lines), 8 * 64 * 8):
        lines[start : start + 8 * 64] = bytes(8 * 64)
    assert deflated(bytes(lines), 8) is None
    assert deflated(bytes(lines), 1) is not None


def test_a_stream_that_is_longer_than_its_sample_promised_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    image = rows_of("noisy waves", (SIDE, SIDE))
    assert written(image)[1] > 0
    monkeypatch.setattr(scanlines, "_SURPRISE_PERCENT", 50)
    room, stream = written(image)
    assert stream == 0
    np.testing.assert_array_equal(unfiltered(room[: SIDE * (SIDE + 1)], (SIDE, SIDE), stream=False), image)


# The choice


def test_only_large_images_of_one_byte_per_pixel_are_compressed_and_only_if_wanted() -> None:
    image = rows_of("noisy waves", (SIDE, SIDE))
    assert written(image)[1] > 0
    assert written(image, compress=False)[1] == 0
    assert written(image[:200, :200].copy())[1] == 0
    pixels = np.ascontiguousarray(image[..., None].repeat(4, 2))
    assert write_scanlines(pixels, np.empty(room_bytes(SIDE, SIDE, 4), np.uint8), compress=True) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_is_not_much_longer_than_isals(kind: str) -> None:
    shape = (400, 400)
    image = rows_of(kind, shape)
    room, stream = written(image)
    written(image, compress=False)
    theirs = np.empty(room_bytes(*shape, 1), np.uint8)
    write_scanlines(image, theirs)
    if stream:
        assert stream < 1.2 * sum(map(len, deflate(theirs[: scanline_bytes(*shape, 1)], 1)))
    else:
        np.testing.assert_array_equal(room[: scanline_bytes(*shape, 1)], theirs[: scanline_bytes(*shape, 1)])


def test_tiles_are_left_to_isa_l_whose_matches_are_long() -> None:
    room, stream = written(rows_of("tiles", (400, 400)))
    assert stream == 0
    assert len(deflate(room[: scanline_bytes(400, 400, 1)], 1)[1]) < 10_000


@pytest.mark.parametrize(
    ("kind", "expected"), [("few values", NONE), ("mostly zeros", NONE), ("steps", UP), ("smooth", UP)]
)
def test_scanlines_for_isa_l_have_the_filter_with_fewer_bits(kind: str, expected: int) -> None:
    room, _ = written(rows_of(kind, (200, 200)))
    assert room[0] == expected


def test_a_few_long_rows_are_not_copied_for_a_sample() -> None:
    image = np.zeros((3, 2_000_000), np.uint8)
    room = np.empty(room_bytes(*image.shape, 1), np.uint8)
    tracemalloc.start()
    assert write_scanlines(image, room, compress=True) == 0
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


@examples(60)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32), st.integers(1, 256))
def test_each_filter_can_be_undone(height: int, width: int, seed: int, values: int) -> None:
    image = np.random.default_rng(seed).integers(0, values, (height, width), np.uint8)
    for kind in (NONE, UP, PAETH):
        lines = np.empty((height, width + 1), np.uint8)
        kernels.filter_rows(image.reshape(-1), width, (0, height), kind, lines.reshape(-1))
        assert set(lines[:, 0].tolist()) == {kind}
        np.testing.assert_array_equal(unfiltered(lines, image.shape, stream=False), image)


# Huffman codes


@examples(100)
@given(st.lists(st.integers(0, 2**40), min_size=SYMBOLS, max_size=SYMBOLS), st.sampled_from([0, 1]))
def test_codes_are_complete_and_have_at_most_13_bits(weights: list[int], least: int) -> None:
    counts, lengths = np.zeros(2 * SYMBOLS, np.int64), np.empty(SYMBOLS, np.int64)
    counts[:SYMBOLS] = weights
    kernels.code_lengths(counts, least, lengths)
    used = lengths[lengths > 0]
    assert used.max() <= 13
    assert sum(2.0**-length for length in used.tolist()) == 1
    assert (lengths[counts[:SYMBOLS] > 0] > 0).all()
    assert not least or (lengths[:257] > 0).all()


@examples(100)
@given(st.lists(st.integers(1, 1000), min_size=2, max_size=60))
def test_codes_take_as_few_bits_as_a_huffman_code(weights: list[int]) -> None:
    import heapq

    heap = sorted(weights)
    bits = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        bits += merged
        heapq.heappush(heap, merged)
    lengths = np.array(sorted(weights), np.int64)
    kernels.huffman(lengths)
    assert int((lengths * sorted(weights)).sum()) == bits


# Compilation


@pytest.mark.skipif(not hasattr(kernels.deflate, "signatures"), reason="NUMBA_DISABLE_JIT is set")
def test_every_kernel_releases_the_interpreter_lock_and_has_one_signature() -> None:
    found = {name: value for name, value in vars(kernels).items() if cache_of(value)}
    assert set(found) == {"filter_rows", "count_groups", "sample", "code_lengths", "deflate"}
    for kernel in found.values():
        assert kernel.targetoptions["nogil"] is True
        assert len(kernel.signatures) == 1
