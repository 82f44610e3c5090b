"""Standard error with ``--progress json``: every line is a JSON object with ``time``, ``level`` and ``event``."""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypeAlias

from async_maps.masking import masked_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any, TextIO

Event: TypeAlias = Literal[
    "start", "progress", "failure", "retry", "slow-down", "notice", "warning", "signal", "error", "end", "debug"
]

EVENTS = "async_maps.cli.events"
"""The logger of events that only JSON has."""

SDK_LOGGERS = ("botocore", "aiobotocore", "boto3", "aioboto3", "urllib3", "aiohttp", "asyncio")
"""The loggers of the AWS SDK, and of what it uses."""

_logger = logging.getLogger(EVENTS)
_NAMES: dict[int, Event] = {
    logging.DEBUG: "debug", logging.INFO: "notice", logging.WARNING: "warning", logging.ERROR: "error",
}  # fmt: skip
_STDERR = 2
_MAX_LINE = 65_536
"""Longer lines of other programs are split, so that they take no memory."""


def wants_json(tokens: Sequence[str]) -> bool:
    """Whether a command line has ``--progress json``; known before it is parsed, so that errors in it are JSON, too."""
    return "--progress=json" in tokens or ("--progress", "json") in pairwise(tokens)


def tell(event: Event, text: str = "", *, level: int = logging.INFO, **fields: Any) -> None:
    """Write an event, if the output is JSON.

    Args:
        event: the kind of event.
        text: its message for people.
        level: its level.
        fields: further keys of the object.
    """
    _logger.log(level, "%s", text, extra=fields_of(event, fields))


def fields_of(event: Event, fields: dict[str, Any]) -> dict[str, Any]:
    """Return what a log record needs besides its message to be an event."""
    return {"event": event, "fields": fields}


def is_of_sdk(record: logging.LogRecord) -> bool:
    """Whether a record is to be dropped: what the AWS SDK logs of an error precedes the sentence with that error."""
    return record.name.startswith(SDK_LOGGERS) and not logging.getLogger("async_maps").isEnabledFor(logging.DEBUG)


class JsonLines(logging.Handler):
    """Writes each record as a line.

    Attributes:
        out: the stream; None for the current standard error.
    """

    def __init__(self) -> None:
        super().__init__()
        self.out: TextIO | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; of other packages, only what they would print: their details may have signatures."""
        is_ours = record.name.startswith("async_maps")
        if (record.levelno < logging.WARNING and not is_ours) or is_of_sdk(record):
            return
        level = max(known for known in _NAMES if known <= max(record.levelno, logging.DEBUG))
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": logging.getLevelName(level).lower(),
            "event": getattr(record, "event", _NAMES[level]),
        }
        if text := record.getMessage():
            line["message"] = text
        line |= getattr(record, "fields", {})
        if not is_ours:
            line["logger"] = record.name
        if record.exc_info:
            line["traceback"] = logging.Formatter().formatException(record.exc_info)
        # The reader may be gone, or the disk full; the exit code still shows errors.
        with suppress(OSError):
            print(masked_json(line), file=self.out or sys.stderr, flush=True)


@contextmanager
def json_lines() -> Iterator[None]:
    """Write all that goes to standard error as JSON: messages of every library, warnings, and uncaught exceptions."""
    root = logging.getLogger()
    with ExitStack() as stack:
        # Not in a program that has replaced it, such as pytest; nor if it is closed.
        is_own = sys.__stderr__ is not None and sys.stderr is sys.__stderr__ and sys.stderr.fileno() == _STDERR
        handler = JsonLines()
        root.addHandler(handler)
        stack.callback(root.removeHandler, handler)
        if is_own:
            handler.out = stack.enter_context(_descriptor_as_lines(_pass_on))
        logging.captureWarnings(True)
        stack.callback(logging.captureWarnings, False)
        hooks = threading.excepthook, sys.unraisablehook
        threading.excepthook, sys.unraisablehook = _thread_failed, _unraisable
        try:
            yield
        finally:
            threading.excepthook, sys.unraisablehook = hooks


def unexpected(error: BaseException) -> None:
    """Write an exception that should not happen, with its traceback."""
    fields = {"kind": type(error).__name__}
    _logger.error("unexpected error: %s", error, exc_info=error, extra=fields_of("error", fields))


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_value is not None:
        unexpected(failed.exc_value)


def _unraisable(found: sys.UnraisableHookArgs) -> None:
    if found.exc_value is not None:
        unexpected(found.exc_value)


def _pass_on(line: bytes) -> None:
    if text := line.decode(errors="backslashreplace").strip():
        tell("warning", text, level=logging.WARNING, logger="stderr")


@contextmanager
def _descriptor_as_lines(pass_on: Callable[[bytes], None]) -> Iterator[TextIO]:
    """Yield standard error, and pass on what others write to its descriptor: C libraries and worker processes."""
    reading, writing = os.pipe()
    woken, wake = os.pipe()
    out = os.fdopen(os.dup(_STDERR), "w", encoding="utf-8")
    os.dup2(writing, _STDERR)
    os.close(writing)
    thread = threading.Thread(target=_read_lines, args=(reading, woken, pass_on), name="standard error")
    thread.start()
    try:
        yield out
    finally:
        with suppress(OSError):
            sys.stderr.flush()
        os.dup2(out.fileno(), _STDERR)
        # A process that still runs keeps the pipe open.
        os.write(wake, b"\n")
        thread.join()
        for descriptor in (reading, woken, wake):
            os.close(descriptor)
        with suppress(OSError):
            out.close()


def _read_lines(reading: int, woken: int, pass_on: Callable[[bytes], None]) -> None:
    rest = b""
    while reading in (ready := select.select([reading, woken], [], [])[0]) or woken not in ready:
        if not (read := os.read(reading, _MAX_LINE)):
            break
        *lines, rest = (rest + read).split(b"\n")
        if len(rest) >= _MAX_LINE:
            lines, rest = [*lines, rest], b""
        for line in lines:
            pass_on(line)
    pass_on(rest)
