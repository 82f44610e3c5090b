"""Reports and exports replace an earlier output of their own kind, and no other file of the user."""

from __future__ import annotations

import json
import os
import tracemalloc
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import async_maps as am
from async_maps.filesystems.outputs import check_output, is_metrics, is_report
from tests.support.commands import invoke, only_error
from tests.support.leftovers import leaves_nothing
from tests.support.manifests import make_map, receipt_for, write_run

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures(leaves_nothing.__name__)]

RUN = ("run", "maps.npy", "out", "--manifest", "m.sqlite", "--config", "c.toml", "--dry-run")
FRESH = ("run", "maps.npy", "out", "--manifest", "new.sqlite", "--dry-run")
LINKS: dict[str, Callable[[str, str], None]] = {"symbolic": os.symlink, "hard": os.link}
FOREIGN = {
    "m.sqlite": b"SQLite format 3\0",
    "overlay.png": b"\x89PNG\r\n\x1a\n",
    "labels.json": b'{"labels": [1, 2]}',
    "list.json": b"[1]",
    "job.json": b'{"command": "train", "exit_code": 0}',
    "deep.json": b"[" * 100_000,
    "results.csv": b"locator,inference\r\na,b\r\n",
    "table.csv": b"\xff\xfe\0",
    "rows.jsonl": b'{"name": "a", "path": "a.npy"}\n',
    "names.jsonl": b'["name"]\n',
    "text.csv": b"hello\n",
}


@pytest.fixture(autouse=True)
def files() -> None:
    """A source, a manifest, a settings file and a destination in the current folder."""
    np.save("maps.npy", np.zeros((2, 2)))
    write_run(Path("m.sqlite"), [receipt_for(make_map("a"))])
    Path("c.toml").write_text('png = "gray"\n')
    Path("out").mkdir()


def content() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("m.sqlite", "the manifest"),
        ("m.sqlite-lock", "the manifest"),
        ("m.sqlite-wal", "the manifest"),
        ("m.sqlite-shm", "the manifest"),
        ("./out/../m.sqlite", "the manifest"),
        ("c.toml", "the settings file"),
        ("maps.npy", "the source"),
        ("out/new.png", "an overlay in the destination"),
    ],
)
def test_a_report_onto_a_file_of_its_run_is_refused(file: str, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = content()
    assert invoke(*RUN, "--report", file) == 2
    assert what in only_error(capsys.readouterr())
    assert content() == before


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("file", ["m.sqlite", "c.toml", "maps.npy"])
def test_a_link_to_a_file_of_the_run_is_recognized(link: str, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    LINKS[link](file, "report.json")
    before = content()
    assert invoke(*RUN, "--report", "report.json") == 2
    assert "the report would replace the " in only_error(capsys.readouterr())
    assert content() == before


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_no_place_for_an_output(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The files' suffixes are those of outputs, or a link's is."""
    target = Path(name)
    if name != "m.sqlite":
        target.write_bytes(FOREIGN[name])
    before = content()
    assert invoke(*RUN, "--report", name) == 2
    assert "the report would replace" in only_error(capsys.readouterr())
    assert invoke("verify", "m.sqlite", "--report", name) == 2
    assert "the report would replace" in only_error(capsys.readouterr())
    suffixes = {".csv", ".jsonl", *([".parquet"] if find_spec("pyarrow") else [])}
    for suffix in suffixes - {target.suffix}:
        Path(f"link{suffix}").symlink_to(name)
        assert invoke("export", "m.sqlite", f"link{suffix}") == 2
        assert "the table would replace" in only_error(capsys.readouterr())
        Path(f"link{suffix}").unlink()
    if target.suffix in {".csv", ".jsonl"}:
        assert invoke("export", "m.sqlite", name) == 2
        assert "that async-maps did not write" in only_error(capsys.readouterr())
    assert content() == before


def test_an_export_onto_its_manifest_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    os.rename("m.sqlite", "m.csv")
    before = content()
    assert invoke("export", "m.csv", "m.csv") == 2
    assert "the table would replace the manifest: m.csv" in only_error(capsys.readouterr())
    assert content() == before


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    "options", [{}, {"rows": "failed"}, {"export_format": "kolena"}, {"columns": ["name", "locator"]}]
)
def test_an_earlier_export_is_replaced(suffix: str, options: dict[str, object]) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    file = f"table.{suffix}"
    Path(file).touch()  # as mktemp makes it
    for _ in range(2):
        assert am.export_manifest("m.sqlite", file, **options) == (options.get("rows") != "failed")  # type: ignore[arg-type]
        assert am.export_manifest("m.sqlite", file, rows="all") == 1


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("row", [{"name": "a", "source": "/maps/a"}, {"name": "a", "locator": "s3://images/a.png"}])
def test_a_table_whose_columns_an_export_could_have_is_not_replaced(
    suffix: str, row: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(f"table.{suffix}")
    if suffix == "parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.table({name: [value] for name, value in row.items()}), file)
    else:
        csv = f"{','.join(row)}\n{','.join(row.values())}\n"
        file.write_text(json.dumps(row) if suffix == "jsonl" else csv)
    before = file.read_bytes()
    assert invoke("export", "m.sqlite", str(file), "--columns", ",".join(row)) == 2
    assert f"the table would replace {file}" in only_error(capsys.readouterr())
    assert file.read_bytes() == before


def test_an_earlier_report_is_replaced() -> None:
    Path("report.json").touch()
    for _ in range(2):
        assert invoke(*FRESH, "--report", "report.json") == 0
    assert json.loads(Path("report.json").read_text())["planned"] == 1


def test_looking_at_an_earlier_report_takes_little_memory() -> None:
    assert invoke(*FRESH, "--report", "report.json") == 0
    tracemalloc.start()
    try:
        check_output("report.json", "the report", is_report)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_report_does_not_replace_a_file_that_appeared_during_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = am.dry_run

    def slowly(*arguments: object, **options: object) -> am.Report:
        Path("report.json").write_text('{"mine": 1}')
        return planned(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("async_maps.batch.dry_run", slowly)
    assert invoke(*FRESH, "--report", "report.json") == 1
    assert "the report would replace report.json" in only_error(capsys.readouterr())
    assert Path("report.json").read_text() == '{"mine": 1}'


def test_metrics_in_the_file_of_the_report_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("prometheus_client")
    assert invoke(*FRESH, "--report", "x.prom", "--metrics-textfile", "./x.prom") == 2
    assert "the metrics would replace the report" in only_error(capsys.readouterr())


def test_metrics_replace_only_metrics() -> None:
    Path("ours.prom").write_text("# HELP async_maps_maps_total Maps.\n")
    check_output("ours.prom", "the metrics", is_metrics)
    Path("node.prom").write_text("# HELP node_load1 1m load average.\n")
    with pytest.raises(am.SettingsError, match=r"the metrics would replace node\.prom"):
        check_output("node.prom", "the metrics", is_metrics)
