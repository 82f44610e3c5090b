from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from async_maps.render import kernels
from tests.support.properties import examples

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

pytestmark = pytest.mark.fast

KERNELS = (
    "quantize_float32", "quantize_float64", "quantize_float16",
    "scale_float32", "scale_float64", "count", "describe", "sketch", "look_up", "replace",
)  # fmt: skip

needs_compiler = pytest.mark.skipif(
    not hasattr(kernels.count, "signatures"), reason="NUMBA_DISABLE_JIT is set: the kernels are plain Python"
)


# Results


def _key(value: float, dtype: str) -> int:
    """Return an integer that sorts as the float does, with -0 before 0."""
    bits = int(np.array(value, dtype).view(f"i{dtype[1]}"))
    return bits if bits >= 0 else bits ^ (2 ** (8 * int(dtype[1]) - 1) - 1)


def _arrays(dtype: str, elements: st.SearchStrategy[float]) -> st.SearchStrategy[NDArray[Any]]:
    return hnp.arrays(dtype, st.sampled_from([1, 2, 69, 4095, 4096, 4097, 8200]), elements=elements)


@pytest.mark.hypothesis
@pytest.mark.parametrize(("dtype", "kernel"), [("f4", kernels.quantize_float32), ("f8", kernels.quantize_float64)])
def test_values_are_quantized_like_numpy_in_their_dtype(dtype: str, kernel: Callable[..., float]) -> None:
    @examples(60)
    @given(_arrays(dtype, st.floats(0, 1, width=8 * int(dtype[1]))))  # type: ignore[arg-type]
    def check(values: NDArray[Any]) -> None:
        plane, keys = np.full(values.size, 99, np.uint8), np.empty(2, np.int64)
        total = kernel(values, values.view(f"i{dtype[1]}"), plane, keys, 0.0)
        np.testing.assert_array_equal(plane, np.rint(values * 255).astype(np.uint8))
        assert total == pytest.approx(values.sum(dtype=np.float64), rel=1e-12)
        assert keys.tolist() == [_key(values.min(), dtype), _key(values.max(), dtype)]

    check()


@pytest.mark.hypothesis
@pytest.mark.parametrize(("dtype", "kernel"), [("f4", kernels.quantize_float32), ("f8", kernels.quantize_float64)])
def test_extremes_are_exact_and_nan_sorts_beyond_infinity(dtype: str, kernel: Callable[..., float]) -> None:
    @examples(100)
    @given(_arrays(dtype, st.floats(width=8 * int(dtype[1]))))  # type: ignore[arg-type]
    def check(values: NDArray[Any]) -> None:
        keys = np.empty(2, np.int64)
        kernel(values, values.view(f"i{dtype[1]}"), np.empty(0, np.uint8), keys, 0.0)
        expected = sorted(_key(value, dtype) for value in values)
        assert keys.tolist() == [expected[0], expected[-1]]
        infinity = _key(np.inf, dtype)
        assert (keys[0] > _key(-np.inf, dtype) and keys[1] < infinity) == bool(np.isfinite(values).all())

    check()


def test_float16_bits_are_looked_up_in_the_tables() -> None:
    bits = np.random.default_rng(1).permutation(65_536).astype(np.uint16).view(np.int16)
    table = np.random.default_rng(2).integers(0, 256, 65_536).astype(np.uint8)
    values = np.random.default_rng(3).random(65_536, np.float32)
    plane, keys = np.empty(bits.size, np.uint8), np.empty(2, np.int64)
    total = kernels.quantize_float16(bits, table, values, plane, keys)
    np.testing.assert_array_equal(plane, table[bits.view(np.uint16)])
    assert total == pytest.approx(values.sum(dtype=np.float64))
    assert keys.tolist() == [-(2**15), 2**15 - 1]


@pytest.mark.hypothesis
@pytest.mark.parametrize(("dtype", "kernel"), [("f4", kernels.scale_float32), ("f8", kernels.scale_float64)])
def test_values_are_scaled_and_clipped_in_float64(dtype: str, kernel: Callable[..., None]) -> None:
    @examples(60)
    @given(_arrays(dtype, st.floats(-4, 4, width=8 * int(dtype[1]))), st.floats(-3, 0), st.floats(0.1, 3))  # type: ignore[arg-type]
    def check(values: NDArray[Any], low: float, high: float) -> None:
        plane, factor = np.empty(values.size, np.uint8), 255 / (high - low)
        kernel(values, 0.5, low * 0.5, factor * 2, plane)
        wide = values.astype(np.float64)
        np.testing.assert_array_equal(plane, np.rint(np.clip((wide * 0.5 - low * 0.5) * (factor * 2), 0, 255)))

    check()


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (3, 4), (17, 33)])
def test_intensities_are_counted_summed_and_replaced(shape: tuple[int, int]) -> None:
    plane = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    histogram = np.ones(256, np.int64)
    columns, rows = np.zeros(shape[1], np.uint32), np.full(shape[0], 9, np.uint32)
    kernels.count(plane.reshape(-1), histogram, columns, rows)
    np.testing.assert_array_equal(histogram, 1 + np.bincount(plane.reshape(-1), minlength=256))
    np.testing.assert_array_equal(columns, plane.sum(0))
    np.testing.assert_array_equal(rows, plane.sum(1))
    table = np.random.default_rng(2).integers(0, 256, 256).astype(np.uint8)
    replaced = plane.reshape(-1).copy()
    kernels.replace(table, replaced)
    np.testing.assert_array_equal(replaced, table[plane.reshape(-1)])


def test_describe_equals_numpy() -> None:
    plane = np.random.default_rng(1).integers(0, 200, (17, 33))
    histogram = np.bincount(plane.reshape(-1), minlength=256)
    found, opacities = np.empty(6), np.arange(1, 257).clip(0, 255).astype(np.uint8)
    kernels.describe(histogram, plane.sum(0).astype(np.uint32), plane.sum(1).astype(np.uint32), opacities, found)
    shares = histogram[histogram > 0] / plane.size
    center = [(plane.sum(axis) * np.arange(plane.shape[1 - axis])).sum() / plane.sum() for axis in (0, 1)]
    expected = [plane.size, (plane >= 128).sum(), -(shares * np.log2(shares)).sum(), *center, plane.max() + 1]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    kernels.describe(np.zeros(256, np.int64), np.zeros(2, np.uint32), np.zeros(3, np.uint32), opacities, found)
    np.testing.assert_array_equal(found, [0, 0, 0, np.nan, np.nan, 0])


def test_values_are_counted_by_the_leading_bits_of_their_keys() -> None:
    values = np.array([-np.finfo(float).max, -2.0, -1.5, -1.0, -0.0, 0.0, 1e-320, 1.0, 1.5, 2.0, np.finfo(float).max])
    counts = np.zeros(2**12, np.int64)
    kernels.sketch(values.view(np.int64), 52, counts)
    # Sign and exponent only: 1.0 and 1.5 share a bin.
    assert counts[counts > 0].tolist() == [1, 1, 2, 1, 2, 2, 1, 1]
    assert counts[2**11] == 2


def test_each_byte_is_looked_up() -> None:
    plane = np.random.default_rng(1).integers(0, 256, 10_007).astype(np.uint8)
    table = np.random.default_rng(2).integers(0, 2**32, 256).astype(np.uint32)
    pixels = np.zeros(plane.size, np.uint32)
    kernels.look_up(plane, table, pixels)
    np.testing.assert_array_equal(pixels, table[plane])


def test_inputs_may_be_read_only() -> None:
    values, table = np.linspace(0, 1, 9, dtype=np.float32), np.arange(256, dtype=np.uint32)
    values.flags.writeable = table.flags.writeable = False
    plane = np.empty(9, np.uint8)
    kernels.quantize_float32(values, values.view(np.int32), plane, np.empty(2, np.int64), 0.0)
    plane.flags.writeable = False
    pixels = np.empty(9, np.uint32)
    kernels.look_up(plane, table, pixels)
    np.testing.assert_array_equal(pixels, plane)


# Compilation


@needs_compiler
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_releases_the_interpreter_lock(name: str) -> None:
    assert getattr(kernels, name).targetoptions["nogil"] is True


@needs_compiler
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_never_compiles_a_second_signature(name: str) -> None:
    kernel = getattr(kernels, name)
    assert len(kernel.signatures) == 1
    with pytest.raises(TypeError, match="No matching definition"):
        kernel(*[np.zeros(4, np.int64)] * len(kernel.signatures[0]))
    assert len(kernel.signatures) == 1


@needs_compiler
def test_every_kernel_is_tested_here() -> None:
    found = {name for name in vars(kernels) if hasattr(getattr(kernels, name), "signatures")}
    assert found == set(KERNELS)
