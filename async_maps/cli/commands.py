"""The commands, their help, and where the parser finds their settings.

A command is imported when it is called, so that ``async-maps --help`` imports none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import cyclopts
from cyclopts import App, ArgumentCollection, Parameter

from async_maps.errors import AsyncMapsError
from async_maps.suggestions import GivenOptions, given_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class _Command(NamedTuple):
    """A command, before its module is imported.

    Attributes:
        function: where it is, below this package.
        summary: the first line of its docstring, for the list of commands.
        exit_codes: what its exit codes mean.
    """

    function: str
    summary: str
    exit_codes: str


_ENVIRONMENT = (
    "S3 endpoint, region, profile and credentials come from the AWS environment and files, as for every AWS tool. "
    "Google Cloud and Azure have variables of their own, such as GOOGLE_APPLICATION_CREDENTIALS and "
    "AZURE_STORAGE_ACCOUNT: see configs/README.md."
)

COMMANDS = {
    "run": _Command(
        "run:run",
        "Turn activation maps into PNG overlays in a store. Run it again to resume.",
        "0 every selected map is done; 1 some maps failed; 2 wrong use or settings; 3 stopped early by something that "
        "may pass, such as a store that is down: run it again; 129/130/143 interrupted: run it again. With --plan: 0 "
        "the parts are committed, failed maps included; 4 the plan cannot be run here: do not repeat it",
    ),
    "plan": _Command(
        "plan:plan",
        "Share a source out in parts, which any number of machines can run, kill and repeat.",
        "0 the plan is made, or was there; 2 wrong use or settings; 3 the store or the disk failed: call it again; 4 "
        "the plan that is there cannot be read",
    ),
    "status": _Command(
        "status:status",
        "Say how far a run or a plan is, from another terminal and without disturbing it, or how the last run ended.",
        "0 no map has failed, and a run is going on, the last one is complete, or there was none; 1 maps have "
        "failed; 2 wrong use, or not a manifest; 3 the last run ended early: run it again. Of a plan: as commit",
    ),
    "commit": _Command(
        "plan:commit",
        "Declare a plan done, when all of its parts are.",
        "0 the plan is done; 1 the plan is done, and maps have failed; 2 wrong use; 3 parts are missing, or the "
        "store is down; 4 not a plan, or one of another version",
    ),
    "export": _Command(
        "export:export",
        "Write the locators in a manifest or a plan to a table.",
        "0 the table is written; 1 standard output cannot be written; 2 wrong use; 3 the disk is full or fails. "
        "Of a plan: 3 also if parts are missing, 4 not a plan, or one of another version",
    ),
    "verify": _Command(
        "verify:verify",
        "Check that each overlay exists and is unchanged. Repair those that are not.",
        "0 nothing differs; 1 something differs, nothing to verify, or a repair failed; 2 wrong use; 3 the "
        "store is down: run it again; 129/130/143 interrupted. Of a plan: 3 also if parts are missing, 4 not a "
        "plan, or one of another version",
    ),
    "view": _Command(
        "view:view",
        "Look at overlays on their source images, in a browser.",
        "0 ended by Ctrl-C, or the folder is written; 1 overlays are missing in the folder; 2 wrong use, or the "
        "manifest cannot be read; 3 the store of a plan, or of overlays for the folder, is down; 129/143 ended by a "
        "signal; 130 writing the folder was interrupted",
    ),
    "doctor": _Command(
        "doctor:doctor",
        "Check whether this machine can write to a destination and browsers can read it.",
        "0 no check failed; 1 a check failed; 2 wrong use",
    ),
    "demo": _Command(
        "demo:demo",
        "Do the whole job on this machine, without an account.",
        "0 all overlays are right; 1 they are not; 2 wrong use; 3 the server did not start, or stopped",
    ),
    "warm": _Command(
        "warm:warm",
        "Compile the kernels into the cache when an image is built, so that no container compiles them.",
        "0 the kernels are in the cache; 1 they cannot be kept; 2 wrong use",
    ),
}

app = App(
    name="async-maps",
    help="Turn activation maps into PNG overlays in an object store, with a locator for each.\n\n"
    "```\nasync-maps demo\nasync-maps run maps/ s3://my-bucket/overlays\n```\n\n"
    "Each command has its own help: `async-maps run --help`.",
    help_epilogue=_ENVIRONMENT,
    default_parameter=Parameter(show_env_var=False),
    help_format="markdown",
    suppress_keyboard_interrupt=False,
)
for _place, (_name, _command) in enumerate(COMMANDS.items()):
    app.command(
        f"async_maps.cli.{_command.function}",
        name=_name,
        help=_command.summary,
        sort_key=_place,
        help_epilogue=f"Exit codes: {_command.exit_codes}.\n\n{_ENVIRONMENT}",
    )
app.register_install_completion_command(help="Install completion for this shell (bash, zsh or fish).")


def prepare(tokens: Sequence[str]) -> list[str]:
    """Import the command of a command line, and return the command line as the parser reads it."""
    if tokens and tokens[0] in COMMANDS:
        # Its help is the whole docstring.
        app[tokens[0]].help = None
    return list(_with_standard_streams(tokens)) if "-" in tokens else list(tokens)


def call(tokens: Sequence[str]) -> int | None:
    """Parse a command line, and call its command.

    Args:
        tokens: what :func:`prepare` has returned.

    Returns:
        The exit code of the command; None if help was printed.

    Raises:
        Exception: one of :func:`mistakes`, or what the command raises.
    """
    app.config = [_note_options, _settings_from_environment, _settings_from_file]
    code: int | None = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    return code


def mistakes() -> tuple[type[Exception], ...]:
    """Return the exceptions for mistakes in the command line, the environment, or the file of ``--config``."""
    from pydantic import ValidationError

    return cyclopts.CycloptsError, ValidationError, AsyncMapsError


def _note_options(_: App, __: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Note the options that suggested commands repeat; neither environment nor file have been read yet."""
    from async_maps.cli.options import OF_RUNS

    settings: list[str] = []
    of_runs: list[str] = []
    for argument in arguments:
        if argument.keys or "--config" in argument.names:
            options = of_runs if argument.keys[:1] and argument.keys[0] in OF_RUNS else settings
            options += [word for token in argument.tokens for word in (token.keyword or "", token.value)]
    given_options.set(GivenOptions(tuple(settings), tuple(of_runs)))


def _settings_from_environment(command: App, names: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Read settings such as ASYNC_MAPS_PNG, but no other options: a forgotten variable must not overwrite all maps."""
    if settings := [argument for argument in arguments if argument.keys]:
        from async_maps.cli import usage

        usage.check_environment(app)
        from_environment = cyclopts.config.Env(usage.VARIABLE_PREFIX, command=False)
        from_environment(command, names, ArgumentCollection(settings))  # type: ignore[no-untyped-call]  # cyclopts


def _settings_from_file(command: App, names: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Load the file of ``--config``; options and environment variables take precedence over it."""
    for argument in arguments:
        if "--config" in argument.names and argument.tokens:
            from async_maps.settings.file import load_settings

            path = argument.tokens[0].value
            given = load_settings(path).model_dump(exclude_unset=True)
            cyclopts.config.Dict(given, source=path, use_commands_as_keys=False)(command, names, arguments)


def _with_standard_streams(tokens: Sequence[str]) -> Iterator[str]:
    """Replace "-", which the parser would read as an option, where it is an argument and not the value of an option."""
    from async_maps.sources import STDIN_FILE

    known = app[tokens[0]].assemble_argument_collection() if tokens[0] in COMMANDS else ()
    flags = {name for argument in known if argument.token_count()[0] == 0 for name in argument.names}
    previous = ""
    for text in tokens:
        is_argument = not previous.startswith("-") or "=" in previous or previous in flags
        yield STDIN_FILE if text == "-" and is_argument else text
        previous = text
