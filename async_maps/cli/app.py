"""The command line: commands, signals, exit codes. Only this package touches signals or ends the process."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import cyclopts
from cyclopts import App, ArgumentCollection, Parameter
from pydantic import ValidationError

from async_maps.cli.console import complain, say
from async_maps.cli.demo import demo
from async_maps.cli.doctor import doctor
from async_maps.cli.export import export
from async_maps.cli.options import DONE, WRONG_USE
from async_maps.cli.run import run
from async_maps.cli.verify import verify
from async_maps.errors import AsyncMapsError
from async_maps.settings import describe_invalid, load_settings
from async_maps.sources import STDIN_FILE

if TYPE_CHECKING:
    from collections.abc import Sequence

app = App(
    name="async-maps",
    help="Activation maps in, Kolena-ready PNG overlays in an object store out, with a locator for every one.",
    help_epilogue=(
        "Exit codes: 0 all is well, 1 something failed or differs, 2 wrong use, settings or a store that refuses, "
        "130/143 interrupted (run it again).\n\n"
        "S3 endpoint, region, profile and credentials come from the AWS environment and files, as for every AWS tool."
    ),
    default_parameter=Parameter(show_env_var=False),
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
for command in (run, demo, export, verify, doctor):
    app.command(command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The command ``async-maps``: parse, run, exit."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    interrupted_by = signal.SIGINT

    def terminate(number: int, _: object) -> None:
        # As Ctrl-C does, it unwinds what is open, the demo's server and folders too; else the process would be gone.
        nonlocal interrupted_by
        interrupted_by = signal.Signals(number)
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            # So a shell starts what it puts into the background.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, terminate)
    try:
        app.config = [_settings_from_environment, *_file_settings(tokens)]
        # The parser takes a lone hyphen for an option.
        tokens = [STDIN_FILE if text == "-" else text for text in tokens]
        code = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except (cyclopts.CycloptsError, ValidationError, AsyncMapsError) as error:
        complain(_describe(error))
        code = WRONG_USE
    except KeyboardInterrupt:
        say("interrupted")
        code = 128 + interrupted_by
    sys.exit(code or DONE)


def _settings_from_environment(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """ASYNC_MAPS_PNG and the like: settings only. A variable that lingers must not, say, overwrite a million maps."""
    settings = ArgumentCollection([argument for argument in arguments if argument.keys])  # type: ignore[no-untyped-call]
    cyclopts.config.Env("ASYNC_MAPS_", command=False)(app, commands, settings)


def _file_settings(tokens: Sequence[str]) -> list[Any]:
    """The file behind ``--config``, checked, for cyclopts to put below flags and environment."""
    for index, token in enumerate(tokens):
        name, equals, value = token.partition("=")
        if name == "--config" and (equals or index + 1 < len(tokens)):
            path = value if equals else tokens[index + 1]
            given = load_settings(path).model_dump(exclude_unset=True)
            return [cyclopts.config.Dict(given, source=path, use_commands_as_keys=False)]
    return []


def _describe(error: Exception) -> str:
    if isinstance(error, AsyncMapsError):
        return str(error)
    for invalid in (error, error.__cause__):
        if isinstance(invalid, ValidationError):
            return describe_invalid(invalid)
    if isinstance(error, cyclopts.UnusedCliTokensError) and error.unused_tokens:
        more = f" and {len(error.unused_tokens) - 1:,} more" if len(error.unused_tokens) > 1 else ""
        return f"unexpected {error.unused_tokens[0]!r}{more}: a glob must be in quotes, such as 'maps/*.npy'"
    hint = " (write a value that begins with a hyphen as --range=-2,2)" if "requires an argument" in str(error) else ""
    return " ".join(str(error).split()) + hint
