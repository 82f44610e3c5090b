"""Values become intensities in every range, compared with plain NumPy; the statistics too."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from async_maps.errors import InputValidationError, SettingsError
from async_maps.render import kernels
from async_maps.render.arrays import map_shape
from async_maps.render.quantize import quantize
from async_maps.render.ranges import UNIT, ValueRange, parse_range
from async_maps.render.statistics import summarize
from tests.support.properties import examples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from async_maps.render.quantize import Invalid
    from async_maps.render.statistics import Measured

pytestmark = pytest.mark.fast

RANGES = (
    *("unit", "0,1", "-2,2", "-1e-3,1e300", "per-map", "symmetric"),
    *("percentile:0,100", "percentile:1,99", "percentile:12.5,50", "percentile:99,99.9"),
)
FLOATS = ("f2", "f4", "f8", ">f4", "g")
OTHERS = ("?", "i1", "u1", "i2", ">u2", "i4", "u4", "i8", "u8")


def reference(array: NDArray[Any], value_range: ValueRange) -> NDArray[np.uint8]:
    """Return the intensities, computed with plain NumPy."""
    if value_range.kind == "unit":
        return array if array.dtype == np.uint8 else np.rint(array * array.dtype.type(255)).astype(np.uint8)
    values = array.astype(np.float64)
    if value_range.kind == "per-map":
        low, high = values.min(), values.max()
    elif value_range.kind == "symmetric":
        high = np.abs(values).max() or 1.0
        low = -high
    elif value_range.kind == "percentile":
        low, high = np.percentile(values, [value_range.low, value_range.high])
    else:
        low, high = value_range.low, value_range.high
    if low == high:
        one: NDArray[np.uint8] = np.where(values > high, np.uint8(255), np.uint8(0))
        return one
    with np.errstate(over="ignore", invalid="ignore"):
        intensities: NDArray[np.uint8] = np.rint(np.clip((values - low) * (255 / (high - low)), 0, 255)).astype(
            np.uint8
        )
    return intensities


def run(array: NDArray[Any], value_range: str | ValueRange, invalid: Invalid = "error") -> tuple[Any, Measured | None]:
    if isinstance(value_range, str):
        value_range = parse_range(value_range)
    plane = np.full(map_shape(array, value_range), 77, np.uint8)
    return plane, quantize(array, plane, value_range, invalid)


def arrays(dtype: str, elements: st.SearchStrategy[Any]) -> st.SearchStrategy[NDArray[Any]]:
    shapes = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)
    return hnp.arrays(np.dtype(dtype), shapes, elements=elements)


def floats(dtype: str, bound: float) -> st.SearchStrategy[float]:
    width = {2: 16, 4: 32}.get(np.dtype(dtype).itemsize, 64)
    limit = min(bound, 60_000.0 if width == 16 else bound)
    # In the reference, 255 divided by a range below 1e-300 overflows. Another test covers these ranges.
    return st.floats(-limit, limit, width=width).map(lambda value: value if abs(value) > 1e-290 else 0.0)  # type: ignore[arg-type]


class Pieces:
    """An array that is read in pieces, and counts how often it is read whole."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.shape, self.dtype = array.shape, array.dtype
        self.loads = 0
        self._array = array

    def pieces(self, count: int) -> Iterator[NDArray[Any]]:
        flat = self._array.reshape(-1)
        buffer = np.empty(min(count, flat.size), self.dtype)
        for start in range(0, flat.size, count):
            piece = flat[start : start + count]
            buffer[: piece.size] = piece
            yield buffer[: piece.size]

    def whole(self) -> NDArray[Any]:
        self.loads += 1
        return self._array


def outcome(values: NDArray[Any] | Pieces, value_range: str, invalid: Invalid) -> tuple[object, ...]:
    """Return the pixels and the statistics, to the last bit, or the error."""
    plane = np.full(values.shape, 77, np.uint8)
    try:
        measured = quantize(values, plane, parse_range(value_range), invalid)
    except InputValidationError as error:
        return (str(error),)
    if measured is None:
        return (plane.tobytes(),)
    hidden = None if measured.hidden is None else measured.hidden.tobytes()
    return (plane.tobytes(), repr(measured[:-1]), hidden)


# The pixels


@pytest.mark.hypothesis
@pytest.mark.parametrize("value_range", ["unit", "-2,2", "per-map", "percentile:1,99"])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "g", "u1"])
def test_pieces_give_the_pixels_and_statistics_of_the_whole(
    dtype: str, value_range: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @examples(4)
    @given(
        st.tuples(st.integers(1, 130), st.integers(1, 130)),
        st.integers(0, 99),
        st.sampled_from([None, np.nan, -np.inf, 3.0, -1e-40]),
        st.sampled_from(["error", "transparent", "zero"]),
    )
    def check(shape: tuple[int, int], seed: int, odd: float | None, invalid: Invalid) -> None:
        rng = np.random.default_rng(seed)
        array = (rng.random(shape) * (200 if dtype == "u1" else 1)).astype(dtype)
        if odd is not None and dtype != "u1":
            with np.errstate(all="ignore"):
                array.flat[rng.integers(array.size)] = odd
        stored = Pieces(array)
        with monkeypatch.context() as patch:
            patch.setattr("async_maps.render.quantize.PIECE", kernels.BLOCK)
            found = outcome(stored, value_range, invalid)
        assert found == outcome(array, value_range, invalid)
        is_known = value_range in {"unit", "-2,2"} and dtype in {"f4", "f8", ">f4", "u1"}
        if is_known and odd is None:
            assert stored.loads == 0

    check()


def test_a_sum_that_overflows_in_pieces_has_the_mean_of_the_whole() -> None:
    stored = Pieces(np.full((300, 300), 1e308))
    assert outcome(stored, "0,1", "error") == outcome(stored.whole(), "0,1", "error")


@pytest.mark.hypothesis
@pytest.mark.parametrize("value_range", RANGES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_any_float_map_equals_the_numpy_reference(dtype: str, value_range: str) -> None:
    bound = 1.0 if value_range == "unit" else 2.0**20
    elements = floats(dtype, bound) | st.sampled_from([0.0, -0.0, 1.0, 0.5])
    if value_range == "unit":
        elements = elements.map(abs)

    @examples(20)
    @given(arrays(dtype, elements))
    def check(array: NDArray[Any]) -> None:
        plane, measured = run(array, value_range)
        np.testing.assert_array_equal(plane, reference(array, parse_range(value_range)))
        assert measured is not None
        assert measured.minimum is not None
        assert measured.maximum is not None
        assert (measured.minimum, measured.maximum) == (float(array.min()), float(array.max()))
        # Sums are taken in any order, so large values that cancel leave their rounding error.
        error = 1e-12 * max(1.0, abs(measured.minimum), abs(measured.maximum))
        assert measured.mean == pytest.approx(float(array.astype(np.float64).mean()), rel=1e-12, abs=error)

    check()


@pytest.mark.hypothesis
@pytest.mark.parametrize("value_range", RANGES[1:])
@pytest.mark.parametrize("dtype", OTHERS)
def test_bool_and_integers_equal_the_reference_in_an_explicit_range(dtype: str, value_range: str) -> None:
    @examples(10)
    @given(hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=2, max_dims=2, max_side=6)))
    def check(array: NDArray[Any]) -> None:
        plane, _ = run(array, value_range)
        np.testing.assert_array_equal(plane, reference(array, parse_range(value_range)))

    check()


@pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e-300, 1e-30, 1.0, 1e30, 1e300, np.finfo(float).max / 4])
@pytest.mark.parametrize("value_range", ["per-map", "symmetric", "percentile:0,100"])
def test_huge_and_tiny_ranges_match_exact_arithmetic(scale: float, value_range: str) -> None:
    array = np.array([[-4.0, -1.0, 0.0], [1.5, 2.0, 4.0]]) * scale
    low, high = Fraction(float(array.min())), Fraction(float(array.max()))
    plane, _ = run(array, value_range)
    for value, intensity in zip(array.ravel().tolist(), plane.ravel().tolist(), strict=True):
        exact = (Fraction(value) - low) * 255 / (high - low)
        assert abs(exact - intensity) <= Fraction(1, 2) + Fraction(1, 10**9)


def test_a_range_can_span_all_of_float64() -> None:
    most = np.finfo(np.float64).max
    plane, measured = run(np.array([[-most, -most / 2, 0.0, most / 2, most]]), "per-map")
    assert plane.tolist() == [[0, 64, 128, 191, 255]]
    assert measured is not None
    assert measured.mean == pytest.approx(0, abs=1e292)
    plane, measured = run(np.full((3, 3), most), "0,1")
    assert (plane == 255).all()
    assert measured is not None
    assert measured.mean == pytest.approx(most)


def test_values_outside_a_fixed_range_are_clipped() -> None:
    most = np.finfo(np.float64).max
    plane, _ = run(np.array([[-most, -1.0, 0.0, 5e-324, most]]), ValueRange("fixed", 0.0, 5e-324))
    assert plane.tolist() == [[0, 0, 0, 255, 255]]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_denormals_are_quantized_like_other_values(dtype: str) -> None:
    tiny = np.finfo(dtype).smallest_subnormal
    plane, _ = run(np.array([[0, 1, 2, 3, 4]], dtype) * tiny, "per-map")
    assert plane.tolist() == [[0, 64, 128, 191, 255]]


@pytest.mark.parametrize("value", [-3.0, -0.0, 0.0, 1e-320, 7.5])
@pytest.mark.parametrize("value_range", ["per-map", "percentile:1,99", "symmetric"])
@pytest.mark.parametrize("shape", [(1, 1), (4, 7)])
def test_a_constant_map_has_a_defined_intensity_and_a_flag(
    value: float, value_range: str, shape: tuple[int, int]
) -> None:
    plane, measured = run(np.full(shape, value), value_range)
    expected = 0
    if value_range == "symmetric":
        expected = 255 if value > 0 else 0 if value < 0 else 128
    assert (plane == expected).all()
    assert summarize(plane, measured)[0].constant


def test_a_map_of_zeros_with_a_spike_shows_the_spike() -> None:
    array = np.zeros((20, 20))
    array[3, 4] = 9
    plane, measured = run(array, "percentile:1,99")
    assert plane[3, 4] == 255
    assert plane.sum() == 255
    assert not summarize(plane, measured)[0].constant


# Invalid values


@pytest.mark.hypothesis
@pytest.mark.parametrize("value_range", RANGES)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "g"])
def test_invalid_values_do_not_change_the_valid_ones(dtype: str, value_range: str) -> None:
    bound = 1.0 if value_range == "unit" else 100.0
    valid = floats(dtype, bound).map(abs if value_range == "unit" else float)

    @examples(12)
    @given(arrays(dtype, valid | st.sampled_from([np.nan, np.inf, -np.inf])))
    @example(np.full((2, 3), np.nan, dtype))
    def check(array: NDArray[Any]) -> None:
        bad = ~np.isfinite(array)
        parsed = parse_range(value_range)
        plane, measured = run(array, value_range, "zero")
        np.testing.assert_array_equal(plane, reference(np.where(bad, np.zeros(1, dtype), array), parsed))
        assert measured is not None
        assert (measured.invalid, measured.hidden) == (bad.sum(), None)

        plane, measured = run(array, value_range, "transparent")
        assert measured is not None
        assert measured.invalid == bad.sum()
        if bad.any():
            assert measured.hidden is not None
            np.testing.assert_array_equal(measured.hidden, bad)
        if not bad.all():
            np.testing.assert_array_equal(plane[~bad], reference(array[~bad].reshape(1, -1), parsed)[0])
            assert measured.mean == pytest.approx(float(array[~bad].astype(np.float64).mean()), rel=1e-9, abs=1e-9)
        else:
            assert measured[:5] == (None,) * 5
        if bad.any():
            with pytest.raises(InputValidationError, match=r"found (NaN|-?inf) at index"):
                run(array, value_range)

    check()


def test_the_first_invalid_value_is_named() -> None:
    array = np.array([[5.0, np.inf], [np.nan, -7.0]])
    with pytest.raises(
        InputValidationError, match=r"must be finite; found inf at index \(0, 1\) \(NaN or infinite: 2 of 4 values"
    ):
        run(array, "per-map")


@pytest.mark.parametrize("invalid", ["transparent", "zero"])
def test_values_outside_unit_are_refused_for_any_invalid_setting(invalid: Invalid) -> None:
    with pytest.raises(
        InputValidationError, match=r"must lie in \[0, 1\]; found 1\.5 at index \(0, 2\) \(NaN or out of range: 1 of 3"
    ):
        run(np.array([[0.5, np.nan, 1.5]]), "unit", invalid)


@pytest.mark.skipif(np.finfo(np.longdouble).max == np.finfo(np.float64).max, reason="no wider float here")
def test_a_value_beyond_float64_is_named() -> None:
    with pytest.raises(
        InputValidationError, match=r"must be finite; found 1e\+400 at index \(0, 1\) \(NaN or infinite: 1 of 2"
    ):
        run(np.array([["0.5", "1e400"]], np.longdouble), "0,1")


@pytest.mark.parametrize("dtype", ["c8", "O", "U3", "M8[s]", "m8[s]", "V4"])
@pytest.mark.parametrize("value_range", ["unit", "per-map", "0,1"])
def test_dtypes_that_are_not_real_are_refused_in_any_range(dtype: str, value_range: str) -> None:
    with pytest.raises(InputValidationError, match="must be real numbers; found"):
        map_shape(np.zeros((2, 2), dtype), parse_range(value_range))


# Statistics


@pytest.mark.hypothesis
@pytest.mark.parametrize("invalid", ["zero", "transparent"])
def test_the_statistics_equal_numpys(invalid: Invalid) -> None:
    @examples(60)
    @given(arrays("f4", floats("f4", 50.0) | st.just(np.nan)))
    def check(array: NDArray[Any]) -> None:
        plane, measured = run(array, "-10,40", invalid)
        found, histogram = summarize(plane, measured)
        bad = ~np.isfinite(array)
        values = np.where(bad, 0, array) if invalid == "zero" else array[~bad]
        kept = plane if invalid == "zero" else plane[~bad]
        assert found.invalid_pixels == bad.sum()
        np.testing.assert_array_equal(histogram, np.bincount(kept.ravel(), minlength=256))
        if not values.size:
            assert found[:9] == (None,) * 9
            assert not found.constant
            return
        shares = histogram[histogram > 0] / kept.size
        assert (found.minimum, found.maximum) == (values.min(), values.max())
        assert found.mean == pytest.approx(values.mean(dtype=np.float64), rel=1e-9, abs=1e-9)
        assert (found.range_low, found.range_high) == (-10, 40)
        assert found.high_share == np.mean(kept >= 128)
        assert found.entropy == pytest.approx(-(shares * np.log2(shares)).sum(), abs=1e-12)
        assert found.constant == (values.min() == values.max())
        weights = np.where(bad, 0, plane) if invalid == "transparent" else plane
        total = weights.sum(dtype=float)
        if total:
            ys, xs = np.indices(plane.shape)
            assert found.center_x == pytest.approx((weights * xs).sum() / total)
            assert found.center_y == pytest.approx((weights * ys).sum() / total)
        else:
            assert (found.center_x, found.center_y) == (None, None)

    check()


def test_a_uint8_map_has_statistics() -> None:
    array = np.array([[0, 255, 255], [10, 128, 0]], np.uint8)
    plane, measured = run(array, UNIT)
    found, _ = summarize(plane, measured)
    assert (found.minimum, found.maximum, found.range_low, found.range_high) == (0, 255, 0, 255)
    assert found.mean == array.mean()
    assert found.high_share == 0.5


def test_half_of_the_range_counts_as_high() -> None:
    for dtype in ("f2", "f4", "f8"):
        array = np.array([[0.5, np.nextafter(np.dtype(dtype).type(0.5), np.dtype(dtype).type(0))]], dtype)
        assert summarize(*run(array, "unit"))[0].high_share in {0.5, 1.0}
        assert summarize(*run(array[:, :1], "unit"))[0].high_share == 1.0


# The text of a range


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("unit", "unit"), (" per-map ", "per-map"), ("symmetric", "symmetric"), ("dataset", "dataset"),
        ("dataset:1,99", "dataset:1,99"), ("dataset:0,100", "dataset"), ("percentile:0.5,99.5", "percentile:0.5,99.5"),
        ("-2,2", "-2.0,2.0"), ("1e-3, 5", "0.001,5.0"), ("from:a:b.sqlite", "from:a:b.sqlite"),
    ],
)  # fmt: skip
def test_the_text_of_a_range_parses_to_the_same_range(text: str, shown: str) -> None:
    assert str(parse_range(text)) == shown
    assert parse_range(shown) == parse_range(text)


@examples(100)
@given(st.text())
def test_any_text_is_a_range_or_a_settings_error(text: str) -> None:
    with suppress(SettingsError):
        str(parse_range(text))
