"""The images of the demo: painted scenes, each a backdrop with one to three things, and a contact sheet."""

from __future__ import annotations

from math import ceil, cos, pi, sin
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.random import Generator
    from numpy.typing import NDArray

    Size = tuple[int, int]
    Color = tuple[int, int, int]
    Plane = NDArray[np.float32]
    Backdrop = Callable[[Generator, Size], Plane]
    Thing = Callable[["_Pen", Generator], None]
    Points = Sequence[tuple[float, float]]

_T = TypeVar("_T")
_SUPERSAMPLE = 3
_WHITE = (250, 248, 242)
_RED, _ORANGE, _YELLOW, _PINK = (222, 56, 48), (243, 146, 36), (250, 204, 60), (224, 84, 142)
_GREEN, _BLUE, _VIOLET = (38, 146, 112), (34, 104, 190), (124, 70, 168)
_SKIES = (
    ((66, 128, 204), (206, 228, 240)), ((92, 96, 172), (252, 196, 166)), ((38, 122, 160), (250, 228, 196)),
)  # fmt: skip


def scene(index: int, *, seed: int = 0, size: tuple[int, int] = (288, 384)) -> NDArray[np.uint8]:
    """Paint one of an endless series of scenes; neighbors in the series show different things.

    Args:
        index: the number of the scene; the same index, seed and size give the same pixels.
        seed: the seed of the series.
        size: height and width in pixels.

    Returns:
        (height, width, 3) uint8, RGB.
    """
    theme = _THEMES[index % len(_THEMES)]
    rng = np.random.default_rng([seed, index])
    height, width = size
    canvas = Image.fromarray(np.clip(theme.backdrop(rng, size), 0, 255).astype(np.uint8))
    for x, y, radius in _places(rng, theme, width / height):
        sprite = _sprite(rng, theme, round(2 * radius * height))
        left, top = round(x * width) - sprite.width // 2, round(y * height) - sprite.height // 2
        _tie(canvas, sprite, left, top, theme.tie)
        canvas.paste(sprite, (left, top), sprite)
    return np.array(canvas)


def contact_sheet(
    images: Sequence[NDArray[np.uint8]],
    overlays: Sequence[NDArray[np.uint8]],
    *,
    columns: int = 4,
    tile_width: int = 320,
    margin: int = 12,
) -> Image.Image:
    """Draw pairs of an image and, below it, the same image with its overlay, in rows on white.

    Args:
        images: (h, w, 3) uint8 each, all of one size.
        overlays: (h, w, 4) uint8 each, RGBA with straight alpha, one per image.
        columns: the number of pairs in a row.
        tile_width: the width of an image on the sheet, in pixels.
        margin: the margin around each pair, in pixels.

    Raises:
        ValueError: there is no image, or the number of overlays is different.
    """
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    height, width = images[0].shape[:2]
    size = (tile_width, round(tile_width * height / width))
    step_x, step_y = tile_width + margin, 2 * size[1] + margin
    columns = min(columns, len(images))
    sheet = Image.new("RGB", (columns * step_x + margin, ceil(len(images) / columns) * step_y + margin), "white")
    for position, (image, overlay) in enumerate(zip(images, overlays, strict=True)):
        row, column = divmod(position, columns)
        base = Image.fromarray(image).convert("RGBA")
        for below, tile in enumerate((base, Image.alpha_composite(base, Image.fromarray(overlay)))):
            resized = tile.convert("RGB").resize(size, Image.Resampling.LANCZOS)
            sheet.paste(resized, (margin + column * step_x, margin + row * step_y + below * size[1]))
    return sheet


class _Theme(NamedTuple):
    """One kind of scene.

    Attributes:
        backdrop: paints (height, width, 3) float32, 0 to 255.
        thing: draws one thing with a pen.
        radius: the smallest and largest radius of a thing, as shares of the scene's height.
        rows: the range of the center's y, as shares of the scene's height.
        tie: the effect that connects a thing with the backdrop.
        tilt: the maximum rotation to either side, in degrees.
        ball: the shading as a ball: y of the center and radius on the pen's square, and the gloss, 0 to 1; or None.
    """

    backdrop: Backdrop
    thing: Thing
    radius: tuple[float, float]
    rows: tuple[float, float] = (0.28, 0.72)
    tie: Literal["shadow", "reflection", "glow", "none"] = "shadow"
    tilt: float = 0.0
    ball: tuple[float, float, float] | None = None


def _places(rng: Generator, theme: _Theme, aspect: float) -> list[tuple[float, float, float]]:
    places: list[tuple[float, float, float]] = []
    count = int(rng.integers(1, 4))
    for _ in range(60):
        radius = rng.uniform(*theme.radius) * (1.2 if count == 1 else 1.0)
        x, y = rng.uniform(0.18, 0.82), rng.uniform(*theme.rows)
        if len(places) < count and all(
            (aspect * (x - x2)) ** 2 + (y - y2) ** 2 > (1.1 * (radius + r2)) ** 2 for x2, y2, r2 in places
        ):
            places.append((x, y, radius))
    return sorted(places, key=lambda place: place[1])


class _Pen:
    """Draws on a transparent square on which x and y go from -1 to 1, y downwards."""

    def __init__(self, size: int) -> None:
        self.image = Image.new("RGBA", (size, size))
        self._draw = ImageDraw.Draw(self.image)
        self._half = size / 2

    def ellipse(self, x: float, y: float, rx: float, ry: float, color: Color) -> None:
        self._draw.ellipse(self._pixels([(x - rx, y - ry), (x + rx, y + ry)]), color)

    def sector(self, radius: float, start: float, end: float, color: Color) -> None:
        self._draw.pieslice(self._pixels([(-radius, -radius), (radius, radius)]), start, end, color)

    def polygon(self, points: Points, color: Color) -> None:
        self._draw.polygon(self._pixels(points), color)

    def line(self, points: Points, color: Color, width: float) -> None:
        self._draw.line(self._pixels(points), color, max(1, round(width * self._half)))

    def _pixels(self, points: Points) -> list[tuple[float, float]]:
        return [((x + 1) * self._half, (y + 1) * self._half) for x, y in points]


def _sprite(rng: Generator, theme: _Theme, size: int) -> Image.Image:
    pen = _Pen(size * _SUPERSAMPLE)
    theme.thing(pen, rng)
    sprite = pen.image.reduce(_SUPERSAMPLE).rotate(rng.uniform(-theme.tilt, theme.tilt), Image.Resampling.BICUBIC)
    if theme.ball is None:
        return sprite
    y, radius, gloss = theme.ball
    pixels = np.array(sprite)
    axis = (np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1
    from_light = (axis / radius + 0.38) ** 2 + ((axis[:, None] - y) / radius + 0.42) ** 2
    shade = np.maximum(1.12 - 0.26 * from_light, 0.3)[..., None]
    shine = 255 * gloss * np.exp(-from_light / 0.04)[..., None]
    pixels[..., :3] = np.minimum(pixels[..., :3] * shade + shine, 255)
    return Image.fromarray(pixels)


def _tie(canvas: Image.Image, sprite: Image.Image, left: int, top: int, tie: str) -> None:
    alpha, size = sprite.getchannel("A"), sprite.width
    if tie == "shadow":
        drop = max(size // 12, 1)
        wide = Image.new("L", (size + 6 * drop, size + 6 * drop))
        wide.paste(alpha.point([value * 0.5 for value in range(256)]), (3 * drop, 3 * drop))
        soft = wide.filter(ImageFilter.BoxBlur(drop * 0.7)).filter(ImageFilter.BoxBlur(drop * 0.7))
        canvas.paste((24, 18, 20), (left - 2 * drop, top - 2 * drop), soft)
    elif tie == "reflection":
        mirrored = sprite.transpose(Image.Transpose.FLIP_TOP_BOTTOM).resize((size, size // 2))
        faint = mirrored.getchannel("A").point([value * 0.28 for value in range(256)])
        canvas.paste(mirrored, (left, top + round(size * 0.835)), faint)
    elif tie == "glow":
        axis = np.linspace(-1, 1, 3 * size, dtype=np.float32)
        glow = 120 * np.maximum(1 - np.hypot(axis, axis[:, None]), 0) ** 2
        canvas.paste((255, 176, 84), (left - size, top - size), Image.fromarray(glow.astype(np.uint8)))


def _pick(rng: Generator, *options: _T) -> _T:
    return options[rng.integers(len(options))]


def _balloon(pen: _Pen, rng: Generator) -> None:
    first, second = _pick(rng, _RED, _BLUE, _VIOLET, _GREEN), _pick(rng, _YELLOW, _WHITE, _ORANGE)
    for x in (-0.13, 0.13):
        pen.line([(x, 0.45), (0.6 * x, 0.85)], (90, 70, 60), 0.02)
    for part, color in zip((1.0, 0.74, 0.46, 0.16), (first, second, first, second), strict=True):
        pen.ellipse(0, -0.28, 0.68 * part, 0.68, color)
        pen.polygon([(-0.6 * part, 0.04), (0.6 * part, 0.04), (0.16 * part, 0.62), (-0.16 * part, 0.62)], color)
    pen.polygon([(-0.11, 0.78), (0.11, 0.78), (0.09, 0.96), (-0.09, 0.96)], (134, 88, 50))


def _boat(pen: _Pen, rng: Generator) -> None:
    sail = _pick(rng, _WHITE, _RED, _ORANGE, _YELLOW)
    pen.line([(0.02, -0.95), (0.02, 0.5)], (96, 66, 44), 0.04)
    pen.polygon([(0.07, -0.92), (0.3, -0.5), (0.5, -0.1), (0.62, 0.36), (0.07, 0.36)], sail)
    pen.polygon([(-0.04, -0.74), (-0.3, -0.2), (-0.56, 0.36), (-0.04, 0.36)], _pick(rng, _WHITE, sail))
    hull = _pick(rng, (112, 58, 40), (36, 52, 92), _RED)
    pen.polygon([(-0.8, 0.45), (0.85, 0.45), (0.58, 0.78), (-0.56, 0.78)], hull)
    pen.polygon([(-0.8, 0.45), (0.85, 0.45), (0.8, 0.52), (-0.75, 0.52)], _WHITE)


def _fruit(pen: _Pen, rng: Generator) -> None:
    skin = _pick(rng, _ORANGE, _RED, _YELLOW, (150, 190, 60), (110, 50, 110))
    pen.ellipse(0, 0.04, 0.84, 0.8, skin)
    pen.line([(0, -0.66), (0.08, -0.95)], (92, 66, 38), 0.07)
    pen.polygon([(0.06, -0.8), (0.22, -0.98), (0.46, -0.99), (0.62, -0.86), (0.4, -0.76), (0.2, -0.74)], (74, 140, 58))


def _parasol(pen: _Pen, rng: Generator) -> None:
    color, turn = _pick(rng, _RED, _BLUE, _ORANGE, _PINK, _GREEN), rng.uniform(0, 45)
    for part in range(8):
        pen.sector(0.96, turn + 45 * part, turn + 45 * part + 45, _WHITE if part % 2 else color)
    pen.ellipse(0, 0, 0.09, 0.09, color)


def _ladybird(pen: _Pen, rng: Generator) -> None:
    black = (28, 24, 26)
    for y in (-0.3, 0.1, 0.5):
        pen.line([(-0.92, y - 0.1), (0, y), (0.92, y - 0.1)], black, 0.06)
    pen.ellipse(0, -0.6, 0.42, 0.34, black)
    pen.ellipse(0, 0.08, 0.8, 0.82, _pick(rng, _RED, (236, 104, 30), (246, 190, 40)))
    pen.line([(0, -0.7), (0, 0.9)], black, 0.05)
    for x, y in ((0.4, -0.32), (0.46, 0.2), (0.26, 0.6)):
        pen.ellipse(x, y, 0.14, 0.15, black)
        pen.ellipse(-x, y, 0.14, 0.15, black)


def _lily(pen: _Pen, rng: Generator) -> None:
    pen.sector(0.97, 25, 340, (62, 122, 64))
    pen.sector(0.86, 27, 338, (84, 148, 74))
    tip = np.array(_pick(rng, (244, 150, 190), (252, 236, 240), (236, 110, 160)))
    petal = np.array([(0, 0.02), (0.5, 0.19), (0.8, 0.13), (1, 0), (0.8, -0.13), (0.5, -0.19), (0, -0.02)])
    for ring, (length, petals) in enumerate(((0.72, 9), (0.52, 8), (0.34, 6))):
        red, green, blue = np.minimum(tip * (0.86 + 0.1 * ring), 255).astype(int).tolist()
        for angle in ring + 2 * pi / petals * np.arange(petals):
            turn = np.array([(cos(angle), sin(angle)), (-sin(angle), cos(angle))])
            pen.polygon((length * petal @ turn).tolist(), (red, green, blue))
    pen.ellipse(0, 0, 0.13, 0.13, _YELLOW)


def _beach_ball(pen: _Pen, rng: Generator) -> None:
    outer, inner, cap = _pick(rng, _RED, _PINK), _pick(rng, _BLUE, _VIOLET), _pick(rng, _YELLOW, _GREEN)
    for part, color in zip((1.0, 0.8, 0.52, 0.2), (outer, _WHITE, inner, _WHITE), strict=True):
        pen.ellipse(0, 0, 0.94 * part, 0.94, color)
    pen.ellipse(0, -0.86, 0.2, 0.08, cap)


def _lantern(pen: _Pen, rng: Generator) -> None:
    paper = _pick(rng, (255, 178, 74), (255, 140, 70), (255, 206, 110), (250, 110, 84))
    pen.line([(0, -0.98), (0, 0.98)], (60, 30, 30), 0.05)
    for width, color in ((0.72, paper), (0.56, (255, 206, 124)), (0.29, (255, 236, 180))):
        pen.ellipse(0, 0, width, 0.74, color)
    for y in (-0.74, 0.74):
        pen.polygon([(-0.28, y - 0.07), (0.28, y - 0.07), (0.28, y + 0.07), (-0.28, y + 0.07)], (104, 40, 36))


def _noise(rng: Generator, size: Size, rows: int, columns: int) -> Plane:
    """Return smooth noise, (height, width, 1), about -0.5 to 0.5, with this number of bumps down and across."""
    return _enlarge(rng.random((rows, columns), np.float32) - np.float32(0.5), size)


def _fractal(rng: Generator, size: Size) -> Plane:
    """Return cloudy noise, (height, width, 1), about -1 to 1, with bumps of many sizes."""
    coarse = np.sum([_noise(rng, (48, 64), 3 << octave, 4 << octave) / 2**octave for octave in range(5)], 0)
    return _enlarge(coarse[..., 0], size)


def _enlarge(grid: Plane, size: Size) -> Plane:
    return np.asarray(Image.fromarray(grid).resize(size[::-1], Image.Resampling.BICUBIC))[..., None]


def _fade(size: Size, *stops: Color) -> Plane:
    rows = np.linspace(0, len(stops) - 1, size[0])
    bands = np.stack([np.interp(rows, range(len(stops)), channel) for channel in zip(*stops, strict=True)], -1)
    return np.broadcast_to(bands.astype(np.float32)[:, None], (*size, 3))


def _sky(rng: Generator, size: Size) -> Plane:
    clear = _fade(size, *_pick(rng, *_SKIES))
    clouds: Plane = np.clip(1.5 * _fractal(rng, size) - 0.05, 0, 0.75)
    return clear + (252 - clear) * clouds


def _sea(rng: Generator, size: Size) -> Plane:
    air, water = (round(0.34 * size[0]), size[1]), (size[0] - round(0.34 * size[0]), size[1])
    above = _fade(air, (104, 160, 214), _pick(rng, (240, 226, 206), (250, 206, 170), (222, 234, 240)))
    near = np.linspace(0.2, 1, water[0], dtype=np.float32)[:, None, None]
    ripples = _noise(rng, water, 60, 20) + _noise(rng, water, 30, 9)
    below = _fade(water, (128, 178, 194), (40, 116, 152), (20, 76, 122)) + 34 * near * ripples
    return np.concatenate([above + 18 * _fractal(rng, air), below])


def _sand(rng: Generator, size: Size) -> Plane:
    grain = 26 * _noise(rng, size, size[0], size[1])
    phase = np.linspace(0, 120, size[0], dtype=np.float32)[:, None, None] + 9 * _noise(rng, size, 5, 7)
    dunes: Plane = 7 * np.sin(phase)
    return _fade(size, (238, 212, 166), (222, 190, 140)) + 22 * _fractal(rng, size) + dunes + grain


def _leaves(rng: Generator, size: Size) -> Plane:
    blades = 44 * _noise(rng, size, 22, size[1] // 3) + 40 * _noise(rng, size, 12, size[1] // 6)
    return _fade(size, (104, 164, 72), (66, 128, 54)) + 40 * _fractal(rng, size) + blades


def _pond(rng: Generator, size: Size) -> Plane:
    ripples: Plane = np.maximum(1 - 9 * np.abs(_noise(rng, size, 10, 12) + 0.4 * _noise(rng, size, 22, 28)), 0)
    deep = _fade(size, (34, 92, 104), (16, 56, 76)) + 34 * _fractal(rng, size)
    return deep + 26 * ripples


def _wood(rng: Generator, size: Size) -> Plane:
    grain = 34 * _noise(rng, size, size[0] // 3, 5) + 26 * _noise(rng, size, size[0], 9)
    plank, depth = np.divmod(np.arange(size[0]), size[0] // 5 + 1)
    tone = (rng.uniform(-16, 16, 5)[plank] - 60 * (depth < 2)).astype(np.float32)
    wood: Plane = _fade(size, _pick(rng, (186, 138, 94), (150, 104, 70), (204, 170, 130))) + tone[:, None, None] + grain
    return wood


def _gingham(rng: Generator, size: Size) -> Plane:
    color = _fade(size, _pick(rng, (206, 84, 84), (92, 132, 188), (108, 160, 120)))
    rows, columns = (np.arange(length) // (size[0] / 16) % 2 for length in size)
    weave: Plane = ((rows[:, None] + columns) / 2)[..., None].astype(np.float32)
    thread = 16 * _noise(rng, size, size[0], size[1]) + 14 * _fractal(rng, size)
    strength: Plane = 0.1 + 0.6 * weave
    return 244 + thread + strength * (color - 244)


def _night(rng: Generator, size: Size) -> Plane:
    sky = _fade(size, (14, 18, 52), (44, 34, 92), (110, 62, 110)) + 26 * _fractal(rng, size)
    stars: Plane = np.clip((rng.random((*size, 1), np.float32) - 0.998) * 500, 0, 1)
    return sky + 150 * stars


_THEMES = (
    _Theme(_sky, _balloon, (0.19, 0.28), rows=(0.36, 0.64), tie="none", ball=(-0.28, 0.72, 0.35)),
    _Theme(_wood, _fruit, (0.16, 0.22), tilt=20, ball=(0.04, 0.84, 0.75)),
    _Theme(_sea, _boat, (0.16, 0.26), rows=(0.42, 0.66), tie="reflection"),
    _Theme(_leaves, _ladybird, (0.13, 0.2), tilt=180, ball=(0.08, 0.84, 0.6)),
    _Theme(_night, _lantern, (0.12, 0.18), rows=(0.25, 0.7), tie="glow"),
    _Theme(_sand, _parasol, (0.16, 0.25), tilt=180, ball=(0.0, 1.3, 0.0)),
    _Theme(_pond, _lily, (0.17, 0.25), tilt=180, ball=(0.0, 1.4, 0.0)),
    _Theme(_gingham, _beach_ball, (0.14, 0.24), tilt=180, ball=(0.0, 0.94, 0.8)),
)
