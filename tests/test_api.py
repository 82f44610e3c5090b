"""The public names: there, typed, documented, and light to import."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from typing import TYPE_CHECKING, get_type_hints

import pytest

import async_maps as am

if TYPE_CHECKING:
    from types import ModuleType


@pytest.mark.parametrize("name", am.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(am, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__module__.startswith("async_maps.")
        assert inspect.getdoc(value)
    assert name in dir(am)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = am.nothing


def test_every_error_of_the_tree_is_an_async_maps_error() -> None:
    errors = importlib.import_module("async_maps.errors")
    classes = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]
    assert all(issubclass(error, am.AsyncMapsError) for error in classes)
    tree = inspect.getdoc(errors) or ""
    assert all(error.__name__ in tree for error in classes)
    assert {error.__name__ for error in classes} <= set(am.__all__)


def test_importing_the_package_imports_nothing_of_weight() -> None:
    code = "import sys, async_maps; assert not {'numpy', 'numba', 'anyio', 'pydantic', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        ("errors", {"colormap", "settings", "pool", "pipeline", "cli"}),
        ("records", {"settings", "pool", "encode", "upload", "pipeline", "cli"}),
        ("kernels", {"errors", "records", "colorize", "settings"}),
        ("encode", {"pool", "upload", "pipeline", "cli", "stores", "sources"}),
        ("upload", {"pool", "encode", "pipeline", "cli", "sources"}),
        ("pool", {"encode", "upload", "pipeline", "cli", "stores"}),
        ("pipeline", {"cli", "demo", "progress"}),
    ],
)
def test_imports_point_one_way(outer: str, inner: set[str]) -> None:
    source = inspect.getsource(_module(outer))
    for name in inner:
        assert f"from async_maps.{name} import" not in source
        assert f"from async_maps.{name}." not in source


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"async_maps.{name}")


def test_the_annotations_of_the_pipeline_can_be_read() -> None:
    assert get_type_hints(am.Receipt, localns={"datetime": object})["size"] is int
