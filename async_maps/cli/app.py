"""The command line: commands, signals, exit codes. Only this package touches signals or ends the process."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from async_maps.cli.console import complain, discard_output, messages, say
from async_maps.cli.early import launching_worker
from async_maps.cli.events import unexpected, wants_json
from async_maps.cli.interruption import Interruption, interruption, release_signals
from async_maps.concurrency.launch import resume_collection
from async_maps.errors import AsyncMapsError, SettingsError, naming_shortages
from async_maps.suggestions import repeating_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from async_maps.report import Report
    from async_maps.verify.verification import Verification

_FAILED = 1
"""``SOME_FAILED`` of :mod:`async_maps.report.ending`, which is imported with a command only."""
_THREADS_END_S = 0.5
"""The time for threads to end, which are idle if their source answers."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command ``async-maps``, and exit."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    heard = Interruption()
    interruption.set(heard)
    # None if it is closed, as in a daemon.
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # until the process ends
    as_json = wants_json(tokens)
    # With --progress json, what the worker writes to standard error is JSON, too.
    with messages(as_json=as_json), repeating_options(), heard.heard(), launching_worker(tokens):
        from async_maps.cli import commands

        try:
            tokens = commands.prepare(tokens)
            release_signals()
            if tokens[:1] != ["run"]:
                resume_collection()
            with naming_shortages():
                code = commands.call(tokens)
        except commands.mistakes() as error:
            code = _refused(error, tokens)
        except KeyboardInterrupt as error:
            number = heard.number or signal.SIGINT
            say("interrupted", "signal", signal=number.name)
            error.args = (f"interrupted by {number.name}",)
            code = _ended(error, tokens, 128 + number)
        except OSError as error:  # of the parser: it prints help, and installs completion
            complain(error)
            discard_output()
            code = _ended(error, tokens, _FAILED)
        except Exception as error:
            if as_json:
                unexpected(error)
            code = _ended(error, tokens, _FAILED)
            if not as_json:
                raise
    if heard.number is not None and not (code and code > 128):
        # The command has caught the exception of the signal.
        code = 128 + heard.number
    if arguments is None and code is not None and code > 128:  # ended by a signal
        _leave_threads(code)
    sys.exit(code or 0)


def _refused(error: Exception, tokens: Sequence[str]) -> int:
    from async_maps.cli import commands, usage
    from async_maps.report.ending import exit_code

    # A variable of main() would keep the error, and the files of its traceback, until the garbage collector runs.
    ours = error if isinstance(error, AsyncMapsError) else SettingsError(usage.describe(error, commands.app, tokens))
    complain(ours)
    return _ended(ours, tokens, exit_code(ours))


def _ended(error: BaseException, tokens: Sequence[str], code: int) -> int:
    """Say what to do, write the report of a command that an error has ended, and return its exit code."""
    for note in getattr(error, "__notes__", ()):
        say(note)
    if tokens[:1] not in (["run"], ["verify"]):
        return code
    from async_maps.cli.reports import ReportRefusedError, check_report, write_report
    from async_maps.report import Report

    report: Report | Verification | None = getattr(error, "report", None)
    if report is None and tokens[0] == "run":
        report = Report()
    elif report is None:
        from async_maps.verify.verification import Verification

        report = Verification()
    if report.ended_at is None:
        report.end(error)
    path = None if isinstance(error, ReportRefusedError) else _report_path(tokens)
    try:
        check_report(path, {})
    except ReportRefusedError as refused:
        complain(refused)
        path = None
    return write_report(path, report, code)


def _report_path(tokens: Sequence[str]) -> Path | None:
    """Return the file of ``--report``, also if the command line has a mistake; None if it is also another argument."""
    for number, token in enumerate(tokens):
        name, equals, value = token.partition("=")
        if name == "--report":
            value = value if equals else "".join(tokens[number + 1 : number + 2])
            is_only = sum(value in {token, token.partition("=")[2]} for token in tokens) == 1
            return Path(value) if value and not value.startswith("-") and is_only else None
    return None


def _leave_threads(code: int) -> None:
    """Exit without the threads that wait for a source that does not answer; return if there are none."""
    if (providers := sys.modules.get("async_maps.filesystems.providers")) is not None:
        providers.end_programs()
    until = time.monotonic() + _THREADS_END_S
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                for stream in (sys.stdout, sys.stderr):
                    with suppress(OSError, ValueError, AttributeError):  # closed
                        stream.flush()
                os._exit(code)
