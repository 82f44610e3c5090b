"""pyproject.toml declares the dependencies, Python versions and import rules of the package."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import async_maps

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
OURS = Path(async_maps.__file__).parent
# The distribution of a library that is not installed is assumed to have the module's name, except for these.
DISTRIBUTIONS = {"pytorch_grad_cam": ["grad-cam"], "sklearn": ["scikit-learn"], **packages_distributions()}
NAMESPACES = {"azure", "google"}
"""Packages of many distributions, each named like the package in it: ``google.auth`` is google-auth."""


def normalized(requirement: str) -> str:
    name = re.match(r"[\w.-]+", requirement)
    assert name is not None, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def declared(*extras: str) -> set[str]:
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    return {normalized(requirement) for requirements in lists for requirement in requirements}


@cache
def imported() -> dict[str, set[str]]:
    """Return the files that import a library, by library."""
    files: dict[str, set[str]] = {}
    for path in OURS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
            else:
                continue
            for module in modules:
                top = module.partition(".")[0]
                if top in NAMESPACES:
                    top = "-".join(module.split(".")[:2])
                if top not in sys.stdlib_module_names and top != "async_maps":
                    for distribution in DISTRIBUTIONS.get(top, [top]):
                        files.setdefault(normalized(distribution), set()).add(str(path.relative_to(OURS)))
    return files


def test_every_imported_library_is_declared() -> None:
    known = declared(*PROJECT["optional-dependencies"])
    assert {library: files for library, files in imported().items() if library not in known} == {}


def test_every_dependency_is_imported() -> None:
    assert declared() - imported().keys() == set()


def test_ci_tests_the_declared_python_versions() -> None:
    prefix = "Programming Language :: Python :: 3."
    declared_minors = [int(line.removeprefix(prefix)) for line in PROJECT["classifiers"] if line.startswith(prefix)]
    workflow = (Path(__file__).parent.parent / ".github" / "workflows" / "ci.yml").read_text()
    assert sorted(declared_minors) == sorted({int(minor) for minor in re.findall(r"\b3\.(\d+)\b", workflow)})
    assert PROJECT["requires-python"] == f">=3.{min(declared_minors)}"


def test_imports_point_one_way() -> None:
    lint_imports = shutil.which("lint-imports", path=Path(sys.executable).parent)
    if lint_imports is None:
        pytest.skip("import-linter is not installed (extra lint)")
    root = Path(__file__).parent.parent
    subprocess.run([lint_imports, "--config", root / "pyproject.toml", "--no-cache"], cwd=root, check=True)
