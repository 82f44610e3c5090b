"""Which pictures in a folder are maps. Images often are beside the maps of them."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from async_maps.sources.formats.registry import shown_suffix, without_suffix

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from async_maps.sources.options import Scan

OVERLAYS = "folders of overlays (the destination)"
OWN_PNG = ".png in the destination"

_RANKS = {".png": 2, ".jpg": 2, ".jpeg": 2, ".tif": 1, ".tiff": 1}


def rank_of(path: str) -> int:
    """Return 2 for PNG and JPEG pictures, 1 for TIFF, 0 for other formats."""
    return _RANKS.get(path[path.rfind(".") :].lower(), 0)


class Pictures:
    """Decides which files of a folder are maps: those of the lowest rank, and pictures that are named.

    So PNG and JPEG files are maps only if the folder has no other format, and TIFF files only if it has none but these.

    Args:
        scan: how the source is listed.
        search: yields the paths of all files of the folder and its subfolders, relative to it, in any order.
        names: whether the place of the source, a glob, names a picture.
        is_destination: whether overlays are written into this folder; then its PNG files are never maps.
    """

    def __init__(
        self,
        scan: Scan,
        search: Callable[[], Generator[str, None, None]],
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
            if not options.leaves_out(without_suffix(file), file):
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
        with closing(self._search()) as files:
            for file in files:
                if rank_of(file) < lowest and not self._scan.options.leaves_out(without_suffix(file), file):
                    lowest = rank_of(file)
                    if lowest == 0:
                        break
        return lowest
