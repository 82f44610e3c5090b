"""TIFF: pages of one size are a stack, in the shape that tifffile, ImageJ or OME wrote into the file."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import struct
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from async_maps.errors import SourceError, require_extra
from async_maps.keys import printable
from async_maps.sources.activation_map import ArrayHeader
from async_maps.sources.formats.metered import MeteredFile
from async_maps.sources.formats.npy import values_at
from async_maps.sources.formats.registry import ListedArray, PassedOver, close_on_error, translate_format_errors
from async_maps.sources.formats.size import MAX_DIMENSIONS, check_chunk, check_size
from async_maps.sources.formats.stacks import shape_at

with require_extra("reading TIFF", "tiff"):
    import tifffile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, Any

    from numpy.typing import NDArray

    from async_maps.filesystems.filesystem import Filesystem

# Its warnings are raised as errors, or do not matter to a reader.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_DAMAGED = "the TIFF file is damaged"
_UNCOMPRESSED = 1
_CODECS = {
    5: "LZW", 8: "Deflate", 32946: "Deflate", 32773: "PackBits", 34925: "LZMA", 34926: "Zstandard", 50000: "Zstandard",
}  # fmt: skip
"""These stop at the size of a strip. Others, such as JPEG 2000, take the size of their output from the data."""
_GRAY = {0, 1}
_PALETTE = 3
_REDUCED, _MASK = 0b001, 0b100
_INTEGERS = {3, 4, 13, 16, 18}
"""The data types of sizes and offsets (TIFF 6.0, "IFD Entry", and BigTIFF)."""
_LISTS = {258, 273, 279, 324, 325, 339}
_NUMBERS = {254, 255, 256, 257, 259, 262, 266, 277, 278, 284, 317, 322, 323, 513, 514, 32997, 32998}
"""The tags that give the layout, with any number of integers or with one; tifffile takes values of any type."""
_MAX_METADATA = 8 * 2**20
"""In bytes, of a page."""
_READ_BYTES = 2**20
"""The data of small strips are read in pieces of this size."""


class _Stack(NamedTuple):
    """Pages that are one array.

    Attributes:
        first: the first page.
        pages: the number of pages; 0 if the values of all follow those of the first, as in large files of ImageJ.
        shape: the shape of the array.
    """

    first: int
    pages: int
    shape: tuple[int, ...]


class TiffReader:
    """Reads pages through tifffile; the part of an array is a :class:`_Stack`, or None if the file is one page.

    Only tags and strips are read by tifffile: its series of pages can open other files, and keep all pages in memory.
    """

    def __init__(self, path: str, filesystem: Filesystem) -> None:
        with close_on_error(filesystem.open(path)) as self._file, translate_format_errors("expected a TIFF file"):
            self._size = self._file.seek(0, os.SEEK_END)
            self._file.seek(0)
            self._metered = MeteredFile(self._file, _MAX_METADATA)
            # Formats that extend TIFF have other suffixes.
            self._tiff = tifffile.TiffFile(
                cast("IO[bytes]", self._metered), is_lsm=False, is_scanimage=False, is_ndpi=False
            )
            if not self._tiff.pages:
                raise SourceError("the TIFF file has no pages, or is truncated")
            self._start = (0, int(self._tiff.pages.first.offset))
        self._place = self._start

    def arrays(self) -> Iterator[ListedArray | PassedOver]:
        count, copies, is_stack = 0, 0, True
        first = self._tiff.pages.first
        for index, page in self._pages():
            copy = _is_copy(page)
            is_stack = is_stack and (copy or (index == count and _kind(page) == _kind(first)))
            count, copies = count + (not copy), copies + copy
        for _ in range(copies):
            yield PassedOver("reduced copies and masks in TIFF")
        if is_stack and count:
            with translate_format_errors(_DAMAGED):
                listed = _listed("", first, self._stack(first, count))
            yield listed
            return
        number = 0
        for index, page in self._pages():
            if not _is_copy(page):
                yield _listed(f"{number:06}", page, _Stack(index, 1, page.shape))
                number += 1

    def names(self, array: ListedArray, length: int) -> None:
        return None

    def read(self, part: list[Any] | None, index: int | None = None, max_pixels: int | None = None) -> NDArray[Any]:
        stack = _Stack(0, 1, self._page(0).shape) if part is None else _Stack(*part)
        shape = tuple(stack.shape) if index is None else shape_at("the stack", tuple(stack.shape), index)
        page = self._page(stack.first)
        if problem := _problem(page):
            raise SourceError(problem)
        dtype, size, page_size = _dtype(page), math.prod(shape), math.prod(page.shape)
        check_size(shape, dtype.itemsize, max_pixels)
        check_size(page.shape, dtype.itemsize, max_pixels)
        start = (index or 0) * size
        if not stack.pages:
            stored = dtype.newbyteorder(self._tiff.byteorder)
            return values_at(self._file, page.dataoffsets[0] + start * dtype.itemsize, shape, stored)
        parts = []
        for number in range(start // page_size, -(-(start + size) // page_size)):
            other = self._page(stack.first + number) if number else page
            if _kind(other) != _kind(page):
                raise SourceError(f"the file has changed: page {stack.first + number} has the shape {other.shape}")
            with translate_format_errors(_DAMAGED):
                parts.append(self._values(other, max_pixels))
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return values[start % page_size :][:size].reshape(shape)

    def close(self) -> None:
        self._tiff.close()
        self._file.close()

    def _pages(self) -> Iterator[tuple[int, tifffile.TiffPage]]:
        for index, offset in self._offsets(self._start):
            yield index, self._page_at(index, offset)

    def _page(self, wanted: int) -> tifffile.TiffPage:
        # Pages are linked: continue at the page that was read last, if possible.
        for index, offset in self._offsets(self._place if wanted >= self._place[0] else self._start):
            if index == wanted:
                self._place = index, offset
                return self._page_at(index, offset)
        raise SourceError(f"the file has no page {wanted} anymore")

    def _offsets(self, place: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """Yield the number and the offset of each page, from a place. tifffile finds not every circle of pages."""
        index, offset = place
        start, seen = index, 0
        form = self._tiff.tiff
        while offset:
            if offset == seen:
                raise SourceError(f"{_DAMAGED}: its pages form a circle")
            # Brent's algorithm: an offset that is remembered for twice as many pages each time meets any circle.
            if (index - start).bit_count() <= 1:
                seen = offset
            yield index, offset
            with translate_format_errors(f"{_DAMAGED} or truncated at page {index}"):
                self._file.seek(offset)
                (tags,) = struct.unpack(form.tagnoformat, self._file.read(form.tagnosize))
                self._file.seek(offset + form.tagnosize + tags * form.tagsize)
                (offset,) = struct.unpack(form.offsetformat, self._file.read(form.offsetsize))
            index += 1

    def _page_at(self, index: int, offset: int) -> tifffile.TiffPage:
        self._metered.allow(_MAX_METADATA)
        with translate_format_errors(f"{_DAMAGED} or truncated at page {index}"):
            self._metered.seek(offset)
            page = tifffile.TiffPage(self._tiff, index)
            for tag in page.tags:
                is_layout = tag.code in _NUMBERS or tag.code in _LISTS
                if is_layout and (tag.dtype not in _INTEGERS or (tag.code in _NUMBERS and tag.count != 1)):
                    raise SourceError(f"{_DAMAGED}: {tag.name} of page {index} is not an integer")
        return page

    def _stack(self, first: tifffile.TiffPage, count: int) -> _Stack:
        """Return equal pages as one array, in the shape that the description of the first page claims, if it fits."""
        claim = _claim(first)
        pages = count
        if count == 1 < claim.planes and _is_plain(first):
            end = first.dataoffsets[0] + claim.planes * math.prod(first.shape) * _dtype(first).itemsize
            if end > self._size:
                raise SourceError(
                    f"truncated: its description says {claim.planes:,} images, which end at byte {end:,}, but the file "
                    f"has {self._size:,} bytes"
                )
            pages, count = 0, claim.planes
        if math.prod(claim.shape) == count * math.prod(first.shape) > 0:
            return _Stack(0, pages, claim.shape)
        channels = (claim.channels,) if claim.channels > 1 and count % claim.channels == 0 else ()
        number = count // math.prod(channels)
        return _Stack(0, pages, (*((number,) if number > 1 else ()), *channels, *first.shape))

    def _values(self, page: tifffile.TiffPage, max_pixels: int | None) -> NDArray[Any]:
        segments = math.prod(page.chunked)
        if len(page.dataoffsets) < segments or len(page.databytecounts) < segments:
            raise SourceError(f"{_DAMAGED}: it lists {len(page.dataoffsets):,} of {segments:,} strips or tiles")
        end = max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=False)))
        if end > self._size:
            raise SourceError(f"truncated: its data end at byte {end:,}, but the file has {self._size:,} bytes")
        if page.is_tiled:
            check_chunk(page.chunks, _dtype(page).itemsize, max_pixels)
        self._metered.allow(2 * math.prod(page.shape) * _dtype(page).itemsize + _MAX_METADATA)
        values: NDArray[Any] = page.asarray(maxworkers=1, buffersize=_READ_BYTES)
        return values.reshape(-1)


class _Claim(NamedTuple):
    """What the description of the first page says of all pages.

    Attributes:
        planes: the number of pages; 1 if it is not said.
        channels: the length of the axis of channels, if neighboring pages are the channels of one image; else 1.
        shape: the shape of the array, as tifffile writes it; empty if it is not said.
    """

    planes: int = 1
    channels: int = 1
    shape: tuple[int, ...] = ()


def _claim(page: tifffile.TiffPage) -> _Claim:
    if page.shaped_description is not None:
        shape = _shape_in(page.shaped_description)
        planes, rest = divmod(math.prod(shape), math.prod(page.shape) or 1)
        return _Claim(planes, 1, shape) if planes and not rest else _Claim()
    if len(page.shape) != 2:
        # The channels are in each page.
        return _Claim()
    if page.imagej_description is not None:
        found = {name: int(value) for name, value in _IMAGEJ.findall(page.imagej_description)}
        channels = found.get("channels", 1) if "\norder=" not in page.imagej_description else 1
        return _Claim(max(1, found.get("images", 1)), max(1, channels))
    pixels = _OME.search(page.description) if page.is_ome else None
    if pixels is not None:
        found = {name: int(value) for name, value in _OME_SIZES.findall(pixels[0])}
        order = re.search(r'DimensionOrder="XY([CZT]{3})"', pixels[0])
        longer = [axis for axis in (order[1] if order else "") if found.get(axis, 1) > 1]
        if longer[:1] == ["C"]:
            return _Claim(1, found["C"])
    return _Claim()


_IMAGEJ = re.compile(r"^(images|channels)=(\d{1,9})\s*$", re.MULTILINE)
_OME = re.compile(r"<Pixels\s[^>]*>")
_OME_SIZES = re.compile(r'\bSize([CZT])="(\d{1,9})"')


def _shape_in(description: str) -> tuple[int, ...]:
    try:
        shape = json.loads(description)["shape"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ()
    # A malicious description can have millions of dimensions: do not multiply them.
    valid = isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS
    return tuple(shape) if valid and all(isinstance(size, int) and 0 < size < 2**32 for size in shape) else ()


def _is_plain(page: tifffile.TiffPage) -> bool:
    """Whether the values are in the file as they are, in one piece."""
    plain = page.compression == _UNCOMPRESSED and page.predictor == 1 and page.fillorder == 1
    return bool(plain and page.dataoffsets and page.is_contiguous)


def _is_copy(page: tifffile.TiffPage) -> bool:
    return bool(page.subfiletype & (_REDUCED | _MASK))


def _kind(page: tifffile.TiffPage) -> tuple[Any, ...]:
    return page.shape, page.dtype, page.photometric


def _dtype(page: tifffile.TiffPage) -> np.dtype[Any]:
    if page.dtype is None:
        raise SourceError(_no_dtype(page))
    return page.dtype


def _no_dtype(page: tifffile.TiffPage) -> str:
    return f"the type of its values is not supported: {page.bitspersample} bits, sample format {page.sampleformat}"


def _problem(page: tifffile.TiffPage) -> str:
    """Return why a page is no map; empty if it may be one. Its shape is checked later."""
    if 0 in page.shape or not page.shape:
        return f"the TIFF page is empty: its shape is {page.shape}"
    if page.dtype is None:
        return _no_dtype(page)
    if page.photometric == _PALETTE:
        return (
            "already a picture: its pixels are indices into a palette of colors; if they are labels, run "
            "numpy.save(new_path, tifffile.imread(path))"
        )
    if page.photometric not in _GRAY and page.dtype.kind in "ub":
        return f"already a picture: its colors are {_shown(page.photometric)}, but a map has one value for each pixel"
    return "" if page.compression == _UNCOMPRESSED else _compression_problem(page.compression)


def _compression_problem(compression: int) -> str:
    codec = _CODECS.get(compression)
    if codec is None:
        return (
            f"it is compressed with {_shown(compression)}, which is not read; run "
            "tifffile.imwrite(new_path, tifffile.imread(path), compression='zlib')"
        )
    if find_spec("imagecodecs") is None:
        return f"it is compressed with {codec}, which needs the package imagecodecs: pip install imagecodecs"
    return ""


def _shown(value: Any) -> str:
    return printable(str(getattr(value, "name", value)))


def _listed(name: str, page: tifffile.TiffPage, stack: _Stack) -> ListedArray:
    problem = _problem(page)
    dtype = np.dtype(np.uint8 if page.dtype is None else page.dtype)
    header = None if problem else ArrayHeader(stack.shape, dtype)
    is_file = not name and stack == _Stack(0, 1, page.shape)
    part = None if is_file else [stack.first, stack.pages, list(stack.shape)]
    return ListedArray(name, part, math.prod(stack.shape) * dtype.itemsize, header, problem)
