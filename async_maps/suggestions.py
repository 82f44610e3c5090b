"""Commands that messages suggest: quoted for a shell, with the options that the user gave for the command that runs."""

from __future__ import annotations

import shlex
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator


_WITH_SETTINGS = {"run", "verify", "doctor"}
"""The commands that have options for settings."""


class GivenOptions(NamedTuple):
    """Options of the command line that a suggested command needs, too; those in the environment need no repetition.

    Attributes:
        settings: ``--config``, and settings such as ``--s3.client sdk``.
        of_runs: the settings that only a run needs: what is a map, how its overlay looks, and its speed.
    """

    settings: tuple[str, ...] = ()
    of_runs: tuple[str, ...] = ()


given_options: ContextVar[GivenOptions | None] = ContextVar("given_options", default=None)
"""The options of the command that runs; None in a program."""


@contextmanager
def repeating_options() -> Iterator[None]:
    """Forget the given options at the end of the ``with`` block."""
    token = given_options.set(None)
    try:
        yield
    finally:
        given_options.reset(token)


def suggest(command: str, *arguments: object) -> str:
    """Return a command to suggest.

    Args:
        command: the name of the command.
        arguments: its arguments, and options of its own.
    """
    given = given_options.get() or GivenOptions()
    # A plan has those of its runs.
    of_runs = given.of_runs if command == "run" and "--plan" not in arguments else ()
    options = (*given.settings, *of_runs) if command in _WITH_SETTINGS else ()
    return shlex.join(["async-maps", command, *map(str, arguments), *options])
