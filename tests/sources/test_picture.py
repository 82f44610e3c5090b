"""Gray PNG and JPEG pictures."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from async_maps.errors import SourceError
from async_maps.filesystems.filesystem import LocalFilesystem
from async_maps.sources import open_source
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.formats.picture import PictureReader
from tests.support.entries import assert_same, names_of, only_failure, read_all, why_not
from tests.support.pictures import run_advice

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytestmark = pytest.mark.fast

GRAY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
DEEP = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000


def _png(width: int, height: int, bits: int, color: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG; each row starts with its filter, 0."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    found = b"\x89PNG\r\n\x1a\n"
    for kind, body in parts:
        found += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return found


def _save(path: Path, values: NDArray[Any], **how: Any) -> Path:
    Image.fromarray(values).save(path, **how)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.PNG"])
@pytest.mark.parametrize("values", [GRAY, DEEP], ids=["8 bits", "16 bits"])
def test_a_gray_png_is_a_map_of_its_values(maps: Path, name: str, values: NDArray[Any]) -> None:
    _save(maps / name, values)
    assert_same(read_all(maps), {"a": values})
    (entry,) = open_source(maps)
    assert isinstance(entry, ActivationMap)
    assert (entry.source, entry.max_bytes, entry.part) == (str(maps / name), values.nbytes, None)
    assert entry.header is not None
    assert (entry.header.shape, entry.header.dtype) == (values.shape, values.dtype)


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg", "a.JPG"])
def test_a_gray_jpeg_is_a_map_and_its_orientation_is_ignored(maps: Path, name: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    path = _save(maps / name, GRAY, quality=100, exif=exif)
    (read,) = read_all(maps).values()
    assert read.shape == GRAY.shape
    np.testing.assert_allclose(read.astype(int), GRAY, atol=2)
    with Image.open(path) as image:
        np.testing.assert_array_equal(read, np.asarray(image))


@pytest.mark.parametrize(
    ("bits", "row", "values"),
    [(1, b"\xa0", [255, 0, 255, 0]), (2, b"\x1b", [0, 85, 170, 255]), (4, b"\x01\xef", [0, 17, 238, 255])],
)
def test_few_bits_are_scaled_to_eight(maps: Path, bits: int, row: bytes, values: list[int]) -> None:
    (maps / "a.png").write_bytes(_png(4, 2, bits, 0, (b"\0" + row) * 2))
    assert_same(read_all(maps), {"a": np.array([values] * 2, np.uint8)})


def test_a_palette_of_grays_is_read(maps: Path) -> None:
    gray = Image.fromarray(GRAY).convert("P")
    gray.save(maps / "a.png")
    assert_same(read_all(maps), {"a": GRAY})


def test_an_opaque_alpha_channel_is_ignored(maps: Path) -> None:
    Image.merge("LA", (Image.fromarray(GRAY), Image.new("L", (4, 3), 255))).save(maps / "a.png")
    assert_same(read_all(maps), {"a": GRAY})


@pytest.mark.parametrize("how", ["alpha", "16-bit alpha", "color key", "16-bit color key"])
def test_transparent_pixels_are_refused(maps: Path, how: str) -> None:
    path = maps / "a.png"
    match how:
        case "alpha":
            Image.merge("LA", (Image.fromarray(GRAY), Image.new("L", (4, 3), 254))).save(path)
        case "16-bit alpha":
            path.write_bytes(_png(1, 1, 16, 4, b"\0\1\2\3\4"))
        case "color key":
            _save(path, GRAY, transparency=20)
        case "16-bit color key":
            path.write_bytes(_png(1, 1, 16, 0, b"\0\1\2", (b"tRNS", b"\1\2")))
    (entry,) = open_source(maps)
    assert why_not(entry).startswith("the picture has transparent pixels")


def test_a_color_key_without_pixels_is_ignored(maps: Path) -> None:
    _save(maps / "a.png", GRAY, transparency=21)
    assert_same(read_all(maps), {"a": GRAY})


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK"])
def test_a_picture_with_colors_is_refused_by_its_header(maps: Path, mode: str) -> None:
    Image.new(mode, (4, 3)).save(maps / ("a.jpg" if mode == "CMYK" else "a.png"))
    (entry,) = open_source(maps)
    assert isinstance(entry, ActivationMap)
    assert entry.problem == why_not(entry)
    assert entry.problem.startswith(f"already a picture: its pixels have the colors {mode}")
    run_advice(entry.problem, Path(str(entry.path)), maps / "b.png")
    assert read_all(maps / "b.png")["b"].shape == (3, 4)


def test_labels_with_a_palette_of_colors_are_refused_with_advice(maps: Path) -> None:
    image = Image.fromarray(GRAY).convert("P")
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(maps / "a.png")
    (entry,) = open_source(maps)
    run_advice(why_not(entry), maps / "a.png", maps / "b.npy")
    with Image.open(maps / "a.png") as labels:
        np.testing.assert_array_equal(np.load(maps / "b.npy"), np.asarray(labels))


def test_the_size_is_checked_before_pixels_are_decoded(maps: Path) -> None:
    (maps / "a.png").write_bytes(_png(60_000, 60_000, 8, 0, b"\0"))
    reader = PictureReader(str(maps / "a.png"), LocalFilesystem())
    with pytest.raises(SourceError, match=r"its shape is \(60,000, 60,000\), and max_pixels allows 1,000 pixels"):
        reader.read(None, None, 1_000)
    reader.close()


def test_too_much_metadata_is_refused(maps: Path) -> None:
    (maps / "a.png").write_bytes(_png(1, 1, 8, 0, b"\0\0", (b"eXIf", bytes(17 * 2**20))))
    assert "more metadata than" in only_failure(maps).reason
    behind = _png(1, 1, 8, 0, b"\0\0")[:-12] + _png(1, 1, 8, 0, b"", (b"eXIf", bytes(17 * 2**20)))[33:]
    (maps / "a.png").write_bytes(behind)
    (entry,) = open_source(maps)
    assert "more metadata than" in why_not(entry)


def test_text_that_inflates_to_gigabytes_is_refused(maps: Path) -> None:
    text = b"x\0\0" + zlib.compress(bytes(50 * 2**20))
    (maps / "a.png").write_bytes(_png(1, 1, 8, 0, b"\0\0", (b"zTXt", text)))
    assert "too large" in only_failure(maps).reason


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF", "WEBP", "PPM", "EPS"])
def test_other_readers_of_pillow_cannot_be_reached(maps: Path, name: str, kind: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(GRAY).save(buffer, kind)
    (maps / name).write_bytes(buffer.getvalue())
    assert only_failure(maps).reason.startswith("expected a PNG or JPEG picture, found a file that starts with b'")


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_truncated_picture_fails_alone(maps: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (50, 50), np.uint8)
    content = _save(maps / name, noise).read_bytes()
    _save(maps / "b.png", GRAY)
    for length in range(0, len(content), 97):
        (maps / name).write_bytes(content[:length])
        entry, *_ = open_source(maps)
        if isinstance(entry, ActivationMap):
            assert why_not(entry).startswith("the picture is damaged or truncated")
        assert "b" in names_of(open_source(maps))


def test_a_picture_of_the_other_suffix_is_read(maps: Path) -> None:
    _save(maps / "a.jpg", GRAY, format="PNG")
    assert_same(read_all(maps), {"a": GRAY})
