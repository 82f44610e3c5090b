"""How a run or a verification ends: its times, the error that ended it, and the exit code of the command."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from time import monotonic
from typing import Any

from async_maps.errors import (
    AsyncMapsError,
    InputValidationError,
    MapFailedError,
    MissingExtraError,
    PipelineFullError,
    PlanError,
    ShortageError,
    StoreError,
    TooManyFailuresError,
    TransientError,
    WorkerError,
)
from async_maps.stores.promises import BrokenPromiseError

SCHEMA = 1
"""The version of the JSON of reports, described in ``report.schema.json``; higher if a key is dropped or redefined."""

DONE, SOME_FAILED, WRONG_USE, STOPPED_EARLY, WRONG_PLAN = 0, 1, 2, 3, 4
"""The exit codes of the commands, besides 128 + the number of a signal."""

_EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (MapFailedError, SOME_FAILED),
    (InputValidationError, SOME_FAILED),
    (TooManyFailuresError, SOME_FAILED),
    (MissingExtraError, WRONG_USE),
    (BrokenPromiseError, WRONG_USE),
    (PipelineFullError, STOPPED_EARLY),
    (TransientError, STOPPED_EARLY),
    (WorkerError, STOPPED_EARLY),
    (ShortageError, STOPPED_EARLY),
    (KeyboardInterrupt, 128 + signal.SIGINT),
)
"""The errors whose class decides; the first that fits counts. For others, ``may_pass`` decides."""


@dataclass(slots=True, kw_only=True)
class Ending:
    """What a run and a verification report about their settings, their times and their end.

    Attributes:
        settings: the settings as plain values; empty if they are not valid.
        started_at: the time of the start, in UTC.
        ended_at: the time of the end, in UTC; None before it.
        elapsed_s: the duration in seconds.
        complete: whether it reached its end.
        error: the error that ended it early, as its ``kind`` and its ``message``; else None.
        exit_code: the exit code of the command with this ending; None before the end.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    ended_at: datetime | None = None
    elapsed_s: float = 0.0
    complete: bool = False
    error: dict[str, str] | None = None
    exit_code: int | None = None
    _began_at: float = field(default_factory=monotonic, init=False, repr=False, compare=False)

    @property
    def has_reached_store(self) -> bool:
        """Whether the store has answered a request of this run."""
        raise NotImplementedError

    def tick(self) -> None:
        """Bring ``elapsed_s`` up to date."""
        if self.ended_at is None:
            self.elapsed_s = monotonic() - self._began_at

    def close(self, error: BaseException | None, code: int) -> None:
        """Record the end.

        Args:
            error: what ended it early, whose ``report`` this becomes; None if nothing did.
            code: the exit code if there is no error.
        """
        self.tick()
        self.ended_at = datetime.now(UTC)
        self.exit_code = code
        if error is None:
            return
        if isinstance(error, AsyncMapsError):
            error.report = self
        self.complete = False
        self.error = _describe(error)
        self.exit_code = exit_code(error)

    def with_ending(self, command: str, values: dict[str, Any]) -> dict[str, Any]:
        """Return the JSON of a report: the command, this package's version, the ending, and then other values."""
        times = {"started_at": self.started_at, "ended_at": self.ended_at}
        ending = {
            "schema": SCHEMA,
            "command": command,
            "version": package_version(),
            "complete": self.complete,
            "error": self.error,
            "exit_code": self.exit_code,
            **{name: time and time.isoformat(timespec="milliseconds") for name, time in times.items()},
            "elapsed_s": self.elapsed_s,
            "settings": self.settings,
        }
        return ending | {name: value for name, value in values.items() if name not in ending and name[0] != "_"}


def exit_code(error: BaseException) -> int:
    """Return the exit code of a command that ends with this error.

    Returns:
        1 if maps failed, and after an error that is not of this package; 2 if the user must change something; 3 if the
        same command may succeed later, or if the store has accepted objects in this run and refuses all now; 4 if the
        plan cannot be used here, so that a scheduler does not repeat the command.
    """
    for kind, code in _EXIT_CODES:
        if isinstance(error, kind):
            return code
    if not isinstance(error, AsyncMapsError):
        return SOME_FAILED
    has_worked = error.report is not None and error.report.has_reached_store
    if error.may_pass or (has_worked and _is_refusal(error)):
        return STOPPED_EARLY
    return WRONG_PLAN if isinstance(error, PlanError) else WRONG_USE


def _is_refusal(error: BaseException | None) -> bool:
    """Whether a store has refused a request: the credentials may have expired."""
    while error is not None:
        if isinstance(error, StoreError) or getattr(error, "is_refusal", False):
            return True
        error = error.__cause__
    return False


def _describe(error: BaseException) -> dict[str, str]:
    if isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
        return {"kind": "Interrupted", "message": str(error) or "interrupted"}
    return {"kind": type(error).__name__, "message": str(error) or repr(error)}


def package_version() -> str:
    """Return the version of this package; ``unknown`` if it is imported from a folder of sources."""
    try:
        return version("async-maps")
    except PackageNotFoundError:
        return "unknown"
