"""Pictures of maps, and overlays."""

from __future__ import annotations

import io
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
from PIL import Image

from async_maps.render.png import deflate, write_palette
from async_maps.settings import Settings
from tests.support.maps import MAP

if TYPE_CHECKING:
    from pathlib import Path


def gray_png() -> bytes:
    """Return a map as a gray PNG."""
    file = io.BytesIO()
    Image.fromarray((MAP * 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def overlay() -> bytes:
    """Return an overlay of the default kind."""
    return write_palette(deflate(np.zeros(15, np.uint8), 1), (3, 4), Settings().table())


def run_advice(reason: str, path: Path, new_path: Path) -> None:
    """Run the Python at the end of a reason."""
    scope = {"PIL": PIL, "numpy": np, "path": path, "new_path": new_path}
    if "tifffile" in reason:
        scope["tifffile"] = import_module("tifffile")
    exec(reason.rpartition(" run ")[2], scope)  # noqa: S102  # our own message
