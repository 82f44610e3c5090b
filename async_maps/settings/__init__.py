"""The settings: one frozen model. Precedence: options, environment variables, TOML file, defaults.

The settings of object services are in :mod:`~async_maps.settings.s3`, reading a file in
:mod:`~async_maps.settings.file`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import (
    ByteSize,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from async_maps.errors import SettingsError
from async_maps.keys import KeyTemplate
from async_maps.machine.limits import (
    MIB,
    Limit,
    Requests,
    Sizes,
    cores,
    default_lanes,
    default_requests,
    default_sizes,
    memory,
)
from async_maps.machine.shortage import open_files_limit, thread_limit
from async_maps.render.channels import Channels
from async_maps.render.colormap import AnyColormap, colormap_table, describe_colormap
from async_maps.render.quantize import Invalid
from async_maps.render.ranges import ValueRange, parse_range
from async_maps.settings.model import Converted, Model
from async_maps.settings.problems import names_in
from async_maps.settings.s3 import HEADERS
from async_maps.settings.s3 import S3Settings as S3Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

IfExists: TypeAlias = Literal["overwrite", "skip", "error"]
"""What to do with a map whose object exists; see :attr:`Settings.if_exists`."""

SameDestination: TypeAlias = Literal["ask", "yes", "no"]
"""Whether a new address is that of the manifest's destination; see :attr:`Settings.same_destination`."""

PngKind: TypeAlias = Literal["palette", "rgba", "compact", "gray"]
"""The kind of PNG; see :attr:`Settings.png`."""

_SHAPING = {"colormap", "alpha", "invalid", "channels", "column", "png", "png_level", "key"}
"""The settings, besides the range, that affect an overlay's bytes or key."""

_MOST_PARALLEL, _MOST_REQUESTS = 1024, 10_000
"""A mistyped number must not use up the memory or the processes of the machine."""


class FilesSettings(Model, frozen=True):
    """How files are written if the destination is a folder."""

    fsync: bool = False
    """Flush each file to the disk before it counts as stored."""


class Settings(Model, frozen=True):
    """All settings of a pipeline, read-only.

    Pass them as keywords, or load them from a TOML file with :func:`load_settings`. In Python these types are accepted
    as well; the attributes hold the same as text or model:

    - ``colormap``: a :class:`~async_maps.Colormap` or another object with a method ``colorize(intensity)``; a table of
      256 colors, (256, 3) or (256, 4), uint8 or float in [0, 1]; or a list of colors at equal distances, each a name,
      ``#rrggbb``, ``#rrggbbaa`` or RGB(A) values.
    - ``range``: a pair of numbers.
    - ``include``, ``exclude``: one glob or several.
    - ``chunk_bytes``, ``queue_bytes``, ``bandwidth``: a size such as "64MB" or "1GiB".
    - ``s3`` and ``files``: a mapping.

    Raises:
        SettingsError: a value is not allowed, or a name is not a setting.
    """

    colormap: Converted[AnyColormap, str] = Field(default="jet", validate_default=True)
    """jet (Kolena's), a name of the cmap package (viridis, RdBu_r, ...), or colors (black,red,#ffff0080)."""
    alpha: Literal["auto", "fade", "opaque"] | Annotated[float, Field(ge=0, le=1)] = "auto"
    """Opacity: fade (transparent where intensity is low: Kolena's curve), opaque, or 0 to 1 for all pixels.
    auto is the alpha in the colors (#rrggbbaa), or fade if they have none."""
    range: Converted[str | tuple[float, float] | list[float], str] = Field(default="unit", validate_default=True)
    """Values that the colors span: unit (0 to 1), LO,HI (--range=-2,2), or from:MANIFEST (those of a run or a plan).
    Of each map: per-map, percentile:P,Q, symmetric (around 0). Of all maps, read twice: dataset, dataset:P,Q."""
    channels: Channels = "none"
    """How the channels of (c,h,w), (n,c,h,w) and (h,w,3) become one value per pixel: their sum, norm (Euclidean),
    maxabs (the largest magnitude) or mean. none: (c,h,w) is a stack of c maps."""
    include: Converted[str | Sequence[str], tuple[str, ...]] = Field(default=(), validate_default=True)
    """Only maps whose name, or a folder in it, or file matches this glob; repeatable."""
    exclude: Converted[str | Sequence[str], tuple[str, ...]] = Field(default=(), validate_default=True)
    """No maps whose name, or a folder in it, or file matches this glob; repeatable."""
    column: str | None = None
    """The column of arrays in a table, if there are several; ``path`` if a table with arrays is a listing."""
    invalid: Invalid = "error"
    """NaN and infinity: error (the map fails), transparent (the pixel is), or zero (it counts as the value 0)."""
    png: PngKind = "palette"
    """palette (small, fast), rgba (the same pixels), or compact (one palette index for all transparent pixels).
    gray: the intensities in one channel, for readers that color them; colormap and alpha do not apply."""
    key: str = "{name}.png"
    """Key of an overlay, from {name}, {parent}, {stem}, {index}, {digest} (of the PNG: changed maps get new keys)."""
    if_exists: IfExists = "overwrite"
    """If the object exists: overwrite it, skip the map if the bytes are the same, else fail; or error (fail)."""
    same_destination: SameDestination = "ask"
    """If the manifest names another address of the destination: ask (look up five of its overlays), yes or no."""
    png_level: Annotated[int, Field(ge=0, le=3)] = 1
    """Compression level, 0 to 3."""
    processes: Annotated[int, Field(gt=0, le=_MOST_PARALLEL)] | Literal["auto"] = "auto"
    """Processes that run all stages, each for a part of the maps in files (lanes); 1 runs them in this process only.
    auto is 1 up to 4 cores, else one for every three cores, or fewer where the memory is limited."""
    workers: Annotated[int, Field(ge=0, le=_MOST_PARALLEL)] | Literal["auto"] = "auto"
    """Processes that read and colorize; 0 uses threads of this process, auto two processes for every three cores, or
    fewer where the memory is limited."""
    encode_threads: Annotated[int, Field(gt=0, le=_MOST_PARALLEL)] | Literal["auto"] = "auto"
    """Threads that encode; auto is one for every core, at least two."""
    concurrency: Annotated[int, Field(gt=0, le=_MOST_REQUESTS)] | Literal["auto"] = "auto"
    """Maximum number of concurrent uploads. auto starts with 32; to a bucket it grows up to 256 while that is
    faster."""
    rate: PositiveFloat | None = None
    """Maximum number of PUTs a second, of all shares of a plan together; by default there is none until the store asks
    for fewer requests."""
    bandwidth: Converted[int | str | None, PositiveInt | None] = Field(default=None, validate_default=True)
    """Maximum number of bytes uploaded a second, of all shares of a plan together: a number, or with a unit (100MB)."""
    prefetch: Annotated[int, Field(gt=0, le=_MOST_REQUESTS)] | Literal["auto"] = "auto"
    """Maximum number of maps that are read concurrently from buckets. auto starts with 16, and grows up to 256 while
    that is faster."""
    chunk_maps: PositiveInt = 256
    """Maximum number of maps in a chunk, which a worker gets in one call."""
    chunk_bytes: Converted[int | str, PositiveInt | Literal["auto"]] = Field(default="auto", validate_default=True)
    """Size of a chunk, in bytes or with a unit (8MiB), after which it takes no further map; auto is 8 MiB, or a quarter
    of a smaller queue."""
    queue_bytes: Converted[int | str, PositiveInt | Literal["auto"]] = Field(default="auto", validate_default=True)
    """Maximum size of each of the three queues, in bytes or with a unit (64MB, 1GiB); a larger map passes alone. auto
    is 64 MiB, or less where the memory is limited."""
    max_pixels: PositiveInt = 16_384 * 16_384
    """A map with more pixels fails before memory is allocated; the default is 16,384 x 16,384: 1 GiB of float32."""
    max_failures: NonNegativeInt | None = None
    """Stop the run when more maps than this have failed; by default it continues to the end."""
    drain_timeout_s: PositiveFloat = 25.0
    """Seconds to finish what is in flight after Ctrl-C or SIGTERM; at other ends, the longest time without progress."""
    s3: Converted[S3Settings | Mapping[str, object], S3Settings] = Field(default=S3Settings(), validate_default=True)
    """Object services: headers for destinations, retries and timeouts for sources too; most headers are for S3 only."""
    files: Converted[FilesSettings | Mapping[str, object], FilesSettings] = Field(
        default=FilesSettings(), validate_default=True
    )
    """Folders as destinations."""

    @field_validator("colormap", mode="before")
    @classmethod
    def _known_colormap(cls, colormap: object) -> str:
        return describe_colormap(colormap)

    @field_validator("alpha", mode="before")
    @classmethod
    def _known_alpha(cls, alpha: object) -> object:
        if isinstance(alpha, str) and alpha in {"auto", "fade", "opaque"}:
            return alpha
        try:
            share = float(str(alpha))
        except ValueError:
            share = -1
        if not 0 <= share <= 1:
            raise SettingsError(f"alpha: expected auto, fade, opaque or a number from 0 to 1, found {alpha!r}")
        return share

    @field_validator("range", mode="before")
    @classmethod
    def _known_range(cls, value: object) -> str:
        return str(parse_range(",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)))

    @field_validator("include", "exclude", mode="before")
    @classmethod
    def _globs(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("chunk_bytes", "queue_bytes", "bandwidth", mode="before")
    @classmethod
    def _size(cls, value: object, field: ValidationInfo) -> object:
        auto = "" if field.field_name == "bandwidth" else "auto"
        if not isinstance(value, str) or value == auto or re.fullmatch(r"\s*[+-]?\d+\s*", value):
            return value
        try:
            if size := int(TypeAdapter(ByteSize).validate_python(value.strip())):
                return size
            raise PydanticCustomError("size", "input should be greater than 0")
        except (ValidationError, OverflowError):
            allowed = f"{auto}, a number of bytes, or" if auto else "a number of bytes or"
            raise PydanticCustomError("size", f"input should be {allowed} a size such as 64MB or 1GiB") from None

    @field_validator("key")
    @classmethod
    def _known_key(cls, key: str) -> str:
        return str(KeyTemplate(key))

    @model_validator(mode="after")
    def _one_channel_hides_nothing(self) -> Settings:
        if self.png == "gray" and self.invalid == "transparent":
            raise SettingsError("png gray has no transparent pixels: set invalid to zero or error, or png to palette")
        return self

    @property
    def value_range(self) -> ValueRange:
        """The value range, parsed."""
        return parse_range(self.range)

    @property
    def key_template(self) -> KeyTemplate:
        """The template of the keys, parsed."""
        return KeyTemplate(self.key)

    def _share(self, whole: int) -> int:
        """Return what one of several equal parts of a pipeline gets; see :func:`part_of`."""
        return min(whole, max(1, whole // self._parts))

    @property
    def lane_count(self) -> int:
        """The number of processes that run all stages."""
        return int(self._lanes.value) if self.processes == "auto" else self.processes

    @property
    def worker_count(self) -> int:
        """The number of worker processes; 0 for threads."""
        return self._share(self._sizes.workers)

    @property
    def encode_thread_count(self) -> int:
        """The number of threads that encode."""
        return self._share(self._sizes.encode_threads)

    @property
    def first_concurrency(self) -> int:
        """The number of concurrent uploads at the start."""
        return self._share(self._requests.first_uploads if self.concurrency == "auto" else self.concurrency)

    @property
    def most_concurrency(self) -> int:
        """The maximum number of concurrent uploads to a bucket."""
        return self._share(self._requests.most_uploads if self.concurrency == "auto" else self.concurrency)

    @property
    def first_prefetch(self) -> int:
        """The number of concurrent reads from buckets at the start."""
        return self._share(self._requests.first_reads if self.prefetch == "auto" else self.prefetch)

    @property
    def most_prefetch(self) -> int:
        """The maximum number of concurrent reads from buckets."""
        return self._share(self._requests.most_reads if self.prefetch == "auto" else self.prefetch)

    @property
    def most_ahead(self) -> int:
        """The maximum number of objects that are read concurrently while they are listed."""
        return self._share(self._requests.most_ahead if self.prefetch == "auto" else self.prefetch)

    @property
    def queue_size(self) -> int:
        """The size of each queue in bytes."""
        return self._share(self._whole_queue)

    @property
    def _whole_queue(self) -> int:
        return self._sizes.queue_bytes if self.queue_bytes == "auto" else self.queue_bytes

    @property
    def chunk_size(self) -> int:
        """The size of a chunk in bytes."""
        return min(8 * MIB, self.queue_size // 4 or 1) if self.chunk_bytes == "auto" else self.chunk_bytes

    @property
    def reductions(self) -> tuple[str, ...]:
        """What is smaller than on the whole machine, and why, as in "workers: 1, from a CPU quota of 0.5"."""
        lanes = self._lanes
        processes = [f"processes: {lanes.value:.0f}, from {lanes.origin}"] if lanes.origin else []
        found = (*processes, *self._sizes.reasons)
        return tuple(reason for reason in found if getattr(self, reason.partition(":")[0]) == "auto")

    @cached_property
    def _parts(self) -> int:
        """The number of equal parts of a pipeline, one of which has these settings."""
        return 1

    @cached_property
    def _machine(self) -> tuple[Limit, Limit | None, int | None, int | None]:
        """The cores, the memory, and the limits of open files and threads; a copy with other settings keeps them."""
        files, threads = (None if cap is None else cap.value for cap in (open_files_limit(), thread_limit()))
        return cores(), memory(), files, threads

    @property
    def _requests(self) -> Requests:
        sizes = Sizes(self._sizes.workers, self._sizes.encode_threads, self._whole_queue)
        return default_requests(*self._machine[1:], sizes, self.lane_count)

    @property
    def _lanes(self) -> Limit:
        return default_lanes(*self._machine[:2])

    @property
    def _sizes(self) -> Sizes:
        return default_sizes(
            *self._machine[:2],
            workers=None if self.workers == "auto" else self.workers,
            encode_threads=None if self.encode_threads == "auto" else self.encode_threads,
            lanes=self.lane_count,
        )

    def table(self) -> NDArray[np.uint8]:
        """Return the color of each intensity: (256, 4) uint8, RGBA."""
        return colormap_table(self.colormap, self.alpha)

    def shaping(self, value_range: ValueRange) -> dict[str, Any]:
        """Return the settings that affect the uploaded objects.

        Args:
            value_range: the range of the run.

        Returns:
            Plain values for JSON, without secrets.
        """
        headers = self.s3.model_dump(include=HEADERS, exclude_defaults=True)
        return self.model_dump(include=_SHAPING) | {"range": str(value_range), "s3": headers}

    def shaped_as(self, shaping: Mapping[str, Any]) -> Settings:
        """Replace the settings that affect the uploaded objects by those of another run.

        Args:
            shaping: the result of :meth:`shaping` of the other settings.

        Returns:
            New settings.

        Raises:
            SettingsError: ``shaping`` is not a result of :meth:`shaping`, or its range is a single value.
        """
        own = self.model_dump()
        own["s3"] = self.s3.model_dump(exclude=HEADERS)
        return Settings(**{**own, **shaping, "s3": {**own["s3"], **shaping["s3"]}})

    def fingerprint(self, value_range: ValueRange | None = None) -> str:
        """Compute a digest of the settings that affect an overlay's bytes or key.

        A map that was done with another digest must be uploaded again.

        Args:
            value_range: the range of the run, if it depends on the maps; by default the range of these settings.

        Returns:
            16 hexadecimal digits.
        """
        value_range = value_range or self.value_range
        colors = "" if self.png == "gray" else hashlib.sha256(self.table().tobytes()).hexdigest()
        shape: list[object] = [self.png, self.png_level, colors, str(value_range), self.invalid, self.key]
        if (self.channels, self.column) != ("none", None):
            shape += [self.channels, self.column]
        return hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:16]


def part_of(settings: Settings, parts: int) -> Settings:
    """Return the settings of one of several equal parts of a pipeline: sizes and rates are divided, at least 1 each."""
    bandwidth = settings.bandwidth and max(1, settings.bandwidth // parts)
    part = settings.model_copy(update={"rate": settings.rate and settings.rate / parts, "bandwidth": bandwidth})
    part.__dict__["_parts"] = parts  # as a cached property, because a private attribute adds a public method
    return part


def given_or_default(settings: Settings | None) -> Settings:
    """Return the settings that a caller passed, or the defaults for None.

    Raises:
        SettingsError: they are neither.
    """
    if settings is None:
        return Settings()
    if not isinstance(settings, Settings):
        raise SettingsError(f"settings: expected async_maps.Settings(...), found {settings!r}")
    return settings


def counted_values(settings: Settings) -> str:
    """Return the settings that decide which values a ``dataset`` range counts, as text."""
    return " ".join([settings.invalid, *({settings.channels} - {"none"}), *filter(None, [settings.column])])


def setting_names() -> Iterator[str]:
    """Iterate over the names of all settings, parts included: ``png``, ``s3.give_up_s``."""
    return names_in(Settings)
