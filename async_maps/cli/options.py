"""Options that commands share, and their groups in ``--help``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

from cyclopts import Group, Parameter
from pydantic import create_model

from async_maps.settings import Settings

WHAT = Group("What to do", sort_key=1)
OUTPUT = Group("What is printed", sort_key=3)
_LOOKS = Group("How it looks", sort_key=4)
_SPEED = Group("Speed", help="The defaults suit most machines.", sort_key=5)
OF_S3 = Group(
    "S3",
    help="Endpoint, region, profile and credentials come from the AWS environment and files: AWS_ENDPOINT_URL, "
    "AWS_DEFAULT_REGION, AWS_PROFILE. gs:// and az:// use cache-control, metadata, max-attempts and the time limits; "
    "the other options are for S3 only.",
    sort_key=6,
)
PLANS = Group(
    "Many machines",
    help="A share of a plan, in place of SOURCE and DESTINATION: async-maps run --plan PLAN --part 3/8.",
    sort_key=7,
)
_ADVANCED = Group("Advanced", sort_key=8)

_MAPS = Group("What is a map", sort_key=2)
_SPEEDS = (
    "processes", "workers", "encode_threads", "concurrency", "rate", "bandwidth", "prefetch", "queue_bytes",
    "png_level",
)  # fmt: skip
_GROUPS = {
    **dict.fromkeys(("channels", "include", "exclude", "column"), _MAPS),
    **dict.fromkeys(("colormap", "alpha", "range", "invalid", "png"), _LOOKS),
    **dict.fromkeys(_SPEEDS, _SPEED),
    "s3": OF_S3,
}

OF_RUNS = {name for name, group in _GROUPS.items() if group in (_MAPS, _LOOKS, _SPEED)}
"""The settings that only a run needs: what is a map, how its overlay looks, and its speed."""

Flag: TypeAlias = Annotated[bool, Parameter(negative="", show_default=False)]
"""An option that is given or not."""

Verbose: TypeAlias = Annotated[
    Flag, Parameter(("--verbose", "-v"), help="Print each failure as it happens, and other log messages.", group=OUTPUT)
]
Quiet: TypeAlias = Annotated[Flag, Parameter(("--quiet", "-q"), help="Print errors and the result only.", group=OUTPUT)]


def _parameter(setting: str) -> Parameter:
    if setting in {"include", "exclude"}:
        return Parameter(group=_MAPS, show_default=False, negative_iterable=())
    return Parameter(group=_GROUPS.get(setting, _ADVANCED))


DEFAULT_MANIFEST = Path("async-maps.sqlite")
LOOPBACK = "127.0.0.1"

if TYPE_CHECKING:
    GroupedSettings: TypeAlias = Settings
else:
    GroupedSettings = create_model(
        "Settings",
        __base__=Settings,
        **{
            name: (Annotated[field.annotation, *field.metadata, _parameter(name)], field)
            for name, field in Settings.model_fields.items()
        },
    )
    """The settings, whose options have their groups."""
