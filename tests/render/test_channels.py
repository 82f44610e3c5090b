"""Channels are reduced as documented, for every dtype and layout."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from async_maps.render.channels import channel_axis, reduce_channels
from tests.support.properties import examples

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytestmark = pytest.mark.fast

REDUCTIONS: tuple[Any, ...] = ("sum", "norm", "maxabs", "mean")
DTYPES = ("f2", "f4", "f8", "g", ">f4", ">f8", "i1", "u1", "i2", "u2", ">i2", "i4", "u4", "i8", "u8", "?")


def reference(array: NDArray[Any], by: str, axis: int) -> NDArray[Any]:
    """Reduce with NumPy in float64, and round to the documented dtype."""
    with np.errstate(all="ignore"):
        wide = array.astype(np.float64)
        found = {
            "sum": lambda: wide.sum(axis),
            "norm": lambda: np.sqrt((wide * wide).sum(axis)),
            "maxabs": lambda: np.abs(wide).max(axis),
            "mean": lambda: wide.sum(axis) / array.shape[axis],
        }[by]()
        narrow = array.dtype.kind == "f" and array.dtype.itemsize <= 4
        return np.asarray(found, np.float32 if narrow else np.float64)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((224, 224), None),
        ((3, 224, 224), 0),
        ((1, 224, 224), 0),
        ((512, 7, 7), 0),
        ((12, 14, 14), 0),
        ((224, 224, 3), 2),
        ((224, 224, 2), 2),
        ((224, 224, 4), 2),
        ((224, 224, 1), 2),
        ((1, 224, 3), 2),
        ((3, 224, 4), 0),
        ((4, 4, 4), 0),
        ((3, 1, 1), 2),
        ((224, 224, 5), 0),
    ],
)
def test_the_axis_of_the_channels_follows_from_the_shape(shape: tuple[int, ...], axis: int | None) -> None:
    assert channel_axis(shape) == axis


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 1, 7), (3, 33, 64), (2, 50, 41), (700, 7, 7), (33, 65, 3), (5, 6, 4)])
def test_each_reduction_equals_numpys_in_float64(shape: tuple[int, ...], dtype: str) -> None:
    values = np.random.default_rng(0).normal(0, 40, shape)
    array = (values > 0 if dtype == "?" else values % 99 if np.dtype(dtype).kind == "u" else values).astype(dtype)
    axis = channel_axis(shape)
    assert axis is not None
    for by in REDUCTIONS:
        found = reduce_channels(array, by)
        expected = reference(array, by, axis)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype), by
        rtol = 1e-6 if found.dtype == np.float32 else 1e-14
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-12, err_msg=by)


@pytest.mark.parametrize("by", REDUCTIONS)
@examples(100)
@given(values=arrays(np.float32, (3, 2, 5), elements=st.floats(width=32, allow_nan=True, allow_infinity=True)))
def test_any_float32_channels_equal_the_reference(values: NDArray[np.float32], by: Any) -> None:
    np.testing.assert_array_equal(reduce_channels(values, by), reference(values, by, 0))


@pytest.mark.parametrize("by", REDUCTIONS)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "g"])
def test_an_invalid_channel_makes_its_pixel_invalid(dtype: str, by: Any) -> None:
    for bad, channel in product([np.nan, np.inf, -np.inf], range(3)):
        array = np.ones((3, 40, 40), dtype)
        array[channel, 5, 7] = bad
        found = reduce_channels(array, by)
        assert not np.isfinite(found[5, 7]), (bad, channel)
        assert np.isfinite(found).sum() == 40 * 40 - 1, (bad, channel)


@pytest.mark.parametrize("by", REDUCTIONS)
@pytest.mark.parametrize("dtype", ["f4", "f2", "i2"])
@pytest.mark.parametrize("layout", ["fortran", "sliced", "flipped", "moved", "read-only", "unaligned"])
def test_any_memory_layout_gives_the_same_values(layout: str, dtype: str, by: Any) -> None:
    plain = np.random.default_rng(1).normal(0, 9, (3, 20, 30)).astype(dtype)
    if layout == "fortran":
        array = np.asfortranarray(plain)
    elif layout == "sliced":
        array = np.repeat(plain, 2, axis=2)[:, :, ::2]
    elif layout == "flipped":
        array = plain[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1]
    elif layout == "moved":
        array = np.moveaxis(np.moveaxis(plain, 0, -1).copy(), -1, 0)
    elif layout == "read-only":
        array = plain.copy()
        array.flags.writeable = False
    else:
        array = np.empty(plain.nbytes + 1, np.uint8)[1:].view(dtype).reshape(plain.shape)
        array[:] = plain
    np.testing.assert_array_equal(reduce_channels(array, by), reduce_channels(plain, by))


@pytest.mark.parametrize("by", REDUCTIONS)
def test_an_array_without_channels_is_returned_unchanged(by: Any) -> None:
    array = -np.ones((4, 5), np.float32)
    assert reduce_channels(array, by) is array
    assert reduce_channels(np.ones((3, 4, 5)), "none").shape == (3, 4, 5)


@pytest.mark.parametrize("shape", [(1, 4, 5), (4, 5, 1)])
def test_a_single_channel_is_reduced_like_several(shape: tuple[int, ...]) -> None:
    array = np.full(shape, -2, np.float32)
    values = {by: float(reduce_channels(array, by)[0, 0]) for by in ("sum", "norm", "maxabs", "mean")}
    assert values == {"sum": -2, "norm": 2, "maxabs": 2, "mean": -2}
    # Intensities stay intensities.
    assert reduce_channels(array.astype(np.uint8), "maxabs").dtype == np.uint8


def test_sums_are_accumulated_in_float64() -> None:
    array = np.array([2.0**24, 1.0, -(2.0**24)], np.float32).reshape(3, 1, 1).repeat(5, 2)
    np.testing.assert_array_equal(reduce_channels(array, "sum"), np.ones((1, 5), np.float32))


@pytest.mark.slow
@pytest.mark.parametrize(("by", "expected"), [("none", False), ("sum", True)])
def test_the_kernels_are_loaded_only_if_a_run_needs_them(by: str, expected: bool) -> None:
    program = (
        "import sys, numpy as np\n"
        "from async_maps.workers.worker import Recipe, load_kernels\n"
        f"load_kernels(Recipe(np.zeros((256, 4), np.uint8), reduce={by!r}))\n"
        "print('async_maps.render.channel_kernels' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout == f"{expected}\n"
