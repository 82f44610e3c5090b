"""A worker process that is launched before the program has imported what takes long.

It loads its own libraries and the kernels while the program imports, parses and opens its store. The first pipeline
takes it. This module imports little itself.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

from async_maps.concurrency.launch import anonymous_file, launch_connected

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_maps.concurrency.launch import Launched

MODULE = "async_maps.workers.worker"


class EarlyWorker(NamedTuple):
    """A worker process without a recipe.

    Attributes:
        launched: its process.
        kernels: the file in memory through which it shares compiled kernels.
    """

    launched: Launched
    kernels: int

    def end(self) -> None:
        """Kill the process, and close the file."""
        self.launched.end()
        os.close(self.kernels)


_waiting: ContextVar[list[EarlyWorker] | None] = ContextVar("_waiting", default=None)
"""The early worker of a program, until a pipeline takes it."""


@contextmanager
def early_worker() -> Iterator[None]:
    """Launch a worker for the first pipeline of the ``with`` block; its end kills one that no pipeline has taken."""
    waiting: list[EarlyWorker] = []
    with suppress(OSError):  # the pipeline tries again, and says why that fails
        waiting.append(_launch())
    token = _waiting.set(waiting)
    try:
        yield
    finally:
        _waiting.reset(token)
        for worker in waiting:
            worker.end()


def _launch() -> EarlyWorker:
    kernels = anonymous_file()
    try:
        return EarlyWorker(launch_connected(MODULE, [kernels]), kernels)
    except BaseException:
        os.close(kernels)
        raise


def take_early_worker() -> EarlyWorker | None:
    """Take the early worker, which the caller ends; None if there is none, or if it was taken before."""
    waiting = _waiting.get()
    return waiting.pop() if waiting else None
