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

import cyclopts
from cyclopts import App, ArgumentCollection, Parameter
from pydantic import ValidationError

from async_maps.cli import usage
from async_maps.cli.console import (
    complain,
    discard_output,
    messages,
    say,
)
from async_maps.cli.demo import demo
from async_maps.cli.doctor import doctor
from async_maps.cli.events import unexpected, wants_json
from async_maps.cli.export import export
from async_maps.cli.interruption import Interruption, interruption, release_signals
from async_maps.cli.options import OF_RUNS
from async_maps.cli.plan import commit, plan
from async_maps.cli.reports import ReportRefusedError, check_report, write_report
from async_maps.cli.run import run
from async_maps.cli.status import status
from async_maps.cli.verify import verify
from async_maps.cli.warm import warm
from async_maps.errors import AsyncMapsError, SettingsError, naming_shortages
from async_maps.report import Report
from async_maps.report.ending import DONE, SOME_FAILED, exit_code
from async_maps.settings.file import load_settings
from async_maps.sources import STDIN_FILE
from async_maps.suggestions import GivenOptions, given_options, repeating_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from async_maps.verify.verification import Verification

_THREADS_END_S = 0.5
"""The time for threads to end, which are idle if their source answers."""

_AWS = "S3 endpoint, region, profile and credentials come from the AWS environment and files, as for every AWS tool."

app = App(
    name="async-maps",
    help="Turn activation maps into PNG overlays in an object store, with a locator for each.\n\n"
    "```\nasync-maps demo\nasync-maps run maps/ s3://my-bucket/overlays\n```\n\n"
    "Each command has its own help: `async-maps run --help`.",
    help_epilogue=_AWS,
    default_parameter=Parameter(show_env_var=False),
    help_format="markdown",
    suppress_keyboard_interrupt=False,
)
_EXIT_CODES: dict[Callable[..., int], str] = {
    run: "0 every selected map is done; 1 some maps failed; 2 wrong use or settings; 3 stopped early by something that "
    "may pass, such as a store that is down: run it again; 129/130/143 interrupted: run it again. With --plan: 0 the "
    "parts are committed, failed maps included; 4 the plan cannot be run here: do not repeat it",
    plan: "0 the plan is made, or was there; 2 wrong use or settings; 3 the store or the disk failed: call it again; 4 "
    "the plan that is there cannot be read",
    status: "0 no map has failed, and a run is going on, the last one is complete, or there was none; 1 maps have "
    "failed; 2 wrong use, or not a manifest; 3 the last run ended early: run it again. Of a plan: as commit",
    commit: "0 the plan is done; 1 the plan is done, and maps have failed; 2 wrong use; 3 parts are missing, or the "
    "store is down; 4 not a plan, or one of another version",
    export: "0 the table is written; 1 standard output cannot be written; 2 wrong use; 3 the disk is full or fails. "
    "Of a plan: 3 also if parts are missing, 4 not a plan, or one of another version",
    verify: "0 nothing differs; 1 something differs, nothing to verify, or a repair failed; 2 wrong use; 3 the "
    "store is down: run it again; 129/130/143 interrupted. Of a plan: 3 also if parts are missing, 4 not a "
    "plan, or one of another version",
    doctor: "0 no check failed; 1 a check failed; 2 wrong use",
    demo: "0 all overlays are right; 1 they are not; 2 wrong use; 3 the server did not start, or stopped",
    warm: "0 the kernels are in the cache; 1 they cannot be kept; 2 wrong use",
}
for _place, (_command, _codes) in enumerate(_EXIT_CODES.items()):
    app.command(_command, sort_key=_place, help_epilogue=f"Exit codes: {_codes}.\n\n{_AWS}")
app.register_install_completion_command(help="Install completion for this shell (bash, zsh or fish).")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command ``async-maps``, and exit."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    heard = Interruption()
    interruption.set(heard)
    # None if it is closed, as in a daemon.
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # until the process ends
    as_json = wants_json(tokens)
    with messages(as_json=as_json), repeating_options(), heard.heard():
        try:
            release_signals()
            app.config = [_note_options, _settings_from_environment, _settings_from_file]
            if "-" in tokens:
                tokens = list(_with_standard_streams(tokens))
            with naming_shortages():
                code = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        except (cyclopts.CycloptsError, ValidationError, AsyncMapsError) as error:
            code = _refused(error, tokens)
        except KeyboardInterrupt as error:
            number = heard.number or signal.SIGINT
            say("interrupted", "signal", signal=number.name)
            error.args = (f"interrupted by {number.name}",)
            code = _ended(error, tokens, 128 + number)
        except OSError as error:  # of the parser: it prints help, and installs completion
            complain(error)
            discard_output()
            code = _ended(error, tokens, SOME_FAILED)
        except Exception as error:
            if as_json:
                unexpected(error)
            code = _ended(error, tokens, SOME_FAILED)
            if not as_json:
                raise
    if heard.number is not None and not (code and code > 128):
        # The command has caught the exception of the signal.
        code = 128 + heard.number
    if arguments is None and code is not None and code > 128:  # ended by a signal
        _leave_threads(code)
    sys.exit(code or DONE)


def _refused(error: Exception, tokens: Sequence[str]) -> int:
    # A variable of main() would keep the error, and the files of its traceback, until the garbage collector runs.
    ours = error if isinstance(error, AsyncMapsError) else SettingsError(usage.describe(error, app, tokens))
    complain(ours)
    return _ended(ours, tokens, exit_code(ours))


def _ended(error: BaseException, tokens: Sequence[str], code: int) -> int:
    """Say what to do, write the report of a command that an error has ended, and return its exit code."""
    for note in getattr(error, "__notes__", ()):
        say(note)
    if tokens[:1] not in (["run"], ["verify"]):
        return code
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


def _note_options(_: App, __: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Note the options that suggested commands repeat; neither environment nor file have been read yet."""
    settings: list[str] = []
    of_runs: list[str] = []
    for argument in arguments:
        if argument.keys or "--config" in argument.names:
            options = of_runs if argument.keys[:1] and argument.keys[0] in OF_RUNS else settings
            options += [word for token in argument.tokens for word in (token.keyword or "", token.value)]
    given_options.set(GivenOptions(tuple(settings), tuple(of_runs)))


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


def _settings_from_environment(command: App, names: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Read settings such as ASYNC_MAPS_PNG, but no other options: a forgotten variable must not overwrite all maps."""
    if settings := [argument for argument in arguments if argument.keys]:
        usage.check_environment(app)
        from_environment = cyclopts.config.Env(usage.VARIABLE_PREFIX, command=False)
        from_environment(command, names, ArgumentCollection(settings))  # type: ignore[no-untyped-call]  # cyclopts


def _settings_from_file(command: App, names: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Load the file of ``--config``; options and environment variables take precedence over it."""
    for argument in arguments:
        if "--config" in argument.names and argument.tokens:
            path = argument.tokens[0].value
            given = load_settings(path).model_dump(exclude_unset=True)
            cyclopts.config.Dict(given, source=path, use_commands_as_keys=False)(command, names, arguments)


def _with_standard_streams(tokens: Sequence[str]) -> Iterator[str]:
    """Replace "-", which the parser would read as an option, where it is an argument and not the value of an option."""
    known = app[tokens[0]].assemble_argument_collection() if tokens and tokens[0] in usage.commands(app) else ()
    flags = {name for argument in known if argument.token_count()[0] == 0 for name in argument.names}
    previous = ""
    for text in tokens:
        is_argument = not previous.startswith("-") or "=" in previous or previous in flags
        yield STDIN_FILE if text == "-" and is_argument else text
        previous = text
