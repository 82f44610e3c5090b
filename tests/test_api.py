"""The public names exist, are documented and are light to import."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import re
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, get_type_hints

import pytest

import async_maps as am
from async_maps import kolena

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("name", am.__all__)
def test_every_public_name_exists_and_is_documented(name: str) -> None:
    value = getattr(am, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__module__.startswith("async_maps.")
        assert inspect.getdoc(value)
    assert name in dir(am)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = am.nothing  # type: ignore[attr-defined]


def test_every_error_is_an_async_maps_error_in_the_tree() -> None:
    errors = importlib.import_module("async_maps.errors")
    classes = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]
    assert all(issubclass(error, am.AsyncMapsError) for error in classes)
    tree = inspect.getdoc(errors) or ""
    assert all(error.__name__ in tree for error in classes)
    assert {error.__name__ for error in classes} <= set(am.__all__)


def test_the_version_equals_the_metadata() -> None:
    assert am.__version__ == importlib.metadata.version("async-maps")
    assert "__version__" in dir(am)


def test_a_star_import_gives_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from async_maps import *", names)  # noqa: S102
    assert names.keys() - {"__builtins__"} == set(am.__all__)


def test_the_package_imports_no_heavy_library() -> None:
    code = "import sys, async_maps; assert not {'numpy', 'numba', 'anyio', 'pydantic', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_annotations_of_receipt_can_be_resolved() -> None:
    assert get_type_hints(am.Receipt, localns={"datetime": object})["size"] is int


# Docstrings -------------------------------------------------------------------------------------------------------


def public_objects() -> Iterator[tuple[str, Any]]:
    """Yield every public class and function, and the methods and properties that our classes define."""
    for name, value in {name: getattr(module, name) for module, names in PUBLIC for name in names}.items():
        if inspect.isclass(value) and value is not Any:
            yield name, value
            for attribute, member in vars(value).items():
                if not attribute.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                    yield f"{name}.{attribute}", member
        elif inspect.isfunction(value):
            yield name, value


PUBLIC: list[tuple[ModuleType, list[str]]] = [(am, am.__all__), (kolena, kolena.__all__)]
with suppress(am.MissingExtraError):
    PUBLIC.append((importlib.import_module("async_maps.metrics"), ["PipelineCollector"]))
OBJECTS = dict(public_objects())


def docstring(value: Any) -> dict[str, str]:
    """Return the sections by title; the text before the first section has an empty title."""
    parts = re.split(r"(?m)^(Args|Attributes|Returns|Yields|Raises):\n", inspect.getdoc(value) or "")
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def described(value: Any) -> set[str]:
    """Return the names under Args and Attributes, also of public bases, and pydantic's fields with a docstring."""
    bases = [base for base in getattr(value, "__mro__", ())[1:] if base in OBJECTS.values()]
    if bases:
        return described(bases[0]) | described_itself(value)
    return described_itself(value)


def described_itself(value: Any) -> set[str]:
    sections = docstring(value)
    names = set(re.findall(r"(?m)^    (\w+): \S", sections.get("Args", "") + sections.get("Attributes", "")))
    return names | {name for name, field in getattr(value, "model_fields", {}).items() if field.description}


def parameters(value: Any) -> set[str]:
    """Return the parameters of a function or class; none if only a foreign base class defines them."""
    if inspect.isclass(value) and (not {"__init__", "__new__"} & vars(value).keys() or Protocol in value.__bases__):
        return set(getattr(value, "model_fields", ()))
    return set() if isinstance(value, property) else set(inspect.signature(value).parameters) - {"self"}


def test_every_summary_is_one_sentence() -> None:
    summaries = {name: (inspect.getdoc(value) or "").partition("\n\n")[0] for name, value in OBJECTS.items()}
    sentence = re.compile(r"[A-Z`](?:[^.\n]|\.(?! ))*\.")
    assert {name: text for name, text in summaries.items() if not sentence.fullmatch(text)} == {}


def test_every_parameter_is_documented() -> None:
    missing = {name: parameters(value) - described(value) for name, value in OBJECTS.items()}
    assert {name: names for name, names in missing.items() if names} == {}


def test_no_docstring_describes_a_missing_parameter() -> None:
    functions = {name: value for name, value in OBJECTS.items() if inspect.isfunction(value)}
    unknown = {name: described(value) - parameters(value) for name, value in functions.items()}
    assert {name: names for name, names in unknown.items() if names} == {}


def test_every_function_documents_its_result() -> None:
    functions = {name: value for name, value in OBJECTS.items() if inspect.isfunction(value)}
    silent = {
        name
        for name, value in functions.items()
        if value.__annotations__["return"] != "None"
        and not {"Returns", "Yields"} & docstring(value).keys()
        and not docstring(value)[""].startswith("Return ")
    }
    assert silent == set()
