"""What is wrong with settings, in words: each setting, its problem and its value, or the name that was meant."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from async_maps.errors import AsyncMapsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_AWS = {
    "endpoint": "AWS_ENDPOINT_URL",
    "endpoint_url": "AWS_ENDPOINT_URL",
    "region": "AWS_DEFAULT_REGION",
    "region_name": "AWS_DEFAULT_REGION",
    "profile": "AWS_PROFILE",
    "profile_name": "AWS_PROFILE",
    "access_key": "AWS_ACCESS_KEY_ID",
    "access_key_id": "AWS_ACCESS_KEY_ID",
    "secret_key": "AWS_SECRET_ACCESS_KEY",
    "secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "session_token": "AWS_SESSION_TOKEN",
    "ca_bundle": "AWS_CA_BUNDLE",
    "verify": "AWS_CA_BUNDLE",
}
"""The variables of the AWS SDK for names that users may try as settings."""


def names_in(model: type[BaseModel]) -> Iterator[str]:
    """Iterate over the names of a model's settings, parts included: ``png``, ``s3.give_up_s``."""
    for name, field in model.model_fields.items():
        part = field.annotation
        if isinstance(part, type) and issubclass(part, BaseModel):
            yield from (f"{name}.{inner}" for inner in part.model_fields)
        else:
            yield name


def aws_variable(name: str) -> str | None:
    """Return the variable of the AWS SDK to use instead of a name such as ``s3.endpoint_url``, or None."""
    return _AWS.get(re.sub(r"^(s3|aws)[._]|^aws_", "", name.lower().replace("-", "_")))


def describe_invalid(error: ValidationError, names: Iterable[str], name_of: Callable[[str], str] = str) -> str:
    """Translate pydantic's error into one line: each setting, its problem and its value.

    Args:
        error: the error.
        names: the names of all settings.
        name_of: returns the name of a setting for the message, such as its option.
    """
    return "; ".join(dict.fromkeys(_problems(error, list(names), name_of)))


def _problems(
    error: ValidationError, names: list[str], name_of: Callable[[str], str], part: tuple[str | int, ...] = ()
) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        steps = (*part, *problem["loc"])
        name = ".".join(str(step) for step in steps if step not in {"constrained-int", "literal['auto']"})
        ours = problem.get("ctx", {}).get("error")
        if problem["type"] == "extra_forbidden":
            yield f"{name} is not a setting{_instead_of(name, names)}"
        elif isinstance(ours, AsyncMapsError):
            inner = ours.__cause__
            if isinstance(inner, ValidationError):
                yield from _problems(inner, names, name_of, steps)
            else:
                known_as = name_of(name) if name else ""
                yield str(ours) if known_as == name else f"{known_as}: {str(ours).removeprefix(f'{name}: ')}"
        elif problem["type"] == "dict_type":
            known_as = name_of(name)
            yield f"{known_as}: expected a value for each name, as {known_as}.NAME, found {problem['input']!r}"
        else:
            yield f"{name_of(name)}: {problem['msg'][:1].lower()}{problem['msg'][1:]}, found {problem['input']!r}"


def _instead_of(name: str, names: list[str]) -> str:
    if variable := aws_variable(name):
        return f"; set {variable} in the environment"
    near = get_close_matches(name, names, n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else ""
