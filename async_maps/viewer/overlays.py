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
    from collections.abc import Iterable, Mapping

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


class Overlays:
    """The overlays of a manifest. Thread-safe.

    Attributes:
        colorings: how each run has colored, by the fingerprint of its settings.

    Raises:
        StoreError: all methods raise it if the store refuses a request or cannot be reached.
    """

    def __init__(self, runs: Iterable[KeptRun], s3: S3Settings | None = None) -> None:
        self._objects = Objects(s3)
        self.colorings: dict[str, Coloring] = {}
        for run in runs:
            try:
                settings = Settings().shaped_as(run.shaping)
                table = _GRAYS if settings.png == "gray" else settings.table()
                self.colorings[run.settings] = Coloring(table, settings.png)
            except (SettingsError, KeyError, TypeError, ValueError) as error:
                _logger.warning("the settings of a run in the manifest cannot be used: %s", error)

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

    def plane(self, row: Mapping[str, Any], side: int | None = None) -> tuple[Plane, bool]:
        """Return the intensities of a row, and whether its object has changed.

        Args:
            row: the row.
            side: the longest side in pixels; None for all pixels.

        Raises:
            MissingError: as :meth:`read`.
            NoImageError: as :meth:`read`, or the image is damaged or too large.
        """
        overlay = self.read(row)
        coloring = self.colorings.get(row["settings"], UNKNOWN)
        plane = read_plane(overlay.data, coloring)
        return plane if side is None else shrink(plane, side, coloring.merged), overlay.is_changed
