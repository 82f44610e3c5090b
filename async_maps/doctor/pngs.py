"""The PNGs that are written to see what becomes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from async_maps.render.png import encode_png

if TYPE_CHECKING:
    from async_maps.settings import Settings

_NOISE_SIDE = 310


def tiny_png(settings: Settings, *, turned: bool = False) -> bytes:
    """A PNG of a few hundred bytes with all colors of the settings; turned, it has other bytes."""
    square = np.arange(256, dtype=np.uint8).reshape(16, 16)
    # With Pillow: our own writers would compile their kernels first, where nobody has yet.
    return encode_png(settings.table()[square.T if turned else square], "RGBA").getvalue()


def overlay_sized_png() -> bytes:
    """A PNG of noise, of the size of a common overlay: about 96 KB."""
    noise = np.random.default_rng(0).integers(0, 256, (_NOISE_SIDE, _NOISE_SIDE), np.uint8)
    return encode_png(noise, "L").getvalue()
