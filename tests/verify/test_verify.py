"""``verify`` finds and names every difference between stored objects and uploaded overlays."""

from __future__ import annotations

import json
import os
import sqlite3
import tracemalloc
import zlib
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from anyio import to_thread

import async_maps as am
from async_maps.filesystems.locators import DATA_TYPE
from async_maps.filesystems.objects import ObjectInfo, Objects
from async_maps.manifest.manifest import Manifest
from async_maps.outcomes import Failure
from async_maps.verify.comparison import Comparison, Expected, _common_folder
from async_maps.verify.tables import locators_in
from tests.support.commands import invoke
from tests.support.installed import needs_parquet
from tests.support.leftovers import leaves_nothing
from tests.support.manifests import make_map, receipt_for
from tests.support.maps import random_map
from tests.support.overlays import flipped, found, recorded, upload_overlays

if TYPE_CHECKING:
    from collections.abc import Iterator


pytestmark = [pytest.mark.fast, pytest.mark.usefixtures(leaves_nothing.__name__)]

SETTINGS = am.Settings(workers=0)


@pytest.mark.runs
async def test_differences_in_a_folder_are_found(tmp_path: Path, maps: Path, manifest: Path) -> None:
    out = tmp_path / "out put"
    await to_thread.run_sync(upload_overlays, maps, out, out.parent / "m.sqlite")
    # Other files beside the overlays.
    (out / "x.zarr/c").mkdir(parents=True)
    for name in (".async-maps-0123", "m.sqlite", "locators.csv", "photo.jpg", "x.zarr/c/0.0"):
        (out / name).touch()
    assert (await am.averify_locators(manifest, settings=SETTINGS, deep=True)).is_clean

    (out / "a/missing.png").unlink()
    os.truncate(out / "a/truncated.png", 700)
    (out / "b/replaced.png").write_bytes((out / "f.png").read_bytes())
    (out / "b/flipped.png").write_bytes(flipped((out / "b/flipped.png").read_bytes()))
    (out / "c/foreign.png").touch()
    shallow = await am.averify_locators(manifest, settings=SETTINGS)
    listed = {"missing": {"missing"}, "size": {"truncated"}, "foreign": {"foreign"}}
    assert found(shallow) == listed | {"digest": {"flipped", "replaced"}}
    assert (shallow.right, shallow.read) == (4, 6)
    deep = await am.averify_locators(manifest, settings=SETTINGS, deep=True)
    assert found(deep) == found(shallow) | {"undecodable": {"flipped"}, "digest": {"flipped", "replaced"}}
    assert (deep.right, deep.read) == (4, 6)
    digest = next(difference for difference in deep.first if difference.kind == "digest")
    assert digest.expected.startswith("CRC32 ")
    assert digest.expected != digest.found


@pytest.mark.runs
async def test_overlays_behind_a_link_out_of_the_destination_are_missing(
    tmp_path: Path, maps: Path, manifest: Path
) -> None:
    out = tmp_path / "out"
    await to_thread.run_sync(upload_overlays, maps, out, manifest)
    (out / "a").rename(tmp_path / "elsewhere")
    (out / "a").symlink_to(tmp_path / "elsewhere")
    assert set(found(await am.averify_locators(manifest, settings=SETTINGS))) == {"missing"}


@pytest.mark.runs
async def test_files_of_a_folder_that_cannot_be_listed_are_checked_singly(
    tmp_path: Path, maps: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a folder is a file system's lost+found, or one with the permissions --x."""
    out = tmp_path / "out"
    await to_thread.run_sync(upload_overlays, maps, out, manifest)
    (out / "a/missing.png").unlink()
    original = os.scandir

    def refused(folder: Any) -> Any:
        if str(folder) == str(out / "a"):
            raise PermissionError(13, "Permission denied", folder)
        return original(folder)

    monkeypatch.setattr("async_maps.filesystems.objects.os.scandir", refused)
    verification = await am.averify_locators(manifest, settings=SETTINGS)
    assert (found(verification), verification.right, verification.listed) == ({"missing": {"missing"}}, 7, 6)


@pytest.mark.runs
@pytest.mark.parametrize(
    ("column", "value", "kind", "said"),
    [
        ("crc32", "00000000", "digest", ("CRC32 00000000", "CRC32 ")),
        ("width", 31, "undecodable", ("a PNG of 31 x 20", "30 x 20")),
        ("height", 21, "undecodable", ("a PNG of 30 x 21", "30 x 20")),
    ],
)
async def test_bytes_and_size_are_compared_with_the_manifest(
    column: str, value: object, kind: str, said: tuple[str, str], tmp_path: Path, maps: Path, manifest: Path
) -> None:
    await to_thread.run_sync(upload_overlays, maps, tmp_path / "out", manifest)
    with closing(sqlite3.connect(manifest)) as database:
        database.execute(f"UPDATE maps SET {column} = ? WHERE name = 'e'", (value,))  # noqa: S608  # of this test
        database.commit()
    # The CRC32 of a file is compared in any case.
    assert (await am.averify_locators(manifest, settings=SETTINGS)).is_clean == (column != "crc32")
    (difference,) = (await am.averify_locators(manifest, settings=SETTINGS, deep=True)).first
    assert (difference.kind, difference.name, difference.expected) == (kind, "e", said[0])
    assert difference.found.startswith(said[1])


@pytest.mark.runs
async def test_a_png_above_max_pixels_is_not_decoded(tmp_path: Path, maps: Path, manifest: Path) -> None:
    await to_thread.run_sync(upload_overlays, maps, tmp_path / "out", manifest)
    tight = am.Settings(workers=0, max_pixels=599)
    verification = await am.averify_locators(manifest, settings=tight, deep=True)
    assert verification.differences == {"unreadable": 8}
    assert {difference.found for difference in verification.first} == {
        "30 x 20, more than max_pixels = 599: raise max_pixels"
    }
    # It is not repaired either.
    assert (await am.arepair_overlays(manifest, settings=tight, deep=True)).differences == {"unreadable": 8}
    assert (await am.averify_locators(manifest, settings=SETTINGS, deep=True)).is_clean


async def test_an_object_larger_than_any_overlay_is_not_read(tmp_path: Path) -> None:
    video = tmp_path / "video.mp4"
    video.touch()
    os.truncate(video, 2**30)
    (tmp_path / "t.csv").write_text(f"locator\n{video.as_uri()}\n")
    verification = await am.averify_locators(tmp_path / "t.csv", settings=am.Settings(max_pixels=10**6), deep=True)
    assert (verification.read, verification.differences) == (0, {"unreadable": 1})
    assert verification.first[0].found == "1,073,741,824 bytes, more than a PNG of max_pixels = 1,000,000 can have"


@pytest.mark.parametrize(
    ("etag", "encryption", "kinds"),
    [("0" * 32, "", ["digest"]), ("0" * 32, "aws:kms", []), (f"{'0' * 32}-2", "", []), (None, "", [])],
)
async def test_an_etag_that_is_not_an_md5_is_not_compared_with_bytes(
    etag: str | None, encryption: str, kinds: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table has no CRC32, and the store lists the ETag of the table."""
    png = am.encode_png(am.colorize_activation_map(random_map(0)), "RGBA").getvalue()
    place = "s3://bucket/a.png"
    monkeypatch.setattr(Objects, "below", lambda *_: (found for found in [ObjectInfo(place, len(png), etag)]))
    range_ = type("", (), {"data": png, "content_type": "image/png", "encryption": encryption, "modified": None})
    monkeypatch.setattr("async_maps.filesystems.s3.S3Filesystem.get", lambda *_: range_)
    table = tmp_path / "table.jsonl"
    table.write_text(json.dumps({"locator": place, "etag": etag}))
    verification = await am.averify_locators(table, settings=SETTINGS, deep=True)
    assert verification.read == 1
    assert [difference.kind for difference in verification.first] == kinds


# Two manifests in one folder ---------------------------------------------------------------------------------------


@pytest.mark.runs
async def test_files_that_another_manifest_replaced_are_found_by_their_bytes(
    tmp_path: Path, maps: Path, manifest: Path
) -> None:
    """Two colormaps give PNGs of the same size."""
    out = tmp_path / "out"
    await to_thread.run_sync(upload_overlays, maps, out, manifest)
    first = {path.name: path.stat().st_size for path in out.rglob("*.png")}
    other = tmp_path / "other.sqlite"
    await to_thread.run_sync(lambda: upload_overlays(maps, out, other, colormap="viridis"))
    assert {path.name: path.stat().st_size for path in out.rglob("*.png")} == first
    with closing(sqlite3.connect(manifest)) as database:
        database.execute("UPDATE maps SET time = '2026-01-02T12:00:00.250+00:00'")
        database.commit()
    verification = await am.averify_locators(manifest, settings=SETTINGS)
    assert (verification.differences, verification.right) == ({"digest": 8}, 0)
    assert verification.advice[0].startswith("8 objects were replaced after the manifest recorded them. If another run")
    assert (await am.averify_locators(other, settings=SETTINGS)).is_clean
    # A table has the CRC32, too.
    am.export_manifest(manifest, tmp_path / "table.csv")
    assert (await am.averify_locators(tmp_path / "table.csv", settings=SETTINGS)).differences == {"digest": 8}


@pytest.mark.runs
async def test_the_bytes_of_repaired_files_alone_are_compared_again(tmp_path: Path, maps: Path, manifest: Path) -> None:
    out = tmp_path / "out"
    await to_thread.run_sync(upload_overlays, maps, out, manifest)
    (out / "b/replaced.png").write_bytes((out / "b/flipped.png").read_bytes())
    repaired = await am.arepair_overlays(manifest, settings=SETTINGS)
    assert (repaired.repaired, repaired.right, repaired.differences) == (1, 8, {})
    assert repaired.read == 8 + 1


async def test_the_bytes_of_large_files_are_compared_in_pieces(tmp_path: Path, manifest: Path) -> None:
    data = np.random.default_rng(1).bytes(2**21 + 7)
    path = tmp_path / "out/a.png"
    path.parent.mkdir()
    path.write_bytes(data)
    crc32 = f"{zlib.crc32(data):08x}"
    with Manifest(manifest) as opened:
        opened.begin(path.parent.as_uri())
        receipt = replace(receipt_for(make_map("a")), locator=path.as_uri(), size=len(data), etag=None, crc32=crc32)
        opened.write([receipt], "settings")
    verification = await am.averify_locators(manifest, settings=SETTINGS)
    assert (verification.right, verification.read, verification.read_bytes) == (1, 1, len(data))
    assert "by listing, and the CRC32 of 1 file (2.1 MB)" in verification.summary()
    assert verification.line().startswith("1 locator, 1 object listed, 1 read (2.1 MB), 0 differences")


# Tables ------------------------------------------------------------------------------------------------------------


def test_every_form_of_a_locator_in_a_table_is_found(tmp_path: Path) -> None:
    mask = {
        "locator": "s3://b/m.png",
        "data_type": DATA_TYPE,
        "crc32": "c0ffee",
        "width": 4.0,
        "bytes": "7",
        "etag": "",
    }
    rows = [
        {"locator": "s3://b/image.jpg", "cam": mask, "note": '{"locator": 7}'},
        {
            "cam": json.dumps([mask, {"deep": [mask]}]),
            "text": '{"locator" is no JSON',
            "asset": {"locator": "s3://b/x"},
        },
        {"locator": "ftp://b/plain.png", "crc32": 1234, "width": None, "height": "nan", "bytes": "many"},
        {"locator": "s3://b/big.png", "width": 1e300, "height": -(2**63), "bytes": 2**63 - 1024},
        {"locator": mask},
        {"locator": "no locator", "other": [1, None, "[", True]},
        {"locator": "s3://b/\ud800.png"},
    ]
    (tmp_path / "t.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    seen = [(row.locator, row.name, row.is_overlay) for row in locators_in(str(tmp_path / "t.jsonl"))]
    assert seen == [
        ("s3://b/m.png", "line 1", True),
        ("s3://b/image.jpg", "line 1", False),
        *[("s3://b/m.png", "line 3", True)] * 2,
        ("s3://b/x", "line 3", False),
        ("ftp://b/plain.png", "line 5", True),
        ("s3://b/big.png", "line 7", True),
        ("s3://b/m.png", "line 9", True),
        ("s3://b/?.png", "line 13", True),
    ]
    first, plain, big = (
        next(row for row in locators_in(str(tmp_path / "t.jsonl")) if row.name == f"line {n}") for n in (1, 5, 7)
    )
    assert (first.size, first.etag, first.crc32, first.width, first.height) == (7, None, "00c0ffee", 4, None)
    assert (plain.size, plain.crc32, plain.width, plain.height) == (None, "00001234", None, None)
    assert (big.size, big.width, big.height) == (2**63 - 1024, None, None)
    with Comparison() as comparison:
        assert comparison.expect([big]) == 1


async def test_invalid_locators_are_differences(tmp_path: Path) -> None:
    strange = ["http://[x/y.png", "s3://$b/x.png", "s3://bucket", "file://host/x.png", "FILE:///x.png"]
    gone = [f"file:///{tmp_path}/none/x.png", "file:///dev/null/x.png"]
    odd = ["file:///" + "y" * 300, "file:///%00"]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["locator", *strange, *gone, *odd]))
    verification = await am.averify_locators(table, settings=SETTINGS)
    kinds = {difference.locator: difference.kind for difference in verification.first}
    assert kinds == {
        **dict.fromkeys(strange, "unknown"),
        **dict.fromkeys(gone, "missing"),
        **dict.fromkeys(odd, "unreadable"),
    }


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "a,b\n1,2\n", "has no locator"),
        ("a.csv", 'locator\n"s3://b/' + "x" * 140_000 + '"\n', "line 2: expected a CSV row"),
        ("a.jsonl", "{}\n{", "line 2: expected a JSON object"),
        ("a.jsonl", "[]", r"line 1: expected a JSON object, found \[\]"),
        pytest.param("a.parquet", "text", "expected a Parquet file", marks=needs_parquet),
        ("a.sqlite", "", "not a manifest"),
    ],
)
async def test_an_invalid_table_or_manifest_is_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(am.AsyncMapsError, match=said):
        await am.averify_locators(tmp_path / name)
    with pytest.raises(am.AsyncMapsError, match=r"no such manifest|the file does not exist"):
        await am.averify_locators(tmp_path / f"no-{name}")


def test_a_parquet_with_nested_cells_is_read(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    cell = [{"locator": "s3://b/1.png", "data_type": DATA_TYPE}, {"locator": "s3://b/2.png", "data_type": DATA_TYPE}]
    pq.write_table(pa.table({"cams": [cell, None, cell[:1]]}), tmp_path / "t.parquet")
    assert [(row.locator, row.name) for row in locators_in(str(tmp_path / "t.parquet"))] == [
        ("s3://b/1.png", "row 1"),
        ("s3://b/2.png", "row 1"),
        ("s3://b/1.png", "row 3"),
    ]


# The store and the manifest ----------------------------------------------------------------------------------------


async def test_a_manifest_of_a_memory_store_is_refused(manifest: Path) -> None:
    recorded(manifest, "memory://prefix")
    with pytest.raises(am.SettingsError, match="in the memory of a process"):
        await am.averify_locators(manifest)
    with Manifest(manifest.with_name("new.sqlite")):
        pass
    with pytest.raises(am.ManifestError, match="has no run yet"):
        await am.averify_locators(manifest.with_name("new.sqlite"))


@pytest.mark.runs
async def test_a_denied_object_is_unreadable_and_a_deleted_one_missing(
    tmp_path: Path, maps: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await to_thread.run_sync(upload_overlays, maps, tmp_path / "out", manifest)
    original = Objects.read

    def refused(self: Objects, locator: str) -> Any:
        if locator.endswith("e.png"):
            raise PermissionError(13, "Permission denied")
        if locator.endswith("f.png"):
            (tmp_path / "out/f.png").unlink()
        return original(self, locator)

    monkeypatch.setattr(Objects, "read", refused)
    verification = await am.averify_locators(manifest, settings=SETTINGS, deep=True)
    assert found(verification) == {"unreadable": {"e"}, "missing": {"f"}}


@pytest.mark.runs
@pytest.mark.usefixtures("service_descriptions_read_once")
async def test_verify_stops_when_the_store_is_unreachable(
    tmp_path: Path, maps: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await to_thread.run_sync(upload_overlays, maps, tmp_path / "out", manifest)
    original = Objects.read
    reached = True

    def unreached(self: Objects, locator: str) -> Any:
        if not reached or locator.endswith("e.png"):
            with Objects(am.S3Settings(max_attempts=1)) as objects:
                return original(objects, "s3://bucket/key")
        return original(self, locator)

    monkeypatch.setattr(Objects, "read", unreached)
    for name, value in (("ENDPOINT_URL", "http://127.0.0.1:9"), ("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "s")):
        monkeypatch.setenv(f"AWS_{name}", value)
    settings = am.Settings(workers=0, concurrency=2)
    assert found(await am.averify_locators(manifest, settings=settings, deep=True)) == {"unreadable": {"e"}}
    reached = False
    with pytest.raises(am.StoreError, match=r"^s3://bucket/key: Could not connect"):
        await am.averify_locators(manifest, settings=settings, deep=True)


@pytest.mark.runs
async def test_overlays_written_during_a_verification_are_ignored(
    tmp_path: Path, maps: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    await to_thread.run_sync(upload_overlays, maps, out, manifest)
    original = Objects.below

    def with_a_run(self: Objects, folder: str) -> Iterator[ObjectInfo]:
        # The verification has read the rows before it lists objects.
        np.save(maps / "new.npy", random_map(9))
        np.save(maps / "e.npy", random_map(10, (21, 30)))
        am.run(maps, out, settings=SETTINGS, manifest=manifest)
        yield from original(self, folder)

    monkeypatch.setattr(Objects, "below", with_a_run)
    (out / "f.png").unlink()
    verification = await am.averify_locators(manifest, settings=SETTINGS)
    assert found(verification) == {"missing": {"f"}}
    monkeypatch.undo()
    assert found(await am.averify_locators(manifest, settings=SETTINGS, deep=True)) == {"missing": {"f"}}


@pytest.mark.runs
async def test_healthy_overlays_get_no_advice(tmp_path: Path, maps: Path, manifest: Path) -> None:
    await to_thread.run_sync(upload_overlays, maps, tmp_path / "out", manifest)
    verification = await am.averify_locators(manifest, settings=SETTINGS, deep=True)
    assert (verification.is_clean, verification.advice, verification.failed) == (True, [], 0)


@pytest.mark.runs
async def test_a_manifest_in_use_can_be_verified_but_not_repaired(tmp_path: Path, maps: Path, manifest: Path) -> None:
    await to_thread.run_sync(upload_overlays, maps, tmp_path / "out", manifest)
    with Manifest(manifest) as held:
        held.begin((tmp_path / "out").as_uri())
        held.write([Failure("g", "/g.npy", None, "read", "no")], "x")
        verification = await am.averify_locators(manifest, settings=SETTINGS)
        with pytest.raises(am.ManifestError, match="is in use by another run"):
            await am.arepair_overlays(manifest, settings=SETTINGS)
    assert verification.is_clean
    assert (verification.right, verification.failed) == (8, 1)
    assert "1 map failed in its run" in verification.summary()


@pytest.mark.runs
async def test_an_overlay_named_by_many_rows_is_read_once(tmp_path: Path, maps: Path, manifest: Path) -> None:
    await to_thread.run_sync(upload_overlays, maps, tmp_path / "out", manifest)
    table = tmp_path / "table.csv"
    locator = (tmp_path / "out/e.png").as_uri()
    table.write_text("locator\n" + f"{locator}\n" * 2500 + "ftp://b/x\n" * 2)
    verification = await am.averify_locators(table, settings=SETTINGS, deep=True)
    assert (verification.locators, verification.right, verification.read) == (2, 1, 1)
    assert verification.differences == {"unknown": 1}
    (tmp_path / "out/e.png").write_bytes(b"no PNG")
    verification = await am.averify_locators(table, settings=SETTINGS, deep=True)
    assert (verification.differences, len(verification.first)) == ({"unknown": 1, "undecodable": 1}, 1000)


@pytest.mark.parametrize(
    ("first", "last", "folder"),
    [
        ("s3://b/p/a.png", "s3://b/p/c.png", "s3://b/p/"),
        ("s3://b/p/a.png", "s3://b/p/a.png/b.png", "s3://b/p/"),
        ("s3://b/a/1.png", "s3://b/b/1.png", "s3://b/"),
        ("file:///out/a.png", "file:///out/a.png", "file:///out/"),
    ],
)
def test_the_folder_that_is_listed_holds_all_objects(first: str, last: str, folder: str) -> None:
    assert _common_folder(first, last) == folder


def test_lists_in_any_order_are_compared() -> None:
    rows = [Expected(f"s3://bkt/{i}", str(i), i, "tag") for i in range(2500)]
    with Comparison() as comparison:
        assert comparison.expect(rows[::-1]) == 2500
        assert comparison.find(ObjectInfo(row.locator, row.size or 0, row.etag) for row in rows[1::2]) == 1250
        assert comparison.find([ObjectInfo("s3://bkt/x", 1, "tag"), ObjectInfo("s3://bkt/1", 7, "other")]) == 1
        assert comparison.folders() == [("s3://bkt/", 2500)]
        comparison.compare()
        assert comparison.counts() == {"missing": 1250}
        assert len({difference.locator for difference in comparison.differences("missing")}) == 1250
        assert [*comparison.differences("foreign", "etag")] == []
        assert comparison.foreign("") == [("s3://bkt/x", 1, None)]
        assert comparison.right() == len(comparison.to_read("", "")) + 250 == 1250


def fill(out: Path, manifest: Path, count: int) -> None:
    """Write a manifest of ``count`` maps, with hard links to one file as their overlays."""
    out.mkdir()
    (out / "0").write_bytes(b"overlay")
    with Manifest(manifest) as opened:
        opened.begin(out.as_uri())
        crc32 = f"{zlib.crc32(b'overlay'):08x}"
        for start in range(0, count, 1000):
            folder = out / str(start)
            folder.mkdir(exist_ok=start == 0) if start else None
            receipts = []
            for i in range(start, min(count, start + 1000)):
                path = folder / f"{i}.png" if start else out / f"{i}.png"
                os.link(out / "0", path)
                receipt = receipt_for(make_map(str(i)))
                receipts.append(replace(receipt, locator=path.as_uri(), etag=None, crc32=crc32))
            opened.write(receipts, "settings")
    (out / "0").unlink()


@pytest.mark.slow
async def test_a_verification_takes_less_memory_than_its_rows(tmp_path: Path) -> None:
    count, manifest = 30_000, tmp_path / "m.sqlite"
    fill(tmp_path / "out", manifest, count)
    tracemalloc.start()
    try:
        verification = await am.averify_locators(manifest, settings=SETTINGS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (verification.right, verification.differences) == (count, {})
    # In Python, each of these rows takes about 500 bytes.
    assert peak < 200 * count


# The command -------------------------------------------------------------------------------------------------------


@pytest.mark.runs
def test_the_command_prints_the_differences_and_exits_with_1(
    tmp_path: Path, maps: Path, manifest: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    upload_overlays(maps, "out", manifest)
    assert invoke("verify", manifest, "--deep", "--progress", "none") == 0
    out, error = capsys.readouterr()
    assert out.startswith("8 of 8 locators are right, 8 objects read (")
    assert error == ""
    for path in (tmp_path / "out").rglob("*.png"):
        path.unlink()
    monkeypatch.setattr("async_maps.cli.console._LISTED", 5)
    assert invoke("verify", manifest, "--report", "report.json") == 1
    out, error = capsys.readouterr()
    assert out.startswith("0 of 8 locators are right, by listing\n")
    assert "different: 8 missing" in out
    assert error.count("async-maps: missing: file:///") == 5
    assert "... and 3 more: --report FILE lists all" in error
    assert f"to repair the broken overlays, run: async-maps verify {manifest} --repair\n" in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["locators"], report["differences"], report["exit_code"]) == (8, {"missing": 8}, 1)
    assert {"kind", "locator", "name", "expected", "found"} == set(report["first"][0])


@pytest.mark.runs
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("none.sqlite",), "no such manifest: none.sqlite"),
        (("m.sqlite", "--source", "maps"), "--source needs --repair"),
        (("m.sqlite", "--delete-foreign"), "--delete-foreign needs --repair"),
        (("m.csv", "--repair"), "m.csv is a table"),
        (("m.sqlite", "--repair"), "no such manifest: m.sqlite"),
        (("m.sqlite", "--report", "none/report.json"), "the folder does not exist"),
        (("m.sqlite", "--repair", "--source", "-"), "no standard stream: pass a path"),
    ],
)
def test_wrong_arguments_exit_with_2(
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("verify", *arguments) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.runs
@pytest.mark.parametrize("kind", ["log", "json"])
def test_a_long_verification_prints_its_progress(
    kind: str,
    tmp_path: Path,
    maps: Path,
    manifest: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upload_overlays(maps, tmp_path / "out", manifest)
    monkeypatch.setattr("async_maps.cli.displays._LINE_INTERVAL_S", 0.001)
    assert invoke("verify", manifest, "--deep", "--progress", kind) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines
    if kind == "json":
        places = [event["place"] for event in map(json.loads, lines) if event["event"] == "progress"]
        assert places
        assert set(places) <= {"", str(manifest)}
    else:
        assert all("objects listed" in line for line in lines)
