"""Two manifests side by side: which maps are pairs, and how much they differ."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import async_maps as am
from async_maps.viewer.compare import Comparison, disagreement
from async_maps.viewer.content import Content
from async_maps.viewer.pixels import Plane
from async_maps.viewer.server import Viewer
from tests.support.leftovers import leaves_nothing
from tests.support.properties import examples
from tests.support.viewing import Client, smooth_map, unpacked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.fast

COUNT = 12


def similarity(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """SIM as Bylinskii and others define it."""
    return float(np.minimum(one / one.sum(), other / other.sum()).sum())


def random_plane(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (48, 64)).astype(np.uint8)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
@examples(30)
def test_disagreement_is_one_less_the_similarity(seed: int, other_seed: int) -> None:
    one, other = (
        np.random.default_rng(number).integers(0, 256, (48, 64)).astype(np.uint8) for number in (seed, other_seed)
    )
    found = disagreement(Plane(one), Plane(other))
    assert found == pytest.approx(1 - similarity(one, other), abs=1e-5)
    assert found == pytest.approx(disagreement(Plane(other), Plane(one)), abs=1e-6)


def test_disagreement_goes_from_0_to_1() -> None:
    left, right, nothing = (np.zeros((10, 10), np.uint8) for _ in range(3))
    left[:, :5] = 200
    right[:, 5:] = 10
    assert disagreement(Plane(left), Plane(left // 2)) == pytest.approx(0, abs=1e-6)
    assert disagreement(Plane(left), Plane(right)) == 1
    assert disagreement(Plane(left), Plane(nothing)) == 1
    assert disagreement(Plane(nothing), Plane(nothing)) == 0
    assert disagreement(Plane(left), Plane(np.full((10, 10), 9, np.uint8))) == pytest.approx(0.5)


def test_disagreement_needs_no_equal_sizes() -> None:
    one = (smooth_map(1, (40, 60)) * 255).astype(np.uint8)
    assert disagreement(Plane(one), Plane(one.repeat(3, 0).repeat(3, 1))) < 0.01


def test_pixels_without_a_value_count_as_nothing() -> None:
    one = np.full((10, 10), 50, np.uint8)
    valid = np.ones((10, 10), bool)
    valid[:, 5:] = False
    assert disagreement(Plane(one), Plane(one, valid)) == pytest.approx(0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: of the second, some maps are moved, one failed, one is missing, one is new, one differs in its case."""
    folder = tmp_path_factory.mktemp("compare")
    settings = am.Settings(workers=0)
    first = {f"val/{i:02}": smooth_map(i) for i in range(COUNT)}
    second = {name: np.roll(values, 4 * i, axis=1) * np.float32(0.9) for i, (name, values) in enumerate(first.items())}
    second["val/03"] = np.full((2, 2), np.nan)
    del second["val/05"]
    second["VAL/05"] = second["new"] = smooth_map(99)
    for name, maps in (("first", first), ("second", second)):
        am.run(maps.items(), folder / name, manifest=folder / f"{name}.sqlite", settings=settings)
    return folder


@pytest.fixture
def client(folder: Path) -> Iterator[Client]:
    with Viewer(folder / "first.sqlite", compare=folder / "second.sqlite") as viewer:
        yield Client(viewer)


PAIRS = [f"val/{i:02}" for i in range(COUNT) if i not in {3, 5}]


@pytest.mark.runs
@pytest.mark.usefixtures(leaves_nothing.__name__)
def test_pairs_are_done_maps_with_one_name(client: Client) -> None:
    rows = client.rows(f="is:paired")
    assert [row["name"] for row in rows] == PAIRS
    assert [row["other"]["name"] for row in rows] == PAIRS
    assert {row["name"] for row in client.rows() if row["other"] is None} == {"val/03", "val/05"}
    assert client.get("/api/manifest").json["other"]["counts"] == {"done": COUNT, "failed": 1}


@pytest.mark.runs
def test_pairs_are_sorted_by_how_much_they_differ(client: Client) -> None:
    assert client.measured() == {
        "pairs": len(PAIRS),
        "to_measure": len(PAIRS),
        "measured": len(PAIRS),
        "is_measuring": False,
    }
    rows = client.rows(sort="-disagreement", f="is:paired")
    values = [row["disagreement"] for row in rows]
    assert values == sorted(values, reverse=True)
    for row in rows:
        i = int(row["name"][4:])
        planes = [np.rint(smooth_map(i) * 255), np.rint(np.roll(smooth_map(i), 4 * i, axis=1) * np.float32(0.9) * 255)]
        assert row["disagreement"] == pytest.approx(1 - similarity(*planes), abs=1e-4)
        assert row["mean_difference"] == pytest.approx(row["other"]["mean"] - row["mean"])
    least = client.rows(sort="disagreement", f="disagreement:0..0.3")
    assert [row["name"] for row in least] == [row["name"] for row in rows[::-1] if row["disagreement"] <= 0.3]


@pytest.mark.runs
@pytest.mark.parametrize("column", ["mean_difference", "center_distance"])
def test_measures_without_pixels_are_columns(client: Client, column: str) -> None:
    values = [row[column] for row in client.rows(sort=column, f="is:paired")]
    assert None not in values
    assert values == sorted(values)
    assert client.get("/api/models").json["measured"] == 0
    found = client.get("/api/histogram", column=column, bins=4).json
    assert (found["low"], found["high"]) == (pytest.approx(values[0]), pytest.approx(values[-1]))


@pytest.mark.runs
def test_the_overlays_of_the_second_manifest_are_its_own(client: Client, folder: Path) -> None:
    row = client.rows(f="is:paired")[4]
    for of, name in ((row, "first"), (row["other"], "second")):
        query = {"v": of["crc32"], "of": "other" if name == "second" else ""}
        stored = (folder / name / f"{row['name']}.png").read_bytes()
        assert client.get(f"/map/{of['row']}", query).body == stored
        values, _ = unpacked(client.get(f"/map/{of['row']}/indices", query).body)
        expected = smooth_map(int(row["name"][4:]))
        if name == "second":
            expected = np.roll(expected, 4 * int(row["name"][4:]), axis=1) * np.float32(0.9)
        assert (values == np.rint(expected * 255)).all()


@pytest.mark.runs
def test_one_scale_is_for_both_manifests(folder: Path, tmp_path: Path) -> None:
    maps, settings = {"val/00": smooth_map(0)}, am.Settings(workers=0, range=(-1, 2))
    am.run(maps.items(), tmp_path / "out", manifest=tmp_path / "wide.sqlite", settings=settings)
    with Viewer(folder / "first.sqlite", compare=tmp_path / "wide.sqlite") as viewer:
        assert Client(viewer).get("/api/scale").json == {"low": -1.0, "high": 2.0}


@pytest.mark.runs
def test_a_page_with_a_limit_measures_only_its_pairs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def note(_: Comparison, row: dict[str, Any], __: object) -> float:
        measured.append(row["name"])
        return 0.5

    monkeypatch.setattr(Comparison, "measured", note)
    with Viewer(folder / "first.sqlite", compare=folder / "second.sqlite") as viewer:
        paired = {row["name"] for row in Client(viewer).rows()[:3] if row["other"]}
        viewer.save(tmp_path / "page", limit=3)
    assert set(measured) == paired
    assert (tmp_path / "page" / "data.js").read_text().count('"disagreement":0.5') == len(paired)


@pytest.mark.runs
def test_a_row_that_became_another_map_is_no_partner(folder: Path, tmp_path: Path) -> None:
    shutil.copyfile(folder / "second.sqlite", tmp_path / "m.sqlite")
    with Viewer(folder / "first.sqlite", compare=tmp_path / "m.sqlite") as viewer:
        client = Client(viewer)
        order = client.order(f="is:paired")["order"]
        with closing(sqlite3.connect(tmp_path / "m.sqlite")) as database, database:
            database.execute("UPDATE maps SET name = 'replaced' WHERE name = 'val/01'")
        rows = client.get(f"/api/order/{order}/rows").json
        assert {row["name"] for row in rows if row["other"] is None} == {"val/01"}
        assert client.measured()["measured"] == len(PAIRS) - 1


@pytest.mark.runs
@pytest.mark.parametrize("change", ["width = 0", "width = NULL, center_x = NULL", "center_x = 1e308, mean = -1e308"])
def test_pairs_with_impossible_values_are_shown(folder: Path, tmp_path: Path, change: str) -> None:
    for name in ("first", "second"):
        shutil.copyfile(folder / f"{name}.sqlite", tmp_path / f"{name}.sqlite")
    with closing(sqlite3.connect(tmp_path / "first.sqlite")) as database, database:
        database.execute(f"UPDATE maps SET {change} WHERE name = 'val/01'")  # noqa: S608  # our own
    with closing(sqlite3.connect(tmp_path / "second.sqlite")) as database, database:
        database.execute("UPDATE maps SET mean = 1.7e308, center_x = -1.7e308 WHERE name = 'val/01'")
    with Viewer(tmp_path / "first.sqlite", compare=tmp_path / "second.sqlite") as viewer:
        client = Client(viewer)
        rows = {row["name"]: row for row in client.rows(sort="center_distance")}
        assert rows["val/01"]["center_distance"] is None or "1e308" in change
        assert rows["val/02"]["center_distance"] is not None
        for column in ("center_distance", "mean_difference"):
            assert client.get("/api/histogram", column=column).status == 200


def test_nothing_is_measured_after_the_end(folder: Path) -> None:
    with Content(folder / "first.sqlite", compare=folder / "second.sqlite") as content:
        content.snapshot()
        comparison = content.comparison
    assert comparison is not None
    comparison.measure()
    assert not comparison.progress()["is_measuring"]


@pytest.mark.runs
def test_measuring_ends_with_the_viewer(folder: Path) -> None:
    with Viewer(folder / "first.sqlite", compare=folder / "second.sqlite") as viewer:
        Client(viewer).order(sort="disagreement")


@pytest.mark.runs
def test_without_a_second_manifest_there_are_no_pairs(folder: Path) -> None:
    with Viewer(folder / "first.sqlite") as viewer:
        client = Client(viewer)
        assert client.get("/api/models").json is None
        assert client.get("/api/order", f="is:paired").status == 400
        assert client.get("/api/order", sort="disagreement").status == 400
        assert "other" not in client.rows()[0]
