"""Names of the maps of a stack, from an array of strings beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from async_maps.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

NAMES = ("names", "ids", "filenames", "paths")
"""The arrays whose strings name the maps of a stack of the same length; the first one found is used."""

_MAX_NAME = 2**14
"""In bytes, of which NumPy uses four for a character; a key in S3 has at most 1,024."""
BLOCK = 10_000
"""The number of names that are read together."""


def paths_of_names(path: str) -> list[str]:
    """Return the paths beside an array where its names can be, in the order of :data:`NAMES`."""
    folder = path.rpartition("/")[0]
    return [f"{folder}/{name}" if folder else name for name in NAMES]


def decode_names(array: str, values: Iterable[object]) -> Iterator[str]:
    """Yield strings, or bytes in UTF-8, as text, without padding at the end.

    Raises:
        SourceError: a value of the array is neither, or is not UTF-8.
    """
    for value in values:
        text = value
        if isinstance(value, bytes):
            try:
                text = value.decode()
            except UnicodeDecodeError:
                raise SourceError(f"a name in the array {array!r} is not UTF-8: {bytes(value)!r:.100}") from None
        if not isinstance(text, str):
            raise SourceError(f"expected names in the array {array!r}, found {type(value).__name__}")
        yield text.rstrip("\0 ")


def check_width(array: str, itemsize: int) -> None:
    """Refuse an array of strings whose values are too large for names, before memory is allocated."""
    if itemsize > _MAX_NAME:
        raise SourceError(
            f"the strings in the array {array!r} have {itemsize:,} bytes, which is too long for names of maps"
        )
