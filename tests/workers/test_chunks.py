"""A chunk of maps is colorized into one block, in a thread or in a process."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from async_maps.concurrency.messages import frame, read_message
from async_maps.errors import ShortageError
from async_maps.outcomes import MapStatistics
from async_maps.render.colorize import colorize_activation_map
from async_maps.render.colormap import colormap_table
from async_maps.render.ranges import UNIT
from async_maps.render.scanlines import scanline_bytes
from async_maps.render.statistics import Measured
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.formats.registry import Readers
from async_maps.stages.encode import encode_bitmap
from async_maps.stages.items import Bitmap, Job
from async_maps.workers.worker import Failed, Recipe, Reply, Request, Result, aligned
from tests.support.chunks import (
    PALETTE,
    RGBA,
    TABLE,
    colorize_chunk,
    colorized,
    data_of,
    in_file,
    intensities,
    pixels,
    placed,
    random_array,
    saved,
)
from tests.support.limits import no_file_left
from tests.support.properties import examples

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from async_maps.render.quantize import Stored

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64, np.longdouble, ">f4"])
def test_maps_in_files_and_in_the_block_get_equal_pixels(tmp_path: Path, dtype: Any) -> None:
    array = random_array(7, 9, dtype=dtype)
    if dtype is np.uint8:
        array = np.arange(63, dtype=np.uint8).reshape(7, 9)
    np.savez(tmp_path / "many.npz", first=np.zeros((2, 2)), second=array)
    np.savez_compressed(tmp_path / "small.npz", only=array[..., np.newaxis])
    for recipe, expected in ((PALETTE, intensities(array)), (RGBA, colorize_activation_map(array))):
        block = np.zeros(64_000, np.uint8)
        requests = [
            placed(block, 0, array),
            saved(tmp_path / "map.npy", array),
            in_file(tmp_path / "many.npz", "second"),
            in_file(tmp_path / "small.npz", "only"),
            saved(tmp_path / "fortran.npy", np.asfortranarray(array)),
        ]
        reply = colorize_chunk(block, 32_000, requests, recipe)
        assert reply.wanted == 0
        assert len(reply.results) == len(requests)
        for result in colorized(reply):
            np.testing.assert_array_equal(pixels(block, result, recipe), expected)


@pytest.mark.parametrize("recipe", [PALETTE, RGBA], ids=["palette", "rgba"])
def test_each_result_has_an_aligned_place_after_the_arrays(recipe: Recipe) -> None:
    block = np.zeros(20_000, np.uint8)
    arrays = [random_array(5, 5 + index, seed=index) for index in range(6)]
    requests = [placed(block, index * 512, array) for index, array in enumerate(arrays)]
    reply = colorize_chunk(block, aligned(6 * 512), requests, recipe)
    end = 6 * 512
    for array, result in zip(arrays, colorized(reply), strict=True):
        assert result.offset % 64 == 0
        assert result.offset >= end
        end = result.offset + scanline_bytes(result.height, result.width, recipe.channels)
        expected = colorize_activation_map(array) if recipe.png == "rgba" else intensities(array)
        np.testing.assert_array_equal(pixels(block, result, recipe), expected)


@pytest.mark.parametrize("recipe", [PALETTE, RGBA], ids=["palette", "rgba"])
def test_a_full_block_ends_the_chunk_with_the_size_to_request(tmp_path: Path, recipe: Recipe) -> None:
    requests = [saved(tmp_path / f"{index}.npy", random_array(8, 8 + index)) for index in range(4)]
    sizes = [scanline_bytes(8, 8 + index, recipe.channels) for index in range(4)]
    whole = np.zeros(aligned(sizes[0]) + aligned(sizes[1]) + sizes[2], np.uint8)

    reply = colorize_chunk(whole, 0, requests, recipe)
    assert ([result.width for result in colorized(reply)], reply.wanted) == ([8, 9, 10], sizes[3])

    reply = colorize_chunk(whole[:-1], 0, requests, recipe)
    assert ([result.width for result in colorized(reply)], reply.wanted) == ([8, 9], sizes[2])

    reply = colorize_chunk(whole[: sizes[0] - 1], 0, requests, recipe)
    assert reply == Reply([], sizes[0])

    reply = colorize_chunk(np.zeros(sizes[0], np.uint8), 0, requests[:1], recipe)
    assert ([result.width for result in colorized(reply)], reply.wanted) == ([8], 0)


def test_nothing_is_written_outside_the_block(tmp_path: Path) -> None:
    memory = np.full(1_000, 99, np.uint8)
    requests = [saved(tmp_path / f"{index}.npy", np.zeros((8, 8), np.float32)) for index in range(5)]
    colorize_chunk(memory[64:400], 0, requests, PALETTE)
    assert (memory[:64] == 99).all()
    assert (memory[400:] == 99).all()


def test_a_bad_map_of_a_chunk_fails_alone(tmp_path: Path) -> None:
    nan = random_array(3, 4)
    nan[1, 2] = np.nan
    np.savez(tmp_path / "some.npz", here=random_array(3, 4))
    np.save(tmp_path / "objects.npy", np.array([None, {}], dtype=object))
    (tmp_path / "text.npy").write_text("this is no array at all")
    (tmp_path / "text.npz").write_text("this is no archive")
    (tmp_path / "empty.npy").touch()
    (tmp_path / "folder.npy").mkdir()
    whole = (tmp_path / "good.npy", random_array(30, 40))
    good = saved(*whole)
    (tmp_path / "torn.npy").write_bytes(whole[0].read_bytes()[:1_000])
    cases: list[tuple[Request, str | None, str]] = [
        (good, None, ""),
        (saved(tmp_path / "nan.npy", nan), "colorize", "found NaN at index (1, 2)"),
        (saved(tmp_path / "rgb.npy", random_array(3, 4, 3)), "colorize", "found (3, 4, 3)"),
        (saved(tmp_path / "int.npy", np.zeros((3, 4), np.int64)), "colorize", "found int64"),
        (saved(tmp_path / "void.npy", np.zeros((0, 4))), "colorize", "is empty"),
        (in_file(tmp_path / "missing.npy"), "read", "the file does not exist"),
        (in_file(tmp_path / "text.npy"), "read", "expected an .npy file"),
        (in_file(tmp_path / "empty.npy"), "read", "found an empty one"),
        (in_file(tmp_path / "torn.npy"), "read", "truncated"),
        (in_file(tmp_path / "objects.npy"), "read", "pickled Python objects"),
        (in_file(tmp_path / "folder.npy"), "read", "cannot be read: Is a directory"),
        (in_file(tmp_path / "text.npz", "x"), "read", "expected an .npz archive"),
        (in_file(tmp_path / "some.npz", "gone"), "read", "'gone'"),
        (good, None, ""),
    ]
    block = np.zeros(10_000, np.uint8)
    reply = colorize_chunk(block, 0, [case[0] for case in cases], PALETTE)
    assert reply.wanted == 0
    for result, (_, stage, reason) in zip(reply.results, cases, strict=True):
        if stage is None:
            assert isinstance(result, Result)
            np.testing.assert_array_equal(pixels(block, result, PALETTE), intensities(whole[1]))
        else:
            assert isinstance(result, Failed)
            assert result.stage == stage
            assert reason in result.reason


def test_a_map_with_an_unexpected_error_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = saved(tmp_path / "good.npy", random_array(3, 4))

    original = Readers.find

    def find(self: Readers, path: str, part: Any, max_bytes: int = 0) -> NDArray[Any] | Stored:
        if "hostile" in path:
            raise RecursionError("of a kind nobody thought of")
        return original(self, path, part, max_bytes)

    monkeypatch.setattr(Readers, "find", find)
    reply = colorize_chunk(np.zeros(1_000, np.uint8), 0, [good, in_file(tmp_path / "hostile.npy"), good], PALETTE)
    assert [type(result) for result in reply.results] == [Result, Failed, Result]
    assert reply.results[1] == Failed("read", "could not be read: RecursionError('of a kind nobody thought of')")


@pytest.mark.parametrize("last", [1, 3])
def test_a_map_is_read_when_a_file_can_be_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == last:
            allow()

    monkeypatch.setattr("time.sleep", wait)
    request = saved(tmp_path / "a.npy", np.eye(4))
    with no_file_left() as allow:
        (result,) = colorize_chunk(np.zeros(1_000, np.uint8), 0, [request], PALETTE).results
    assert isinstance(result, Result)
    assert len(waits) == last


def test_a_shortage_of_files_is_not_the_fault_of_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    request = saved(tmp_path / "a.npy", np.eye(4))
    with no_file_left():
        (result,) = colorize_chunk(np.zeros(1_000, np.uint8), 0, [request], PALETTE).results
    assert isinstance(result, Failed)
    with pytest.raises(ShortageError, match="no file can be opened: the limit of open files"):
        result.raise_shortage()


def test_a_failed_map_takes_no_room(tmp_path: Path) -> None:
    bad = saved(tmp_path / "bad.npy", np.full((8, 8), 2.0))
    good = saved(tmp_path / "good.npy", random_array(8, 8))
    reply = colorize_chunk(np.zeros(scanline_bytes(8, 8, 1), np.uint8), 0, [bad, bad, good], PALETTE)
    assert [type(result) for result in reply.results] == [Failed, Failed, Result]
    assert reply.results[2][0] == 0


def test_a_reply_is_restored_from_its_message(tmp_path: Path) -> None:
    block = np.zeros(64_000, np.uint8)
    requests = [
        placed(block, 0, random_array(8, 8)),
        placed(block, 1_024, np.eye(4))._replace(value_range=("per-map", 0.0, 1.0)),
        in_file(tmp_path / "none.npy"),
        placed(block, 2_048, np.full((4, 4), np.inf, np.float32)),
    ]
    reply = colorize_chunk(block, 4_096, requests, Recipe(TABLE, invalid="transparent"))
    assert [type(result) for result in reply.results] == [Result, Result, Failed, Result]
    found = Reply.unpacked(*read_message(io.BytesIO(frame(reply.packed()))))
    assert found == reply
    assert [type(result) for result in found.results] == [type(result) for result in reply.results]
    assert type(colorized(Reply(found.results[:1], 0))[0].statistics) is MapStatistics


# Transparency


def holes(shape: tuple[int, int] = (40, 50), seed: int = 3) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return a map with all 256 intensities and 10% invalid values, and a mask of the invalid ones."""
    array = np.linspace(0, 1, shape[0] * shape[1], dtype=np.float32).reshape(shape)
    bad = np.random.default_rng(seed).random(shape) < 0.1
    array[bad] = np.nan
    return array, bad


def png_of(block: NDArray[np.uint8], result: Result, recipe: Recipe) -> bytes:
    """Return the PNG of a result."""
    job = Job(ActivationMap("a", "a", None, 0), lambda _: None, UNIT)
    bitmap = Bitmap(job, data_of(block, result), result, lambda: None)
    return encode_bitmap(bitmap, recipe.table, 1)


def shown(block: NDArray[np.uint8], result: Result, recipe: Recipe) -> NDArray[np.uint8]:
    """Return the RGBA pixels of a result's PNG."""
    with Image.open(io.BytesIO(png_of(block, result, recipe))) as image:
        return np.asarray(image.convert("RGBA"))


@pytest.mark.parametrize("png", ["palette", "compact", "rgba"])
@pytest.mark.parametrize("alpha", ["fade", "opaque", 0.5])
@pytest.mark.parametrize("values", ["all intensities", "few intensities"])
def test_only_invalid_pixels_become_transparent(png: Any, alpha: Any, values: str) -> None:
    array, bad = holes()
    if values == "few intensities":
        array = np.round(array, 1)
    recipe = Recipe(colormap_table("jet", alpha), png, "transparent")
    block = np.zeros(40_000, np.uint8)
    reply = colorize_chunk(block, 8_192, [placed(block, 0, array)], recipe)
    (result,) = colorized(reply)
    found = shown(block, result, recipe)
    assert (found[bad, 3] == 0).all()
    expected = recipe.table[np.rint(array[~bad] * 255).astype(int)]
    if png == "compact":
        seen = expected[:, 3] > 0
        np.testing.assert_array_equal(found[~bad][seen], expected[seen])
        assert (found[~bad][~seen, 3] == 0).all()
    else:
        np.testing.assert_array_equal(found[~bad], expected)
    # Only a full palette is replaced by RGBA.
    assert result.rgba == (png == "rgba" or (alpha != "fade" and values == "all intensities"))


def test_a_map_that_needs_rgba_requests_the_larger_size(tmp_path: Path) -> None:
    array, bad = holes()
    recipe = Recipe(colormap_table("jet", "opaque"), "palette", "transparent")
    requests = [saved(tmp_path / "a.npy", array)]
    height, width = array.shape
    needed = scanline_bytes(height, width, 4)
    room = np.zeros(scanline_bytes(height, width, 1), np.uint8)
    assert colorize_chunk(room, 0, requests, recipe) == Reply([], needed)
    block = np.zeros(needed, np.uint8)
    (result,) = colorized(colorize_chunk(block, 0, requests, recipe))
    assert (shown(block, result, recipe)[bad] == 0).all()


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["fade", "auto"]),
    st.sampled_from(["jet", "viridis_r", "#ff000000,#ff0000ff"]),
)
@examples(25)
def test_compact_and_palette_are_equal_when_composited(seed: int, alpha: Any, colormap: str) -> None:
    rng = np.random.default_rng(seed)
    array = rng.random((30, 20)) ** rng.integers(1, 9)
    background = rng.integers(0, 256, (30, 20, 3)).astype(np.float64)
    composited, sizes = [], []
    for png in ("palette", "compact"):
        recipe = Recipe(colormap_table(colormap, alpha), png)
        block = np.zeros(8_192, np.uint8)
        (result,) = colorized(colorize_chunk(block, 6_400, [placed(block, 0, array)], recipe))
        pixels_ = shown(block, result, recipe).astype(np.float64)
        share = pixels_[..., 3:] / 255
        composited.append(pixels_[..., :3] * share + background * (1 - share))
        sizes.append(len(np.unique(np.ndarray((30, 20), np.uint8, block.data, result.offset))))
    np.testing.assert_array_equal(composited[0], composited[1])
    assert sizes[1] <= sizes[0]


def test_gray_stores_the_intensities_for_any_colormap() -> None:
    array = np.random.default_rng(0).random((30, 20))
    planes = []
    for alpha in ("fade", "opaque"):
        recipe = Recipe(colormap_table("jet", alpha), "gray")
        block = np.zeros(8_192, np.uint8)
        (result,) = colorized(colorize_chunk(block, 6_400, [placed(block, 0, array)], recipe))
        assert (result.rgba, result.transparent) == (False, None)
        planes.append(pixels(block, result, recipe))
    np.testing.assert_array_equal(planes[0], np.rint(array * 255))
    np.testing.assert_array_equal(planes[1], planes[0])


def test_compact_takes_about_half_the_bytes() -> None:
    y, x = np.mgrid[0:512, 0:512]
    array = np.exp(-((y - 200) ** 2 + (x - 300) ** 2) / 2 / 80**2).astype(np.float32)
    sizes = {}
    for png in ("palette", "compact"):
        recipe = Recipe(TABLE, png)
        block = np.zeros(2**21, np.uint8)
        (result,) = colorized(colorize_chunk(block, 2**20, [placed(block, 0, array)], recipe))
        sizes[png] = len(png_of(block, result, recipe))
    assert sizes["compact"] < 0.6 * sizes["palette"]


def test_measured_intensities_are_kept_with_their_statistics() -> None:
    block = np.zeros(8_192, np.uint8)
    plane = np.arange(12, dtype=np.uint8).reshape(3, 4)
    request = placed(block, 0, plane)._replace(
        value_range=("per-map", 0, 1), measured=Measured(-2.0, 7.0, 1.5, -2.0, 7.0)
    )
    (result,) = colorized(colorize_chunk(block, 64, [request], PALETTE))
    np.testing.assert_array_equal(pixels(block, result, PALETTE), plane)
    assert result.statistics[:5] == (-2.0, 7.0, 1.5, -2.0, 7.0)
