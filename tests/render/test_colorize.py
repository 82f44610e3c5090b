from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from async_maps.errors import AsyncMapsError, InputValidationError
from async_maps.render import kernels
from async_maps.render.arrays import map_shape
from async_maps.render.colorize import colorize_activation_map, look_up
from async_maps.render.colormap import Colormap, ColormapJet, color_table
from async_maps.render.quantize import quantize
from tests.support.installed import kolena_client
from tests.support.properties import examples

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.fast

FLOATS: list[Any] = [np.float16, np.float32, np.float64, np.longdouble]
DTYPES: list[Any] = [np.uint8, *FLOATS]


@pytest.fixture(scope="module")
def kolena() -> Any:
    """Kolena's client, which our functions replace. It colorizes about 50,000 pixels a second."""
    return kolena_client("kolena.workflow.visualization")


def values(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> NDArray[Any]:
    """Return random values in the range of a map, including both ends."""
    rng = np.random.default_rng(seed)
    if dtype == np.uint8:
        array = rng.integers(0, 256, shape).astype(np.uint8)
    else:
        array = (rng.random(shape) if dtype == np.float64 else rng.random(shape).astype(np.longdouble)).astype(dtype)
    array.flat[0], array.flat[-1] = 0, 255 if dtype == np.uint8 else 1
    return array


def assert_equals_kolenas(kolena: Any, array: NDArray[Any], colormap: Any = None, theirs: Any = None) -> None:
    """Check that our pixels equal Kolena's and that the array is not changed."""
    before = array.tobytes()
    pixels = colorize_activation_map(array, ColormapJet() if colormap is None else colormap)
    assert array.tobytes() == before
    expected = kolena.colorize_activation_map(array.copy(), kolena.ColormapJet() if theirs is None else theirs)
    assert pixels.dtype == expected.dtype == np.uint8
    assert pixels.shape == expected.shape == (*array.shape[:2], 4)
    np.testing.assert_array_equal(pixels, expected)


# Values


def test_every_intensity_equals_kolenas(kolena: Any) -> None:
    assert_equals_kolenas(kolena, np.arange(256, dtype=np.uint8).reshape(16, 16))


@pytest.mark.parametrize("fade", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_values_equal_kolenas(kolena: Any, dtype: Any, fade: bool) -> None:
    array = values((40, 50), dtype)
    assert_equals_kolenas(kolena, array, ColormapJet(fade), kolena.ColormapJet(fade))


@examples(60)
@given(data=st.data())
def test_any_small_map_equals_kolenas(kolena: Any, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([np.uint8, np.float16, np.float32, np.float64]))
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=6) | st.just((2, 3, 1)))
    elements = None if dtype is np.uint8 else st.floats(0, 1, width=8 * np.dtype(dtype).itemsize)  # type: ignore[arg-type]
    assert_equals_kolenas(kolena, data.draw(hnp.arrays(dtype, shape, elements=elements)))


def ties(dtype: Any) -> NDArray[Any]:
    """Return every value half-way between two intensities, rounded to the dtype, and its two neighbors."""
    middle = ((np.arange(255) + np.longdouble(0.5)) / 255).astype(dtype)
    return np.stack([np.nextafter(middle, dtype(0)), middle, np.nextafter(middle, dtype(1))])


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_rounding_tie_equals_kolenas(kolena: Any, dtype: Any) -> None:
    assert_equals_kolenas(kolena, ties(dtype))


@pytest.mark.parametrize("narrow", [np.float16, np.float32])
def test_values_are_quantized_in_their_own_dtype(narrow: Any) -> None:
    array = ties(narrow)
    own = np.empty(array.shape, np.uint8)
    wide = np.empty(array.shape, np.uint8)
    quantize(array, own)
    quantize(array.astype(np.float64), wide)
    np.testing.assert_array_equal(own, np.rint(array * 255).astype(np.uint8))
    assert (own != wide).any()


def test_every_float16_in_range_equals_kolenas(kolena: Any) -> None:
    every = np.arange(65_536, dtype=np.uint16).view(np.float16)
    with np.errstate(invalid="ignore"):
        good = every[(every >= 0) & (every <= 1)]
    assert good.size == 15_362  # 0 to 1, and -0
    assert_equals_kolenas(kolena, good[:, np.newaxis])


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_smallest_values_and_minus_zero_equal_kolenas(kolena: Any, dtype: Any) -> None:
    zero, one = dtype(0), dtype(1)
    denormal = np.nextafter(zero, one)
    normal = np.finfo(dtype).tiny
    array = np.array([[-zero, zero, denormal, normal - denormal, normal, np.nextafter(one, zero), one]], dtype)
    assert np.signbit(array[0, 0])
    assert_equals_kolenas(kolena, array)


# Layouts


def unaligned(array: NDArray[Any]) -> NDArray[Any]:
    """Return the same values at an odd address."""
    raw = bytearray(1 + array.nbytes)
    raw[1:] = array.tobytes()
    moved = np.frombuffer(raw, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    assert moved.dtype.itemsize == 1 or not moved.flags.aligned
    return moved


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Make the array read-only and return it."""
    array.flags.writeable = False
    return array


LAYOUTS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "plain": lambda array: array,
    "(h, w, 1)": lambda array: array[..., np.newaxis],
    "(h, w, 1) of many channels": lambda array: np.stack([array, 1 - array], axis=2)[:, :, 1:],
    "every other row and third column": lambda array: np.repeat(np.repeat(array, 2, 0), 3, 1)[::2, ::3],
    "part of a larger one": lambda array: np.pad(array, 3)[3:-3, 3:-3],
    "negative strides": lambda array: array[::-1, ::-1],
    "negative strides, (h, w, 1)": lambda array: array[::-1, ::-1, np.newaxis],
    "transposed": lambda array: array.T,
    "Fortran order": np.asfortranarray,
    "Fortran order, (h, w, 1)": lambda array: np.asfortranarray(array[..., np.newaxis]),
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "little-endian": lambda array: array.astype(array.dtype.newbyteorder("<")),
    "swapped and strided": lambda array: array.astype(array.dtype.newbyteorder())[:, ::2],
    "read-only": read_only,
    "read-only bytes": lambda array: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape),
    "unaligned": unaligned,
    "unaligned and read-only": lambda array: read_only(unaligned(array)),
    "broadcast": lambda array: np.broadcast_to(array[:1], (4, array.shape[1])),
    "1x1": lambda array: array[2:3, 3:4],
    "1xN": lambda array: array[:1],
    "Nx1": lambda array: array[:, :1],
    "1x1x1": lambda array: array[2:3, 3:4, np.newaxis],
    "a subclass": lambda array: array.view(np.recarray),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_equals_kolenas(kolena: Any, layout: str, dtype: Any) -> None:
    assert_equals_kolenas(kolena, LAYOUTS[layout](values((7, 11), dtype, seed=3)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_memory_mapped_file_equals_kolenas(kolena: Any, dtype: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "map.npy", values((7, 11), dtype))
    assert_equals_kolenas(kolena, np.load(tmp_path / "map.npy", mmap_mode="r"))


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matrix_is_colorized_like_an_array(dtype: Any) -> None:
    # Kolena's result can differ: a matrix times a number is a float64 matrix, so Kolena quantizes it in float64.
    array = values((7, 11), dtype)
    np.testing.assert_array_equal(colorize_activation_map(np.matrix(array)), colorize_activation_map(array))


def test_the_pixels_are_a_new_writable_array() -> None:
    array = values((5, 6), np.float32)
    pixels = colorize_activation_map(array)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert pixels.flags.owndata
    assert not np.shares_memory(pixels, array)


def test_every_pixel_of_a_large_map_is_right() -> None:
    array = values((1_000, 1_003), np.float32)
    table = color_table(ColormapJet())
    np.testing.assert_array_equal(colorize_activation_map(array), table[np.rint(array * 255).astype(np.uint8)])


# Colormaps


def subclasses(base: Any) -> list[Any]:
    """Return subclasses of Kolena's or our Colormap, as a user may write them."""

    class Numbers(base):  # type: ignore[misc]
        def red(self, intensity: np.uint8) -> Any:
            return int(intensity)

        def green(self, intensity: np.uint8) -> Any:
            return 255 - intensity

        def blue(self, intensity: np.uint8) -> Any:
            return np.float32(intensity) / 3

    class FloatAlpha(Numbers):
        def alpha(self, intensity: np.uint8) -> Any:
            return float(intensity) * 0.9999

    class OwnColorize(Numbers):
        def colorize(self, intensity: np.uint8) -> Any:
            return np.array([0.75 + float(intensity) / 2, float(intensity), 254.999, 0.999])

    class OwnIntegers(Numbers):
        def colorize(self, intensity: np.uint8) -> Any:
            return np.array([int(intensity), 1, 2, 255 - int(intensity)])

    class Interpolating(Numbers):
        def red(self, intensity: np.uint8) -> Any:
            return self._interpolate(float(intensity), 0.0, 0.0, 255.0, 77.0)

    return [Numbers, FloatAlpha, OwnColorize, OwnIntegers, Interpolating]


@pytest.mark.parametrize("fade", [True, False])
@pytest.mark.parametrize("index", range(5))
def test_a_custom_colormap_equals_kolenas(kolena: Any, index: int, fade: bool) -> None:
    array = np.arange(256, dtype=np.uint8).reshape(8, 32)
    theirs = subclasses(kolena.Colormap)[index](fade)
    assert_equals_kolenas(kolena, array, colormap=theirs, theirs=theirs)
    assert_equals_kolenas(kolena, array, colormap=subclasses(Colormap)[index](fade), theirs=theirs)


def test_a_subclass_of_jet_equals_kolenas(kolena: Any) -> None:
    def inverted(base: Any) -> Any:
        class Inverted(base):  # type: ignore[misc]
            def red(self, intensity: np.uint8) -> Any:
                return super().blue(intensity)

            def alpha(self, intensity: np.uint8) -> Any:
                return super().alpha(np.uint8(255 - intensity))

        return Inverted()

    array = np.arange(256, dtype=np.uint8).reshape(8, 32)
    theirs = inverted(kolena.ColormapJet)
    assert_equals_kolenas(kolena, array, colormap=theirs, theirs=theirs)
    assert_equals_kolenas(kolena, array, colormap=inverted(ColormapJet), theirs=theirs)


@pytest.mark.parametrize("fade", [True, False])
def test_our_colormap_works_in_kolenas_function_and_theirs_in_ours(kolena: Any, fade: bool) -> None:
    array = np.arange(256, dtype=np.uint8).reshape(8, 32)
    assert_equals_kolenas(kolena, array, colormap=kolena.ColormapJet(fade), theirs=ColormapJet(fade))


def test_a_changed_colormap_changes_the_colors() -> None:
    array = values((3, 4), np.uint8)
    colormap = ColormapJet()
    faded = colorize_activation_map(array, colormap)
    colormap.fade_low_activation = False
    opaque = colorize_activation_map(array, colormap)
    assert (opaque[..., 3] == 255).all()
    assert not (faded[..., 3] == 255).any()


def test_a_colormap_without_colorize_is_refused() -> None:
    with pytest.raises(InputValidationError, match="a colormap must have a method colorize"):
        colorize_activation_map(np.zeros((2, 2)), "jet")  # type: ignore[arg-type]


# Bad input


def with_value(value: Any, dtype: Any = np.float32, shape: tuple[int, ...] = (3, 4)) -> NDArray[Any]:
    """Return a good map with one bad value at row 1, column 2."""
    array = np.full(shape, 0.5, dtype)
    array[1, 2] = value
    return array


BAD_SHAPES: dict[str, tuple[NDArray[Any], str]] = {
    "empty": (np.zeros((0,)), r"is empty: its shape is \(0,\)"),
    "no rows": (np.zeros((0, 5), np.uint8), r"is empty: its shape is \(0, 5\)"),
    "no columns": (np.zeros((5, 0)), r"is empty: its shape is \(5, 0\)"),
    "no channels": (np.zeros((4, 5, 0)), r"is empty: its shape is \(4, 5, 0\)"),
    "0-d": (np.array(0.5), r"must have the shape \(h, w\) or \(h, w, 1\); found \(\)"),
    "1-d": (np.zeros(5), r"must have the shape \(h, w\) or \(h, w, 1\); found \(5,\)"),
    "4-d": (np.zeros((1, 4, 5, 1)), r"found \(1, 4, 5, 1\)"),
    "two channels": (np.zeros((4, 5, 2)), r"found \(4, 5, 2\)"),
    "RGB": (np.zeros((4, 5, 3), np.uint8), r"found \(4, 5, 3\)"),
    "RGBA": (np.zeros((4, 5, 4), np.float16), r"found \(4, 5, 4\)"),
    "channels first": (np.zeros((1, 4, 5)), r"found \(1, 4, 5\)"),
}
BAD_DTYPES: list[Any] = [
    "?",
    *["i1", "i2", "i4", "i8", "u2", "u4", "u8"],
    *["c8", "c16", "O", "U3", "S3", "M8[s]", "m8[s]", "V4"],
    [("value", "f4")],
    [("a", "u1"), ("b", "f8")],
]
BAD_VALUES: dict[str, tuple[NDArray[Any], str]] = {
    **{f"NaN, {dtype.__name__}": (with_value(np.nan, dtype), "found NaN") for dtype in FLOATS},
    **{f"inf, {dtype.__name__}": (with_value(np.inf, dtype), "found inf") for dtype in FLOATS},
    **{f"-inf, {dtype.__name__}": (with_value(-np.inf, dtype), "found -inf") for dtype in FLOATS},
    **{
        f"just above 1, {dtype.__name__}": (with_value(np.nextafter(dtype(1), dtype(2)), dtype), r"found 1\.0*[1-9]")
        for dtype in FLOATS
    },
    **{
        f"just below 0, {dtype.__name__}": (with_value(np.nextafter(dtype(0), dtype(-1)), dtype), "found -[1-9].*e-")
        for dtype in FLOATS
    },
    "far out": (with_value(255, np.float64), r"found 255\.0"),
    "NaN, big-endian": (with_value(np.nan, np.dtype(">f4")), "found NaN"),
    "above 1, big-endian": (with_value(1.5, np.dtype(">f8")), r"found 1\.5"),
    "NaN, Fortran order": (np.asfortranarray(with_value(np.nan)), "found NaN"),
    "NaN, strided": (np.repeat(with_value(np.nan, np.float16), 2, 1)[:, ::2], "found NaN"),
    "NaN with another sign and payload": (
        np.where(np.arange(12).reshape(3, 4) == 6, np.uint32(0xFFC0_0001), np.uint32(0)).view(np.float32),
        "found NaN",
    ),
}


def assert_refused_by_both(kolena: Any, array: Any) -> None:
    with pytest.raises(sys.modules["kolena.errors"].InputValidationError):
        kolena.colorize_activation_map(array)
    with pytest.raises(InputValidationError) as caught:
        colorize_activation_map(array)
    assert isinstance(caught.value, AsyncMapsError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("case", BAD_SHAPES)
def test_both_refuse_a_bad_shape(kolena: Any, case: str) -> None:
    assert_refused_by_both(kolena, BAD_SHAPES[case][0])


@pytest.mark.parametrize("case", BAD_SHAPES)
def test_a_bad_shape_is_named(case: str) -> None:
    array, message = BAD_SHAPES[case]
    with pytest.raises(InputValidationError, match=message):
        colorize_activation_map(array)


@pytest.mark.parametrize("dtype", BAD_DTYPES, ids=str)
def test_both_refuse_a_bad_dtype(kolena: Any, dtype: Any) -> None:
    assert_refused_by_both(kolena, np.zeros((2, 3), dtype))


@pytest.mark.parametrize("dtype", BAD_DTYPES, ids=str)
def test_a_bad_dtype_is_named(dtype: Any) -> None:
    array = np.zeros((2, 3), dtype)
    with pytest.raises(InputValidationError, match=r"activation map must be .*; found") as caught:
        colorize_activation_map(array)
    assert f"found {array.dtype}" in str(caught.value)


@pytest.mark.parametrize("case", BAD_VALUES)
def test_both_refuse_a_bad_value(kolena: Any, case: str) -> None:
    assert_refused_by_both(kolena, BAD_VALUES[case][0])


@pytest.mark.parametrize("case", BAD_VALUES)
def test_a_bad_value_is_named_with_its_index(case: str) -> None:
    array, message = BAD_VALUES[case]
    expected = (
        rf"every value must lie in \[0, 1\]; {message}.* at index \(1, 2\) \(NaN or out of range: 1 of 12 values\)"
    )
    with pytest.raises(InputValidationError, match=expected):
        colorize_activation_map(array)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_first_bad_value_in_row_order_is_named(dtype: Any, order: Any) -> None:
    array = np.full((1_000, 3), 0.5, dtype, order=order)
    array[2, 0], array[1, 2], array[2:, 1:] = np.nan, -0.25, 7
    expected = r"found -0\.25 at index \(1, 2\) \(NaN or out of range: 1,998 of 3,000 values"
    with pytest.raises(InputValidationError, match=expected):
        colorize_activation_map(array)


def test_the_index_has_the_dimensions_of_the_array() -> None:
    with pytest.raises(
        InputValidationError, match=r"found NaN at index \(1, 2, 0\) \(NaN or out of range: 1 of 12 values"
    ):
        colorize_activation_map(with_value(np.nan)[..., np.newaxis])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("position", [0, 1, 30, 63, 64, 65, 511, 1_022])
@pytest.mark.parametrize("others", [0, 0.5, 1])
def test_one_bad_value_is_found_at_any_position(dtype: Any, position: int, others: float) -> None:
    array = np.full((1, 1_023), others, dtype)
    array[0, position] = np.nan
    with pytest.raises(InputValidationError, match=rf"found NaN at index \(0, {position}\)"):
        colorize_activation_map(array)


def test_a_refused_array_is_not_changed() -> None:
    array = with_value(np.nan)
    before = array.tobytes()
    with pytest.raises(InputValidationError):
        colorize_activation_map(array)
    assert array.tobytes() == before


@pytest.mark.parametrize(
    "what", [[[0.5]], 0.5, None, "map.npy", b"\0", memoryview(b"\0")], ids=lambda what: type(what).__name__
)
def test_the_type_of_a_non_array_is_named(what: Any) -> None:
    with pytest.raises(InputValidationError, match=f"must be a NumPy array; found {type(what).__name__}"):
        colorize_activation_map(what)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_masked_array_is_refused(dtype: Any) -> None:
    array = np.ma.masked_array(values((2, 3), dtype), mask=[[False, False, True], [False] * 3])
    with pytest.raises(InputValidationError, match="masked array: call its method filled"):
        colorize_activation_map(array)
    assert colorize_activation_map(array.filled(0)).shape == (2, 3, 4)


# The parts that the workers use


def test_the_signature_equals_kolenas(kolena: Any) -> None:
    ours = inspect.signature(colorize_activation_map).parameters
    theirs = inspect.signature(kolena.colorize_activation_map).parameters
    assert list(ours) == list(theirs)
    assert [each.kind for each in ours.values()] == [each.kind for each in theirs.values()]
    assert type(ours["colormap"].default).__name__ == type(theirs["colormap"].default).__name__
    assert ours["colormap"].default.fade_low_activation is theirs["colormap"].default.fade_low_activation is True
    assert ours["activation_map"].default is theirs["activation_map"].default is inspect.Parameter.empty


def test_map_shape_does_not_check_values() -> None:
    assert map_shape(np.full((3, 5, 1), np.nan)) == (3, 5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantize_and_look_up_write_only_to_the_given_memory(dtype: Any) -> None:
    array = values((5, 6), dtype)
    memory = np.full(5 * 6 * 5 + 64, 99, np.uint8)
    plane, pixels = memory[:30].reshape(5, 6), memory[32:152].reshape(5, 6, 4)
    table = color_table(ColormapJet())
    quantize(array, plane)
    look_up(plane, table, pixels)
    np.testing.assert_array_equal(pixels, colorize_activation_map(array))
    assert (memory[30:32] == 99).all()
    assert (memory[152:] == 99).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_kernel_gets_aligned_contiguous_native_values(
    monkeypatch: pytest.MonkeyPatch, layout: str, dtype: Any
) -> None:
    name = f"quantize_{np.dtype(dtype).name}"
    kernel, seen = getattr(kernels, name), []

    def spy(values: NDArray[Any], *others: NDArray[Any]) -> bool:
        seen.append(values)
        return bool(kernel(values, *others))

    monkeypatch.setattr(kernels, name, spy)
    array = LAYOUTS[layout](values((7, 11), dtype))
    quantize(array, np.empty(array.shape[:2], np.uint8))
    (given,) = seen
    assert type(given) is np.ndarray
    assert given.ndim == 1
    assert given.dtype.isnative
    assert given.flags.c_contiguous
    assert given.flags.aligned
