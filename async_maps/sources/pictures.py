"""Which pictures in a folder are maps. Images often are beside the maps of them."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from async_maps.sources.formats.others import ARRAYS_NOT_READ
from async_maps.sources.formats.registry import shown_suffix, without_suffix

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from async_maps.sources.options import PassOver, Scan

OVERLAYS = "folders of overlays (the destination)"
OWN_PNG = ".png in the destination"

_RANKS = {".png": 2, ".jpg": 2, ".jpeg": 2, ".tif": 1, ".tiff": 1}


def rank_of(path: str) -> int:
    """Return 2 for PNG and JPEG pictures, 1 for TIFF, 0 for other formats."""
    return _RANKS.get(path[path.rfind(".") :].lower(), 0)


class Pictures:
    """Decides which files of a folder are maps: those of the lowest rank, and pictures that are named.

    So PNG and JPEG files are maps only if the folder has no other format, and TIFF files only if it has none but these.
    Formats of arrays that are not read, such as pickles, count too: the pictures are probably images.

    Args:
        scan: how the source is listed.
        search: yields the paths of the files of all formats in the folder and its subfolders, relative to it, in any
            order; its argument is called for each other file, as :attr:`Scan.pass_over`.
        names: whether the place of the source, a glob, names a picture.
        is_destination: whether overlays are written into this folder; then its PNG files are never maps.
    """

    def __init__(
        self,
        scan: Scan,
        search: Callable[[PassOver], Generator[str, None, None]],
        names: Callable[[str], bool] = lambda _: False,
        is_destination: bool = False,
    ) -> None:
        self._scan = scan
        self._search = search
        self._names = names
        self._is_destination = is_destination
        self._lowest: int | None = None

    def takes(self, file: str) -> bool:
        """Whether a file is of maps; else it is counted as passed over.

        The folder is searched when the first picture comes before any file of another format. That reads only names,
        and ends at the first file of another format.

        Args:
            file: the path relative to the folder.
        """
        rank, options = rank_of(file), self._scan.options
        if rank == 0:
            if self._lowest != 0 and not options.leaves_out(without_suffix(file), file):
                self._lowest = 0
            return True
        if self._is_destination and file.lower().endswith(".png"):
            self._scan.pass_over(OWN_PNG)
            return False
        if self._names(file) or options.names_file(without_suffix(file), file):
            return True
        if self._lowest is None:
            self._lowest = self._lowest_rank()
        if rank == self._lowest:
            return True
        self._scan.pass_over(shown_suffix(file))
        return False

    def _lowest_rank(self) -> int:
        lowest = max(_RANKS.values())

        def see(what: str) -> None:
            nonlocal lowest
            if what in ARRAYS_NOT_READ:
                lowest = 0

        with closing(self._search(see)) as files:
            for file in files:
                if not self._scan.options.leaves_out(without_suffix(file), file):
                    lowest = min(lowest, rank_of(file))
                if lowest == 0:
                    break
        return lowest
