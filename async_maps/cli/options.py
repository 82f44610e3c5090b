"""What the commands share: exit codes, and how settings become flags."""

from __future__ import annotations

from pathlib import Path

from cyclopts import Group

DONE, SOME_FAILED, WRONG_USE = 0, 1, 2
"""Exit codes."""

DEFAULT_MANIFEST = Path("async-maps.sqlite")

SETTINGS_GROUP = Group(
    "Settings", help="Each is also a key of the TOML file and an environment variable: ASYNC_MAPS_PNG=rgba.", sort_key=2
)
UNLISTED_SETTINGS_GROUP = Group("Settings of async-maps run", show=False)
