"""The API reference, ``async_maps/README.md``, says what the code is: names, signatures and attributes."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args

import pytest

import async_maps
from async_maps import kolena

if TYPE_CHECKING:
    from types import ModuleType

pytestmark = pytest.mark.fast

PAGE = (Path(async_maps.__file__).parent / "README.md").read_text()


def public(module: ModuleType) -> dict[str, Any]:
    return {name: getattr(module, name) for name in module.__all__}


API = public(async_maps) | public(kolena)
CLASSES = {name: item for name, item in API.items() if isinstance(item, type) and item is not Any}
ERRORS = {name: item for name, item in CLASSES.items() if issubclass(item, Exception)}
METRICS = "PipelineCollector"
"""Its module needs the extra ``metrics``."""

# The page ---------------------------------------------------------------------------------------------------------


def code_in(text: str) -> list[str]:
    return re.findall(r"`([\w.]+)`", text)


def split_by_headings() -> dict[str, str]:
    """The text below each heading that names something in code, by that name; that on errors has no such name."""
    headings = re.finditer(r"^##+ (.*)\n((?:(?!^##+ ).*\n)*)", PAGE, re.MULTILINE)
    return {name: text for title, text in (match.groups() for match in headings) for name in code_in(title) or [title]}


SECTIONS = split_by_headings()


def signatures_in(text: str) -> list[str]:
    """The signatures in the ``py`` blocks of a text; one may span several lines."""
    blocks = re.findall(r"^```py\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return re.sub(r"(?<=\()\n +|\n(?=\))", "", re.sub(r",\n +", ", ", "".join(blocks))).splitlines()


def rows_in(text: str) -> dict[str, str]:
    """The rest of each row of the tables in a text, by the names in its first cell."""
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", text, re.MULTILINE)
    return {name: rest for first, rest in rows for name in code_in(first)}


# The code ---------------------------------------------------------------------------------------------------------


def signature(name: str, item: Any) -> str:
    """A function, a constructor or an alias, as the page writes it."""
    if isinstance(item, UnionType):
        return f"{name} = {' | '.join(part.__name__ for part in get_args(item))}"
    if item is Any:
        return f"{name} = Any"
    shown = f"{name}({', '.join(parameters(item))})"
    if inspect.isasyncgenfunction(item):
        return f"async for outcome in {shown}"
    return f"await {shown}" if inspect.iscoroutinefunction(item) else shown


def parameters(item: Any) -> list[str]:
    """The names, kinds and defaults of its parameters."""
    shown = []
    for parameter in inspect.signature(item).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        default = "" if parameter.default is parameter.empty else f"={literal(item, parameter)}"
        shown.append(f"{stars}{parameter.name}{default}")
    return [text for text in shown if text != "self"]


def literal(item: Any, parameter: inspect.Parameter) -> str:
    value = parameter.default
    if hasattr(item, "model_fields"):
        value = getattr(item(), parameter.name)  # the signature shows no value that a factory makes
    if isinstance(value, tuple):
        return f"({', '.join(map(json.dumps, value))})"
    if type(value).__module__.startswith("async_maps."):
        return f"{type(value).__name__}()"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def is_for_users_to_make(item: type) -> bool:
    """Whether the page shows the constructor: not of what calls return, nor of protocols."""
    if item in ERRORS.values():
        return "__init__" in vars(item)
    is_returned = (
        hasattr(item, "_fields")
        or hasattr(item, "__dataclass_fields__")
        or item in {async_maps.Progress, async_maps.Room}
    )
    return not is_returned and not getattr(item, "_is_protocol", False)


def members(item: type) -> dict[str, Any]:
    """The public methods, properties, fields and documented attributes that a class has beyond its public bases."""
    attributes = re.search(r"^Attributes:\n((?: .*\n)*)", f"{inspect.getdoc(item)}\n", re.MULTILINE)
    found = dict.fromkeys(re.findall(r"^ {4}(\w+):", attributes[1], re.MULTILINE) if attributes else ())
    found |= dict.fromkeys(getattr(item, "__dataclass_fields__", ()))
    found |= {name: value for name, value in vars(item).items() if callable(value) or isinstance(value, property)}
    inherited = {name for base in item.__mro__[1:] if base in CLASSES.values() for name in members(base)}
    return {name: value for name, value in found.items() if name[0] != "_" and name not in inherited}


def signatures_of(name: str, item: Any) -> set[str]:
    """Those of a name: its own, and its methods'."""
    if item is Any or not isinstance(item, type):
        return {signature(name, item)}
    own = {signature(name, item)} if is_for_users_to_make(item) else set()
    return own | {signature(f"{name}.{member}", value) for member, value in members(item).items() if callable(value)}


# What is held equal -----------------------------------------------------------------------------------------------


def test_every_public_name_has_an_entry_and_every_entry_is_a_public_name() -> None:
    entries = {name for heading in re.findall(r"^##+ .*$", PAGE, re.MULTILINE) for name in code_in(heading)}
    assert entries | rows_in(SECTIONS["Errors"]).keys() == API.keys() | {METRICS}


@pytest.mark.parametrize("name", API)
def test_signatures_are_those_of_the_code(name: str) -> None:
    section = SECTIONS["Errors" if name in ERRORS else name]
    assert signatures_of(name, API[name]) <= set(signatures_in(section))


def test_no_signature_is_of_something_else() -> None:
    known = {text for name, item in API.items() for text in signatures_of(name, item)}
    assert [text for text in signatures_in(PAGE) if text not in known and not text.startswith(METRICS)] == []


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in ERRORS])
def test_tables_have_the_attributes_of_the_class(name: str) -> None:
    attributes = {member for member, value in members(CLASSES[name]).items() if not callable(value)}
    assert rows_in(SECTIONS[name]).keys() == attributes


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_listed_with_their_attributes(name: str) -> None:
    assert members(ERRORS[name]).keys() <= set(code_in(rows_in(SECTIONS["Errors"])[name]))


def test_examples_use_each_function_or_its_twin_and_each_class_that_users_make() -> None:
    examples = "".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
    used = {name for name in API if re.search(rf"\b{name}\b", examples)}
    functions = {name for name, item in API.items() if inspect.isfunction(item)}
    made = {name for name, item in CLASSES.items() if name not in ERRORS and is_for_users_to_make(item)}
    twins = {f"a{name}" for name in used} & functions
    assert (functions | made) - used - twins == set()


def test_the_collector_is_as_the_page_says() -> None:
    pytest.importorskip("prometheus_client")
    from async_maps import metrics

    own = {name: item for name, item in vars(metrics).items() if getattr(item, "__module__", "") == metrics.__name__}
    assert {name for name in own if name[0] != "_"} == {METRICS}
    assert signatures_of(METRICS, metrics.PipelineCollector) == set(signatures_in(SECTIONS[METRICS]))
