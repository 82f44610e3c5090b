"""Reads overlays from their store, and the intensities in them. Everything here blocks."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from isal import isal_zlib

from async_maps.errors import ObjectError, SettingsError, SourceError, translate_os_error
from async_maps.filesystems.objects import Objects
from async_maps.keys import printable
from async_maps.render.colormap import colormap_table
from async_maps.settings import Settings
from async_maps.viewer.pixels import Coloring, NoImageError, kind_of, read_plane, shrink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from async_maps.manifest.metadata import KeptRun
    from async_maps.settings import S3Settings
    from async_maps.viewer.pixels import Plane

_logger = logging.getLogger("async_maps")

MAX_BYTES = 512 * 2**20
"""Larger objects are not read: an RGBA overlay with Pillow's limit of pixels has at most 341 MiB."""
_GRAYS = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 4, axis=1)
_GRAYS[:, 3] = 255
UNKNOWN = Coloring(colormap_table("jet"))
"""How a run has colored whose settings are not in the manifest."""


class MissingError(ObjectError):
    """The overlay is not in the store."""


class Overlay(NamedTuple):
    """An object in the store; ``is_changed`` if it is not the one that the row describes."""

    data: bytes | bytearray
    is_changed: bool


class Intensities(NamedTuple):
    """The intensities of a row.

    Attributes:
        plane: the intensities.
        is_changed: whether the object is not the one that the row describes.
        is_known: whether the manifest says how its run has colored.
    """

    plane: Plane
    is_changed: bool
    is_known: bool


class Overlays:
    """The overlays of a manifest. Thread-safe.

    Attributes:
        runs: the runs, by the fingerprint of their settings.
        colorings: how each run has colored, by the same.

    Args:
        read_runs: returns the runs of the manifest; it is called again for a fingerprint that is unknown.
        s3: the time limits and attempts of requests.

    Raises:
        StoreError: all methods raise it if the store refuses a request or cannot be reached.
    """

    def __init__(self, read_runs: Callable[[], Iterable[KeptRun]], s3: S3Settings | None = None) -> None:
        self._read_runs = read_runs
        self.runs: dict[str, KeptRun] = {}
        self.colorings: dict[str, Coloring] = {}
        self.refresh()
        self._objects = Objects(s3)

    def refresh(self) -> None:
        """Read the settings of runs that are new."""
        for run in self._read_runs():
            if run.settings in self.runs:
                continue
            try:
                settings = Settings().shaped_as(run.shaping)
                table = _GRAYS if settings.png == "gray" else settings.table()
                self.colorings[run.settings] = Coloring(table, settings.png)
            except (SettingsError, KeyError, TypeError, ValueError) as error:
                _logger.warning("the settings of a run in the manifest cannot be used: %s", error)
            # Last, so that other threads know the colors of a run that they know.
            self.runs[run.settings] = run

    def close(self) -> None:
        """Close the connections."""
        self._objects.close()

    def read(self, row: Mapping[str, Any]) -> Overlay:
        """Read the overlay of a row.

        Raises:
            MissingError: the row has no overlay, or it is not in the store.
            NoImageError: the object is no image.
        """
        locator = row["locator"]
        if not isinstance(locator, str):
            raise MissingError("the map has no overlay")
        shown = printable(locator)
        try:
            data = self._objects.read(locator, most=MAX_BYTES + 1).data
        except (FileNotFoundError, ValueError):  # ValueError: no path has a NUL
            raise MissingError(f"{shown} is missing") from None
        except (OSError, SourceError) as error:
            raise ObjectError(f"{shown}: {translate_os_error(error)}") from error
        if len(data) > MAX_BYTES:
            raise NoImageError(f"{shown} has more than {MAX_BYTES:,} bytes")
        kind_of(data)
        return Overlay(data, row["crc32"] is not None and f"{isal_zlib.crc32(data):08x}" != row["crc32"])

    def plane(self, row: Mapping[str, Any], side: int | None = None) -> Intensities:
        """Return the intensities of a row.

        Args:
            row: the row.
            side: the longest side in pixels; None for all pixels.

        Raises:
            MissingError: as :meth:`read`.
            NoImageError: as :meth:`read`, or the image is damaged or too large.
        """
        overlay = self.read(row)
        if row["settings"] not in self.runs:
            self.refresh()
        coloring = self.colorings.get(row["settings"], UNKNOWN)
        plane = read_plane(overlay.data, coloring)
        shown = plane if side is None else shrink(plane, side, coloring.merged)
        return Intensities(shown, overlay.is_changed, row["settings"] in self.colorings)
