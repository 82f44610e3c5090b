"""The command ``async-maps``: one file per command."""

from __future__ import annotations

import gc
from typing import NoReturn

from async_maps.cli.interruption import hold_signals


def main() -> NoReturn:
    """Run the command, which hears a signal of the time of its imports when they are done."""
    hold_signals()
    # Each command calls resume_collection() after its imports.
    gc.disable()
    from async_maps.cli.app import main as run

    run()
