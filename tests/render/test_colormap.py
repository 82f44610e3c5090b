from __future__ import annotations

import hashlib
import inspect
import logging
from typing import TYPE_CHECKING, Any

import cmap
import numpy as np
import pytest

from async_maps.errors import AsyncMapsError, InputValidationError, SettingsError
from async_maps.render.colormap import Colormap, ColormapJet, color_table, colormap_table, describe_colormap
from tests.support.installed import kolena_client

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

pytestmark = pytest.mark.fast

INTENSITIES = np.arange(256, dtype=np.uint8)

# From Kolena 1.69.0: its client cannot be installed on Python 3.13 and later.
POINTS = {
    0: (0, 0, 128, 0),
    32: (0, 0, 255, 0),
    95: (0, 252, 255, 4),
    128: (130, 255, 126, 131),
    160: (255, 252, 0, 250),
    223: (255, 0, 0, 254),
    255: (128, 0, 0, 254),
}
TABLES = {
    True: "bb240cbcb5cc4df8fdab31938d87a38994d606e7524835c2fb45523bbd009516",
    False: "3bf784648d68817bb2318ebef3080619f86687a836e7a9ab0bf392960fcd1403",
}


@pytest.fixture(scope="module")
def kolena() -> Any:
    """Kolena's client, which our functions replace."""
    return kolena_client("kolena.workflow.visualization")


class Ramp(Colormap):
    """A user's colormap with the three methods it must have."""

    def red(self, intensity: np.uint8) -> int:
        return int(intensity)

    def green(self, intensity: np.uint8) -> float:
        return 0.999 * int(intensity)

    def blue(self, intensity: np.uint8) -> np.uint8:
        return np.uint8(255 - intensity)


@pytest.mark.parametrize("fade", [True, False])
def test_every_color_equals_kolenas(kolena: Any, fade: bool) -> None:
    theirs, ours = kolena.ColormapJet(fade), ColormapJet(fade)
    expected = np.array([theirs.colorize(intensity) for intensity in INTENSITIES])
    np.testing.assert_array_equal(color_table(ours), expected)
    np.testing.assert_array_equal(np.array([ours.colorize(intensity) for intensity in INTENSITIES]), expected)


@pytest.mark.parametrize("channel", ["red", "green", "blue", "alpha"])
@pytest.mark.parametrize("fade", [True, False])
def test_every_channel_equals_kolenas_before_truncation(kolena: Any, channel: str, fade: bool) -> None:
    theirs, ours = getattr(kolena.ColormapJet(fade), channel), getattr(ColormapJet(fade), channel)
    for intensity in INTENSITIES:
        assert ours(intensity) == theirs(intensity)
        assert type(ours(intensity)) is type(theirs(intensity))


@pytest.mark.parametrize(("intensity", "color"), POINTS.items())
def test_known_colors_have_the_fade(intensity: int, color: tuple[int, ...]) -> None:
    assert tuple(ColormapJet().colorize(np.uint8(intensity))) == color
    assert tuple(color_table(ColormapJet())[intensity]) == color


@pytest.mark.parametrize(("intensity", "color"), POINTS.items())
def test_known_colors_without_fade_are_the_same_and_opaque(intensity: int, color: tuple[int, ...]) -> None:
    assert tuple(color_table(ColormapJet(fade_low_activation=False))[intensity]) == (*color[:3], 255)


@pytest.mark.parametrize("fade", [True, False])
def test_the_table_has_a_known_checksum(fade: bool) -> None:
    assert hashlib.sha256(color_table(ColormapJet(fade)).tobytes()).hexdigest() == TABLES[fade]


def test_the_fade_ends_at_254() -> None:
    alpha = color_table(ColormapJet())[:, 3]
    assert alpha.max() == 254
    assert (alpha[:84] == 0).all()
    assert alpha[84] == 1
    assert (np.diff(alpha.astype(int)) >= 0).all()


def test_a_color_table_is_256_rows_of_rgba_bytes() -> None:
    table = color_table(ColormapJet())
    assert table.shape == (256, 4)
    assert table.dtype == np.uint8
    assert table.flags.c_contiguous


@pytest.mark.parametrize("name", ["Colormap", "ColormapJet"])
@pytest.mark.parametrize("method", ["__init__", "red", "green", "blue", "alpha", "colorize", "_interpolate"])
def test_signatures_equal_kolenas(kolena: Any, name: str, method: str) -> None:
    def parameters(function: Callable[..., Any]) -> list[tuple[str, object, object]]:
        return [(each.name, each.kind, each.default) for each in inspect.signature(function).parameters.values()]

    ours, theirs = {"Colormap": Colormap, "ColormapJet": ColormapJet}[name], getattr(kolena, name)
    assert parameters(getattr(ours, method)) == parameters(getattr(theirs, method))


def test_public_methods_equal_kolenas(kolena: Any) -> None:
    def public(colormap: type) -> set[str]:
        return {name for name in dir(colormap) if not name.startswith("_")}

    assert public(ColormapJet) == public(kolena.ColormapJet)
    assert Colormap.__abstractmethods__ == kolena.Colormap.__abstractmethods__


def test_a_colormap_without_channels_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Colormap()  # type: ignore[abstract]


def test_a_subclass_inherits_the_fade_and_the_truncation() -> None:
    table = color_table(Ramp())
    np.testing.assert_array_equal(table[:, 0], INTENSITIES)
    np.testing.assert_array_equal(table[:, 1], (0.999 * np.arange(256)).astype(np.uint8))
    np.testing.assert_array_equal(table[:, 2], INTENSITIES[::-1])
    np.testing.assert_array_equal(table[:, 3], color_table(ColormapJet())[:, 3])
    assert (color_table(Ramp(fade_low_activation=False))[:, 3] == 255).all()


def test_colorize_is_called_once_per_intensity_in_order() -> None:
    asked: list[np.uint8] = []

    class Listening(Ramp):
        def colorize(self, intensity: np.uint8) -> NDArray[np.uint8]:
            asked.append(intensity)
            return super().colorize(intensity)

    color_table(Listening())
    assert all(type(intensity) is np.uint8 for intensity in asked)
    assert asked == list(range(256))


@pytest.mark.parametrize("color", [(1, 2, 3, 4), [1.9, 2.0, 3.5, 4.999], np.array([1, 2, 3, 4], np.int64)])
def test_any_four_numbers_are_a_color(color: Any) -> None:
    class Constant:
        def colorize(self, intensity: np.uint8) -> Any:
            return color

    assert (color_table(Constant()) == [1, 2, 3, 4]).all()


@pytest.mark.parametrize("color", [(1, 2, 3), (1, 2, 3, 4, 5), 7, [[1, 2, 3, 4]], (), None])
def test_a_color_of_another_shape_is_refused(color: Any) -> None:
    class Wrong:
        def colorize(self, intensity: np.uint8) -> Any:
            return color

    with pytest.raises(InputValidationError, match=r"Wrong\.colorize\(0\) must return 4 values, RGBA; found \("):
        color_table(Wrong())


@pytest.mark.parametrize("colormap", ["jet", None, 3, lambda intensity: (0, 0, 0, 0)])
def test_an_object_without_colorize_is_refused(colormap: Any) -> None:
    with pytest.raises(InputValidationError, match="a colormap must have a method colorize"):
        color_table(colormap)


# Colormaps in settings


FADE = color_table(ColormapJet())[:, 3]


def test_jet_equals_kolenas_and_jet_r_keeps_the_fade() -> None:
    jet = color_table(ColormapJet())
    np.testing.assert_array_equal(colormap_table("jet"), jet)
    np.testing.assert_array_equal(colormap_table("jet_r")[:, :3], jet[::-1, :3])
    np.testing.assert_array_equal(colormap_table("jet_r")[:, 3], FADE)


@pytest.mark.parametrize(
    "name", ["viridis", "magma_r", "RdBu_r", "coolwarm", "fire", "matlab:jet", "tab10", "cubehelix"]
)
def test_names_of_the_cmap_package_are_known(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    table = colormap_table(name)
    logging.disable()
    theirs = cmap.Colormap(name)(np.linspace(0, 1, 256))
    logging.disable(logging.NOTSET)
    np.testing.assert_array_equal(table[:, :3], np.rint(np.asarray(theirs) * 255)[:, :3])
    np.testing.assert_array_equal(table[:, 3], FADE)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("alpha", "expected"), [("fade", FADE), ("opaque", 255), (0, 0), (0.5, 128), (1, 255), ("auto", FADE)]
)
def test_alpha_applies_to_any_colormap(alpha: Any, expected: Any) -> None:
    for colormap in ("jet", "viridis", "red,blue"):
        assert (colormap_table(colormap, alpha)[:, 3] == expected).all()


def test_listed_colors_are_evenly_spaced_and_keep_their_alpha() -> None:
    table = colormap_table(describe_colormap(["#0000ff", (255, 255, 255, 0.0), "red"]))
    assert table[0].tolist() == [0, 0, 255, 255]
    assert table[-1].tolist() == [255, 0, 0, 255]
    assert 0 <= table[127, 3] <= 1
    assert 0 <= table[128, 3] <= 1
    assert (np.diff(table[:128, 3].astype(int)) <= 0).all()
    assert (colormap_table("red,blue")[:, 3] == FADE).all()
    assert colormap_table("#ff0000").tolist() == [[255, 0, 0, alpha] for alpha in FADE]
    assert (colormap_table("#0000ff,#ff000080", "fade")[:, 3] == FADE).all()


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_an_array_is_the_color_table(channels: int, kind: Any) -> None:
    table = np.random.default_rng(channels).integers(0, 256, (256, channels), np.uint8)
    given = table if kind is np.uint8 else (table / 255).astype(kind)
    found = colormap_table(describe_colormap(given))
    np.testing.assert_array_equal(found[:, :channels], table)
    if channels == 3:
        np.testing.assert_array_equal(found[:, 3], FADE)


@pytest.mark.parametrize("fade", [True, False])
def test_a_described_object_keeps_its_colors(fade: bool) -> None:
    class Own(ColormapJet):
        def blue(self, intensity: np.uint8) -> np.uint8:
            return np.uint8(intensity // 2)

    for colormap in (ColormapJet(fade), Own(fade)):
        np.testing.assert_array_equal(colormap_table(describe_colormap(colormap)), color_table(colormap))


def test_describing_a_description_changes_nothing() -> None:
    for colormap in ("viridis_r", "red, #00f", ColormapJet(), ["black", "white"], np.zeros((256, 4), np.uint8)):
        text = describe_colormap(colormap)
        assert describe_colormap(text) == text


@pytest.mark.parametrize(
    ("colormap", "sentence"),
    [
        (
            "virdis",
            r"unknown colormap 'virdis'; similar names: viridis, .*; expected jet or a name of the cmap pack",
        ),
        ("jett", "similar names: jet"),
        ("", "unknown colormap ''"),
        ("viridis_r_r", "unknown colormap 'viridis_r_r'"),
        ("red,,blue", "'' is not a color"),
        ([], "a colormap must be a name, a list of colors, .*; found list"),
        (None, "found NoneType"),
        (np.zeros((255, 3)), r"must have the shape \(256, 3\) or \(256, 4\); found \(255, 3\)"),
        (np.full((256, 3), 2.0), r"must be uint8, or float in \[0, 1\]; found float64"),
        (np.zeros((256, 3), int), r"must be uint8, or float in \[0, 1\]; found int64"),
    ],
)
def test_an_invalid_colormap_is_refused_with_a_reason(colormap: Any, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence) as caught:
        describe_colormap(colormap)
    assert isinstance(caught.value, AsyncMapsError)
    assert isinstance(caught.value, ValueError)
