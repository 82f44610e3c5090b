"""The command line: commands, signals, exit codes. Only this package touches signals or ends the process."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import cyclopts
from cyclopts import App, ArgumentCollection, Parameter
from pydantic import ValidationError

from async_maps.cli import usage
from async_maps.cli.console import complain, messages, say
from async_maps.cli.demo import demo
from async_maps.cli.doctor import doctor
from async_maps.cli.export import export
from async_maps.cli.options import DONE, WRONG_USE
from async_maps.cli.run import run
from async_maps.cli.verify import verify
from async_maps.errors import AsyncMapsError
from async_maps.settings import load_settings
from async_maps.sources import STDIN_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
    run: "0 all selected maps are done; 1 some maps failed, or the run ended early; 2 the run did not start: wrong "
    "use, wrong settings, or the store refuses; 130/143 interrupted: run it again",
    export: "0 the table is written; 1 standard output cannot be written; 2 wrong use",
    verify: "0 nothing differs; 1 something differs, or a repair failed; 2 wrong use; 130/143 interrupted",
    doctor: "0 no check failed; 1 a check failed; 2 wrong use",
    demo: "0 all overlays are right; 1 they are not; 2 wrong use",
}
for _place, (_command, _codes) in enumerate(_EXIT_CODES.items()):
    app.command(_command, sort_key=_place, help_epilogue=f"Exit codes: {_codes}.\n\n{_AWS}")
app.register_install_completion_command(help="Install completion for this shell (bash, zsh or fish).")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command ``async-maps``, and exit."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    interrupted_by = signal.SIGINT

    def terminate(number: int, _: object) -> None:
        # Turn SIGTERM into a KeyboardInterrupt, so that context managers are closed, such as the demo's server.
        nonlocal interrupted_by
        interrupted_by = signal.Signals(number)
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            # A shell starts background processes with SIGINT ignored.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, terminate)
    with messages():
        try:
            app.config = [_settings_from_environment, *_file_settings(tokens)]
            # The parser would read "-" as an option.
            tokens = [STDIN_FILE if text == "-" else text for text in tokens]
            code = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        except (cyclopts.CycloptsError, ValidationError, AsyncMapsError) as error:
            complain(usage.describe(error, app, tokens))
            code = WRONG_USE
        except KeyboardInterrupt:
            say("interrupted")
            code = 128 + interrupted_by
    sys.exit(code or DONE)


def _settings_from_environment(command: App, names: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Read settings such as ASYNC_MAPS_PNG, but no other options: a forgotten variable must not overwrite all maps."""
    if settings := [argument for argument in arguments if argument.keys]:
        usage.check_environment(app)
        from_environment = cyclopts.config.Env(usage.VARIABLE_PREFIX, command=False)
        from_environment(command, names, ArgumentCollection(settings))  # type: ignore[no-untyped-call]


def _file_settings(tokens: Sequence[str]) -> list[Any]:
    """Load the file of ``--config``; options and environment variables take precedence over it."""
    for index, token in enumerate(tokens):
        name, equals, value = token.partition("=")
        if name == "--config" and (equals or index + 1 < len(tokens)):
            path = value if equals else tokens[index + 1]
            given = load_settings(path).model_dump(exclude_unset=True)
            return [cyclopts.config.Dict(given, source=path, use_commands_as_keys=False)]
    return []
