"""What the commands say: answers on standard output, all else on standard error, reports into files."""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from async_maps.cli.options import SOME_FAILED
from async_maps.errors import SettingsError
from async_maps.filesystems.atomic import replacing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from async_maps.report import Report
    from async_maps.verify import Verification

_logger = logging.getLogger("async_maps.cli")

_LISTED = 20
"""So many failures or differences are printed; the report and the manifest have more."""


def print_verification(verification: Verification) -> bool:
    """Print the first differences and the summary; whether that was possible."""
    total, kept = sum(verification.differences.values()), len(verification.first)
    listed = "all" if kept >= total else f"the first {kept:,}"
    # More than one row may name an object.
    _say_first(list(dict.fromkeys(map(str, verification.first))), total, f"--report FILE lists {listed}")
    return answer(verification.summary())


def print_report(report: Report) -> bool:
    """Print the first failures and the summary; whether that was possible."""
    print_failures(report)
    return answer(report.summary())


def print_failures(report: Report) -> None:
    """Print the first failures."""
    lines = [f"failed: {failure}" for failure in report.failures]
    _say_first(lines, report.failed, "async-maps export MANIFEST failures.csv --all")


def _say_first(lines: list[str], total: int, where: str) -> None:
    for line in lines[:_LISTED]:
        say(line)
    if total > _LISTED:
        say(f"... and {total - _LISTED:,} more: {where}")


def check_report(path: Path | None) -> None:
    """Refuse before a run what can be known to fail after it.

    Raises:
        SettingsError: no report can be written there.
    """
    if path is None:
        return
    # Not Path.is_dir and its like, which raise where they may not look.
    takes_place = os.path.isfile(path) or not os.path.exists(path)
    if not os.path.isdir(path.parent):
        reason = "there is no such folder"
    elif os.path.isdir(path):
        reason = "it is a folder"
    elif not (os.access(path.parent, os.W_OK | os.X_OK) if takes_place else os.access(path, os.W_OK)):
        reason = "no permission"
    else:
        return
    raise SettingsError(f"cannot write the report to {path}: {reason}")


def write_report(path: Path | None, report: Report | Verification, code: int) -> int:
    """Write a report, as JSON, if one was asked for: the exit code, which tells of a report that cannot be written."""
    if path is None:
        return code
    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({**report.as_dict(), "exit_code": code}, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        complain(f"cannot write the report to {path}: {error.strerror}")
        # No wrong use any more.
        return code or SOME_FAILED
    return code


@contextmanager
def messages() -> Iterator[None]:
    """Print messages of the command, and warnings of the package, on standard error."""
    package = logging.getLogger("async_maps")
    handler = _Stderr()
    package.addHandler(handler)
    try:
        set_verbosity()
        yield
    finally:
        package.removeHandler(handler)


def set_verbosity(*, verbose: bool = False, quiet: bool = False) -> None:
    """Choose which messages are printed.

    Args:
        verbose: also what the package logs for debugging.
        quiet: errors only.

    Raises:
        SettingsError: both are given.
    """
    if verbose and quiet:
        raise SettingsError("--verbose and --quiet exclude each other")
    logging.getLogger("async_maps").setLevel(logging.DEBUG if verbose else logging.ERROR if quiet else logging.NOTSET)
    _logger.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)


class _Stderr(logging.Handler):
    """Writes each message on a line of standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        label = "warning: " if record.levelno == logging.WARNING else ""
        # Nobody reads a terminal that is gone, or a disk that is full; the exit code still tells.
        with suppress(OSError):
            print(f"async-maps: {label}{record.getMessage()}", file=sys.stderr, flush=True)  # noqa: T201  # its place


def complain(error: object) -> None:
    """Print an error."""
    # As text: a log record that is kept would keep the error's traceback, and all that its frames hold.
    _logger.error("error: %s", str(error))


def say(text: str) -> None:
    """Print a message, unless --quiet was given."""
    _logger.info("%s", text)


def answer(text: str) -> bool:
    """Print what the command was asked for; whether that was possible."""
    try:
        print(text, flush=True)  # noqa: T201  # the command's answer
    except OSError as error:
        complain(f"cannot write to standard output: {error.strerror}")
        # What is still in its buffer would fail once more when the interpreter ends, with an exit code of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True
