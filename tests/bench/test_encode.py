"""``python -m bench encode``: what our PNGs are compared with."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import async_maps as am
from async_maps.render.png import write_palette
from bench import peers
from bench.data import make_map, upsampled_cam
from bench.encode import scanlines_of

pytestmark = pytest.mark.fast


def test_the_png_of_isal_has_the_pixels_of_ours() -> None:
    plane = np.rint(make_map(1, 40)[:, :30] * 255).astype(np.uint8)
    scanlines, table = scanlines_of(plane), am.Settings().table()
    theirs, ours = (
        np.asarray(Image.open(io.BytesIO(write(scanlines, plane.shape, table, 1))).convert("RGBA"))
        for write in (peers.isal_palette_png, write_palette)
    )
    np.testing.assert_array_equal(theirs, table[plane])
    np.testing.assert_array_equal(theirs, ours)


def test_an_upsampled_cam_is_smooth_and_in_range() -> None:
    values = upsampled_cam(3)
    assert values.shape == (224, 224)
    assert values.min() >= 0
    assert values.max() <= 1
    assert np.abs(np.diff(values)).max() < 0.1
