"""The settings: one frozen model. Precedence: options, environment variables, TOML file, defaults."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeAlias, TypeVar

import numpy as np
from pydantic import (
    BaseModel,
    ByteSize,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from async_maps.errors import AsyncMapsError, SettingsError
from async_maps.keys import KeyTemplate
from async_maps.machine.limits import MIB, Sizes, cores, default_sizes, memory
from async_maps.render.channels import Channels
from async_maps.render.colormap import AnyColormap, colormap_table, describe_colormap
from async_maps.render.quantize import Invalid
from async_maps.render.ranges import ValueRange, parse_range

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

IfExists: TypeAlias = Literal["overwrite", "skip", "error"]
"""What to do with a map whose object exists; see :attr:`Settings.if_exists`."""

SameDestination: TypeAlias = Literal["ask", "yes", "no"]
"""Whether a new address is that of the manifest's destination; see :attr:`Settings.same_destination`."""

CannedAcl: TypeAlias = Literal[
    "private", "public-read", "public-read-write", "authenticated-read", "aws-exec-read", "bucket-owner-read",
    "bucket-owner-full-control",
]  # fmt: skip
"""Who may read the objects; see :attr:`S3Settings.acl`."""

PngKind: TypeAlias = Literal["palette", "rgba", "compact", "gray"]
"""The kind of PNG; see :attr:`Settings.png`."""

_SHAPING = {"colormap", "alpha", "invalid", "channels", "column", "png", "png_level", "key"}
_HEADERS = {
    "cache_control", "metadata", "tagging", "storage_class", "acl", "server_side_encryption", "kms_key_id",
    "bucket_key", "request_payer",
}  # fmt: skip
"""The settings, besides the range, that affect an overlay's bytes or key; and those for the headers of S3 objects."""


_MAX_TAGS, _MAX_TAG_NAME, _MAX_TAG_VALUE = 10, 128, 256
"""The limits of S3 for an object (Amazon S3 User Guide, "Categorizing your storage using tags")."""

_AWS = {
    "endpoint": "AWS_ENDPOINT_URL",
    "endpoint_url": "AWS_ENDPOINT_URL",
    "region": "AWS_DEFAULT_REGION",
    "region_name": "AWS_DEFAULT_REGION",
    "profile": "AWS_PROFILE",
    "profile_name": "AWS_PROFILE",
    "access_key": "AWS_ACCESS_KEY_ID",
    "access_key_id": "AWS_ACCESS_KEY_ID",
    "secret_key": "AWS_SECRET_ACCESS_KEY",
    "secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "session_token": "AWS_SESSION_TOKEN",
    "ca_bundle": "AWS_CA_BUNDLE",
    "verify": "AWS_CA_BUNDLE",
}
"""The variables of the AWS SDK for names that users may try as settings."""


class _Model(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True):
    # Type checkers still derive the keywords of subclasses from their fields.
    def __init__(self, /, **values: object) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(describe_invalid(error)) from error
        except TypeError as error:  # names that are not strings
            raise SettingsError(str(error)) from error


_Given = TypeVar("_Given")
_Kept = TypeVar("_Kept")


class _Converted(Generic[_Given, _Kept]):
    """The type of a field that accepts more types than it stores."""

    if TYPE_CHECKING:  # type checkers use the setter's type for the keyword

        def __get__(self, settings: object, owner: type | None = None, /) -> _Kept: ...

        def __set__(self, settings: object, value: _Given, /) -> None: ...

    else:  # pydantic and the command line use the stored type

        def __class_getitem__(cls, types):
            return types[1]


class S3Settings(_Model, frozen=True):
    """Headers of the objects in S3, and the retries and timeouts of the client."""

    cache_control: str | None = None
    """Cache-Control header of each object, such as "public, max-age=86400"."""
    metadata: dict[str, str] = Field(default_factory=dict)
    """User metadata of each object."""
    tagging: dict[str, str] = Field(default_factory=dict)
    """Tags of each object, at most ten; they need s3:PutObjectTagging."""
    storage_class: str | None = None
    """Storage class of each object, such as STANDARD_IA."""
    acl: CannedAcl | None = None
    """Canned ACL of each object, such as bucket-owner-full-control; it needs s3:PutObjectAcl."""
    server_side_encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    """Server-side encryption of each object."""
    kms_key_id: str | None = None
    """KMS key to encrypt with."""
    bucket_key: bool | None = None
    """Encrypt with a key of the bucket that KMS derives, so that KMS gets fewer requests."""
    request_payer: Literal["requester"] | None = None
    """requester: these credentials pay for all requests, sources included, as Requester Pays buckets demand."""
    client: Literal["direct", "sdk"] = "direct"
    """direct sends the SDK's PUTs with less CPU time, and leaves errors to the SDK; sdk sends all with the SDK."""
    max_attempts: PositiveInt = 10
    """Maximum number of attempts per request while others succeed; the waits between them grow and are random."""
    give_up_s: PositiveFloat = 300.0
    """Seconds without a successful request after which the run ends; run it again when the store is back."""
    connect_timeout_s: PositiveFloat = 5.0
    """Seconds to wait for a connection."""
    read_timeout_s: PositiveFloat = 60.0
    """Seconds to wait for a response."""

    @field_validator("cache_control", "metadata", "storage_class", "kms_key_id")
    @classmethod
    def _fit_for_headers(cls, value: str | dict[str, str] | None) -> str | dict[str, str] | None:
        names, texts = (value.keys(), value.values()) if isinstance(value, dict) else ((), (value or "",))
        if not all(re.fullmatch(r"[\w.-]+", name, re.ASCII) for name in names):
            raise PydanticCustomError("header", "names should be letters, digits, '.', '_' and '-', as in HTTP headers")
        if len({name.lower() for name in names}) < len(names):
            raise PydanticCustomError("header", "names should differ in more than their case, as in HTTP headers")
        if not all(text.isascii() and text.isprintable() for text in texts):
            raise PydanticCustomError("header", "input should be printable ASCII, because it becomes an HTTP header")
        return value

    @field_validator("tagging")
    @classmethod
    def _fit_for_tags(cls, tags: dict[str, str]) -> dict[str, str]:
        if len(tags) > _MAX_TAGS:
            raise PydanticCustomError("tags", "input should have at most 10 tags, as S3 allows")
        for name, value in tags.items():
            if not (1 <= len(name) <= _MAX_TAG_NAME and len(value) <= _MAX_TAG_VALUE):
                raise PydanticCustomError("tags", "names should have 1 to 128 characters, and values at most 256")
            if not (name + value).isprintable():
                raise PydanticCustomError("tags", "names and values should be printable text on one line")
        return tags


class FilesSettings(_Model, frozen=True):
    """How files are written if the destination is a folder."""

    fsync: bool = False
    """Flush each file to the disk before it counts as stored."""


class Settings(_Model, frozen=True):
    """All settings of a pipeline, read-only.

    Pass them as keywords, or load them from a TOML file with :func:`load_settings`. In Python these types are accepted
    as well; the attributes hold the same as text or model:

    - ``colormap``: a :class:`~async_maps.Colormap` or another object with a method ``colorize(intensity)``; a table of
      256 colors, (256, 3) or (256, 4), uint8 or float in [0, 1]; or a list of colors at equal distances, each a name,
      ``#rrggbb``, ``#rrggbbaa`` or RGB(A) values.
    - ``range``: a pair of numbers.
    - ``include``, ``exclude``: one glob or several.
    - ``chunk_bytes``, ``queue_bytes``: a size such as "64MB" or "1GiB".
    - ``s3`` and ``files``: a mapping.

    Raises:
        SettingsError: a value is not allowed, or a name is not a setting.
    """

    colormap: _Converted[AnyColormap, str] = Field(default="jet", validate_default=True)
    """jet (Kolena's), a name of the cmap package (viridis, RdBu_r, ...), or colors (black,red,#ffff0080)."""
    alpha: Literal["auto", "fade", "opaque"] | Annotated[float, Field(ge=0, le=1)] = "auto"
    """Opacity: fade (transparent where intensity is low: Kolena's curve), opaque, or 0 to 1 for all pixels.
    auto is the alpha in the colors (#rrggbbaa), or fade if they have none."""
    range: _Converted[str | tuple[float, float] | list[float], str] = Field(default="unit", validate_default=True)
    """Values that the colors span: unit (0 to 1), LO,HI (--range=-2,2), or from:MANIFEST (those of another run).
    Of each map: per-map, percentile:P,Q, symmetric (around 0). Of all maps, read twice: dataset, dataset:P,Q."""
    channels: Channels = "none"
    """How the channels of (c,h,w), (n,c,h,w) and (h,w,3) become one value per pixel: their sum, norm (Euclidean),
    maxabs (the largest magnitude) or mean. none: (c,h,w) is a stack of c maps."""
    include: _Converted[str | Sequence[str], tuple[str, ...]] = Field(default=(), validate_default=True)
    """Only maps whose name, or a folder in it, or file matches this glob; repeatable."""
    exclude: _Converted[str | Sequence[str], tuple[str, ...]] = Field(default=(), validate_default=True)
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
    workers: NonNegativeInt | Literal["auto"] = "auto"
    """Processes that read and colorize; 0 uses threads of this process, auto one process for every two cores, or fewer
    where the memory is limited."""
    encode_threads: PositiveInt | Literal["auto"] = "auto"
    """Threads that encode; auto is one for every core, at least two."""
    concurrency: PositiveInt = 32
    """Maximum number of concurrent uploads."""
    prefetch: PositiveInt = 16
    """Maximum number of maps that are read concurrently from S3."""
    chunk_maps: PositiveInt = 256
    """Maximum number of maps in a chunk, which a worker gets in one call."""
    chunk_bytes: _Converted[int | str, PositiveInt | Literal["auto"]] = Field(default="auto", validate_default=True)
    """Size of a chunk, in bytes or with a unit (8MiB), after which it takes no further map; auto is 8 MiB, or a quarter
    of a smaller queue."""
    queue_bytes: _Converted[int | str, PositiveInt | Literal["auto"]] = Field(default="auto", validate_default=True)
    """Maximum size of each of the three queues, in bytes or with a unit (64MB, 1GiB); a larger map passes alone. auto
    is 64 MiB, or less where the memory is limited."""
    max_pixels: PositiveInt = 16_384 * 16_384
    """A map with more pixels fails before memory is allocated; the default is 16,384 x 16,384: 1 GiB of float32."""
    max_failures: NonNegativeInt | None = None
    """Stop the run when more maps than this have failed; by default it continues to the end."""
    drain_timeout_s: PositiveFloat = 25.0
    """Seconds to finish what is in flight after Ctrl-C or SIGTERM; at other ends, the longest time without progress."""
    s3: _Converted[S3Settings | Mapping[str, object], S3Settings] = Field(default=S3Settings(), validate_default=True)
    """S3: headers for destinations, retries and timeouts for sources too."""
    files: _Converted[FilesSettings | Mapping[str, object], FilesSettings] = Field(
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

    @field_validator("chunk_bytes", "queue_bytes", mode="before")
    @classmethod
    def _size(cls, value: object) -> object:
        if not isinstance(value, str) or value == "auto" or re.fullmatch(r"\s*[+-]?\d+\s*", value):
            return value
        try:
            if size := int(TypeAdapter(ByteSize).validate_python(value.strip())):
                return size
            raise PydanticCustomError("size", "input should be greater than 0")
        except (ValidationError, OverflowError):
            raise PydanticCustomError(
                "size", "input should be auto, a number of bytes, or a size such as 64MB or 1GiB"
            ) from None

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

    @property
    def worker_count(self) -> int:
        """The number of worker processes; 0 for threads."""
        return self._sizes.workers

    @property
    def encode_thread_count(self) -> int:
        """The number of threads that encode."""
        return self._sizes.encode_threads

    @property
    def queue_size(self) -> int:
        """The size of each queue in bytes."""
        return self._sizes.queue_bytes if self.queue_bytes == "auto" else self.queue_bytes

    @property
    def chunk_size(self) -> int:
        """The size of a chunk in bytes."""
        return min(8 * MIB, self.queue_size // 4 or 1) if self.chunk_bytes == "auto" else self.chunk_bytes

    @property
    def reductions(self) -> tuple[str, ...]:
        """What is smaller than on the whole machine, and why, as in "workers: 1, from a CPU quota of 0.5"."""
        return tuple(reason for reason in self._sizes.reasons if getattr(self, reason.partition(":")[0]) == "auto")

    @property
    def _sizes(self) -> Sizes:
        return default_sizes(
            cores(),
            memory(),
            workers=None if self.workers == "auto" else self.workers,
            encode_threads=None if self.encode_threads == "auto" else self.encode_threads,
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
        headers = self.s3.model_dump(include=_HEADERS, exclude_defaults=True)
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
        own["s3"] = self.s3.model_dump(exclude=_HEADERS)
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


_MAX_FILE_BYTES = 2**20


def load_settings(path: str | Path) -> Settings:
    """Load settings from a TOML file.

    Args:
        path: a file whose keys are the names of settings; ``configs/default.toml`` explains each.

    Returns:
        The settings; those that are not in the file have their defaults.

    Raises:
        SettingsError: the file cannot be read or is not TOML, a key is not a setting, or a value is not allowed.
    """
    try:
        with open(path, "rb", opener=_open_file) as file:
            content = file.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise SettingsError(f"expected a file of settings, found more than {_MAX_FILE_BYTES:,} bytes")
        return Settings(**tomllib.loads(content.decode()))
    except RecursionError:
        raise SettingsError(f"{path} is not a file of settings: its values are nested too deeply") from None
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from error
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error


def _open_file(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a pipe waits for a writer.
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # open() has words for a folder
        return descriptor
    os.close(descriptor)
    raise SettingsError(f"expected a file of settings, found a {'pipe' if stat.S_ISFIFO(mode) else 'device'}")


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
    for name, field in Settings.model_fields.items():
        part = field.annotation
        if isinstance(part, type) and issubclass(part, BaseModel):
            yield from (f"{name}.{inner}" for inner in part.model_fields)
        else:
            yield name


def aws_variable(name: str) -> str | None:
    """Return the variable of the AWS SDK to use instead of a name such as ``s3.endpoint_url``, or None."""
    return _AWS.get(re.sub(r"^(s3|aws)[._]|^aws_", "", name.lower().replace("-", "_")))


def describe_invalid(error: ValidationError, name_of: Callable[[str], str] = str) -> str:
    """Translate pydantic's error into one line: each setting, its problem and its value.

    Args:
        error: the error.
        name_of: returns the name of a setting for the message, such as its option.
    """
    return "; ".join(dict.fromkeys(_problems(error, name_of)))


def _problems(error: ValidationError, name_of: Callable[[str], str], part: tuple[str | int, ...] = ()) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        steps = (*part, *problem["loc"])
        name = ".".join(str(step) for step in steps if step not in {"constrained-int", "literal['auto']"})
        ours = problem.get("ctx", {}).get("error")
        if problem["type"] == "extra_forbidden":
            yield f"{name} is not a setting{_instead_of(name)}"
        elif isinstance(ours, AsyncMapsError):
            inner = ours.__cause__
            if isinstance(inner, ValidationError):
                yield from _problems(inner, name_of, steps)
            else:
                known_as = name_of(name) if name else ""
                yield str(ours) if known_as == name else f"{known_as}: {str(ours).removeprefix(f'{name}: ')}"
        else:
            yield f"{name_of(name)}: {problem['msg'][:1].lower()}{problem['msg'][1:]}, found {problem['input']!r}"


def _instead_of(name: str) -> str:
    if variable := aws_variable(name):
        return f"; set {variable} in the environment"
    near = get_close_matches(name, list(setting_names()), n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else ""
