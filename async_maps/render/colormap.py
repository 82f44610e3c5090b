"""Colormaps. An intensity is one byte, so every colormap is a table of 256 RGBA rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast

import numpy as np

from async_maps.errors import InputValidationError, SettingsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INTENSITIES = 256

Alpha: TypeAlias = Literal["auto", "fade", "opaque"] | float
"""The opacity of a colormap; see :func:`colormap_table`."""


class Colormap(ABC):
    """Maps an intensity to a color; a drop-in replacement for ``kolena.workflow.visualization.Colormap``.

    A subclass defines ``red``, ``green`` and ``blue``. ``colorize`` is called 256 times, once for each intensity.

    Args:
        fade_low_activation: whether low intensities are transparent (see :meth:`alpha`), so that the overlay shows only
            the important regions. If false, every pixel is opaque.
    """

    fade_low_activation: bool

    def __init__(self, fade_low_activation: bool = True) -> None:
        self.fade_low_activation = fade_low_activation

    @abstractmethod
    def red(self, intensity: np.uint8) -> Any:
        """Return the red of an intensity, 0 to 255.

        Args:
            intensity: 0 to 255.
        """

    @abstractmethod
    def green(self, intensity: np.uint8) -> Any:
        """Return the green of an intensity, 0 to 255.

        Args:
            intensity: 0 to 255.
        """

    @abstractmethod
    def blue(self, intensity: np.uint8) -> Any:
        """Return the blue of an intensity, 0 to 255.

        Args:
            intensity: 0 to 255.
        """

    def alpha(self, intensity: np.uint8) -> Any:
        """Return the opacity of an intensity.

        With ``fade_low_activation`` it is the logistic curve of Kolena's ``Colormap.alpha`` (kolena 1.69.0):
        ``255 / (1 + exp((127.5 - intensity) / 8))``. Its maximum is 254, because :meth:`colorize` truncates it.

        Args:
            intensity: 0 to 255.

        Returns:
            A number, 0 to 255; 255 without ``fade_low_activation``.
        """
        if self.fade_low_activation:
            return 255 / (1 + np.exp((255 / 2 - intensity) / 8))
        return np.uint8(255)

    def colorize(self, intensity: np.uint8) -> NDArray[np.uint8]:
        """Return the color of an intensity: (4,) uint8, RGBA, with fractions truncated.

        Args:
            intensity: 0 to 255.
        """
        return np.array(
            [self.red(intensity), self.green(intensity), self.blue(intensity), self.alpha(intensity)], dtype=np.uint8
        )

    def _interpolate(self, intensity: float, x0: float, y0: float, x1: float, y1: float) -> np.uint8:
        return np.uint8(round((intensity - x0) * (y1 - y0) / (x1 - x0) + y0))


class ColormapJet(Colormap):
    """MATLAB's "jet", from dark blue over cyan, yellow and red to dark red, exactly as Kolena computes it.

    Each channel is the trapezoid ``t``: 0 up to 255/8, a line up to 255 at 3*255/8, 255 up to 5*255/8, a line down to 0
    at 7*255/8, then 0. Red is ``t(i - 63.75)``, green ``t(i)`` and blue ``t(i + 63.75)``, rounded by Python's ``round``
    (``kolena.workflow.visualization.ColormapJet``, kolena 1.69.0).

    Args:
        fade_low_activation: as for :class:`Colormap`.
    """

    def red(self, intensity: np.uint8) -> np.uint8:  # noqa: D102  # inherited, as the next two
        return self._trapezoid(float(intensity) - 255 / 4)

    def green(self, intensity: np.uint8) -> np.uint8:  # noqa: D102
        return self._trapezoid(float(intensity))

    def blue(self, intensity: np.uint8) -> np.uint8:  # noqa: D102
        return self._trapezoid(float(intensity) + 255 / 4)

    def _trapezoid(self, x: float) -> np.uint8:
        eighth = 255 / 8
        if eighth < x <= 3 * eighth:
            return self._interpolate(x, eighth, 0.0, 3 * eighth, 255.0)
        if 3 * eighth < x <= 5 * eighth:
            return np.uint8(255)
        if 5 * eighth < x <= 7 * eighth:
            return self._interpolate(x, 5 * eighth, 255.0, 7 * eighth, 0.0)
        return np.uint8(0)


class SupportsColorize(Protocol):
    """Any colormap object: ours, Kolena's, or a subclass of either."""

    def colorize(self, intensity: np.uint8) -> Any:
        """Return the color of an intensity: four values, RGBA."""


def color_table(colormap: SupportsColorize) -> NDArray[np.uint8]:
    """Call ``colorize`` with each intensity, an ``np.uint8``, and return the colors as a table.

    Returns:
        (256, 4) uint8, RGBA.

    Raises:
        InputValidationError: there is no method ``colorize``, or it does not return 4 values.
    """
    if not callable(getattr(colormap, "colorize", None)):
        raise InputValidationError(f"a colormap must have a method colorize(intensity); found {colormap!r}")
    if type(colormap) is ColormapJet and vars(colormap).keys() == {"fade_low_activation"}:
        # The 256 calls take longer than colorizing a map, and most runs use jet.
        return _jet_table(bool(colormap.fade_low_activation)).copy()
    return _tabulate(colormap)


@cache
def _jet_table(fade: bool) -> NDArray[np.uint8]:
    return _tabulate(ColormapJet(fade))


def _tabulate(colormap: SupportsColorize) -> NDArray[np.uint8]:
    if isinstance(colormap, type):
        raise InputValidationError(f"a colormap must be an object; found the class {colormap.__name__}: call it")
    table = np.empty((256, 4), np.uint8)
    for intensity in range(256):
        color = np.asarray(colormap.colorize(np.uint8(intensity)))
        if color.shape != (4,):
            raise InputValidationError(
                f"{type(colormap).__name__}.colorize({intensity}) must return 4 values, RGBA; found {color.shape}"
            )
        if not ((color >= 0) & (color <= 255)).all():
            raise InputValidationError(
                f"{type(colormap).__name__}.colorize({intensity}) must return values from 0 to 255; found {color}"
            )
        table[intensity] = color.astype(np.uint8)
    return table


AnyColormap: TypeAlias = (
    "str | SupportsColorize | NDArray[np.uint8] | NDArray[np.floating[Any]] | Sequence[str | Sequence[float]]"
)
"""A colormap in one of the forms that :func:`describe_colormap` accepts."""


def describe_colormap(colormap: object) -> str:
    """Return a colormap as text for settings: a name, or colors such as ``#000080,red,#ffff0080``.

    Args:
        colormap: a name; colors separated by commas; a list of colors, each a name, ``#rrggbb``, ``#rrggbbaa`` or
            RGB(A) values; a table, (256, 3) or (256, 4), uint8 or float in [0, 1]; or an object with
            ``colorize(intensity)``. A table or an object defines the color of each intensity. A list of colors is
            spread evenly over the intensities and interpolated.

    Raises:
        SettingsError: the colormap has another form.
    """
    if isinstance(colormap, str):
        text = colormap
    elif callable(getattr(colormap, "colorize", None)):
        text = _join(color_table(cast("SupportsColorize", colormap)))
    elif isinstance(colormap, np.ndarray):
        text = _join(_check_table(colormap))
    elif isinstance(colormap, Sequence) and colormap:
        text = ",".join(_hex(color) for color in colormap)
    else:
        raise SettingsError(
            "a colormap must be a name, a list of colors, a 256x3 or 256x4 array or an object with "
            f"colorize(intensity); found {type(colormap).__name__}"
        )
    _colors(text)
    return text


def colormap_table(colormap: str, alpha: Alpha = "auto") -> NDArray[np.uint8]:
    """Return the RGBA colors of a colormap.

    Args:
        colormap: a name or colors, as :func:`describe_colormap` returns them.
        alpha: the opacity. "fade" is Kolena's logistic curve; "opaque" is 1; a number is the opacity of every
            intensity, 0 to 1; "auto" is the alpha of the colors if any has one (``#rrggbbaa``), else "fade".

    Returns:
        (256, 4) uint8.

    Raises:
        SettingsError: there is no colormap or color of this name.
    """
    colors, stated = _colors(colormap)
    table = np.empty((_INTENSITIES, 4), np.uint8)
    table[:] = colors
    if alpha == "opaque":
        table[:, 3] = 255
    elif isinstance(alpha, float | int):
        table[:, 3] = round(alpha * 255)
    elif alpha == "fade" or not stated:
        table[:, 3] = color_table(ColormapJet())[:, 3]
    return table


def _colors(colormap: str) -> tuple[NDArray[np.uint8], bool]:
    """Return the colors, (256, 4) uint8, and whether any of them has an alpha."""
    name, reverse = colormap.removesuffix("_r"), colormap.endswith("_r")
    if name == "jet":
        # Kolena's, which differs from matplotlib's.
        table = color_table(ColormapJet())
        return (table[::-1] if reverse else table), False
    if "," in colormap or colormap.startswith("#"):
        colors = [_hex(color.strip()) for color in colormap.split(",")]
        return _spread(colors), any(len(color) == len("#rrggbbaa") for color in colors)
    import cmap

    catalog = cmap.Catalog()
    try:
        # Use the full name: cmap warns about ambiguous short names.
        known = cmap.Colormap(catalog.resolve(name) + "_r" * reverse)
    except (KeyError, ValueError):
        near = get_close_matches(colormap, list(dict.fromkeys(["jet", *catalog])))
        hint = f"; similar names: {', '.join(near)}" if near else ""
        raise SettingsError(
            f"unknown colormap {colormap!r}{hint}; expected jet or a name of the cmap package"
        ) from None
    return _bytes(known(np.linspace(0, 1, _INTENSITIES))), False


def _spread(colors: list[str]) -> NDArray[np.uint8]:
    import cmap

    values = np.array([tuple(cmap.Color(color)) for color in colors])
    places = np.linspace(0, 1, len(colors))
    wanted = np.linspace(0, 1, _INTENSITIES)
    return _bytes(np.stack([np.interp(wanted, places, channel) for channel in values.T], axis=-1))


def _bytes(colors: Any) -> NDArray[np.uint8]:
    shares: NDArray[np.float64] = np.asarray(colors, np.float64)
    return np.rint(shares * 255).astype(np.uint8)


def _hex(color: Any) -> str:
    import cmap

    try:
        parsed = cmap.Color(color)
    except (ValueError, TypeError):
        raise SettingsError(f"{color!r} is not a color; expected a name, #rrggbb, #rrggbbaa or RGB values") from None
    red, green, blue, alpha = (round(255 * share) for share in parsed)
    states = parsed.alpha < 1 or (len(color) in {5, 9} if isinstance(color, str) and color[:1] == "#" else False)
    return f"#{red:02x}{green:02x}{blue:02x}" + (f"{alpha:02x}" if states else "")


def _check_table(table: NDArray[Any]) -> NDArray[np.uint8]:
    if table.shape not in {(_INTENSITIES, 3), (_INTENSITIES, 4)}:
        raise SettingsError(f"a table of colors must have the shape (256, 3) or (256, 4); found {table.shape}")
    if table.dtype == np.uint8:
        return table
    if not np.issubdtype(table.dtype, np.floating) or not ((table >= 0) & (table <= 1)).all():
        raise SettingsError(f"a table of colors must be uint8, or float in [0, 1]; found {table.dtype}")
    return _bytes(table)


def _join(table: NDArray[np.uint8]) -> str:
    return ",".join(f"#{row.tobytes().hex()}" for row in table)
