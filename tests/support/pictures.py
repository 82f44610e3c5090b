"""Pictures of maps, and overlays."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from async_maps.render.png import write_palette
from async_maps.settings import Settings
from tests.support.maps import MAP


def gray_png() -> bytes:
    """Return a map as a gray PNG."""
    file = io.BytesIO()
    Image.fromarray((MAP * 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def overlay() -> bytes:
    """Return an overlay of the default kind."""
    return write_palette(np.zeros(15, np.uint8), (3, 4), Settings().table(), 1)
