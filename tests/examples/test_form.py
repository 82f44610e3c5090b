"""The examples are short, say what their maps are, and are all on their page and in CI."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.documents import ROOT, read, table

FOLDER = "async_maps/examples"
# gradcam.py is a complete program, which trains a model.
LONG = {"gradcam"}
EXAMPLES = sorted({path.stem for path in (ROOT / FOLDER).glob("*.py")} - {"__init__", "stand_ins"})


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - LONG))
def test_an_example_has_at_most_60_lines_and_says_what_its_maps_are(name: str) -> None:
    text = read(f"{FOLDER}/{name}.py")
    assert len(text.splitlines()) <= 60
    page = ast.get_docstring(ast.parse(text)) or ""
    assert page.splitlines()[0].endswith(f": ``python -m async_maps.examples.{name} [DESTINATION]``.")
    assert re.search(r"^- Arrays?: ", page, re.MULTILINE)
    assert re.search(r"^- Settings: ", page, re.MULTILINE)
    assert f'destination: str = "async-maps-examples/{name}"' in text


def test_the_page_lists_every_example() -> None:
    rows = table(f"{FOLDER}/README.md", "method")
    assert sorted(re.findall(r"\]\((\w+)\.py\)", " ".join(row[1] for row in rows))) == EXAMPLES


def test_ci_runs_every_example_whose_packages_the_extra_has() -> None:
    commands = re.findall(r"^python -m async_maps\.examples\.(\w+)$", read(f"{FOLDER}/README.md"), re.MULTILINE)
    assert sorted(commands) == [name for name in EXAMPLES if name != "pytorch_gradcam"]
