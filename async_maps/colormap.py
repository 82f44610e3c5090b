"""Colormaps: how an intensity becomes a colour. Light (NumPy only), for any process and thread.

An intensity is one byte, so a colormap, whatever it computes, is a table of 256 RGBA rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from async_maps.errors import InputValidationError, SettingsError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Colormap(ABC):
    """Maps a pixel's intensity to RGBA: a drop-in for ``kolena.workflow.visualization.Colormap``.

    Args:
        fade_low_activation: let low activations fade out (their alpha goes to zero), so that the overlay shows the
            important regions only; otherwise every pixel is opaque.
    """

    fade_low_activation: bool

    def __init__(self, fade_low_activation: bool = True) -> None:
        self.fade_low_activation = fade_low_activation

    @abstractmethod
    def red(self, intensity: np.uint8) -> Any:
        """The intensity's red, 0 to 255."""

    @abstractmethod
    def green(self, intensity: np.uint8) -> Any:
        """The intensity's green, 0 to 255."""

    @abstractmethod
    def blue(self, intensity: np.uint8) -> Any:
        """The intensity's blue, 0 to 255."""

    def alpha(self, intensity: np.uint8) -> Any:
        """The intensity's alpha: the logistic curve ``255 / (1 + exp((127.5 - i) / 8))`` with fade, else 255.

        Returns:
            a float with fade; :meth:`colorize` truncates it, as Kolena does, so the curve ends at 254.
        """
        if self.fade_low_activation:
            return 255 / (1 + np.exp((255 / 2 - intensity) / 8))
        return np.uint8(255)

    def colorize(self, intensity: np.uint8) -> NDArray[np.uint8]:
        """The intensity's colour: (4,) uint8, RGBA, fractions truncated."""
        return np.array(
            [self.red(intensity), self.green(intensity), self.blue(intensity), self.alpha(intensity)], dtype=np.uint8
        )

    def _interpolate(self, intensity: float, x0: float, y0: float, x1: float, y1: float) -> np.uint8:
        return np.uint8(round((intensity - x0) * (y1 - y0) / (x1 - x0) + y0))


class ColormapJet(Colormap):
    """MATLAB's "jet", from dark blue over cyan, yellow and red to dark red, exactly as Kolena computes it.

    Each channel is one trapezoid ``t``: 0 up to 255/8, rising to 255 at 3*255/8, 255 up to 5*255/8, falling to 0 at
    7*255/8, then 0. Red is ``t(i - 63.75)``, green ``t(i)``, blue ``t(i + 63.75)``.
    """

    def red(self, intensity: np.uint8) -> np.uint8:
        """The intensity's red, 0 to 255."""
        return self._trapezoid(float(intensity) - 255 / 4)

    def green(self, intensity: np.uint8) -> np.uint8:
        """The intensity's green, 0 to 255."""
        return self._trapezoid(float(intensity))

    def blue(self, intensity: np.uint8) -> np.uint8:
        """The intensity's blue, 0 to 255."""
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
    """Any colormap: ours, Kolena's, or a user's subclass of either."""

    def colorize(self, intensity: np.uint8) -> Any:
        """The intensity's colour: four values, RGBA."""


def color_table(colormap: SupportsColorize) -> NDArray[np.uint8]:
    """The colormap as a table.

    Args:
        colormap: asked for each of the 256 intensities, as an ``np.uint8``.

    Returns:
        (256, 4) uint8, RGBA.

    Raises:
        InputValidationError: it has no ``colorize``, or a colour that is not four values.
    """
    if not callable(getattr(colormap, "colorize", None)):
        raise InputValidationError(f"a colormap must have a method colorize(intensity); found {colormap!r}")
    table = np.empty((256, 4), np.uint8)
    for intensity in range(256):
        color = np.asarray(colormap.colorize(np.uint8(intensity)))
        if color.shape != (4,):
            raise InputValidationError(
                f"{type(colormap).__name__}.colorize({intensity}) must return 4 values, RGBA; found {color.shape}"
            )
        table[intensity] = color.astype(np.uint8)
    return table


NAMED: dict[str, type[Colormap]] = {"jet": ColormapJet}
"""The colormaps that settings can name."""


def named_colormap(name: str, *, fade: bool) -> Colormap:
    """The colormap of that name.

    Raises:
        SettingsError: there is none.
    """
    try:
        return NAMED[name](fade)
    except KeyError:
        raise SettingsError(f"unknown colormap {name!r}; known: {', '.join(NAMED)}") from None
