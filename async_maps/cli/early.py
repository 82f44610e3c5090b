"""Launches the worker process of a run before its command line is parsed, which imports what takes long."""

from __future__ import annotations

import os
from contextlib import nullcontext
from itertools import pairwise
from typing import TYPE_CHECKING

from async_maps.machine.limits import cores, default_lanes, memory
from async_maps.workers.early import early_worker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

_WITHOUT = {"-h", "--help", "--dry-run", "--plan", "--part", "--survey", "--processes"}
"""The options with which a run needs no worker in this process, or is not known to need one."""


def launching_worker(tokens: Sequence[str]) -> AbstractContextManager[None]:
    """Return a context manager that launches the worker that a command line needs, and ends it if it is not taken.

    A wrong guess changes nothing but the time: a worker that nobody takes is killed, and a pipeline launches its own.

    Args:
        tokens: the command line.
    """
    return early_worker() if _needs_worker(tokens) else nullcontext()


def _needs_worker(tokens: Sequence[str]) -> bool:
    options = {token.partition("=")[0].replace("_", "-") for token in tokens}
    return (
        tokens[:1] == ["run"]
        and len(tokens) > 2
        and not options & _WITHOUT
        and "--workers=0" not in tokens
        and ("--workers", "0") not in pairwise(tokens)
        and os.environ.get("ASYNC_MAPS_WORKERS") != "0"
        and "ASYNC_MAPS_PROCESSES" not in os.environ
        and default_lanes(cores(), memory()).value == 1
    )
