"""Activation maps in, Kolena-ready PNG overlays in an object store out, with a locator for every one.

The names below are imported when they are first used: every worker process imports this package, and ``--help`` too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from async_maps.batch import adry_run, arun, astream, dry_run, run, stream
    from async_maps.doctor import Finding, adiagnose, diagnose
    from async_maps.errors import (
        AsyncMapsError,
        ExistsError,
        InputValidationError,
        ManifestError,
        MapFailedError,
        MissingExtraError,
        ObjectError,
        PipelineClosedError,
        PipelineFullError,
        SettingsError,
        SourceError,
        StoreError,
        TooManyFailuresError,
        TransientError,
        WorkerError,
    )
    from async_maps.manifest.export import export_manifest
    from async_maps.outcomes import Failure, MapStatistics, Outcome, Receipt
    from async_maps.pipeline import Pipeline
    from async_maps.progress import Progress
    from async_maps.render.colorize import colorize_activation_map
    from async_maps.render.colormap import Colormap, ColormapJet
    from async_maps.render.png import encode_png
    from async_maps.report import Report
    from async_maps.settings import FilesSettings, S3Settings, Settings, load_settings
    from async_maps.stages.meters import StageStatistics, Statistics
    from async_maps.stores import Store
    from async_maps.stores.memory import MemoryStore
    from async_maps.verify import (
        Difference,
        Verification,
        arepair_overlays,
        averify_locators,
        repair_overlays,
        verify_locators,
    )

__all__ = [
    "AsyncMapsError",
    "Colormap",
    "ColormapJet",
    "Difference",
    "ExistsError",
    "Failure",
    "FilesSettings",
    "Finding",
    "InputValidationError",
    "ManifestError",
    "MapFailedError",
    "MapStatistics",
    "MemoryStore",
    "MissingExtraError",
    "ObjectError",
    "Outcome",
    "Pipeline",
    "PipelineClosedError",
    "PipelineFullError",
    "Progress",
    "Receipt",
    "Report",
    "S3Settings",
    "Settings",
    "SettingsError",
    "SourceError",
    "StageStatistics",
    "Statistics",
    "Store",
    "StoreError",
    "TooManyFailuresError",
    "TransientError",
    "Verification",
    "WorkerError",
    "adiagnose",
    "adry_run",
    "arepair_overlays",
    "arun",
    "astream",
    "averify_locators",
    "colorize_activation_map",
    "diagnose",
    "dry_run",
    "encode_png",
    "export_manifest",
    "load_settings",
    "repair_overlays",
    "run",
    "stream",
    "verify_locators",
]

_ROOMS = {
    "batch": ("adry_run", "arun", "astream", "dry_run", "run", "stream"),
    "doctor": ("Finding", "adiagnose", "diagnose"),
    "manifest.export": ("export_manifest",),
    "outcomes": ("Failure", "MapStatistics", "Outcome", "Receipt"),
    "pipeline": ("Pipeline",),
    "render.colorize": ("colorize_activation_map",),
    "render.colormap": ("Colormap", "ColormapJet"),
    "render.png": ("encode_png",),
    "report": ("Report",),
    "settings": ("FilesSettings", "S3Settings", "Settings", "load_settings"),
    "stages.meters": ("StageStatistics", "Statistics"),
    "progress": ("Progress",),
    "stores": ("Store",),
    "stores.memory": ("MemoryStore",),
    "verify": (
        "Difference",
        "Verification",
        "arepair_overlays",
        "averify_locators",
        "repair_overlays",
        "verify_locators",
    ),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # What is in no other room is an error.
    return getattr(import_module(f"async_maps.{_ROOM_OF.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return __all__
