"""Wrong uses of the command, translated into one sentence each: what was found, and what to write instead."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from typing import TYPE_CHECKING

import cyclopts
from pydantic import ValidationError

from async_maps.errors import AsyncMapsError, SettingsError
from async_maps.settings import setting_names
from async_maps.settings.problems import aws_variable, describe_invalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cyclopts import App
    from cyclopts.argument import Argument

VARIABLE_PREFIX = "ASYNC_MAPS_"
MANIFEST_VARIABLE = "ASYNC_MAPS_MANIFEST"

_OF_KUBERNETES = re.compile(r"ASYNC_MAPS_(SERVICE_(HOST|PORT.*)|PORT(_\d+_(TCP|UDP|SCTP).*)?)")
"""Kubernetes sets these in each container if a Service is named async-maps."""

_ITEMS = ("ASYNC_MAPS_S3_METADATA_", "ASYNC_MAPS_S3_TAGGING_")
"""The starts of variables whose ends are names that the user chooses."""

_DESTRUCTIVE = {"--overwrite", "--delete-foreign"}
"""Never suggested: a mistyped option must not lead to uploads or deletions that nobody asked for."""


def check_environment(app: App) -> None:
    """Refuse environment variables that look like settings but are not: a typing error must not go unnoticed.

    Raises:
        SettingsError: a variable ``ASYNC_MAPS_...`` is not a setting.
    """
    known = [MANIFEST_VARIABLE, *map(variable, setting_names())]
    for name in sorted(os.environ):
        is_item = name.startswith(_ITEMS)
        if not name.startswith(VARIABLE_PREFIX) or name in known or is_item or _OF_KUBERNETES.fullmatch(name):
            continue
        lower = name.removeprefix(VARIABLE_PREFIX).lower()
        if aws := aws_variable(lower):
            instead = f"set {aws}"
        elif name.upper() in known:
            instead = f"did you mean {name.upper()}?"
        elif option(lower) in _options_of_run(app):
            instead = f"it can only be given as an option, {option(lower)}"
        elif near := _nearest(lower, [setting.removeprefix(VARIABLE_PREFIX).lower() for setting in known]):
            instead = f"did you mean {variable(near)}?"
        else:
            instead = "unset it"
        raise SettingsError(f"the environment variable {name} is not a setting: {instead}")


def _options_of_run(app: App) -> set[str]:
    """Return the options of ``run`` that are not settings."""
    return {name for argument in _arguments(app["run"]) if not argument.keys for name in argument.names}


def variable(name: str) -> str:
    """Return the environment variable of a setting: ``ASYNC_MAPS_S3_GIVE_UP_S`` for ``s3.give_up_s``."""
    return VARIABLE_PREFIX + name.upper().replace(".", "_")


def option(name: str) -> str:
    """Return the option of a setting: ``--s3.give-up-s`` for ``s3.give_up_s``."""
    return "--" + name.replace("_", "-")


def describe(error: Exception, app: App, tokens: Sequence[str]) -> str:  # noqa: PLR0911  # one return per kind
    """Describe a wrong use in one sentence.

    Args:
        error: what the parser, the settings or a command raised.
        app: the application.
        tokens: the command line.
    """
    if isinstance(error, AsyncMapsError):
        return str(error)
    for invalid in (error, error.__cause__):
        if isinstance(invalid, ValidationError):
            return describe_invalid(invalid, setting_names(), name_of=lambda setting: _origin(setting, tokens))
    match error:
        case cyclopts.UnknownOptionError():
            return _unknown_option(error, app)
        case cyclopts.MissingArgumentError():
            return _missing(error, app, tokens)
        case cyclopts.UnusedCliTokensError() if error.unused_tokens:
            return _unexpected(error.unused_tokens, error.command_chain or (), app)
        case cyclopts.UnknownCommandError():
            return _unknown_command(error.unused_tokens or tokens, app)
        case cyclopts.RepeatArgumentError():
            return f"{error.token.keyword} is given more than once"
    text = " ".join(str(error).split()).rstrip(".")
    return text[:1].lower() + text[1:]


def _origin(setting: str, tokens: Sequence[str]) -> str:
    """Name a setting as the user gave it: its option, its environment variable, or its key."""
    given = {token.partition("=")[0].replace("_", "-") for token in tokens}
    if option(setting) in given:
        return option(setting)
    return variable(setting) if variable(setting) in os.environ else setting


def _unknown_option(error: cyclopts.UnknownOptionError, app: App) -> str:
    found = (error.token.keyword or error.token.value).partition("=")[0]
    command = " ".join(("async-maps", *(error.command_chain or ())))
    if aws := aws_variable(found.lstrip("-")):
        return f"unknown option {found}: set {aws} in the environment"
    if owners := [name for name in commands(app) if found in _options(app[name])]:
        listed = " and ".join(filter(None, (", ".join(owners[:-1]), owners[-1])))
        return f"{found} is an option of async-maps {listed}, not of {command}"
    names = {name for argument in error.argument_collection for name in argument.names} - _DESTRUCTIVE
    near = _nearest(found.lstrip("-"), [name.lstrip("-") for name in names if name.startswith("--")])
    suggestion = f"did you mean --{near}? " if near else ""
    return f"unknown option {found}: {suggestion}{command} --help lists the options"


def _missing(error: cyclopts.MissingArgumentError, app: App, tokens: Sequence[str]) -> str:
    assert error.argument is not None  # noqa: S101  # cyclopts sets it
    command = (error.command_chain or ("",))[0]
    if error.argument.field_info.is_keyword:
        name = error.keyword or error.argument.name
        if not any(token.partition("=")[0] == name for token in tokens):
            return f"{name} is missing: async-maps {command} --help explains it"
        following = tokens[tokens.index(name) + 1 :] if name in tokens else ()
        if following and following[0] == "-":
            return f"{name} reads and writes no standard stream: pass a path"
        is_option = following and following[0].partition("=")[0] in _options(app[command])
        if following and following[0].startswith("-") and not is_option:
            return f"{name} needs a value; write a value that begins with a hyphen as {name}={following[0]}"
        return f"{name} needs a value"
    names = [argument.name for argument in _positional(app[command])]
    missing = names[names.index(error.argument.name) :]
    verb = "is" if len(missing) == 1 else "are"
    return f"{' and '.join(missing)} {verb} missing: async-maps {command} {' '.join(names)}"


def _unexpected(tokens: Sequence[str], chain: Sequence[str], app: App) -> str:
    more = f" and {len(tokens) - 1:,} more" if len(tokens) > 1 else ""
    names = [argument.name for argument in _positional(app[chain[0]])] if chain else []
    usage = " ".join(("async-maps", *chain, *names))
    glob = "; a glob must be in quotes, such as 'maps/*.npy'" if "SOURCE" in names else ""
    return f"unexpected {tokens[0]!r}{more}: {usage}{glob}"


def _unknown_command(tokens: Sequence[str], app: App) -> str:
    found, names = tokens[0], commands(app)
    if found.startswith("-"):
        return f"unknown option {found}: options come after the command; commands: {', '.join(names)}"
    if near := _nearest(found, names, cutoff=0.6):
        return f"unknown command {found!r}; did you mean {near}?"
    upload = "; to upload maps: async-maps run SOURCE DESTINATION" if len(tokens) > 1 or os.path.exists(found) else ""
    return f"unknown command {found!r}; commands: {', '.join(names)}{upload}"


def _nearest(name: str, known: Iterable[str], cutoff: float = 0.75) -> str | None:
    return next(iter(get_close_matches(name, sorted(known), n=1, cutoff=cutoff)), None)


def commands(app: App) -> list[str]:
    """Return the names of the commands."""
    return [name for name in app if not name.startswith("-")]


def _options(command: App) -> set[str]:
    return {name for argument in _arguments(command) for name in argument.names}


def _positional(command: App) -> list[Argument]:
    return [argument for argument in _arguments(command) if not argument.field_info.is_keyword]


def _arguments(command: App) -> Iterable[Argument]:
    return command.assemble_argument_collection()
