from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from async_maps.demo.saliency import spectral_residual
from async_maps.demo.scenes import contact_sheet, scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytestmark = pytest.mark.fast

THEMES = 8


@pytest.mark.parametrize("index", range(THEMES))
def test_a_scene_depends_only_on_index_and_seed(index: int) -> None:
    image = scene(index)
    np.testing.assert_array_equal(image, scene(index))
    for other in (scene(index, seed=1), scene(index + 1), scene(index + THEMES)):
        assert not np.array_equal(image, other)


@pytest.mark.parametrize("index", range(THEMES))
@pytest.mark.parametrize("size", [(288, 384), (96, 64), (480, 640)])
def test_a_scene_is_rgb_bytes_of_the_requested_size(index: int, size: tuple[int, int]) -> None:
    image = scene(index, size=size)
    assert image.shape == (*size, 3)
    assert image.dtype == np.uint8
    assert image.flags.writeable
    assert image.std() > 10


@pytest.mark.parametrize("index", range(2 * THEMES))
def test_the_map_of_a_scene_is_high_in_a_small_part(index: int) -> None:
    image = scene(index)
    saliency = spectral_residual(image)
    assert saliency.shape == image.shape[:2]
    assert saliency.dtype == np.float32
    assert saliency.min() == 0
    assert saliency.max() == 1
    assert 0.005 < (saliency > 0.5).mean() < 0.25


@pytest.mark.parametrize("value", [0, 1, 77, 255])
def test_the_saliency_of_one_color_is_zero(value: int) -> None:
    image = np.full((90, 120, 3), (value, 255 - value, 13), np.uint8)
    saliency = spectral_residual(image)
    assert saliency.dtype == np.float32
    np.testing.assert_array_equal(saliency, np.zeros((90, 120)))


@pytest.mark.parametrize("shape", [(240, 320), (320, 240)])
@pytest.mark.parametrize("center", [(0.25, 0.3), (0.5, 0.5), (0.7, 0.8)])
@pytest.mark.parametrize("color", [(250, 240, 200), (190, 70, 125)], ids=["brighter", "same luminance"])
def test_the_saliency_of_a_disc_on_a_texture_is_high(
    shape: tuple[int, int], center: tuple[float, float], color: tuple[int, int, int]
) -> None:
    disc = _disc(shape, center)
    texture = np.random.default_rng(5).integers(110, 150, (*shape, 1)).astype(np.uint8)
    image = np.where(disc[..., None], np.array(color, np.uint8), texture)
    saliency = spectral_residual(image)
    assert disc[np.unravel_index(saliency.argmax(), shape)]
    assert saliency[disc].mean() > 4 * saliency[~disc].mean()


def test_different_opposite_borders_have_low_saliency() -> None:
    shape = (240, 320)
    disc = _disc(shape, (0.5, 0.5))
    ramp = np.broadcast_to(np.linspace(0, 255, 240)[:, None, None], (*shape, 3)).astype(np.uint8)
    saliency = spectral_residual(np.where(disc[..., None], np.array((220, 60, 50), np.uint8), ramp))
    assert saliency[disc].max() == 1
    assert saliency[[0, -1]].max() < 0.2


def test_a_contact_sheet_has_rows_of_pairs_on_white() -> None:
    images = [_flat(30 * number) for number in range(5)]
    sheet = contact_sheet(images, [_overlay(0)] * 5, columns=3, tile_width=60, margin=7)
    pixels = np.asarray(sheet)
    assert sheet.mode == "RGB"
    assert sheet.size == (3 * 67 + 7, 2 * 97 + 7)
    covered = np.zeros(pixels.shape[:2], bool)
    for number in range(5):
        top, left = 7 + 97 * (number // 3), 7 + 67 * (number % 3)
        covered[top : top + 90, left : left + 60] = True
        assert (pixels[top : top + 90, left : left + 60] == 30 * number).all()
    assert (pixels[~covered] == 255).all()


@pytest.mark.parametrize(("alpha", "expected"), [(0, (100, 100, 100)), (255, (0, 200, 50)), (127, (50, 150, 75))])
def test_a_contact_sheet_has_the_image_above_its_overlay(alpha: int, expected: tuple[int, int, int]) -> None:
    pixels = np.asarray(contact_sheet([_flat(100)], [_overlay(alpha)], tile_width=120, margin=0)).astype(int)
    assert pixels.shape == (180, 120, 3)
    assert (pixels[:90] == 100).all()
    assert np.abs(pixels[90:] - expected).max() <= 1


@pytest.mark.parametrize(("images", "overlays"), [(0, 0), (2, 1), (1, 2)])
def test_a_contact_sheet_needs_an_overlay_for_every_image(images: int, overlays: int) -> None:
    with pytest.raises(ValueError, match=r"at least one|argument 2"):
        contact_sheet([_flat(0)] * images, [_overlay(0)] * overlays)


def _disc(shape: tuple[int, int], center: tuple[float, float]) -> NDArray[np.bool_]:
    y, x = np.ogrid[: shape[0], : shape[1]]
    inside: NDArray[np.bool_] = np.hypot(y - center[0] * shape[0], x - center[1] * shape[1]) < 30
    return inside


def _flat(value: int) -> NDArray[np.uint8]:
    return np.full((90, 120, 3), value, np.uint8)


def _overlay(alpha: int) -> NDArray[np.uint8]:
    return np.full((90, 120, 4), (0, 200, 50, alpha), np.uint8)
