"""Gray PNG and JPEG pictures: each is a map of uint8 values, or of uint16 values if it has 16 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from async_maps.errors import SourceError
from async_maps.sources.activation_map import ArrayHeader
from async_maps.sources.formats.metered import MeteredFile
from async_maps.sources.formats.registry import ListedArray, PassedOver, translate_format_errors
from async_maps.sources.formats.size import check_size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, Any

    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

    from async_maps.filesystems.filesystem import Filesystem

_KINDS: dict[bytes, type[ImageFile]] = {b"\x89PNG\r\n\x1a\n": PngImageFile, b"\xff\xd8\xff": JpegImageFile}
"""The classes are called directly, because ``Image.open`` imports the readers of all formats."""
_GRAY = {"1", "L", "LA", "I;16"}
_DAMAGED = "the picture is damaged or truncated"
_MAX_METADATA = 16 * 2**20
"""In bytes; Pillow keeps the metadata of a picture in memory."""
_OVERLAYS = "overlays (PNG with a palette of transparent colors)"
_TRANSPARENT = "the picture has transparent pixels, but a map has a value for each pixel: save it without transparency"


class PictureReader:
    """Reads a gray picture; the part is None. Metadata, such as an orientation in EXIF, are ignored."""

    def __init__(self, path: str, filesystem: Filesystem) -> None:
        self._file = filesystem.open(path)

    def arrays(self) -> Iterator[ListedArray | PassedOver]:
        with translate_format_errors(_DAMAGED):
            image, _ = _open(self._file)
            header = _header(image)
            size = image.width * image.height * header.dtype.itemsize
            is_overlay = image.mode == "P" and "transparency" in image.info
            yield PassedOver(_OVERLAYS) if is_overlay else ListedArray("", None, size, header, _refusal(image))

    def names(self, array: ListedArray, length: int) -> None:
        return None

    def read(self, part: None, index: int | None, max_pixels: int | None = None) -> NDArray[Any]:
        with translate_format_errors(_DAMAGED):
            image, metered = _open(self._file)
            header = _header(image)
            check_size(header.shape, header.dtype.itemsize, max_pixels)
            if refusal := _refusal(image):
                raise SourceError(refusal)
            metered.allow(4 * image.width * image.height * header.dtype.itemsize + _MAX_METADATA)
            values: NDArray[Any] = np.asarray(image)
        if image.mode == "LA":
            if values[..., 1].min() < 255:
                raise SourceError(_TRANSPARENT)
            values = values[..., 0]
        if image.mode == "P":
            grays = _palette(image)[:, 0]
            if values.max() >= len(grays):
                raise SourceError(f"{_DAMAGED}: a pixel has a color that is not in the palette")
            values = grays[values]
        if image.mode == "1":
            # Pillow scales 2 and 4 bits to 0 to 255, but not one bit.
            values = values * np.uint8(255)
        if isinstance(hidden := image.info.get("transparency"), int) and hidden in values:
            raise SourceError(_TRANSPARENT)
        return values

    def close(self) -> None:
        self._file.close()


def _open(file: IO[bytes]) -> tuple[ImageFile, MeteredFile]:
    file.seek(0)
    start = file.read(8)
    file.seek(0)
    for magic, kind in _KINDS.items():
        if start.startswith(magic):
            metered = MeteredFile(file, _MAX_METADATA)
            return kind(cast("IO[bytes]", metered)), metered
    raise SourceError(f"expected a PNG or JPEG picture, found a file that starts with {start!r}")


def _header(image: ImageFile) -> ArrayHeader:
    return ArrayHeader((image.height, image.width), np.dtype(np.uint16 if image.mode == "I;16" else np.uint8))


def _refusal(image: ImageFile) -> str:
    """Return why a picture is no map, as its header shows; empty if it may be one."""
    if image.mode in _GRAY:
        return ""
    if image.mode == "P":
        colors = _palette(image)
        if "transparency" not in image.info and (colors == colors[:, :1]).all():
            return ""
        return (
            "already a picture: its pixels are indices into a palette of colors; if they are labels, run "
            "numpy.save(new_path, numpy.asarray(PIL.Image.open(path)))"
        )
    if str(image.tile[0].args).startswith("LA"):
        return _TRANSPARENT
    return (
        f"already a picture: its pixels have the colors {image.mode}, but a map has one value for each pixel; if it is "
        "gray, run PIL.Image.open(path).convert('L').save(new_path)"
    )


def _palette(image: ImageFile) -> NDArray[np.uint8]:
    return np.array(image.getpalette() or [], np.uint8).reshape(-1, 3)
