"""Masks and results for Kolena, checked with Kolena's own client."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.kolena import (
    bitmap_mask,
    inference_masks,
    results_frame,
)
from tests.support.installed import kolena_client
from tests.support.leftovers import leaves_nothing
from tests.support.manifests import COUNTED
from tests.support.masks import TYPED, UNCOUNTED, receipt, wire, write_manifest

if TYPE_CHECKING:
    import pandas as pd

    from tests.support.kolena_service import KolenaService

pytestmark = [pytest.mark.fast, pytest.mark.usefixtures(leaves_nothing.__name__)]


@pytest.fixture(params=["with kolena", "without kolena"])
def with_and_without_kolena(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test with Kolena's client and as if it were not installed."""
    if request.param == "with kolena":
        kolena_client("kolena.annotation")
    else:
        monkeypatch.setitem(sys.modules, "kolena.annotation", None)


def masks_of(frame: pd.DataFrame, column: str = "activation_map") -> list[Any]:
    return [wire(mask) for mask in frame[column]]


def mask_at(name: str, **fields: object) -> dict[str, object]:
    return {"locator": f"s3://bucket/o/{name}.png", **TYPED, **fields}


# Masks ---------------------------------------------------------------------------------------------------------------


def test_a_mask_is_kolenas_bitmap_mask_when_installed() -> None:
    annotation = kolena_client("kolena.annotation")
    assert bitmap_mask(receipt("a"), layer="layer4") == annotation.BitmapMask("s3://bucket/o/a.png", layer="layer4")


@pytest.mark.usefixtures("with_and_without_kolena")
def test_a_mask_has_the_same_json_without_kolena() -> None:
    assert wire(bitmap_mask(receipt("a"))) == mask_at("a")
    assert wire(bitmap_mask(receipt("a"), layer="layer4")) == mask_at("a", layer="layer4")


@pytest.mark.usefixtures("with_and_without_kolena")
def test_provenance_adds_the_map_name_and_the_range() -> None:
    added = {"map_name": "a", "range_low": -2.0, "range_high": 2.0}
    spanned = receipt("a", COUNTED._replace(range_low=-2.0, range_high=2.0))
    assert wire(bitmap_mask(spanned, provenance=True)) == mask_at("a", **added)
    assert wire(bitmap_mask(spanned, provenance=True, map_name="mine")) == mask_at("a", **{**added, "map_name": "mine"})
    uncounted = {"map_name": "b", "range_low": None, "range_high": None}
    assert wire(bitmap_mask(receipt("b", UNCOUNTED), provenance=True)) == mask_at("b", **uncounted)


@pytest.mark.usefixtures("with_and_without_kolena")
def test_a_mask_of_a_failure_or_a_local_file_is_refused() -> None:
    with pytest.raises(am.MapFailedError, match=r"c \(c\.npy\): read: no map"):
        bitmap_mask(am.Failure("c", "c.npy", None, "read", "no map"))
    with pytest.raises(am.InputValidationError, match=r"expected a Receipt, .*found str"):
        bitmap_mask("s3://bucket/o/a.png")  # type: ignore[arg-type]
    with pytest.raises(am.InputValidationError, match="Kolena reads s3://"):
        bitmap_mask(replace(receipt("a"), locator="file:///o/a.png"))
    with pytest.raises(am.SettingsError, match="a field cannot be called 'locator'"):
        bitmap_mask(receipt("a"), locator="s3://bucket/o/b.png")
    with pytest.raises(am.SettingsError, match="a field cannot be called 'data_type'"):
        bitmap_mask(receipt("a"), data_type="ANNOTATION/POLYGON")


@pytest.mark.usefixtures("with_and_without_kolena")
def test_inference_masks_are_those_of_finished_maps(manifest: Path) -> None:
    masks = inference_masks(manifest, provenance=True, layer="layer4")
    assert {name: wire(mask) for name, mask in masks.items()} == {
        "a": mask_at("a", layer="layer4", map_name="a", range_low=0.0, range_high=1.0, colormap=None),
        "b": mask_at("b", layer="layer4", map_name="b", range_low=None, range_high=None, colormap=None),
    }


def test_inference_masks_refuse_a_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(am.ManifestError, match="no such manifest"):
        inference_masks(tmp_path / "m.sqlite")


# Frames --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("with_and_without_kolena")
def test_each_row_gets_its_mask_and_the_input_is_unchanged(pandas: Any, manifest: Path) -> None:
    results = pandas.DataFrame({"image": ["b", "a", "b"], "score": [0.5, np.nan, 1.0]}, index=[7, 7, 3])
    before = results.copy(deep=True)
    frame = results_frame(manifest, results, on="image")
    assert masks_of(frame) == [mask_at("b"), mask_at("a"), mask_at("b")]
    assert frame["activation_map"].iloc[0] is frame["activation_map"].iloc[2]
    assert list(frame.columns) == ["image", "score", "activation_map"]
    assert list(frame.index) == [7, 7, 3]
    assert list(frame["score"]) == [0.5, None, 1.0]
    frame["image"] = "x"
    frame.iloc[0, 1] = 9
    pandas.testing.assert_frame_equal(results, before)


def test_a_function_can_compute_the_name_from_a_row(pandas: Any, manifest: Path) -> None:
    results = pandas.DataFrame({"locator": ["s3://images/a.jpg", "s3://images/b.jpg"], "set": [1, 2]})
    frame = results_frame(manifest, results, on=lambda row: Path(row["locator"]).stem, column="cam", provenance=True)
    assert [mask["map_name"] for mask in masks_of(frame, "cam")] == ["a", "b"]


@pytest.mark.parametrize("on", ["id", lambda row: row["id"]])
@pytest.mark.parametrize("dtype", ["object", "float64", "float32", "Int64", "Float64", "category"])
def test_numeric_names_match_in_any_pandas_dtype(pandas: Any, tmp_path: Path, dtype: str, on: Any) -> None:
    path = write_manifest(tmp_path / "m.sqlite", *map(receipt, ["17", "nan", "None", "<NA>"]))
    results = pandas.DataFrame({"id": pandas.Series([17, None]).astype(dtype)})
    assert masks_of(results_frame(path, results, on=on, missing="none")) == [mask_at("17"), None]


@pytest.mark.parametrize("on", [0, "0", np.int64(0)])
def test_a_column_may_be_named_by_a_number(pandas: Any, manifest: Path, on: Any) -> None:
    frame = results_frame(manifest, pandas.DataFrame({0: ["a"], 1: [2]}), on=on)
    assert list(frame.columns) == ["0", "1", "activation_map"]
    assert masks_of(frame) == [mask_at("a")]


@pytest.mark.parametrize("how", ["one manifest", "a manifest for each"])
@pytest.mark.usefixtures("with_and_without_kolena")
def test_layers_become_a_list_of_masks_in_order(pandas: Any, tmp_path: Path, how: str) -> None:
    if how == "one manifest":
        names = ["a/layer3", "a/layer4", "b/layer4", "b/player4"]
        given: Any = write_manifest(tmp_path / "m.sqlite", *map(receipt, names))
        options: dict[str, Any] = {"layers": ["layer4", "layer3"]}
        a4, a3, b4 = "a/layer4", "a/layer3", "b/layer4"
    else:
        given = {
            "layer4": write_manifest(tmp_path / "4.sqlite", receipt("a"), receipt("b")),
            "layer3": write_manifest(tmp_path / "3.sqlite", receipt("a")),
        }
        options, a4, a3, b4 = {}, "a", "a", "b"
    results = pandas.DataFrame({"image": ["a", "b", "d"]})
    frame = results_frame(given, results, on="image", missing="none", statistics=["mean"], **options)
    assert masks_of(frame) == [
        [mask_at(a4, layer="layer4"), mask_at(a3, layer="layer3")],
        [mask_at(b4, layer="layer4")],
        None,
    ]
    assert list(frame["activation_map_layer4_mean"]) == [0.5, 0.5, None]
    assert list(frame["activation_map_layer3_mean"]) == [0.5, None, None]
    with pytest.raises(
        am.InputValidationError,
        match=r"^3 of 6 overlays are missing; manifest: (?s:.*)\nmissing of layer4: 'd'\n(?s:.*)\n"
        "missing of layer3: 'b', 'd'\n",
    ):
        results_frame(given, results, on="image", **options)


def test_rows_without_an_overlay_are_an_error_or_none(pandas: Any, manifest: Path) -> None:
    results = pandas.DataFrame({"image": ["a", "c", None, *"defgh"]})
    with pytest.raises(am.InputValidationError) as raised:
        results_frame(manifest, results, on="image")
    assert str(raised.value).split("\n") == [
        f"7 of 8 overlays are missing; manifest: {manifest}",
        "1 row has no name",
        "missing: 'c', 'd', 'e', 'f', 'g', ...",
        "1 map failed: 'c' (read: no map); run it again with select='failed' (in the command: --retry-failed)",
        "the manifest has other names: 'b'",
        "5 names are not in the manifest: run async-maps on the maps",
        "missing='none' puts None where an overlay is missing",
    ]
    assert masks_of(results_frame(manifest, results, on="image", missing="none")) == [mask_at("a"), *[None] * 7]


def test_statistics_are_added_on_request(pandas: Any, manifest: Path) -> None:
    results = pandas.DataFrame({"image": ["a", "b"], "high_share": [1, 2]})
    frame = results_frame(manifest, results, on="image", statistics=["high_share", "constant"])
    assert frame.drop(columns="activation_map").to_dict("list") == {
        "image": ["a", "b"],
        "high_share": [1, 2],
        "activation_map_high_share": [0.25, None],
        "activation_map_constant": [False, False],
    }


def test_one_statistic_is_a_column(pandas: Any, manifest: Path) -> None:
    frame = results_frame(manifest, pandas.DataFrame({"image": ["a"]}), on="image", statistics="high_share")
    assert list(frame.columns) == ["image", "activation_map", "activation_map_high_share"]


def test_statistics_may_be_an_iterator(pandas: Any, manifest: Path) -> None:
    chosen: Any = iter(["mean"])
    frame = results_frame(manifest, pandas.DataFrame({"image": ["a"]}), on="image", statistics=chosen)
    assert list(frame["activation_map_mean"]) == [0.5]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (["image"], {"on": "name"}, "on: the results have no column 'name'; they have image"),
        (["image"], {"on": 0}, "on: the results have no column 0; they have image"),
        (["image"], {"on": None}, "on: the results have no column None; they have image"),
        (["image", "activation_map"], {}, "two columns 'activation_map'"),
        (["image", "x", "x"], {}, "two columns 'x'"),
        (["image", "box.data_type"], {}, "Kolena drops columns whose names end in 'data_type': rename 'box.data_type'"),
        (["image"], {"column": "data_type"}, "rename 'data_type'"),
        (["image"], {"statistics": ["size"]}, "no 'size'; known: minimum, "),
        (["image"], {"statistics": "size"}, "no 'size'; known: minimum, "),
        (["image"], {"statistics": 5}, "statistics: expected a list of names, found 5"),
        (["image"], {"statistics": [["mean"], 5]}, r"there is no \['mean'\]; known: minimum, "),
        (["image", "activation_map_mean"], {"statistics": ["mean"]}, "two columns 'activation_map_mean'"),
        (["image"], {"missing": "skip"}, "expected 'error' or 'none', found 'skip'"),
        (["image"], {"layers": []}, "there are no layers"),
        (["image"], {"layers": "layer4"}, "expected a list of names, found 'layer4'"),
        (["image"], {"manifest": {"layer4": "m.sqlite"}, "layers": ["layer4"]}, "not by both"),
    ],
)
def test_invalid_columns_and_options_are_refused(
    pandas: Any, manifest: Path, columns: list[str], options: dict[str, Any], message: str
) -> None:
    results = pandas.DataFrame([["a"] * len(columns)], columns=columns)
    with pytest.raises(am.SettingsError, match=message):
        results_frame(**{"manifest": manifest, "results": results, "on": "image", **options})


def test_values_are_converted_to_json(pandas: Any, manifest: Path) -> None:
    BoundingBox = kolena_client("kolena.annotation").BoundingBox  # noqa: N806  # a class
    cells: dict[str, list[Any]] = {
        "image": ["a", "b"],
        "whole": [1, 2],
        "float": [0.5, 1.5],
        "nan": [np.nan, 1.5],
        "infinite": [np.inf, -np.inf],
        "array": [np.array([1, 2], np.uint8), np.array([[0.5, np.nan]], np.float32)],
        "objects": [np.array([None, "x"], object), {"box": np.float32(0.5), "ids": (np.int64(1), np.nan)}],
        "scalar": [np.bool_(True), np.float16(0.5)],
        "time": [datetime(2026, 1, 2, tzinfo=UTC), None],
        "times": [np.array(["2026-01-02"], "M8[ns]"), [pandas.NaT, pandas.NA, time(12)]],
        "decimal": [Decimal("0.5"), Decimal("NaN")],
        "keys": [{np.int64(1): [BoundingBox((0, 0), (1, 1))]}, {}],
    }
    results = pandas.DataFrame({name: pandas.Series(values) for name, values in cells.items()})
    results["nullable"] = pandas.array([1, None], dtype="Int64")
    results["text"] = pandas.array(["x", None], dtype="string")
    results["category"] = pandas.Categorical(["x", None])
    frame = results_frame(manifest, results, on="image").drop(columns="activation_map")
    keys = frame.pop("keys").to_list()
    assert keys == cells["keys"]
    assert [type(key) for key in keys[0]] == [int]
    assert json.loads(json.dumps(frame.to_dict("list"), allow_nan=False)) == {
        "image": ["a", "b"],
        "whole": [1, 2],
        "float": [0.5, 1.5],
        "nan": [None, 1.5],
        "infinite": [None, None],
        "array": [[1, 2], [[0.5, None]]],
        "objects": [[None, "x"], {"box": 0.5, "ids": [1, None]}],
        "scalar": [True, 0.5],
        "time": ["2026-01-02T00:00:00+00:00", None],
        "times": [["2026-01-02T00:00:00"], [None, None, "12:00:00"]],
        "decimal": [0.5, None],
        "nullable": [1, None],
        "text": ["x", None],
        "category": ["x", None],
    }


@pytest.mark.parametrize("value", [b"x", {1}, Path("x"), timedelta(1), np.timedelta64(1, "ns"), 1j, {(1, 2): 3}])
def test_values_without_a_json_form_are_refused_with_their_column(pandas: Any, manifest: Path, value: object) -> None:
    results = pandas.DataFrame({"image": ["a"], "odd": pandas.Series([[value]], dtype=object)})
    with pytest.raises(am.InputValidationError, match=r"^column 'odd': .*; convert it to numbers, text or lists$"):
        results_frame(manifest, results, on="image")


def test_a_float_index_is_refused_as_kolena_loses_its_rows(pandas: Any, service: KolenaService, manifest: Path) -> None:
    from kolena.dataset import upload_results

    results = pandas.DataFrame({"image": ["a", "b"], "score": [1, 2]}, index=[10.0, 20.0])
    with pytest.raises(am.SettingsError, match=r"index of floats: use results\.reset_index\(\)"):
        results_frame(manifest, results, on="image")
    with pytest.warns(FutureWarning, match="float-dtype index"):
        upload_results("a dataset", "a model", results)
    assert service.results[0]["rows"] == []


# Kolena's own client -------------------------------------------------------------------------------------------------


def test_uploaded_results_are_equal_without_bitmap_masks(
    pandas: Any, service: KolenaService, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kolena.dataset import upload_results

    results = pandas.DataFrame({"image": ["a"]})
    layers = {"layer3": manifest, "layer4": manifest}
    for _ in range(2):
        upload_results("a dataset", "a model", results_frame(layers, results, on="image"))
        monkeypatch.setitem(sys.modules, "kolena.annotation", None)
    first, second = (upload["rows"] for upload in service.results)
    assert first == second
    assert first[0]["result"] == {"activation_map": [mask_at("a", layer="layer3"), mask_at("a", layer="layer4")]}


def test_the_stand_in_refuses_nan(pandas: Any, service: KolenaService) -> None:
    from kolena.dataset import upload_results
    from kolena.errors import IncorrectUsageError

    with pytest.raises(IncorrectUsageError, match="NaN is not JSON"):
        upload_results("a dataset", "a model", pandas.DataFrame({"image": ["a"], "score": [np.nan]}))
    assert not service.results


def test_a_frame_survives_kolenas_csv_and_parquet(pandas: Any, manifest: Path, tmp_path: Path) -> None:
    io = kolena_client("kolena.io")
    frame = results_frame(manifest, pandas.DataFrame({"image": ["a", "b"], "score": [None, 0.5]}), on="image")
    io.dataframe_to_csv(frame, tmp_path / "r.csv", index=False)
    assert masks_of(io.dataframe_from_csv(tmp_path / "r.csv")) == [mask_at("a"), mask_at("b")]
    io.dataframe_to_parquet(frame, tmp_path / "r.parquet")
    assert masks_of(io.dataframe_from_parquet(tmp_path / "r.parquet")) == [mask_at("a"), mask_at("b")]
