"""The public names, one per line: ``from MODULE import NAME as NAME``. ``__init__.py`` reads this file."""

from async_maps.batch import adry_run as adry_run
from async_maps.batch import arun as arun
from async_maps.batch import astream as astream
from async_maps.batch import dry_run as dry_run
from async_maps.batch import run as run
from async_maps.batch import stream as stream
from async_maps.doctor import Finding as Finding
from async_maps.doctor import adiagnose as adiagnose
from async_maps.doctor import diagnose as diagnose
from async_maps.errors import AsyncMapsError as AsyncMapsError
from async_maps.errors import ExistsError as ExistsError
from async_maps.errors import InputValidationError as InputValidationError
from async_maps.errors import ManifestError as ManifestError
from async_maps.errors import MapFailedError as MapFailedError
from async_maps.errors import MissingExtraError as MissingExtraError
from async_maps.errors import ObjectError as ObjectError
from async_maps.errors import PipelineClosedError as PipelineClosedError
from async_maps.errors import PipelineFullError as PipelineFullError
from async_maps.errors import SettingsError as SettingsError
from async_maps.errors import ShortageError as ShortageError
from async_maps.errors import SourceError as SourceError
from async_maps.errors import StoreError as StoreError
from async_maps.errors import TooManyFailuresError as TooManyFailuresError
from async_maps.errors import TransientError as TransientError
from async_maps.errors import WorkerError as WorkerError
from async_maps.failure_groups import FailureGroup as FailureGroup
from async_maps.manifest.export import export_manifest as export_manifest
from async_maps.outcomes import Failure as Failure
from async_maps.outcomes import MapStatistics as MapStatistics
from async_maps.outcomes import Outcome as Outcome
from async_maps.outcomes import Receipt as Receipt
from async_maps.pipeline import Pipeline as Pipeline
from async_maps.progress import Progress as Progress
from async_maps.render.colorize import colorize_activation_map as colorize_activation_map
from async_maps.render.colormap import Colormap as Colormap
from async_maps.render.colormap import ColormapJet as ColormapJet
from async_maps.render.png import encode_png as encode_png
from async_maps.report import Report as Report
from async_maps.settings import FilesSettings as FilesSettings
from async_maps.settings import S3Settings as S3Settings
from async_maps.settings import Settings as Settings
from async_maps.settings import load_settings as load_settings
from async_maps.stages.meters import StageStatistics as StageStatistics
from async_maps.stages.meters import Statistics as Statistics
from async_maps.stages.room import Room as Room
from async_maps.stores import Store as Store
from async_maps.stores.memory import MemoryStore as MemoryStore
from async_maps.verify import Difference as Difference
from async_maps.verify import Verification as Verification
from async_maps.verify import arepair_overlays as arepair_overlays
from async_maps.verify import averify_locators as averify_locators
from async_maps.verify import repair_overlays as repair_overlays
from async_maps.verify import verify_locators as verify_locators

__all__: list[str]
__version__: str
