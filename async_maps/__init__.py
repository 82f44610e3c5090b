"""Activation maps in, Kolena-ready PNG overlays in an object store out, with a locator for every one.

The names below are imported when they are first used: every worker process imports this package, and ``--help`` too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from async_maps.colorize import colorize_activation_map
    from async_maps.colormap import Colormap, ColormapJet
    from async_maps.encode import encode_png
    from async_maps.errors import (
        AsyncMapsError,
        InputValidationError,
        ManifestError,
        MapFailedError,
        MissingExtraError,
        ObjectError,
        PipelineClosedError,
        SettingsError,
        SourceError,
        StoreError,
        TooManyFailuresError,
        WorkerError,
    )
    from async_maps.meters import Statistics
    from async_maps.pipeline import Pipeline, run
    from async_maps.records import Failure, Receipt
    from async_maps.report import Report
    from async_maps.settings import Settings, load_settings

_ROOMS = {
    "colorize": ["colorize_activation_map"],
    "colormap": ["Colormap", "ColormapJet"],
    "encode": ["encode_png"],
    "errors": [
        "AsyncMapsError",
        "InputValidationError",
        "ManifestError",
        "MapFailedError",
        "MissingExtraError",
        "ObjectError",
        "PipelineClosedError",
        "SettingsError",
        "SourceError",
        "StoreError",
        "TooManyFailuresError",
        "WorkerError",
    ],
    "meters": ["Statistics"],
    "pipeline": ["Pipeline", "run"],
    "records": ["Failure", "Receipt"],
    "report": ["Report"],
    "settings": ["Settings", "load_settings"],
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [  # noqa: PLE0604  # names from the table above, sorted
    *sorted(_ROOM_OF),
]


def __getattr__(name: str) -> object:
    if name in _ROOM_OF:
        return getattr(import_module(f"async_maps.{_ROOM_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
