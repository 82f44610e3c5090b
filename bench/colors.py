"""The README's picture: one map in six colormaps and in each kind of range, all made by ``async_maps.run``."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import async_maps as am
from async_maps.demo.saliency import spectral_residual
from async_maps.demo.scenes import scene

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_SCENE = 7
_WIDTH, _HEIGHT, _MARGIN, _LABEL = 236, 177, 6, 18
_COLORMAPS: tuple[dict[str, Any], ...] = (
    {"colormap": "jet"},
    {"colormap": "viridis"},
    {"colormap": "inferno"},
    {"colormap": "turbo"},
    {"colormap": "YlOrRd"},
    {"colormap": "#ff00ff00,#ff00ff"},
)
_DIVERGING: dict[str, Any] = {"colormap": "RdBu_r", "alpha": 0.65}
_RANGES: tuple[dict[str, Any], ...] = (
    {"range": "unit"},
    {"range": "0,2"},
    {"range": "per-map"},
    {"range": "percentile:50,99"},
    {"range": "symmetric", **_DIVERGING},
    {"range": "dataset", **_DIVERGING},
)


def overlay(folder: Path, maps: dict[str, NDArray[Any]], settings: dict[str, Any]) -> Image.Image:
    """Return the overlay of the first map, colorized in one run with the others."""
    out = folder / "-".join(str(value) for value in settings.values()).replace("/", "-")
    am.run(list(maps.items()), out, settings=am.Settings(workers=0, **settings))
    with Image.open(out / f"{next(iter(maps))}.png") as image:
        return image.convert("RGBA")


def main(arguments: Sequence[str]) -> None:
    """Run ``python -m bench colors``."""
    parser = argparse.ArgumentParser(prog="python -m bench colors", description=__doc__)
    parser.add_argument("file", type=Path, help="the picture to write")
    options = parser.parse_args(arguments)
    pixels = scene(_SCENE)
    saliency = spectral_residual(pixels)
    # Signed values of no fixed scale, as in attributions. Another map of the set is stronger.
    signed = (saliency - np.float32(0.3)) * 6
    every = {"map": signed, "stronger": signed * 1.6}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [
            [(settings["colormap"], overlay(folder, {"map": saliency}, settings)) for settings in _COLORMAPS],
            [
                (
                    settings["range"],
                    overlay(folder, {"map": saliency} if settings["range"] == "unit" else every, settings),
                )
                for settings in _RANGES
            ],
        ]
    sheet = Image.new("RGB", (6 * (_WIDTH + _MARGIN), 2 * (_HEIGHT + _LABEL + _MARGIN)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for row, cells in enumerate(rows):
        for column, (label, colors) in enumerate(cells):
            picture = Image.fromarray(pixels).convert("RGBA")
            picture.alpha_composite(colors.resize(picture.size, Image.Resampling.BILINEAR))
            left, top = column * (_WIDTH + _MARGIN), row * (_HEIGHT + _LABEL + _MARGIN)
            draw.text((left + 2, top), label, "black", font)
            sheet.paste(
                picture.convert("RGB").resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS), (left, top + _LABEL)
            )
    sheet.save(options.file, quality=88)
    print(f"{options.file}: {options.file.stat().st_size:,} bytes")
