"""What the commands share: exit codes, and how settings become flags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

from cyclopts import Group, Parameter

DONE, SOME_FAILED, WRONG_USE = 0, 1, 2
"""Exit codes."""

Flag: TypeAlias = Annotated[bool, Parameter(negative="")]
"""An option that is given or not."""

DEFAULT_MANIFEST = Path("async-maps.sqlite")

SETTINGS_GROUP = Group(
    "Settings", help="Each is also a key of the TOML file and an environment variable: ASYNC_MAPS_PNG=rgba.", sort_key=2
)
