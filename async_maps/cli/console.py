"""The output of the commands: results on standard output, messages on standard error, reports in files."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from async_maps.cli.events import EVENTS, SDK_LOGGERS, fields_of, is_of_sdk, json_lines, tell
from async_maps.errors import SettingsError
from async_maps.masking import mask
from async_maps.suggestions import suggest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import Any, TextIO

    from async_maps.cli.events import Event
    from async_maps.outcomes import Failure
    from async_maps.report import Report
    from async_maps.report.failure_groups import FailureGroup
    from async_maps.verify import Verification

_logger = logging.getLogger("async_maps.cli")

_LISTED = 20
"""The maximum number of differences that are printed; the report has more."""
_LISTED_REASONS = 10
"""The maximum number of reasons that are printed; the manifest has all failures."""


def print_verification(verification: Verification) -> bool:
    """Print the first differences and the summary; return False if standard output failed."""
    total, kept = sum(verification.differences.values()), len(verification.first)
    listed = "all" if kept >= total else f"the first {kept:,}"
    # Several rows may have the same object.
    _say_first(list(dict.fromkeys(map(str, verification.first))), total, f"--report FILE lists {listed}")
    return answer(verification.summary())


def print_report(report: Report, manifest: Path | None, *, as_json: bool = False) -> bool:
    """Print the failures by reason (:func:`print_failures`) and the summary; return False if standard output failed."""
    print_failures(report, manifest, as_json=as_json)
    return answer(report.summary())


def print_forgotten(report: Report) -> None:
    """Print the first maps that a dry run would forget."""
    _say_first(
        [f"would be forgotten: {name}" for name in report.forgotten_names],
        report.forgotten,
        f"--report FILE lists the first {len(report.forgotten_names):,}",
    )


def print_failures(report: Report, manifest: Path | None, *, as_json: bool = False) -> None:
    """Print the failures by reason: their number, two examples, and the command that lists all.

    Args:
        report: the report of a run or a dry run.
        manifest: the manifest that has all failures; None if there is none.
        as_json: whether the output is JSON, which has had an event for each reason unless this was a dry run.
    """
    if report.failed:
        command = "" if manifest is None else _export_command(manifest)
        write = _tell_failures if as_json else _say_failures
        write(report, command)


def _export_command(manifest: Path) -> str:
    return suggest("export", os.path.abspath(manifest), "failures.csv", "--failed")


def _say_failures(report: Report, command: str) -> None:
    groups = sorted(report.failure_groups, key=lambda group: -group.count)
    for line in failure_lines(groups, report.ungrouped, "would fail" if report.dry_run else "failed"):
        say(line)
    if command:
        _say_command(report.failed, command)
    elif report.failed > sum(len(group.examples) for group in groups[:_LISTED_REASONS]):
        listed = "all" if len(report.failures) == report.failed else "the first"
        say(f"--report FILE lists {listed} {len(report.failures):,} of them")


def failure_lines(groups: Sequence[FailureGroup], ungrouped: int, failed: str = "failed") -> Iterator[str]:
    """Yield lines for the most frequent reasons: their number, and two examples.

    Args:
        groups: the failures by reason, the most frequent first.
        ungrouped: the number of further failures.
        failed: the verb.
    """
    for group in groups[:_LISTED_REASONS]:
        if group.count == 1:
            yield f"{failed}: {group.examples[0]}"
        else:
            yield f"{group.count:,} maps {failed} at {group.stage}{', such as' if group.count > 2 else ''}:"
            yield from (f"  {failure}" for failure in group.examples)
    if rest := ungrouped + sum(group.count for group in groups[_LISTED_REASONS:]):
        yield f"{rest:,} more {failed} for other reasons"


def _tell_failures(report: Report, command: str) -> None:
    if report.dry_run:
        for group in report.failure_groups:
            tell_failure(group.examples[0])
    if command:
        _say_command(report.failed, command)


def tell_start(**arguments: Any) -> None:
    """Write the event of the start of a command."""
    from async_maps.report.ending import package_version

    version = package_version()
    tell("start", f"async-maps {version}", version=version, pid=os.getpid(), **arguments)


def tell_failure(failure: Failure) -> None:
    """Write the event of the first failure for a reason."""
    tell("failure", f"failed (first for this reason): {failure}", level=logging.WARNING, **asdict(failure))


def _say_command(failed: int, command: str) -> None:
    what = "the failure" if failed == 1 else f"the {failed:,} failures"
    say(f"to list {what}: {command}", command=command)


def say_how_to_list(failed: int, manifest: Path) -> None:
    """Print the command that lists the failed maps of a manifest."""
    if failed:
        _say_command(failed, _export_command(manifest))


def _say_first(lines: list[str], total: int, where: str) -> None:
    for line in lines[:_LISTED]:
        say(line)
    if total > _LISTED:
        say(f"... and {total - _LISTED:,} more: {where}")


@contextmanager
def messages(*, as_json: bool = False) -> Iterator[None]:
    """Print messages of the command, and warnings of the package, on standard error: as text, or all as JSON."""
    with json_lines() if as_json else _text_lines():
        set_verbosity()
        try:
            yield
        finally:
            set_verbosity()


@contextmanager
def _text_lines() -> Iterator[None]:
    handlers = {"async_maps": _Stderr(), **dict.fromkeys(SDK_LOGGERS, _OfSdk())}
    for name, handler in handlers.items():
        logging.getLogger(name).addHandler(handler)
    try:
        yield
    finally:
        for name, handler in handlers.items():
            logging.getLogger(name).removeHandler(handler)


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
    def emit(self, record: logging.LogRecord) -> None:
        if record.name == EVENTS:
            return
        label = {logging.WARNING: "warning: ", logging.ERROR: "error: "}.get(record.levelno, "")
        # The terminal may be closed, or the disk full; the exit code still shows errors.
        with suppress(OSError):
            text = _fit(mask(f"async-maps: {label}{record.getMessage()}"), sys.stderr)
            print(text, file=sys.stderr, flush=True)  # noqa: T201  # its place


class _OfSdk(_Stderr):
    """Prints warnings with --verbose; without a handler, logging prints them always, with tracebacks."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING and not is_of_sdk(record):
            super().emit(record)


def complain(error: object, kind: str = "") -> None:
    """Print an error.

    Args:
        error: what happened; for people, its text.
        kind: for programs, the name of its class; by default, the one of an exception.
    """
    kind = kind or (type(error).__name__ if isinstance(error, Exception) else "")
    # As text, because a log record may be kept, and with it the frames of the error's traceback.
    _logger.error("%s", str(error), extra=fields_of("error", {"kind": kind} if kind else {}))


def say(text: str, event: Event = "notice", **fields: Any) -> None:
    """Print a message, unless --quiet was given; in JSON it is this event, with these fields."""
    _logger.info("%s", text, extra=fields_of(event, fields))


def answer(text: str) -> bool:
    """Print the result; return False if standard output failed."""
    if sys.stdout is None:  # closed, as in a daemon, where nobody expects the result
        return True
    try:
        print(_fit(mask(text), sys.stdout), flush=True)  # noqa: T201  # the output of the command
    except OSError as error:
        complain(f"cannot write to standard output: {error.strerror}")
        discard_output()
        return False
    return True


def _fit(text: str, out: TextIO) -> str:
    """Escape what the stream cannot encode, and control characters (of file names) if it is not a terminal."""
    if not out.isatty():
        text = "".join(
            char if char.isprintable() or char == "\n" else char.encode("unicode_escape", "surrogatepass").decode()
            for char in text
        )
    encoding = out.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def discard_output() -> None:
    """Discard what is written to standard output from now on.

    Otherwise the interpreter writes the buffer at its end, which fails again and changes the exit code.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
