"""Masks with overlays in S3."""

from __future__ import annotations

import asyncio
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import async_maps as am
from async_maps.kolena import (
    acreate_and_upload_bitmap,
    bitmap_uploader,
    create_and_upload_bitmap,
    results_frame,
)
from async_maps.kolena.uploader import _pipeline
from tests.support.leftovers import children, leaves_nothing
from tests.support.maps import decode, random_map
from tests.support.masks import TYPED, wire
from tests.support.s3 import fetch, keys

if TYPE_CHECKING:
    from tests.support.kolena_service import KolenaService

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)


# Masks ---------------------------------------------------------------------------------------------------------------


def test_one_map_becomes_a_mask_without_worker_processes(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a process")

    monkeypatch.setattr("async_maps.workers.pool.ProcessWorker", refuse)
    settings = am.Settings(colormap="viridis", workers=2)
    mask = create_and_upload_bitmap(
        "x/1", random_map(1), destination=f"s3://{bucket}/p", settings=settings, layer="layer4"
    )
    assert wire(mask) == {"locator": f"s3://{bucket}/p/x/1.png", "layer": "layer4", **TYPED}
    (png,) = asyncio.run(fetch([wire(mask)["locator"]]))
    assert decode(png).shape == (20, 30, 4)


async def test_the_synchronous_function_works_in_a_running_loop(bucket: str) -> None:
    mask = create_and_upload_bitmap("1", random_map(1), destination=f"s3://{bucket}")
    other_mask = await acreate_and_upload_bitmap("2", random_map(1), destination=f"s3://{bucket}", layer="x")
    assert wire(other_mask) == {"locator": f"s3://{bucket}/2.png", "layer": "x", **TYPED}
    first, second = await fetch([wire(mask)["locator"], wire(other_mask)["locator"]])
    assert first == second
    np.testing.assert_array_equal(decode(first), am.colorize_activation_map(random_map(1)))


def test_an_uploader_survives_a_failed_map_and_serves_threads(bucket: str) -> None:
    before = children()
    uploaded: list[Any] = []
    with bitmap_uploader(f"s3://{bucket}") as upload:
        with pytest.raises(am.MapFailedError, match="colorize"):
            upload("bad", np.full((2, 2), np.nan))
        threads = [Thread(target=lambda i=i: uploaded.append(upload(f"{i}", random_map(i)))) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert children() == before
    assert sorted(wire(mask)["locator"] for mask in uploaded) == [f"s3://{bucket}/{i}.png" for i in range(4)]


def test_an_uploader_left_by_an_error_leaves_nothing(bucket: str) -> None:
    def fail() -> None:
        with bitmap_uploader(f"s3://{bucket}") as upload:
            upload("1", random_map(1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


def test_an_uploader_refuses_a_missing_bucket_on_entry(s3: object) -> None:
    del s3
    with pytest.raises(am.StoreError, match="no-such-bucket"), bitmap_uploader("s3://no-such-bucket"):
        pytest.fail("it was opened")


async def test_an_invalid_mask_is_refused_before_the_upload(bucket: str, tmp_path: Path) -> None:
    for upload in (create_and_upload_bitmap, acreate_and_upload_bitmap):
        with pytest.raises(am.SettingsError, match="a field cannot be called 'locator'"):
            await upload("1", random_map(1), destination=f"s3://{bucket}", locator="s3://b/x")
        with pytest.raises(am.InputValidationError, match="Kolena reads s3://"):
            await upload("1", random_map(1), destination=tmp_path / "out")
    assert await keys(bucket) == set()
    assert not (tmp_path / "out").exists()


# Kolena's own client -------------------------------------------------------------------------------------------------


def test_kolenas_client_uploads_results_with_valid_locators(
    pandas: Any, service: KolenaService, bucket: str, tmp_path: Path
) -> None:
    from kolena.dataset import upload_results

    maps = {f"val/{i}": random_map(i) for i in range(3)}
    path = tmp_path / "m.sqlite"
    am.run(maps.items(), f"s3://{bucket}/o", settings=am.Settings(workers=0), manifest=path)
    cells = {"image": list(maps), "score": [0.5, np.nan, 1.0], "box": [np.arange(4)] * 3}
    results = pandas.DataFrame(cells, index=["x", "x", "y"])
    upload_results("a dataset", "a model", results_frame(path, results, on="image", provenance=True))

    (upload,) = service.results
    assert (upload["model"], upload["dataset_id"]) == ("a model", 1)
    assert [row["datapoint_id_object"] for row in upload["rows"]] == [{"image": name} for name in maps]
    arrived = [row["result"] for row in upload["rows"]]
    assert [(row["score"], row["box"]) for row in arrived] == [(score, [0, 1, 2, 3]) for score in (0.5, None, 1.0)]
    masks = [row["activation_map"] for row in arrived]
    told = {"range_low": 0.0, "range_high": 1.0, "colormap": "jet", **TYPED}
    assert masks == [{"locator": f"s3://{bucket}/o/{name}.png", "map_name": name, **told} for name in maps]
    pngs = asyncio.run(fetch([mask["locator"] for mask in masks]))
    for png, map_ in zip(pngs, maps.values(), strict=True):
        np.testing.assert_array_equal(decode(png), am.colorize_activation_map(map_))


def test_a_container_in_azure_is_a_destination(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "account1")
    monkeypatch.setenv("AZURE_STORAGE_KEY", "a2V5")
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING", raising=False)
    # It is opened with the first map.
    assert isinstance(_pipeline("az://maps/p", None), am.Pipeline)
    # Kolena reads no URL without TLS.
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "UseDevelopmentStorage=true")
    with pytest.raises(am.InputValidationError, match="Kolena reads s3://, gs:// and https:// locators"):
        _pipeline("az://maps/p", None)
