"""What the commands say: answers on standard output, all else on standard error, reports into files."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from contextlib import contextmanager, suppress
from dataclasses import asdict
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
"""The maximum number of differences that are printed; the report has more."""
_LISTED_REASONS = 10
"""The maximum number of reasons that are printed; the manifest has all failures."""


def print_verification(verification: Verification) -> bool:
    """Print the first differences and the summary; whether that was possible."""
    total, kept = sum(verification.differences.values()), len(verification.first)
    listed = "all" if kept >= total else f"the first {kept:,}"
    # More than one row may name an object.
    _say_first(list(dict.fromkeys(map(str, verification.first))), total, f"--report FILE lists {listed}")
    return answer(verification.summary())


def print_report(report: Report, manifest: Path | None, *, as_json: bool = False) -> bool:
    """Print the failures by reason and the summary; whether that was possible; see :func:`print_failures`."""
    print_failures(report, manifest, as_json=as_json)
    return answer(report.summary())


def print_failures(report: Report, manifest: Path | None, *, as_json: bool = False) -> None:
    """Print the failures by reason: how many there are, two examples, and the command that lists all.

    Args:
        report: of a run or a dry run.
        manifest: the file that has all failures; None if none has.
        as_json: whether standard error is a stream of JSON objects.
    """
    if report.failed:
        command = "" if manifest is None else _export_command(manifest)
        tell = _tell_failures if as_json else _say_failures
        tell(report, command)


def _export_command(manifest: Path) -> str:
    return f"async-maps export {shlex.quote(os.path.abspath(manifest))} failures.csv --failed"


def _say_failures(report: Report, command: str) -> None:
    groups = sorted(report.failure_groups, key=lambda group: -group.count)
    failed = "would fail" if report.dry_run else "failed"
    for group in groups[:_LISTED_REASONS]:
        if group.count == 1:
            say(f"{failed}: {group.examples[0]}")
        else:
            say(f"{group.count:,} maps {failed} at {group.stage}{', such as' if group.count > 2 else ''}:")
            for failure in group.examples:
                say(f"  {failure}")
    rest = report.ungrouped + sum(group.count for group in groups[_LISTED_REASONS:])
    if rest:
        say(f"{rest:,} more {failed} for other reasons")
    if command:
        say(f"to list {'the failure' if report.failed == 1 else f'the {report.failed:,} failures'}: {command}")
    elif report.failed > sum(len(group.examples) for group in groups[:_LISTED_REASONS]):
        listed = "all" if len(report.failures) == report.failed else "the first"
        say(f"--report FILE lists {listed} {len(report.failures):,} of them")


def _tell_failures(report: Report, command: str) -> None:
    for group in report.failure_groups:
        _tell({"event": "failures", **asdict(group)})
    _tell({"event": "failed", "count": report.failed, "command": command or None})


def _tell(event: dict[str, object]) -> None:
    """Write a JSON object to standard error, which is a stream of them."""
    with suppress(OSError):
        print(json.dumps(event), file=sys.stderr, flush=True)  # noqa: T201  # that is where it belongs


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
        discard_output()
        return False
    return True


def discard_output() -> None:
    """Drop what is written to standard output from now on.

    What is still in its buffer would fail once more when the interpreter ends, with an exit code of its own.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
