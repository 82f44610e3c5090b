"""Orders of rows: what they hold is what SQLite says."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import async_maps as am
from async_maps.outcomes import Failure, MapStatistics, Receipt
from async_maps.viewer import rows as rows_module
from async_maps.viewer.orders import COLUMNS, STATES, Filter, Order, Request, Snapshot
from async_maps.viewer.rows import ViewedRows
from tests.support.manifests import COUNTED, failure_for, make_map, receipt_for, rows, write_run
from tests.support.properties import examples

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.fast

COUNT = 40


def receipt(name: str, **statistics: float | bool) -> Receipt:
    return replace(receipt_for(make_map(name)), statistics=COUNTED._replace(**statistics))  # type: ignore[arg-type]  # theirs


def outcomes() -> list[Receipt | Failure]:
    """Maps in an order that is not that of their names; equal means, failed ones, one refused at its source."""
    found: list[Receipt | Failure] = []
    for i in np.random.default_rng(7).permutation(COUNT).tolist():
        name = f"{'Train' if i % 4 else 'val'}/scene {i:02}"
        if i % 10 == 7:
            found.append(failure_for(make_map(name)))
        else:
            found.append(receipt(name, mean=i % 5 / 10, maximum=float(i), transparent=i % 3 == 0))
    found.append(failure_for(make_map("same"), "source"))
    return found


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    write_run(tmp_path / "m.sqlite", outcomes())
    return tmp_path / "m.sqlite"


@pytest.fixture
def viewed(manifest: Path) -> Iterator[ViewedRows]:
    with ViewedRows(manifest) as found:
        yield found


def no_group(_: str) -> NDArray[np.int64]:
    return np.empty(0, np.int64)


def names(viewed: ViewedRows, order: Order) -> list[str]:
    with viewed.opened() as opened:
        return [row["name"] for row in opened.page(order.page(0, len(order))) if row is not None]


def order(viewed: ViewedRows, sort: str = "name", *filters: str, search: str = "") -> list[str]:
    request = Request(sort, tuple(map(Filter.parse, filters)), search)
    return names(viewed, Snapshot(viewed).order(request, no_group))


BY_NAME = "stage IS 'source', name"


def test_the_first_order_is_by_name_and_refused_maps_come_last(viewed: ViewedRows, manifest: Path) -> None:
    assert order(viewed) == rows(manifest, "name", f"1 ORDER BY {BY_NAME}")
    assert order(viewed)[-1] == "same"
    assert order(viewed, "-name") == order(viewed)[::-1]


@pytest.mark.parametrize("column", COLUMNS)
def test_orders_by_a_column_are_stable_and_have_nulls_last(viewed: ViewedRows, manifest: Path, column: str) -> None:
    expression = COLUMNS[column]
    assert order(viewed, column) == rows(manifest, "name", f"1 ORDER BY {expression} NULLS LAST, {BY_NAME}")
    values = rows(manifest, expression, f"1 ORDER BY {expression} DESC NULLS LAST")
    positions = dict(rows(manifest, f"name, {expression}"))
    assert [positions[name] for name in order(viewed, f"-{column}")] == values


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("mean:0.1..0.3", "mean BETWEEN 0.1 AND 0.3"),
        ("mean:..0.2", "mean <= 0.2"),
        ("maximum:30..", "maximum >= 30"),
        *((f"is:{name}", expression) for name, expression in STATES.items()),
    ],
)
def test_filters_select_what_sql_selects(viewed: ViewedRows, manifest: Path, text: str, where: str) -> None:
    assert order(viewed, "name", text) == rows(manifest, "name", f"{where} ORDER BY {BY_NAME}")


@pytest.mark.parametrize("search", ["scene 1", "SCENE 1", "val/", "nothing", "e", "l/scene 04", "\0"])
def test_a_search_finds_parts_of_names_in_any_case(viewed: ViewedRows, search: str) -> None:
    assert order(viewed, search=search) == [name for name in order(viewed) if search.lower() in name.lower()]


def test_filters_and_searches_are_combined(viewed: ViewedRows, manifest: Path) -> None:
    where = "status = 'done' AND mean >= 0.2 AND name LIKE '%train%' ORDER BY maximum DESC"
    assert order(viewed, "-maximum", "is:done", "mean:0.2..", search="train") == rows(manifest, "name", where)


@pytest.mark.parametrize(
    "text", ["mean", "mean:1", "mean:a..b", "is:nothing", "group:x", "name:a..b", "error:1..2", ""]
)
def test_an_unknown_filter_is_refused(text: str) -> None:
    with pytest.raises(am.SettingsError, match="filter"):
        Filter.parse(text)


def test_an_unknown_column_is_refused(viewed: ViewedRows) -> None:
    with pytest.raises(am.SettingsError, match=r"unknown column 'error\); DROP'"):
        order(viewed, "error); DROP")


def test_a_group_selects_its_rows(viewed: ViewedRows) -> None:
    snapshot = Snapshot(viewed)
    numbers = snapshot.numbers[[3, 5]]
    found = snapshot.order(Request(filters=(Filter.parse("group:0"),)), lambda _: np.append(numbers, 999))
    assert found.page(0, 9) == numbers.tolist()


def test_pages_cut_an_order(viewed: ViewedRows) -> None:
    found = Snapshot(viewed).order(Request("-maximum"), no_group)
    assert found.page(3, 4) + found.page(7, 100) == found.page(0, 200)[3:]
    assert found.page(500, 10) == []
    assert [found.place_of(row) for row in found.page(0, 5)] == list(range(5))
    assert found.place_of(12_345) is None


def test_the_last_eight_orders_are_kept(viewed: ViewedRows) -> None:
    snapshot = Snapshot(viewed)
    made = [snapshot.order(Request("name", (), str(i)), no_group) for i in range(9)]
    assert snapshot.known_order(made[0].id) is None
    assert all(snapshot.known_order(kept.id) is kept for kept in made[1:])


def test_an_order_does_not_shift_while_rows_are_added(viewed: ViewedRows, manifest: Path) -> None:
    snapshot = Snapshot(viewed)
    before = snapshot.order(Request("mean"), no_group).page(0, 99)
    write_run(manifest, [receipt("a first one", mean=-5.0), failure_for(make_map("val/scene 00"))])
    assert snapshot.order(Request("mean"), no_group).page(0, 99) == before
    # A column that is read later is that of the rows of the snapshot.
    assert len(snapshot.order(Request("maximum"), no_group)) == len(before)
    assert len(Snapshot(viewed)) == len(before) + 1


def test_an_order_has_another_id_after_its_values_have_changed(viewed: ViewedRows) -> None:
    snapshot = Snapshot(viewed)
    values = np.arange(len(snapshot), dtype=np.float64)
    snapshot.define("measured", lambda: values)
    first = snapshot.order(Request("measured"), no_group)
    snapshot.put("measured", values.copy())
    assert snapshot.order(Request("measured"), no_group).id == first.id
    snapshot.put("measured", -values)
    second = snapshot.order(Request("measured"), no_group)
    assert second.id != first.id
    assert second.page(0, 99) == first.page(0, 99)[::-1]
    known = snapshot.known_order(first.id)
    assert known is not None
    assert known.page(0, 99) == first.page(0, 99)


def test_times_are_seconds_since_1970(viewed: ViewedRows, manifest: Path) -> None:
    snapshot = Snapshot(viewed)
    times = dict(rows(manifest, "rowid, time"))
    expected = [datetime.fromisoformat(times[number]).timestamp() for number in snapshot.numbers.tolist()]
    assert np.abs(snapshot.column("time") - expected).max() < 0.001


def test_places_are_found_by_numbers(viewed: ViewedRows) -> None:
    snapshot = Snapshot(viewed)
    numbers = np.array([*snapshot.numbers[[5, 0, 5]], 12_345, -1])
    assert snapshot.places_of(numbers).tolist() == [5, 0, 5, -1, -1]


def test_values_that_are_no_numbers_are_unknown(viewed: ViewedRows, manifest: Path) -> None:
    with closing(sqlite3.connect(manifest)) as database, database:
        database.execute("UPDATE maps SET mean = 'text', maximum = x'ff', entropy = 9e999, time = 'never'")
    snapshot = Snapshot(viewed)
    for column in ("mean", "maximum", "entropy", "time"):
        assert np.isnan(snapshot.column(column)).all()
        assert snapshot.histogram(column, None, 5)["all"] == []


def test_columns_of_rows_that_are_gone_are_unknown(viewed: ViewedRows, manifest: Path) -> None:
    snapshot = Snapshot(viewed)
    with closing(sqlite3.connect(manifest)) as database, database:
        database.execute("DELETE FROM maps WHERE name LIKE 'val/%'")
    values = dict(zip(snapshot.numbers.tolist(), snapshot.column("maximum").tolist(), strict=True))
    left = dict(rows(manifest, "rowid, maximum"))
    assert len(left) < len(values)
    for number, value in values.items():
        expected = left.get(number)
        assert np.isnan(value) if expected is None else value == expected


def test_chunks_hold_the_same_as_one(viewed: ViewedRows, manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "_CHUNK", 7)
    assert order(viewed, "maximum") == rows(manifest, "name", f"1 ORDER BY maximum NULLS LAST, {BY_NAME}")


def test_marks_are_the_values_at_equal_distances(viewed: ViewedRows) -> None:
    snapshot = Snapshot(viewed)
    by_maximum = snapshot.order(Request("maximum", (Filter.parse("is:done"),)), no_group)
    marks = snapshot.marks(by_maximum, 3)
    assert (marks[0], marks[-1]) == (0.0, 39.0)
    assert snapshot.marks(snapshot.order(Request(), no_group), 2) == ["Train/scene 01", "same"]
    assert snapshot.marks(snapshot.order(Request(search="nothing"), no_group)) == []


def test_a_histogram_counts_all_rows_and_those_of_an_order(viewed: ViewedRows, manifest: Path) -> None:
    snapshot = Snapshot(viewed)
    found = snapshot.histogram("maximum", snapshot.order(Request(search="val/"), no_group), 5)
    values = np.array([value for value in rows(manifest, "maximum") if value is not None])
    assert (found["low"], found["high"]) == (0.0, 39.0)
    assert found["all"] == np.histogram(values, 5)[0].tolist()
    assert sum(found["selected"]) == len(rows(manifest, "name", "name LIKE 'val/%' AND maximum IS NOT NULL"))


@pytest.mark.parametrize("values", [(1.0, 1.0), (-1e308, 1e308), (0.0, 5e-324), (1e300, 1e300)])
def test_histograms_of_extreme_values_have_all_of_them(tmp_path: Path, values: tuple[float, float]) -> None:
    write_run(tmp_path / "m.sqlite", [receipt(f"m{i}", mean=value) for i, value in enumerate(values)])
    with ViewedRows(tmp_path / "m.sqlite") as viewed:
        assert sum(Snapshot(viewed).histogram("mean", None, 10)["all"]) == 2


def test_a_manifest_without_rows_has_empty_orders(tmp_path: Path) -> None:
    write_run(tmp_path / "m.sqlite", [])
    with ViewedRows(tmp_path / "m.sqlite") as viewed:
        assert order(viewed, "-mean", "is:done", search="x") == []
        assert Snapshot(viewed).histogram("mean", None, 5)["all"] == []


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("names") / "m.sqlite"
    write_run(path, [])
    return path


@given(names=st.lists(st.text(min_size=1, max_size=8), max_size=12), search=st.text(min_size=1, max_size=3))
@example(["a\0b", "b"], "b")
@examples(30)
def test_any_name_is_found_by_any_part_of_it(empty: Path, names: list[str], search: str) -> None:
    values = [(name.encode("utf-8", "replace").decode(), "failed", "s", "t", "f") for name in names]
    with closing(sqlite3.connect(empty)) as database, database:
        database.execute("DELETE FROM maps")
        insert = "INSERT OR IGNORE INTO maps (name, status, source, time, settings) VALUES (?, ?, ?, ?, ?)"
        database.executemany(insert, values)
        stored = [name for (name,) in database.execute("SELECT name FROM maps ORDER BY name")]
    with ViewedRows(empty) as viewed:
        found = order(viewed, search=search)
    plain = search.encode("utf-8", "replace").decode().lower()
    assert found == ([] if "\0" in plain else [name for name in stored if plain in name.replace("\0", " ").lower()])


def test_statistics_have_all_columns() -> None:
    assert {*MapStatistics._fields} - {"constant", "transparent", "faint"} <= COLUMNS.keys()
