"""One manifest and its overlays: the viewer shows one, or two side by side. Everything here blocks; thread-safe."""

from __future__ import annotations

import base64
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from async_maps.viewer.overlays import UNKNOWN, Overlays
from async_maps.viewer.rows import ViewedRows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    from async_maps.settings import S3Settings
    from async_maps.viewer.pixels import Plane


def place_of(address: str) -> str:
    """Return a text for a manifest that does not depend on the current folder."""
    return address if "://" in address else os.path.abspath(address)


class Side:
    """A manifest or a plan, and its overlays.

    Attributes:
        rows: the rows.
        place: a text for the manifest that does not depend on the current folder.
        overlays: the overlays.

    Raises:
        AsyncMapsError: the manifest or the plan cannot be read.
    """

    def __init__(self, manifest: str | PathLike[str], s3: S3Settings | None = None) -> None:
        with ExitStack() as stack:
            self.rows = stack.enter_context(ViewedRows(manifest, s3))
            self.place = place_of(self.rows.address)
            self.overlays = Overlays(self.rows.runs, s3)
            stack.callback(self.overlays.close)
            self._opened = stack.pop_all()

    def close(self) -> None:
        """Close the connections and delete temporary files."""
        self._opened.close()

    def row(self, number: int) -> dict[str, Any] | None:
        """Return a row by its number; None if it is gone."""
        with self.rows.opened() as manifest:
            return manifest.page([number])[0]

    def plane(self, row: Mapping[str, Any]) -> Plane:
        """Return the intensities of a row, as :meth:`Overlays.plane`."""
        return self.overlays.plane(row).plane

    def describe(self) -> dict[str, Any]:
        """Return what the page needs to know of it, for JSON."""
        self.overlays.refresh()
        colorings = {"": UNKNOWN, **self.overlays.colorings}
        return {
            "name": os.path.basename(self.rows.address.rstrip("/")) or self.rows.address,
            "address": self.rows.address,
            "place": self.place,
            "live": self.rows.is_live(),
            "is_copy": self.rows.is_copy,
            "destination": self.rows.destination(),
            "counts": self.rows.counts()._asdict(),
            "colorings": {
                fingerprint: {
                    "table": base64.b64encode(coloring.table.tobytes()).decode(),
                    "merged": coloring.merged,
                    "settings": self._settings(fingerprint),
                }
                for fingerprint, coloring in colorings.items()
            },
        }

    def _settings(self, fingerprint: str) -> dict[str, Any] | None:
        run = self.overlays.runs.get(fingerprint)
        return None if run is None else {name: value for name, value in run.shaping.items() if name != "s3"}
