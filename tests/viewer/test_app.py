"""The server's answers: rows, overlays, images, errors; on real runs and on hostile manifests."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import sqlite3
from contextlib import closing, nullcontext
from threading import Thread
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import async_maps as am
from async_maps.manifest.manifest import Manifest
from async_maps.viewer.server import Viewer
from tests.support.leftovers import leaves_nothing
from tests.support.manifests import SETTINGS, make_map, receipt_for
from tests.support.maps import decode
from tests.support.s3_proxy import counting
from tests.support.viewing import Client, bomb, make_run, smooth_map, unpacked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from async_maps.demo.seaweed import S3Server

COUNT = 12


def photo(seed: int, size: tuple[int, int] = (320, 240)) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3)).astype(np.uint8)).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("app")
    make_run(folder, COUNT)
    (folder / "images" / "val").mkdir(parents=True)
    for i in range(COUNT - 1):
        (folder / "images" / "val" / f"{i:03}.jpg").write_bytes(photo(i))
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    with Viewer(folder / "run.sqlite", images=folder / "images") as viewer:
        yield Client(viewer)


@pytest.mark.runs
def test_the_page_is_part_of_the_package(client: Client) -> None:
    for path, kind in (("/", "text/html"), ("/main.js", "text/javascript"), ("/app.css", "text/css")):
        answer = client.get(path)
        assert (answer.status, answer.headers["content-type"]) == (200, f"{kind}; charset=utf-8")
    for name in re.findall(r'(?:href|src)="([a-z]+\.[a-z]+)"', client.get("/").body.decode()):
        assert client.get(f"/{name}").status == 200


@pytest.mark.runs
def test_the_page_learns_what_there_is(client: Client, folder: Path) -> None:
    found = client.get("/api/manifest").json
    assert found["counts"] == {"done": COUNT, "failed": 0}
    assert found["destination"] == (folder / "out").as_uri()
    # Rows of a run whose settings are unknown have the coloring without a name.
    (coloring,) = (coloring for fingerprint, coloring in found["colorings"].items() if fingerprint)
    assert base64.b64decode(coloring["table"]) == am.Settings().table().tobytes()
    assert coloring["settings"]["range"] == "unit"


@pytest.mark.runs
def test_the_first_order_is_there_before_all_names_are_read(folder: Path) -> None:
    with Viewer(folder / "run.sqlite") as viewer:
        client = Client(viewer)
        first = client.get("/api/order").json
        assert (first["order"], first["total"], first["ready"]) == ("first", COUNT, False)
        rows = client.get("/api/order/first/rows", n=5).json
        later = client.order()
        assert (later["total"], later["ready"]) == (COUNT, True)
        assert client.get(f"/api/order/{later['order']}/rows", n=5).json == rows
        assert client.get("/api/order/first/find", name="val/003").json["row"]["name"] == "val/003"


@pytest.mark.runs
def test_rows_come_in_pages(client: Client) -> None:
    assert [row["name"] for row in client.rows(2, 3)] == ["val/002", "val/003", "val/004"]
    assert client.rows(COUNT, 10) == []
    assert len(client.rows(0, 10**6)) == COUNT
    means = [row["mean"] for row in client.rows(sort="-mean")]
    assert means == sorted(means, reverse=True)


@pytest.mark.runs
@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/order?sort=nothing", 400),
        ("/api/order?sort=mean%27%3B--", 400),
        ("/api/order?f=mean", 400),
        ("/api/order/unknown/rows", 404),
        ("/api/order/unknown/marks", 404),
        ("/api/histogram?column=nothing", 400),
        ("/api/colors?name=nothing", 400),
        ("/api/order/first/rows?from=-1", 400),
        ("/api/order/first/rows?n=1e9", 400),
        ("/map/999", 404),
        ("/map/999/indices", 404),
        ("/thumb/map/1?side=x", 400),
    ],
)
def test_what_cannot_be_answered_has_a_sentence(client: Client, path: str, status: int) -> None:
    answer = client.get(path)
    assert answer.status == status
    assert answer.json["error"]


@pytest.mark.runs
def test_a_name_is_found_in_an_order(client: Client) -> None:
    order = client.order(sort="-mean")["order"]
    names = [row["name"] for row in client.get(f"/api/order/{order}/rows", n=500).json]
    for name in names[::4]:
        found = client.get(f"/api/order/{order}/find", name=name).json
        assert (found["place"], found["row"]["name"]) == (names.index(name), name)
    assert client.get(f"/api/order/{order}/find", name="no such").json == {"row": None, "place": None}


@pytest.mark.runs
def test_overlays_are_the_stored_bytes_and_their_intensities(client: Client, folder: Path) -> None:
    for i, row in enumerate(client.rows()):
        stored = (folder / "out" / f"{row['name']}.png").read_bytes()
        answer = client.get(f"/map/{row['row']}", v=row["crc32"])
        assert (answer.body, answer.headers["content-type"]) == (stored, "image/png")
        assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
        values, mask = unpacked(client.get(f"/map/{row['row']}/indices", v=row["crc32"]).body)
        assert mask is None
        assert (values == np.rint(smooth_map(i) * 255)).all()
        assert (am.Settings().table()[values] == decode(stored)).all()


@pytest.mark.runs
def test_thumbnails_of_maps_have_a_few_sizes(client: Client) -> None:
    for side, expected in ((0, 64), (64, 64), (65, 64), (10**9, 64)):
        values, _ = unpacked(client.get("/thumb/map/1", side=side).body)
        assert max(values.shape) == expected
    assert unpacked(client.get("/thumb/map/1", side=1).body)[0].shape == (48, 64)


@pytest.mark.runs
def test_only_what_has_the_right_version_is_kept(client: Client) -> None:
    session = client.get("/api/manifest").json["session"]
    for path, version in (("/map/1", "wrong"), ("/map/1/indices", ""), ("/image/1", "wrong")):
        assert client.get(path, v=version).headers["cache-control"] == "no-store"
    assert "immutable" in client.get("/image/1", v=session).headers["cache-control"]
    assert client.get("/api/counts").headers["cache-control"] == "no-store"


@pytest.mark.runs
def test_intensities_tell_that_the_row_is_another_one(client: Client) -> None:
    (row,) = client.rows(count=1)
    for version, changed in ((row["crc32"], None), ("00000000", "1")):
        headers = client.get(f"/thumb/map/{row['row']}", v=version).headers
        assert headers.get("async-maps-changed") == changed


@pytest.mark.runs
def test_images_are_shown_whole_and_small(client: Client, folder: Path) -> None:
    stored = (folder / "images" / "val" / "000.jpg").read_bytes()
    (row,) = client.rows(0, 1)
    assert client.get(f"/image/{row['row']}").body == stored
    small = client.get(f"/thumb/image/{row['row']}", side=128)
    assert small.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(small.body)).size == (128, 96)


@pytest.mark.runs
def test_a_missing_image_is_named(client: Client) -> None:
    answer = client.get(f"/thumb/image/{client.rows()[-1]['row']}")
    assert answer.status == 404
    assert f"val/{COUNT - 1:03}.jpg" in answer.json["error"]


@pytest.mark.runs
def test_images_with_too_many_pixels_are_not_served(tmp_path: Path) -> None:
    manifest = make_run(tmp_path, 1)
    (tmp_path / "val").mkdir()
    for path in (tmp_path / "val" / "000.png", tmp_path / "out" / "val" / "000.png"):
        path.write_bytes(bomb())
    with Viewer(manifest, images=tmp_path) as viewer:
        for target in ("/image/1", "/thumb/image/1", "/map/1", "/map/1/indices", "/thumb/map/1"):
            answer = Client(viewer).get(target)
            assert answer.status == 415
            assert "40,000x40,000 pixels" in answer.json["error"]


@pytest.mark.runs
def test_histograms_and_scales_are_those_of_the_rows(client: Client) -> None:
    rows = client.rows()
    found = client.get("/api/histogram", column="mean", bins=10).json
    assert (found["low"], found["high"]) == (min(row["mean"] for row in rows), max(row["mean"] for row in rows))
    assert sum(found["all"]) == COUNT
    assert client.get("/api/scale").json == {"low": 0.0, "high": 1.0}


@pytest.mark.runs
def test_colormaps_are_those_of_the_settings(client: Client) -> None:
    found = client.get("/api/colors", name="RdBu_r", alpha="fade").json["table"]
    assert base64.b64decode(found) == am.Settings(colormap="RdBu_r", alpha="fade").table().tobytes()


@pytest.mark.runs
def test_the_last_run_is_told(client: Client) -> None:
    found = client.get("/api/run").json
    assert (found["state"], found["run"]["uploaded"], found["run"]["complete"]) == ("complete", COUNT, True)
    last = found["samples"][-1]["time"]
    assert client.get("/api/run", since=last).json["samples"] == []


@pytest.mark.runs
def test_layers_of_one_image_are_found(tmp_path: Path) -> None:
    maps = [(f"img-{image}/layer{layer}", smooth_map(layer)) for image in range(3) for layer in range(4)]
    am.run([*maps, ("alone", smooth_map(9))], tmp_path / "out", manifest=tmp_path / "m.sqlite", settings=_THREADS)
    with Viewer(tmp_path / "m.sqlite") as viewer:
        client = Client(viewer)
        layers = client.get("/api/layers", name="img-1/layer2").json
        assert [row["name"] for row in layers] == [f"img-1/layer{layer}" for layer in range(4)]
        assert client.get("/api/layers", name="alone").json == []


_THREADS = am.Settings(workers=0)


@pytest.mark.runs
def test_new_rows_are_seen_when_they_are_asked_for(tmp_path: Path) -> None:
    manifest = make_run(tmp_path, 3)
    with Viewer(manifest) as viewer:
        client = Client(viewer)
        assert client.order()["total"] == 3
        am.run([("a new one", smooth_map(5))], tmp_path / "out", manifest=manifest, settings=_THREADS)
        assert client.get("/api/counts").json == {"done": 4, "failed": 0}
        assert client.order(sort="mean")["total"] == 3
        assert client.order(fresh=1)["total"] == 4


@pytest.mark.runs
def test_maps_of_a_later_run_have_its_colors(tmp_path: Path) -> None:
    manifest = make_run(tmp_path, 1)
    with Viewer(manifest) as viewer:
        client = Client(viewer)
        assert client.order()["total"] == 1
        settings = am.Settings(workers=0, png="rgba", colormap="viridis", alpha="opaque")
        am.run([("new", smooth_map(1))], tmp_path / "out", manifest=manifest, settings=settings)
        row = next(row for row in client.rows(fresh=1) if row["name"] == "new")
        answer = client.get(f"/map/{row['row']}/indices", v=row["crc32"])
        values, mask = unpacked(answer.body)
        assert mask is None
        assert (settings.table()[values] == settings.table()[np.rint(smooth_map(1) * 255).astype(np.uint8)]).all()
        assert "immutable" in answer.headers["cache-control"]
        coloring = client.get("/api/manifest").json["colorings"][row["settings"]]
        assert base64.b64decode(coloring["table"]) == settings.table().tobytes()


@pytest.mark.runs
def test_what_is_shown_with_unknown_colors_is_not_kept(tmp_path: Path) -> None:
    manifest = make_run(tmp_path, 1)
    with closing(sqlite3.connect(manifest)) as database, database:
        database.execute("DELETE FROM meta WHERE key GLOB 'run *'")
    with Viewer(manifest) as viewer:
        client = Client(viewer)
        (row,) = client.rows()
        answer = client.get(f"/map/{row['row']}/indices", v=row["crc32"])
        assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
        assert "async-maps-changed" not in answer.headers


@pytest.mark.runs
def test_the_first_rows_do_not_wait_for_all_names(folder: Path) -> None:
    with Viewer(folder / "run.sqlite") as viewer:
        client = Client(viewer)
        paths = ["/api/order?wait=1", "/api/scale", "/api/failures", *(f"/api/histogram?bins={i}" for i in range(1, 9))]
        threads = [Thread(target=client.get, args=(path,)) for path in paths]
        with viewer._content._loading:
            for thread in threads:
                thread.start()
            assert len(client.get("/api/order/first/rows", n=5).json) == 5
            assert client.get("/thumb/map/1").status == 200
            assert client.get("/api/order").json["order"] == "first"
        for thread in threads:
            thread.join()


@pytest.mark.runs
def test_the_page_learns_whether_a_run_writes(tmp_path: Path) -> None:
    manifest = make_run(tmp_path, 1)
    with Viewer(manifest) as viewer:
        client = Client(viewer)
        for is_live in (False, True):
            with Manifest(manifest) if is_live else nullcontext():
                found = client.get("/api/manifest").json
                assert (found["live"], found["is_copy"]) == (is_live, False)


@pytest.mark.runs
def test_a_refused_map_is_found_by_its_number(tmp_path: Path) -> None:
    manifest = make_run(tmp_path, 1)
    refused = am.Failure("val/000", "other.npy", None, "source", "the name is taken")
    with Manifest(manifest) as opened:
        opened.write([refused], SETTINGS)
    with Viewer(manifest) as viewer:
        client = Client(viewer)
        done, failed = client.rows()
        order = client.order()["order"]
        for row, place, status in ((done, 0, "done"), (failed, 1, "failed")):
            found = client.get(f"/api/order/{order}/find", name="val/000", row=row["row"]).json
            assert (found["row"]["status"], found["place"]) == (status, place)
        assert client.get(f"/api/order/{order}/find", name="val/000", row=99).json["row"]["status"] == "done"


@pytest.mark.runs
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE maps SET etag = x'ff00', width = 9e999, mean = 'text', settings = x'00'",
        "UPDATE maps SET status = 'failed', stage = x'ff', error = x'ff', locator = x'ff'",
        "UPDATE maps SET name = CAST(name AS BLOB)",
        "UPDATE meta SET value = '{}' WHERE key IN ('last run') OR key GLOB 'run *'",
        "UPDATE samples SET time = 'x', stages = '{\"read\": 1e999}'",
    ],
)
def test_one_hostile_row_hides_no_other(folder: Path, tmp_path: Path, change: str) -> None:
    shutil.copyfile(folder / "run.sqlite", tmp_path / "m.sqlite")
    where = " WHERE name = 'val/001'" if "UPDATE maps" in change else ""
    with closing(sqlite3.connect(tmp_path / "m.sqlite")) as database, database:
        database.execute(change + where)
    with Viewer(tmp_path / "m.sqlite", compare=folder / "run.sqlite") as viewer:
        client = Client(viewer)
        assert len(client.get("/api/order/first/rows", n=500).json) == COUNT
        assert {row["name"] for row in client.rows()} >= {f"val/{i:03}" for i in range(COUNT) if i != 1}
        for path in (
            "manifest",
            "run",
            "failures",
            "scale",
            "histogram?column=mean",
            "histogram?column=center_distance",
        ):
            assert client.get(f"/api/{path}").status == 200


@pytest.mark.runs
def test_a_changed_object_is_shown_as_changed(tmp_path: Path) -> None:
    manifest = make_run(tmp_path, 2)
    one, other = (tmp_path / "out" / "val" / f"00{i}.png" for i in range(2))
    one.write_bytes(other.read_bytes())
    with Viewer(manifest) as viewer:
        client = Client(viewer)
        for row, changed in zip(client.rows(), ["1", None], strict=True):
            answer = client.get(f"/map/{row['row']}/indices", v=row["crc32"])
            assert answer.headers.get("async-maps-changed") == changed
            assert ("immutable" in answer.headers["cache-control"]) is not bool(changed)


HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "'; DROP TABLE maps; --",
    "../../../etc/passwd",
    "a\x00b\r\nSet-Cookie: x=y",
    "\u202egnp.exe",
    "%s%n{0}",
    "x" * 5000,
]


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A manifest whose names, locators and objects are those of an attacker."""
    out = tmp_path / "out"
    out.mkdir()
    objects = {
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "html": b"<!doctype html><script>alert(1)</script>",
        "bomb": bomb(),
        "text": b"root:x:0:0",
    }
    with Manifest(tmp_path / "m.sqlite") as manifest:
        manifest.begin(out.as_uri())
        for name in HOSTILE:
            manifest.write([receipt_for(make_map(name, source=name))], SETTINGS)
        for name, data in objects.items():
            (out / f"{name}.png").write_bytes(data)
            manifest.write([receipt_for(make_map(name))], SETTINGS)
    with closing(sqlite3.connect(tmp_path / "m.sqlite")) as database, database:
        database.execute("UPDATE maps SET locator = ? || name || '.png'", (f"{out.as_uri()}/",))
        database.execute("UPDATE maps SET locator = 'file:///etc/passwd' WHERE name = 'text'")
        database.execute("INSERT OR REPLACE INTO meta VALUES ('run x', ?)", (json.dumps(["s", "x", {"png": "<b>"}]),))
    return tmp_path / "m.sqlite"


@pytest.mark.runs
@pytest.mark.usefixtures(leaves_nothing.__name__)
def test_a_hostile_manifest_is_only_data(hostile: Path) -> None:
    before = hostile.read_bytes()
    with Viewer(hostile) as viewer:
        client = Client(viewer)
        rows = {row["name"]: row for row in client.rows()}
        assert rows.keys() >= {*HOSTILE}
        for row in rows.values():
            for path in (f"/map/{row['row']}", f"/map/{row['row']}/indices", f"/thumb/map/{row['row']}"):
                answer = client.get(path)
                assert (answer.status, answer.headers["content-type"]) in {
                    (404, "application/json; charset=utf-8"),
                    (415, "application/json; charset=utf-8"),
                    (502, "application/json; charset=utf-8"),
                }
                assert b"root:" not in answer.body
                assert "set-cookie" not in answer.headers
        for name in HOSTILE:
            assert client.get("/api/order", q=name, wait=1).status == 200
            assert client.get("/api/order/first/find", name=name).json["row"]["name"] == name
            assert client.get("/api/order", sort=name).status == 400
            assert client.get("/api/order", f=f"is:{name}").status == 400
    assert hostile.read_bytes() == before


def test_overlays_in_s3_are_read_once(
    bucket: str, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_run(tmp_path, 3, f"s3://{bucket}/out")
    with counting(s3, monkeypatch) as proxy, Viewer(manifest) as viewer:
        client = Client(viewer)
        for i, row in enumerate(client.rows()):
            values, _ = unpacked(client.get(f"/thumb/map/{row['row']}", v=row["crc32"]).body)
            assert (values == np.rint(smooth_map(i) * 255)).all()
        assert len(proxy.gets()) == 3
        assert len(proxy.asked) == 3


def test_a_store_that_is_down_has_a_sentence(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make_run(tmp_path, 1, f"s3://{bucket}/out")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    settings = am.Settings(s3={"max_attempts": 1, "give_up_s": 1, "connect_timeout_s": 1})
    with Viewer(manifest, settings=settings) as viewer:
        answer = Client(viewer).get("/map/1")
    assert answer.status == 502
    assert f"s3://{bucket}/out/val/000.png" in answer.json["error"]
