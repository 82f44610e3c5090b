"""``python -m bench compare``: what is compared, and how the ratios are reported."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from bench.compare import check_out, compared, figures_of, requirements
from bench.tables import Table

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parent.parent.parent
IN_GIT = (ROOT / ".git").exists()


@pytest.fixture(autouse=True)
def _in_the_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.skipif(not IN_GIT, reason="needs the clone")
def test_a_revision_gets_the_bench_of_the_working_tree(tmp_path: Path) -> None:
    code = check_out("HEAD", tmp_path / "before")
    file = "async_maps/__init__.py"
    committed = subprocess.run(["git", "show", f"HEAD:{file}"], capture_output=True, check=True).stdout
    assert (code.folder / file).read_bytes() == committed
    assert (code.folder / "bench/compare.py").read_bytes() == (ROOT / "bench/compare.py").read_bytes()


@pytest.mark.skipif(not (ROOT / "async_maps").exists(), reason="needs the clone")
def test_the_working_tree_is_copied_with_its_interpreter(tmp_path: Path) -> None:
    code = check_out(None, tmp_path / "after")
    assert code.python == sys.executable
    assert (code.folder / "async_maps/__init__.py").read_bytes() == (ROOT / "async_maps/__init__.py").read_bytes()


@pytest.mark.skipif(not IN_GIT, reason="needs the clone")
def test_an_unknown_revision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="git archive no-such-revision: "):
        check_out("no-such-revision", tmp_path / "before")


def test_requirements_are_those_of_a_bench() -> None:
    found = requirements(ROOT)
    assert any(name.startswith("numba") for name in found)
    assert any(name.startswith("obstore") for name in found)
    assert not any(name.startswith("ruff") for name in found)


def test_figures_have_the_labels_of_their_row() -> None:
    table = Table("A table", {"": ""})
    table.add(**{"": "ours", "KB": 60, "ms": [3.0, 1.0, 2.0], "x ours": [1.0, 1.0, 1.0], "bytes": 5.5, "rounds": 3})
    assert figures_of([table.document()]) == {"1: ours, 60, ms": 2.0, "1: ours, 60, bytes": 5.5}


def test_ratios_are_those_of_each_round_with_their_quartiles() -> None:
    assert compared([1.0, 2.0, 4.0], [2.0, 2.0, 12.0]) == {
        "before": [1.0, 2.0, 4.0], "after": [2.0, 2.0, 12.0],
        "after / before": [2.0, 1.0, 3.0], "quartiles": "1.500 to 2.500",
    }  # fmt: skip


def test_spoiled_rounds_do_not_count() -> None:
    found = compared([1.0, math.nan, 4.0], [2.0, 2.0, math.nan])
    assert found == {"before": [1.0], "after": [2.0], "after / before": [2.0]}
    assert compared([math.nan], [1.0])["after"] is None
