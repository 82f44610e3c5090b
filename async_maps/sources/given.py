"""Files that the caller has chosen, each in the state in which it must be, as a source. Runs in a thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from async_maps.keys import printable
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.named import NamedFile, maps_in_named

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from async_maps.outcomes import Failure
    from async_maps.sources.options import Scan


@dataclass(frozen=True, slots=True)
class GivenFiles:
    """A source of these files; none of them needs to have maps.

    Attributes:
        files: the files, and failures of others.
        maybe_stored: whether another attempt may have stored the overlays: an equal object is its own.
        root: the place that the names are relative to; the source consists of these files below it.
    """

    files: Sequence[NamedFile | Failure]
    maybe_stored: bool = False
    root: str = ""

    def maps(self, scan: Scan) -> Iterator[ActivationMap | Failure]:
        """Yield the maps in the files, and the failures."""
        paths = {printable(file.path if isinstance(file, NamedFile) else file.file) for file in self.files}
        scan.begin(self.root, paths.__contains__)
        with scan.opened(None) as filesystems:
            for entry in maps_in_named(self.files, filesystems, scan):
                if self.maybe_stored and isinstance(entry, ActivationMap):
                    entry.maybe_at = ""
                yield entry
