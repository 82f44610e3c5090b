"""``encode_png`` gives the same result with Pillow 12 and 13. CI runs this file with both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from async_maps.render.png import encode_png
from tests.support.installed import kolena_client

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}


def map_of(dtype: str, *shape: int) -> NDArray[Any]:
    return np.random.default_rng(0).uniform(-50_000, 200_000, shape).astype(dtype)


@pytest.mark.parametrize("mode", CHANNELS)
@pytest.mark.parametrize("dtype", ["bool", "i1", "<u2", ">u2", "<i2", "<i4", "<f4", "<f8"])
def test_encode_png_interprets_the_bytes_by_mode(dtype: str, mode: str) -> None:
    image = map_of(dtype, 5, 7)
    if image.itemsize < CHANNELS[mode]:
        with pytest.raises(ValueError, match=r"not enough image data|buffer is not large enough"):
            encode_png(image, mode)
        return
    decoded = Image.open(encode_png(image, mode))
    assert decoded.mode == mode
    data = image.tobytes()
    assert decoded.tobytes() == data[: 5 * 7 * CHANNELS[mode]]


def test_encode_png_reads_the_bytes_of_a_view_in_its_order() -> None:
    image = map_of("<u2", 10, 14).T[::2, ::-1]
    assert Image.open(encode_png(image, "LA")).tobytes() == image.tobytes()


def test_encode_png_writes_16_bits_of_gray() -> None:
    image = map_of("<u2", 5, 7)
    np.testing.assert_array_equal(np.asarray(Image.open(encode_png(image, "I;16"))), image)


def test_encode_png_clips_integers_to_16_bits_of_gray() -> None:
    image = map_of("<i4", 5, 7)
    assert (image < 0).any()
    assert (image > 65_535).any()
    np.testing.assert_array_equal(np.asarray(Image.open(encode_png(image, "I"))), image.clip(0, 65_535))


@pytest.mark.parametrize("dtype", ["<u8", "<c8", "<f2"])
def test_encode_png_refuses_dtypes_that_pillow_lacks(dtype: str) -> None:
    with pytest.raises(TypeError, match="Cannot handle this data type"):
        encode_png(np.zeros((5, 7), dtype), "L")


@pytest.mark.parametrize("mode", ["1", "L", "P", "I", "F"])
def test_encode_png_refuses_channels_in_a_single_channel_mode(mode: str) -> None:
    with pytest.raises(ValueError, match="Too many dimensions: 3 > 2"):
        encode_png(np.zeros((5, 7, 4), np.uint8), mode)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("mode", "dtype"), [("L", "bool"), ("LA", "<u2"), ("RGBA", "<f4"), ("I", "<i4"), ("I;16", "<u2"), ("1", "<f8")]
)
def test_encode_png_equals_kolenas_for_any_mode_and_dtype(mode: str, dtype: str) -> None:
    kolena = kolena_client("kolena.workflow.visualization")
    image = map_of(dtype, 5, 7)
    assert encode_png(image, mode).getvalue() == kolena.encode_png(image, mode).getvalue()
