"""The public names: there, typed, documented, and light to import."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

import async_maps as am


@pytest.mark.parametrize("name", am.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(am, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__module__.startswith("async_maps.")
        assert inspect.getdoc(value)
    assert name in dir(am)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = am.nothing  # type: ignore[attr-defined]


def test_every_error_of_the_tree_is_an_async_maps_error() -> None:
    errors = importlib.import_module("async_maps.errors")
    classes = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]
    assert all(issubclass(error, am.AsyncMapsError) for error in classes)
    tree = inspect.getdoc(errors) or ""
    assert all(error.__name__ in tree for error in classes)
    assert {error.__name__ for error in classes} <= set(am.__all__)


def test_the_version_is_that_of_the_metadata() -> None:
    assert am.__version__ == importlib.metadata.version("async-maps")
    assert "__version__" in dir(am)


def test_a_star_import_gives_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from async_maps import *", names)  # noqa: S102
    assert names.keys() - {"__builtins__"} == set(am.__all__)


def test_importing_the_package_imports_nothing_of_weight() -> None:
    code = "import sys, async_maps; assert not {'numpy', 'numba', 'anyio', 'pydantic', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_imports_point_one_way() -> None:
    lint_imports = shutil.which("lint-imports", path=Path(sys.executable).parent)
    if lint_imports is None:
        pytest.skip("import-linter is not installed (extra lint)")
    root = Path(__file__).parent.parent
    subprocess.run([lint_imports, "--config", root / "pyproject.toml", "--no-cache"], cwd=root, check=True)


def test_the_annotations_of_the_pipeline_can_be_read() -> None:
    assert get_type_hints(am.Receipt, localns={"datetime": object})["size"] is int
