"""``python -m bench encode``: what our PNGs are compared with."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import async_maps as am
from bench.data import make_map, upsampled_cam
from bench.encode import ours

pytestmark = pytest.mark.fast


def test_the_pngs_of_both_sides_have_equal_pixels() -> None:
    plane = np.rint(make_map(1, 512) * 255).astype(np.uint8)
    table = am.Settings().table()
    pngs = [ours(plane, table[plane], compress=compress) for compress in (True, False)]
    for name in ("async_maps palette", "async_maps rgba"):
        for png in pngs:
            found = np.asarray(Image.open(io.BytesIO(png[name]())).convert("RGBA"))
            np.testing.assert_array_equal(found, table[plane])
    assert pngs[0]["async_maps palette"]() != pngs[1]["async_maps palette"]()


def test_an_upsampled_cam_is_smooth_and_in_range() -> None:
    values = upsampled_cam(3)
    assert values.shape == (224, 224)
    assert values.min() >= 0
    assert values.max() <= 1
    assert np.abs(np.diff(values)).max() < 0.1
