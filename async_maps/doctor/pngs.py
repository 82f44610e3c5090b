"""The PNGs that the checks write."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from async_maps.render.png import encode_png

if TYPE_CHECKING:
    from async_maps.settings import Settings

_NOISE_SIDE = 310


def tiny_png(settings: Settings, *, turned: bool = False) -> bytes:
    """Return a PNG of a few hundred bytes with all colors of the settings; ``turned`` changes its bytes."""
    square = np.arange(256, dtype=np.uint8).reshape(16, 16)
    # By Pillow, because our own writers may have to compile their kernels first.
    return encode_png(settings.table()[square.T if turned else square], "RGBA").getvalue()


def overlay_sized_png() -> bytes:
    """Return a PNG of noise with the size of a typical overlay, about 96 KB."""
    noise = np.random.default_rng(0).integers(0, 256, (_NOISE_SIDE, _NOISE_SIDE), np.uint8)
    return encode_png(noise, "L").getvalue()
