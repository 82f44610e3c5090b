"""What a plan says of itself: the object ``plan.json``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from async_maps.errors import PlanError, SettingsError
from async_maps.render.png import encoder_version

if TYPE_CHECKING:
    from collections.abc import Mapping

    from async_maps.settings import Settings

SCHEMA = 1
"""The version of all objects of a plan; higher if a key or a column is dropped or redefined."""
_OF_SOURCES = ("include", "exclude")
"""The settings that choose the maps, besides those that shape the overlays."""
MOST_PARTS = 10**7 - 1
"""The names of the objects of parts have seven digits."""


def _shaping(found: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(found.get("range"), str) or not isinstance(found.get("s3"), dict):
        raise ValueError("expected a range and settings of s3")
    return found


_Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A source that is shared out in parts.

    Attributes:
        id: 32 hexadecimal digits, a digest of all part lists and of what shapes the overlays.
        source: where the files lie.
        destination: where the overlays go.
        shaping: the settings that shape the overlays, see :meth:`Settings.shaping`.
        choice: the settings that choose the maps.
        encoder: the version of the encoder: another one makes other bytes of the same map.
        parts: the number of parts; they are numbered from 1.
        files: the number of files of all parts.
        size: the bytes of all files.
        since: the address of the earlier plan, whose finished files are left out; None without one.
        left_out: the number of these files.
        created_at: the time of the plan, UTC in ISO 8601.
    """

    id: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]  # a part of paths
    source: str
    destination: str
    shaping: Annotated[dict[str, Any], AfterValidator(_shaping)]
    choice: dict[str, Any]
    encoder: str
    parts: Annotated[int, Field(ge=0, le=MOST_PARTS)]
    files: _Count
    size: _Count
    since: str | None
    left_out: _Count
    created_at: str

    def dump(self) -> bytes:
        """Return the plan as JSON."""
        return (json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2) + "\n").encode()

    @classmethod
    def parse(cls, data: bytes, where: str) -> Plan:
        """Read the JSON of a plan; raise PlanError if it is none, or of another version."""
        try:
            found = json.loads(data)
            schema = found["schema"]
            if schema != SCHEMA:
                raise PlanError(
                    f"{where} has schema {schema!r}, and this version of async-maps reads {SCHEMA}: use the version "
                    "that made the plan, or make another plan"
                )
            return _PLAN.validate_json(data, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(map(str, first["loc"]))
            raise PlanError(f"{where} is no plan of async-maps: {at}: {first['msg']}") from None
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise PlanError(f"{where} is no plan of async-maps: {error}") from error

    def settings(self, own: Settings) -> Settings:
        """Return the settings of a run of its parts.

        Args:
            own: those of the process. What shapes the overlays and chooses the maps is replaced by the plan's.

        Returns:
            New settings.

        Raises:
            PlanError: the encoder of this process makes other bytes.
        """
        if (found := encoder_version()) != self.encoder:
            raise PlanError(
                f"the plan was made for the encoder {self.encoder!r}, and this process has {found!r}: install the same "
                "versions on all machines, or make another plan"
            )
        try:
            return own.shaped_as(self.shaping | self.choice)
        except SettingsError as error:
            raise PlanError(f"the settings of the plan cannot be used: {error}") from error


_PLAN = TypeAdapter(Plan)


def choice_of(settings: Settings) -> Mapping[str, Any]:
    """Return the settings that choose the maps, as plain values."""
    return settings.model_dump(mode="json", include=set(_OF_SOURCES))
