"""mypy and pyright accept ``accepts.py`` and find every mistake in ``refuses.py``, without plugins."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent

# A first run of mypy reads the types of all dependencies.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("checker", "arguments"),
    [("mypy", [FOLDER]), ("pyright", ["--project", FOLDER, "--pythonpath", sys.executable])],
)
def test_type_checkers_accept_correct_code_and_refuse_mistakes(checker: str, arguments: list[str | Path]) -> None:
    if find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed (extra lint)")
    checked = subprocess.run(
        [sys.executable, "-m", checker, *arguments], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
