"""The intensities in overlays of every kind, and thumbnails."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import async_maps as am
from async_maps.render.png import deflate, write_gray, write_palette, write_rgba
from async_maps.viewer import pixels
from async_maps.viewer.pixels import (
    Coloring,
    NoImageError,
    Plane,
    checked_kind,
    kind_of,
    pack,
    read_plane,
    shrink,
    thumbnail,
)
from tests.support.properties import examples
from tests.support.viewing import bomb, unpacked

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytestmark = pytest.mark.fast

RNG = np.random.default_rng(3)
PLANE = RNG.integers(0, 256, (37, 53)).astype(np.uint8)
FADE = am.Settings().table()
OPAQUE = am.Settings(colormap="viridis", alpha="opaque").table()


def png(plane: NDArray[np.uint8], table: NDArray[np.uint8], kind: str = "palette") -> bytes:
    """Return an overlay without a filter of its scanlines."""
    pixels = table[plane] if kind == "rgba" else plane
    lines = np.zeros((len(plane), 1 + pixels[0].size), np.uint8)
    lines[:, 1:] = pixels.reshape(len(plane), -1)
    stream = deflate(lines.reshape(-1), 1)
    if kind == "rgba":
        return write_rgba(stream, plane.shape)
    return write_gray(stream, plane.shape) if kind == "gray" else write_palette(stream, plane.shape, table)


def jpeg(size: tuple[int, int], orientation: int | None = None) -> bytes:
    """Return an image whose left half is red and whose right half is blue."""
    pixels = np.zeros((*size[::-1], 3), np.uint8)
    pixels[:, : size[0] // 2, 0] = pixels[:, size[0] // 2 :, 2] = 255
    out, exif = io.BytesIO(), Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(out, "JPEG", quality=95, exif=exif)
    return out.getvalue()


def decoded(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("table", [FADE, OPAQUE], ids=["fade", "opaque"])
@pytest.mark.parametrize("kind", ["palette", "rgba", "gray"])
def test_intensities_are_those_that_were_encoded(kind: str, table: NDArray[np.uint8]) -> None:
    found = read_plane(png(PLANE, table, kind), Coloring(table, kind))
    assert found.valid is None
    # Two intensities may have one color.
    values, expected = (table[found.values], table[PLANE]) if kind == "rgba" else (found.values, PLANE)
    assert (values == expected).all()


def test_large_images_are_inverted_by_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    data, coloring = png(PLANE, OPAQUE, "rgba"), Coloring(OPAQUE, "rgba")
    expected = read_plane(data, coloring)
    monkeypatch.setattr(pixels, "_BAND", 100)
    monkeypatch.setattr(pixels, "_LARGE", 0)
    found = read_plane(data, coloring)
    assert (found.values == expected.values).all()
    assert pack(shrink(found, 16)) == pack(shrink(expected, 16))
    assert decoded(thumbnail(data, 16)[0]).shape == (11, 16, 3)
    assert not pixels._large.locked()


def test_an_rgba_object_of_a_run_with_palettes_is_looked_at() -> None:
    found = read_plane(png(PLANE, OPAQUE, "rgba"), Coloring(OPAQUE, "palette"))
    assert (OPAQUE[found.values] == OPAQUE[PLANE]).all()


def test_colors_that_are_not_in_the_table_have_no_value() -> None:
    pixels = OPAQUE[PLANE]
    pixels[3, 4] = 0
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    found = read_plane(out.getvalue(), Coloring(OPAQUE, "rgba"))
    assert found.valid is not None
    assert np.argwhere(~found.valid).tolist() == [[3, 4]]


def test_a_transparent_index_of_this_object_only_marks_pixels_without_a_value() -> None:
    plane = PLANE % 200
    plane[5:9, 5:9] = 210
    table = OPAQUE.copy()
    table[210, 3] = 0
    found = read_plane(png(plane, table), Coloring(OPAQUE, "palette"))
    assert found.valid is not None
    assert (~found.valid == (plane == 210)).all()


@pytest.mark.parametrize("kind", ["palette", "rgba", "compact"])
@pytest.mark.parametrize("alpha", ["auto", "opaque"])
@pytest.mark.runs
async def test_what_a_run_stores_has_the_intensities_of_the_map(kind: Any, alpha: Any) -> None:
    values = RNG.random((40, 60)).astype(np.float32)
    values[10:20, 10:30] = np.nan
    settings = am.Settings(png=kind, alpha=alpha, invalid="transparent", workers=0)
    store = am.MemoryStore()
    async with am.Pipeline(store, settings=settings) as pipeline:
        await pipeline.put("a", values)
    coloring = Coloring(settings.table(), kind)
    found = read_plane(next(iter(store.objects.values())), coloring)
    expected = np.rint(np.nan_to_num(values) * 255).astype(np.uint8)
    is_shown = np.isfinite(values)
    if coloring.merged is not None:
        expected[coloring.table[expected][..., 3] == 0] = coloring.merged
    assert (found.values == expected)[is_shown].all()
    if alpha == "opaque" or kind == "rgba":
        assert found.valid is not None
        assert (found.valid == is_shown).all()


def test_small_maps_are_not_shrunk() -> None:
    plane = Plane(PLANE)
    assert shrink(plane, 53) is plane


@pytest.mark.parametrize("shape", [(64, 64), (64, 32), (60, 100), (3, 200)])
def test_shrinking_returns_means_of_areas(shape: tuple[int, int]) -> None:
    plane = RNG.integers(0, 256, shape).astype(np.uint8)
    found = shrink(Plane(plane), 32).values
    assert max(found.shape) == 32
    assert abs(float(found.mean()) - float(plane.mean())) < 1.5
    if shape == (64, 64):
        means = plane.reshape(32, 2, 32, 2).mean((1, 3))
        assert np.abs(found - means).max() <= 0.5


def test_shrinking_leaves_out_pixels_without_a_value() -> None:
    values, valid = np.full((8, 8), 100, np.uint8), np.ones((8, 8), bool)
    values[:, 3:] = 7
    valid[:, 3:] = False
    found = shrink(Plane(values, valid), 4)
    assert found.valid is not None
    assert found.valid.tolist() == [[True, True, False, False]] * 4
    assert (found.values[found.valid] == 100).all()


def test_shrinking_leaves_out_merged_intensities() -> None:
    values = np.full((8, 8), 200, np.uint8)
    values[:, 3:] = 0
    assert shrink(Plane(values), 4, merged=0).values.tolist() == [[200, 200, 0, 0]] * 4


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.booleans())
@examples(50)
def test_what_is_packed_is_unpacked(height: int, width: int, seed: int, has_mask: bool) -> None:
    rng = np.random.default_rng(seed)
    plane = rng.integers(0, 256, (height, width)).astype(np.uint8)
    mask = rng.random((height, width)) > 0.5 if has_mask else None
    data = pack(Plane(plane, mask))
    values, valid = unpacked(data)
    assert (values == plane).all()
    assert (valid is None) is (mask is None)
    assert mask is None or (valid is not None and (valid == mask).all())
    assert pack(Plane(plane, mask)) == data


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "GIF"])
def test_images_that_browsers_show_are_recognized(name: str) -> None:
    out = io.BytesIO()
    Image.fromarray(PLANE).convert("RGB").save(out, name)
    assert kind_of(out.getvalue()) == f"image/{name.lower()}"
    assert decoded(thumbnail(out.getvalue(), 16)[0]).shape == (11, 16, 3)


@pytest.mark.parametrize(
    "data", [b"", b"<svg xmlns='http://www.w3.org/2000/svg'>", b"<html>", b"RIFF1234AVI ", b"\x89PNG"]
)
def test_anything_else_is_refused(data: bytes) -> None:
    for function in (kind_of, lambda data: thumbnail(data, 64), lambda data: read_plane(data, Coloring(FADE))):
        with pytest.raises(NoImageError, match="is not a PNG, JPEG, WebP or GIF"):
            function(data)


@pytest.mark.parametrize("cut", [20, 33, 60, 200])
def test_damaged_images_are_refused(cut: int) -> None:
    data = png(PLANE, FADE)[:cut]
    for function in (lambda data: thumbnail(data, 16), lambda data: read_plane(data, Coloring(FADE))):
        with pytest.raises(NoImageError, match="damaged"):
            function(data)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    for function in (checked_kind, lambda data: thumbnail(data, 16), lambda data: read_plane(data, Coloring(FADE))):
        with pytest.raises(NoImageError, match="40,000x40,000 pixels"):
            function(bomb())


def test_small_images_stay_as_they_are() -> None:
    data = jpeg((100, 60))
    assert thumbnail(data, 128) == (data, "image/jpeg")
    small, kind = thumbnail(data, 64)
    assert (decoded(small).shape, kind) == ((38, 64, 3), "image/jpeg")


def test_images_are_turned_as_their_exif_data_say() -> None:
    data = jpeg((200, 100), orientation=6)
    assert decoded(thumbnail(data, 64)[0]).shape == (64, 32, 3)
    plain = decoded(thumbnail(data, 64, turned=False)[0])
    assert plain.shape == (32, 64, 3)
    assert plain[16, 4, 0] > 200 > plain[16, 60, 0]


@pytest.mark.parametrize("name", ["PNG", "WEBP"])
def test_other_images_than_jpeg_are_turned_too(name: str) -> None:
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 100)).save(out, name, exif=exif)
    assert decoded(thumbnail(out.getvalue(), 64)[0]).shape == (64, 32, 3)
    assert decoded(thumbnail(out.getvalue(), 64, turned=False)[0]).shape == (32, 64, 3)


def test_thumbnails_of_16_bits_have_their_brightness() -> None:
    out = io.BytesIO()
    values = np.full((60, 60), 60 * 257, np.uint16)
    values[:, 30:] = 10 * 257
    Image.fromarray(values).save(out, "PNG")
    found = decoded(thumbnail(out.getvalue(), 30)[0])[..., 0]
    assert np.abs(found[:, :10].astype(int) - 60).max() <= 2
    assert np.abs(found[:, 20:].astype(int) - 10).max() <= 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "I;16", "CMYK"])
def test_images_of_other_modes_have_thumbnails(mode: str) -> None:
    out = io.BytesIO()
    image = Image.fromarray(PLANE)
    image = Image.fromarray(PLANE.astype(np.uint16) * 257) if mode == "I;16" else image.convert("RGB").convert(mode)
    image.save(out, "JPEG" if mode == "CMYK" else "PNG")
    assert decoded(thumbnail(out.getvalue(), 16)[0]).shape == (11, 16, 3)
