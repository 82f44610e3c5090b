"""The settings: one frozen model. Flags go before the environment, that before a TOML file, that before defaults."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeAlias, TypeVar

import numpy as np
from pydantic import (
    BaseModel,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from async_maps.errors import SettingsError
from async_maps.keys import KeyTemplate
from async_maps.render.colormap import AnyColormap, colormap_table, describe_colormap
from async_maps.render.quantize import Invalid
from async_maps.render.ranges import ValueRange, parse_range

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

MIB = 2**20

IfExists: TypeAlias = Literal["overwrite", "skip", "error"]
"""What becomes of a map whose key has an object; see :attr:`Settings.if_exists`."""

PngKind: TypeAlias = Literal["palette", "rgba", "compact", "gray"]
"""How PNGs are written; see :attr:`Settings.png`."""


_SHAPING = {"colormap", "alpha", "invalid", "png", "png_level", "key"}
_HEADERS = {"cache_control", "metadata", "storage_class", "server_side_encryption", "kms_key_id"}
"""The settings, besides the range, that shape an overlay's bytes or key; and what S3 is told about each object."""


class _Model(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True):
    # Type checkers take the keywords of each subclass from its fields, as it has no such method of its own.
    def __init__(self, /, **values: object) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(describe_invalid(error)) from error


_Given = TypeVar("_Given")
_Kept = TypeVar("_Kept")


class _Converted(Generic[_Given, _Kept]):
    """The type of a field that takes more than it keeps."""

    if TYPE_CHECKING:  # a keyword has the type that the setter takes

        def __get__(self, settings: object, owner: type | None = None, /) -> _Kept: ...

        def __set__(self, settings: object, value: _Given, /) -> None: ...

    else:  # pydantic and the command line are told what is kept

        def __class_getitem__(cls, types):
            return types[1]


class S3Settings(_Model, frozen=True):
    """What S3 is told about each object, and how patient its client is."""

    cache_control: str | None = None
    """Cache-Control of each object, such as "public, max-age=86400"."""
    metadata: dict[str, str] = Field(default_factory=dict)
    """User metadata of each object."""
    storage_class: str | None = None
    """Storage class, such as STANDARD_IA."""
    server_side_encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    """Server-side encryption."""
    kms_key_id: str | None = None
    """The KMS key to encrypt with."""
    client: Literal["direct", "sdk"] = "direct"
    """direct sends PUTs like the SDK's own, without most of its work; what goes wrong is the SDK's all the same."""
    max_attempts: PositiveInt = 10
    """How often a request is tried in all, while others pass; the waits between grow and are random."""
    give_up_s: PositiveFloat = 300.0
    """A store that has taken nothing for so many seconds is down: the run ends, to be run again."""
    connect_timeout_s: PositiveFloat = 5.0
    """Seconds to wait for a connection."""
    read_timeout_s: PositiveFloat = 60.0
    """Seconds to wait for an answer."""

    @field_validator("cache_control", "metadata", "storage_class", "kms_key_id")
    @classmethod
    def _fit_for_headers(cls, value: str | dict[str, str] | None) -> str | dict[str, str] | None:
        names, texts = (value.keys(), value.values()) if isinstance(value, dict) else ((), (value or "",))
        if not all(re.fullmatch(r"[\w.-]+", name, re.ASCII) for name in names):
            raise PydanticCustomError("header", "names should be of letters, digits, '.', '_' and '-', as HTTP headers")
        if not all(text.isascii() and text.isprintable() for text in texts):
            raise PydanticCustomError("header", "input should be printable ASCII, as it becomes an HTTP header")
        return value


class FilesSettings(_Model, frozen=True):
    """How files are written when the destination is a folder."""

    fsync: bool = False
    """Force each file to the disk before it counts as stored."""


class Settings(_Model, frozen=True):
    """All settings of a pipeline. Construct it with keywords, or with :func:`load_settings` from a TOML file.

    Raises:
        SettingsError: a value that makes no sense, or a name that is no setting.
    """

    colormap: _Converted[AnyColormap, str] = Field(default="jet", validate_default=True)
    """jet (Kolena's), a name of the cmap package (viridis, RdBu_r, ...), or colors (black,red,#ffff0080)."""
    alpha: Literal["auto", "fade", "opaque"] | Annotated[float, Field(ge=0, le=1)] = "auto"
    """fade lets low intensities fade out (Kolena's curve); opaque; 0 to 1 for all; auto is fade unless colors tell."""
    range: _Converted[str | tuple[float, float] | list[float], str] = Field(default="unit", validate_default=True)
    """Values that the colors span: unit (0 to 1), LO,HI (--range=-2,2), per-map, percentile:P,Q (of each map),
    symmetric (0 in the middle), dataset or dataset:P,Q (of all maps, which are read once more), from:MANIFEST."""
    invalid: Invalid = "error"
    """NaN and infinity: the map fails, the pixel is transparent, or it counts as the value zero."""
    png: PngKind = "palette"
    """palette (small, fast), rgba (the same pixels, for readers that insist), compact (what is invisible, alike) or
    gray (the intensities themselves, one channel, for readers that color: neither colormap nor alpha applies)."""
    key: str = "{name}.png"
    """Key of an overlay, of {name}, {parent}, {stem}, {index}, {digest} (of the PNG: a changed map has a new key)."""
    if_exists: IfExists = "overwrite"
    """An object that is there: overwrite it, skip the map if its bytes are the same, or error in any case."""
    png_level: Annotated[int, Field(ge=0, le=3)] = 1
    """Effort of compression, 0 to 3."""
    workers: NonNegativeInt | Literal["auto"] = "auto"
    """Processes that read and colorize; 0 does it in threads of this process; auto is one for every two cores."""
    encode_threads: PositiveInt | Literal["auto"] = "auto"
    """Threads that encode; auto is one for every core, and two at least: while one hands over, another works."""
    concurrency: PositiveInt = 32
    """Uploads under way at once."""
    prefetch: PositiveInt = 16
    """Maps read at once from S3, when the source lies there."""
    chunk_maps: PositiveInt = 256
    """At most so many maps go to a worker in one call."""
    chunk_bytes: PositiveInt = 8 * MIB
    """A chunk that has reached so many bytes takes no further map."""
    queue_bytes: PositiveInt = 64 * MIB
    """Bytes that each of the three queues may hold; a single map larger than that passes alone."""
    max_pixels: PositiveInt = 16_384 * 16_384
    """A map of more pixels fails before memory is taken for it; the default is 1 GiB of float32, 16,384 by 16,384."""
    max_failures: NonNegativeInt | None = None
    """End the run when more maps than this have failed; by default it goes on to the end."""
    drain_timeout_s: PositiveFloat = 60.0
    """On the first Ctrl-C, what is in flight has so many seconds to finish."""
    s3: _Converted[S3Settings | Mapping[str, object], S3Settings] = Field(default=S3Settings(), validate_default=True)
    """For S3: the headers are those of destinations, the patience that of sources too."""
    files: _Converted[FilesSettings | Mapping[str, object], FilesSettings] = Field(
        default=FilesSettings(), validate_default=True
    )
    """For destinations on a disk."""

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
        """The range, parsed."""
        return parse_range(self.range)

    @property
    def key_template(self) -> KeyTemplate:
        """The key, parsed."""
        return KeyTemplate(self.key)

    @property
    def worker_count(self) -> int:
        """How many worker processes; 0 for threads."""
        return max(1, _cores() // 2) if self.workers == "auto" else self.workers

    @property
    def encode_thread_count(self) -> int:
        """How many encode threads."""
        return max(2, _cores()) if self.encode_threads == "auto" else self.encode_threads

    def table(self) -> NDArray[np.uint8]:
        """The colors: (256, 4) uint8, RGBA."""
        return colormap_table(self.colormap, self.alpha)

    def shaping(self, value_range: ValueRange) -> dict[str, Any]:
        """What makes the same objects of the same maps once more, as plain values: no secret is among them.

        Args:
            value_range: what the range of these settings has come to.
        """
        headers = self.s3.model_dump(include=_HEADERS, exclude_defaults=True)
        return self.model_dump(include=_SHAPING) | {"range": str(value_range), "s3": headers}

    def shaped_as(self, shaping: Mapping[str, Any]) -> Settings:
        """These settings, but for what :meth:`shaping` has given of others.

        Raises:
            SettingsError: it is not what that has given, or its range has come to a single value.
        """
        own = self.model_dump()
        own["s3"] = self.s3.model_dump(exclude=_HEADERS)
        return Settings(**{**own, **shaping, "s3": {**own["s3"], **shaping["s3"]}})

    def fingerprint(self, value_range: ValueRange | None = None) -> str:
        """A digest of all that shapes an overlay's bytes or key: with another one, a finished map must be done again.

        Args:
            value_range: what the range of these settings has come to, where that depends on the maps.
        """
        value_range = value_range or self.value_range
        colors = "" if self.png == "gray" else hashlib.sha256(self.table().tobytes()).hexdigest()
        shape = [self.png, self.png_level, colors, str(value_range), self.invalid, self.key]
        return hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:16]


def load_settings(path: str | Path) -> Settings:
    """Settings from a TOML file whose keys are the model's.

    Raises:
        SettingsError: no such file, no TOML, or a key or value that makes no sense.
    """
    try:
        with open(path, "rb") as file:
            return Settings(**tomllib.load(file))
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from error
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error


def describe_invalid(error: ValidationError) -> str:
    """One line for what pydantic found wrong: each setting, what is wrong with it and what was found."""
    return "; ".join(dict.fromkeys(_problems(error)))


def _problems(error: ValidationError, part: tuple[str | int, ...] = ()) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        steps = (*part, *problem["loc"])
        name = ".".join(str(step) for step in steps if step not in {"constrained-int", "literal['auto']"})
        ours = problem.get("ctx", {}).get("error")
        if problem["type"] == "extra_forbidden":
            yield f"{name} is not a setting"
        elif isinstance(ours, SettingsError):
            inner = ours.__cause__
            yield from _problems(inner, steps) if isinstance(inner, ValidationError) else [str(ours)]
        else:
            yield f"{name}: {problem['msg'][:1].lower()}{problem['msg'][1:]}, found {problem['input']!r}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
