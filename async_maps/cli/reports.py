"""The file of ``--report``: checked before a command, and written at its end."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from async_maps.cli.console import complain, say
from async_maps.cli.events import tell
from async_maps.errors import SettingsError
from async_maps.filesystems.atomic import replacing
from async_maps.filesystems.outputs import check_output, is_report
from async_maps.masking import masked_json
from async_maps.report.ending import SOME_FAILED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import IO, TextIO

    from async_maps.report import Report
    from async_maps.verify import Verification

_SIGNALED = 128
"""Exit codes of commands that a signal has ended are larger."""


class ReportRefusedError(SettingsError):
    """The file of a report cannot be used: nothing is written there, not even the report of this error."""


def check_report(path: Path | None, files: Mapping[str, str]) -> None:
    """Check before a run that its report can be written.

    Args:
        path: the file of the report; None for no report.
        files: the files of the run, which it must not replace.

    Raises:
        ReportRefusedError: the report cannot be written, or would replace a file that is no report.
    """
    if path is not None:
        try:
            check_writable(path, "the report", is_report, files)
        except SettingsError as error:
            raise ReportRefusedError(str(error)) from error


def check_writable(path: Path, what: str, is_ours: Callable[[IO[bytes]], bool], files: Mapping[str, str]) -> None:
    """Check that an output can be written; the arguments are those of :func:`check_output`.

    Raises:
        SettingsError: it cannot be written, or would replace a file of another kind.
    """
    # Not Path.is_dir, which raises a PermissionError in a folder that cannot be read.
    is_replaced = os.path.isfile(path) or not os.path.exists(path)
    if not os.path.isdir(path.parent):
        reason = "the folder does not exist"
    elif os.path.isdir(path):
        reason = "it is a folder"
    elif not (os.access(path.parent, os.W_OK | os.X_OK) if is_replaced else os.access(path, os.W_OK)):
        reason = "no permission"
    else:
        check_output(path, what, is_ours, files)
        return
    raise SettingsError(f"cannot write {what} to {path}: {reason}")


def write_report(path: Path | None, report: Report | Verification, code: int) -> int:
    """Write a report as JSON, if there is a path; return the exit code, which changes if that fails.

    With ``--progress json``, the report is also the last event.
    """
    report.exit_code = code
    if path is not None:
        try:
            # Again: a run takes hours.
            check_output(path, "the report", is_report)
            with replacing(path) as temporary, _open_report(temporary, waits=code < _SIGNALED) as file:
                file.write(masked_json(report.as_dict(), indent=2) + "\n")
                file.flush()
                # Otherwise a power failure after the rename may leave an empty file.
                with suppress(OSError):  # a pipe
                    os.fsync(file.fileno())
        except OSError as error:
            complain(f"cannot write the report to {path}: {error.strerror}")
            code = report.exit_code = code or SOME_FAILED
        except SettingsError as error:
            complain(error)
            code = report.exit_code = code or SOME_FAILED
    tell("end", report.summary(), exit_code=code, report=report.as_dict())
    return code


def _open_report(path: Path, *, waits: bool) -> TextIO:
    """Open the file of a report; a pipe that no program reads is waited for, or is an OSError."""
    if path.is_fifo():
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if not waits:
                raise OSError(errno.ENXIO, "no program reads this pipe") from None
            say(f"waiting for a program that reads the report from the pipe {path}; Ctrl-C ends this")
        else:
            os.set_blocking(descriptor, True)
            return open(descriptor, "w", encoding="utf-8")
    return open(path, "w", encoding="utf-8")
