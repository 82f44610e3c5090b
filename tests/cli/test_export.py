"""``async-maps export``: failures alone, and tables on standard output."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from async_maps.outcomes import Failure
from tests.support.commands import invoke, only_error
from tests.support.leftovers import leaves_nothing
from tests.support.manifests import make_map, receipt_for, write_run

if TYPE_CHECKING:
    from async_maps.outcomes import Outcome

pytestmark = [pytest.mark.fast, pytest.mark.usefixtures(leaves_nothing.__name__)]

NAMES = ["a", "b, c", 'd "e"', "é 🧠"]
FAILURES = [Failure(f"x{n}", f"/maps/x{n}.npy", None, "read", f"found {n},\nnothing else") for n in range(3)]


@pytest.fixture
def manifest() -> Path:
    done: list[Outcome] = [receipt_for(make_map(name)) for name in NAMES]
    write_run(Path("m.sqlite"), [*done, *FAILURES])
    return Path("m.sqlite")


def rows_of(text: str) -> list[list[str]]:
    return list(csv.reader(text.splitlines(keepends=True)))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_failed_writes_the_failures_alone(manifest: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("export", manifest, f"failures.{suffix}", "--failed") == 0
    assert capsys.readouterr().out == f"3 rows in failures.{suffix}\n"
    text = Path(f"failures.{suffix}").read_text()
    if suffix == "csv":
        assert rows_of(text)[0] == ["name", "stage", "reason", "source"]
        assert rows_of(text)[1] == ["x0", "read", "found 0,\nnothing else", "/maps/x0.npy"]
    assert "/maps/a.npy" not in text


def test_a_hyphen_is_standard_output(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("export", manifest, "-", "--columns", "name,locator") == 0
    captured = capsys.readouterr()
    assert rows_of(captured.out) == [["name", "locator"], *([name, f"s3://bucket/prefix/{name}.png"] for name in NAMES)]
    assert "\r" not in captured.out
    assert captured.err == "async-maps: 4 rows\n"
    assert invoke("export", manifest, "-", "--failed") == 0
    captured = capsys.readouterr()
    assert [row[0] for row in rows_of(captured.out)] == ["name", "x0", "x1", "x2"]
    assert captured.err == "async-maps: 3 rows\n"
    assert invoke("export", manifest, "-", "--as", "kolena", "--columns", "name,locator") == 0
    assert rows_of(capsys.readouterr().out)[0] == ["name", "activation_map"]
    assert [path.name for path in Path().iterdir()] == ["m.sqlite"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("m.sqlite", "-", "--all", "--failed"), "--all and --failed exclude each other"),
        (("m.sqlite", "x.csv", "--failed", "--as", "kolena"), "failed maps have no overlays for kolena"),
        (("m.sqlite", "x.csv", "--failed", "--presign", "1"), "failed maps have no overlays"),
        (("m.sqlite", "-", "--columns", "color"), "columns: unknown 'color'"),
        (("none.sqlite", "-"), "no such manifest: none.sqlite"),
    ],
)
@pytest.mark.usefixtures("manifest")
def test_what_makes_no_table_is_an_error_and_no_output(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke("export", *arguments) == 2
    captured = capsys.readouterr()
    assert said in only_error(captured)
    assert captured.out == ""


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_formulas_are_texts_for_spreadsheets_on_request(first: str, capsys: pytest.CaptureFixture[str]) -> None:
    failures: list[Outcome] = [Failure(f"{first}1+1", "/maps/x.npy", None, "read", "found -1")]
    write_run(Path("f.sqlite"), failures)
    assert invoke("export", "f.sqlite", "f.csv", "--failed") == 0
    with open("f.csv", newline="") as file:
        assert list(csv.reader(file))[1] == [f"{first}1+1", "read", "found -1", "/maps/x.npy"]
    assert invoke("export", "f.sqlite", "f.csv", "--failed", "--spreadsheet-safe") == 0
    with open("f.csv", newline="") as file:
        assert list(csv.reader(file))[1] == [f"'{first}1+1", "read", "found -1", "/maps/x.npy"]
    capsys.readouterr()
    assert invoke("export", "f.sqlite", "f.jsonl", "--failed", "--spreadsheet-safe") == 2
    assert "only CSV" in only_error(capsys.readouterr())
