"""Everything that works with S3 works with Google Cloud Storage and Azure: the commands, from end to end."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import numpy as np
import pytest

import async_maps as am
from async_maps.filesystems.objects import Objects
from async_maps.kolena import inference_masks
from async_maps.manifest.destination import place_of_overlays
from async_maps.viewer.server import Viewer
from tests.support.clouds import azure, azurite_url, cloud, gcs_server, stand_in
from tests.support.commands import COMMAND, done_rows, invoke, only_error, start
from tests.support.maps import npy, random_map
from tests.support.s3_proxy import Refusal
from tests.support.viewing import Client

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.clouds import Azure, Cloud, StandIn

__all__ = ["azure", "azurite_url", "cloud", "gcs_server", "stand_in"]

NAMES = [f"{number} é%" for number in range(6)] + ["deep/x"]
SETTINGS = am.Settings(workers=0)
_MAPS = 2000
_AT_LEAST = 200


def picture(number: int) -> bytes:
    """Return a PNG."""
    return am.encode_png(am.colorize_activation_map(random_map(number, (8, 8))), "RGBA").getvalue()


@pytest.fixture
def place(cloud: Cloud) -> str:
    return f"{cloud.address}/p q"


@pytest.fixture
def source(maps: Path) -> Path:
    (maps / "deep").mkdir()
    for number, name in enumerate(NAMES):
        np.save(maps / f"{name}.npy", random_map(number, (8, 8)))
    return maps


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return tmp_path / "m.sqlite"


def run(source: object, place: str, manifest: Path, **options: Any) -> am.Report:
    return am.run(source, place, settings=SETTINGS, manifest=manifest, **options)  # type: ignore[arg-type]


# Overlays -----------------------------------------------------------------------------------------------------------


def test_overlays_are_verified_and_repaired(cloud: Cloud, source: Path, place: str, manifest: Path) -> None:
    assert run(source, place, manifest).uploaded == 7
    for deep in (False, True):
        found = am.verify_locators(manifest, settings=SETTINGS, deep=deep)
        assert (found.right, found.locators, found.exit_code) == (7, 7, 0)
    cloud.delete("p q/1 é%.png")
    # Of the same size: only the MD5 of the listing shows it.
    cloud.upload("p q/2 é%.png", cloud.read("p q/2 é%.png")[::-1], "image/png")
    assert am.verify_locators(manifest, settings=SETTINGS).right == 5
    repaired = am.repair_overlays(manifest, settings=SETTINGS)
    assert (repaired.repaired, repaired.exit_code) == (2, 0)
    assert am.verify_locators(manifest, settings=SETTINGS, deep=True).right == 7


def test_a_run_skips_what_is_done_and_prunes_what_is_gone(
    cloud: Cloud, source: Path, place: str, manifest: Path
) -> None:
    assert run(source, place, manifest).uploaded == 7
    again = run(source, place, manifest)
    assert (again.uploaded, again.skipped) == (0, 7)
    (source / "1 é%.npy").unlink()
    run(source, place, manifest, prune="objects")
    with Objects() as objects:
        assert sum(1 for _ in objects.below(f"{place_of_overlays(place)}/")) == 6


def test_a_manifest_without_rows_notices_overlays_of_others(
    source: Path, place: str, manifest: Path, tmp_path: Path
) -> None:
    run(source, place, manifest)
    other = run(source, place, tmp_path / "other.sqlite")
    assert "7 of the first 7 overlays exist already" in other.warnings[0]


def test_a_manifest_of_another_account_is_refused(
    azure: Azure, source: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(source, f"{azure.address}/p", manifest)
    connection = os.environ["AZURE_STORAGE_CONNECTION_STRING"].replace("devstoreaccount1", "devstoreaccount2")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
    with pytest.raises(am.AsyncMapsError):
        run(source, f"{azure.address}/p", manifest)


def test_exports_have_the_locators(cloud: Cloud, source: Path, place: str, manifest: Path, tmp_path: Path) -> None:
    run(source, place, manifest)
    assert invoke("export", manifest, tmp_path / "t.csv") == 0
    with (tmp_path / "t.csv").open(encoding="utf-8") as file:
        locators = {row["name"]: row["locator"] for row in csv.DictReader(file)}
    start_of, first = place_of_overlays(place), "0 é%.png" if cloud.scheme == "gs" else "0%20%C3%A9%25.png"
    assert locators["0 é%"] == f"{start_of}/{first}"
    assert all(locator.startswith(f"{start_of}/") for locator in locators.values())
    assert invoke("verify", tmp_path / "t.csv", "--progress", "none") == 0
    if cloud.scheme == "gs":
        assert inference_masks(manifest).keys() == set(NAMES)


def test_a_table_may_name_overlays_in_several_buckets(azure: Azure, source: Path, tmp_path: Path) -> None:
    other = type(azure)(azure._account.url.rpartition("/")[0], f"{azure.bucket}-b")
    for number, container in enumerate((azure.bucket, other.bucket)):
        run(source, f"az://{container}/p", tmp_path / f"{number}.sqlite")
        assert invoke("export", tmp_path / f"{number}.sqlite", tmp_path / f"{number}.csv", "--columns", "locator") == 0
    first, second = ((tmp_path / f"{number}.csv").read_text().splitlines() for number in range(2))
    (tmp_path / "both.csv").write_text("\n".join([*first, *second[1:]]) + "\n")
    found = am.verify_locators(tmp_path / "both.csv", settings=SETTINGS)
    assert (found.right, found.locators) == (14, 14)


def test_a_table_of_another_tool_may_spell_the_urls_otherwise(azure: Azure, source: Path, tmp_path: Path) -> None:
    run(source, f"{azure.address}/p (1)", tmp_path / "m.sqlite")
    folder = place_of_overlays(f"{azure.address}/p (1)")
    spellings = [
        f"{azure.address}/p (1)/0 é%.png",
        f"{folder}/1%20%C3%A9%25.png",
        f"{folder.replace('%28', '(').replace('%29', ')')}/2%20%c3%a9%25.png",
    ]
    (tmp_path / "t.csv").write_text("\n".join(["locator", *spellings]) + "\n")
    found = am.verify_locators(tmp_path / "t.csv", settings=SETTINGS, deep=True)
    assert (found.right, found.locators, found.exit_code) == (3, 3, 0)


def test_exports_have_signed_urls(azure: Azure, source: Path, manifest: Path, tmp_path: Path) -> None:
    run(source, f"{azure.address}/p q", manifest)
    assert invoke("export", manifest, tmp_path / "t.csv", "--presign", "1") == 0
    with (tmp_path / "t.csv").open(encoding="utf-8") as file:
        urls = {row["name"]: row["url"] for row in csv.DictReader(file)}
    for name in NAMES:
        with urlopen(urls[name]) as answer:  # noqa: S310  # a URL of this machine
            assert answer.read() == azure.read(f"p q/{name}.png")


def test_the_viewer_shows_overlays_on_their_images(cloud: Cloud, source: Path, place: str, manifest: Path) -> None:
    run(source, place, manifest)
    images = {name: picture(number) for number, name in enumerate(NAMES)}
    for name, image in images.items():
        cloud.upload(f"img 1/{name}.png", image, "image/png")
    cloud.upload("img 1/table.csv", "name,image\n0 é%,0 é%.png\n".encode(), "text/csv")
    url = place_of_overlays(f"{cloud.address}/img 1")
    for shown in (f"{cloud.address}/img 1", url, f"{cloud.address}/img 1/{{name}}.png", f"{url}/{{name}}.png"):
        with Viewer(manifest, images=shown) as viewer:
            client = Client(viewer)
            for row in client.rows():
                overlay = client.get(f"/map/{row['row']}", v=row["crc32"])
                assert overlay.body == cloud.read(f"p q/{row['name']}.png")
                assert client.get(f"/image/{row['row']}").body == images[row["name"]]
    with Viewer(manifest, images=f"{url}/table.csv") as viewer:
        client = Client(viewer)
        (row,) = (row for row in client.rows() if row["name"] == "0 é%")
        assert client.get(f"/image/{row['row']}").body == images["0 é%"]
    for template in (f"{cloud.scheme}://{{name}}/x.png", f"{cloud.scheme}://b-{{name}}/{{name}}.png"):
        with pytest.raises(am.SettingsError, match="with fields in the prefix only"):
            Viewer(manifest, images=template)


# Sources ------------------------------------------------------------------------------------------------------------


def test_maps_are_read_from_objects(cloud: Cloud, manifest: Path, tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        cloud.upload(f"src/{name}.npy", npy(random_map(number, (8, 8))))
    cloud.upload("src/stack.npy", npy(np.stack([random_map(number, (8, 8)) for number in range(3)])))
    report = run(f"{cloud.address}/src/", str(tmp_path / "out"), manifest)
    assert (report.uploaded, report.failed) == (10, 0)
    assert run(f"{cloud.address}/src/", str(tmp_path / "out"), manifest).skipped == 10
    assert (tmp_path / "out" / "0 é%.png").exists()
    cloud.upload("src/1 é%.npy", npy(random_map(99, (8, 8))))
    assert run(f"{cloud.address}/src/", str(tmp_path / "out"), manifest).uploaded == 1
    globbed = am.run(f"{cloud.address}/src/**/*x.npy", am.MemoryStore(), settings=SETTINGS)
    assert globbed.uploaded == 1


def test_a_listing_names_objects(cloud: Cloud, manifest: Path, tmp_path: Path) -> None:
    cloud.upload("src/a b.npy", npy(random_map(1, (8, 8))))
    (tmp_path / "maps.csv").write_text(f"name,path\nx,{cloud.address}/src/a b.npy\n")
    assert run(tmp_path / "maps.csv", f"{cloud.address}/out", manifest).uploaded == 1
    cloud.upload("src/maps.csv", b"name,path\ny,a b.npy\n")
    assert run(f"{cloud.address}/src/maps.csv", f"{cloud.address}/out", manifest).uploaded == 1


def test_a_zarr_hierarchy_is_read(cloud: Cloud, manifest: Path, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr", reason="the package zarr is not installed")
    group = zarr.open_group(str(tmp_path / "x.zarr"), mode="w")
    group.create_array("cams", data=np.stack([random_map(number, (8, 8)) for number in range(3)]))
    for path in (tmp_path / "x.zarr").rglob("*"):
        if path.is_file():
            cloud.upload(f"src/x.zarr/{path.relative_to(tmp_path / 'x.zarr').as_posix()}", path.read_bytes())
    assert run(f"{cloud.address}/src/", f"{cloud.address}/out", manifest).uploaded == 3


def test_a_glob_of_a_url_covers_the_names_that_it_selects(
    azure: Azure, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("x y", "2020", "x z")):
        azure.upload(f"src/{name}.npy", npy(random_map(number, (8, 8))))
    folder, out = place_of_overlays(f"{azure.address}/src"), f"{azure.address}/out"
    run(f"{folder}/*.npy", out, manifest)
    # In the URL, "x y" is "x%20y".
    run(f"{folder}/*20*.npy", out, manifest, prune="objects")
    assert [name for name in ("x y", "2020", "x z") if azure.read(f"out/{name}.png")] == ["x y", "2020", "x z"]
    azure.delete("src/x y.npy")
    run(f"{folder}/x *.npy", out, manifest, prune="objects")
    with Objects() as objects:
        assert sorted(found.locator for found in objects.below(f"{place_of_overlays(out)}/")) == [
            f"{place_of_overlays(out)}/{name}.png" for name in ("2020", "x%20z")
        ]


def test_the_destination_is_not_read_as_a_source(cloud: Cloud, manifest: Path) -> None:
    cloud.upload("a.npy", npy(random_map(1, (8, 8))))
    assert run(f"{cloud.address}/", f"{cloud.address}/out", manifest).uploaded == 1
    again = run(f"{cloud.address}/", f"{cloud.address}/out", manifest)
    assert (again.uploaded, again.skipped, again.failed) == (0, 1, 0)


# Commands -----------------------------------------------------------------------------------------------------------


def test_doctor_finds_a_bucket_that_can_be_used(cloud: Cloud, place: str) -> None:
    findings = {finding.check: finding for finding in am.diagnose(place, SETTINGS, origins=(), quick=True)}
    checks = (
        "credentials",
        "clock",
        "bucket",
        "list",
        "write",
        "read back",
        "overwrite",
        "create only",
        "latency",
        "delete",
    )
    assert {check: findings[check].level for check in checks} == dict.fromkeys(checks, "ok")
    with Objects() as objects:
        assert list(objects.below(f"{cloud.address}/")) == []


def test_doctor_names_what_is_refused(cloud: Cloud) -> None:
    (bucket,) = (one for one in am.diagnose(f"{cloud.scheme}://no-such-bucket/p", SETTINGS) if one.level == "failure")
    assert bucket.check == "bucket"
    assert "does not exist" in bucket.text
    cloud.refuse_with(lambda method, *_: cloud.denied if method == "PUT" else None)
    failures = [one for one in am.diagnose(f"{cloud.address}/p", SETTINGS, quick=True) if one.level == "failure"]
    assert [one.check for one in failures] == ["write"]
    assert f"refused with {cloud.denied.code}: not for you" in failures[0].text


def test_a_sign_in_page_is_no_store(cloud: Cloud, source: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    cloud.refuse_with(lambda *_: Refusal(200, "page", "sign in"))
    assert invoke("run", source, place, "--workers", 0, "--progress", "none") == 3
    assert "the server's answer cannot be understood" in only_error(capsys.readouterr())
    (failure,) = (one for one in am.diagnose(place, SETTINGS) if one.level == "failure")
    assert failure.check == "bucket"
    assert "cannot be understood" in failure.text


def test_doctor_finds_that_a_store_ignores_conditions(stand_in: StandIn, source: Path, manifest: Path) -> None:
    place, settings = f"{stand_in.address}/p", am.Settings(workers=0, if_exists="skip")
    for keeps, level in ((True, "ok"), (False, "failure")):
        stand_in.server.keeps_conditions = keeps
        findings = {finding.check: finding for finding in am.diagnose(place, settings, origins=(), quick=True)}
        assert findings["create only"].level == level
    assert "ignores ifGenerationMatch" in findings["create only"].text
    with pytest.raises(am.AsyncMapsError, match="ignores ifGenerationMatch"):
        am.run(source, place, settings=settings, manifest=manifest)


def test_doctor_does_not_speak_of_objects_that_were_refused(cloud: Cloud) -> None:
    cloud.refuse_with(lambda method, *_: cloud.denied if method == "PUT" else None)
    findings = {finding.check: finding for finding in am.diagnose(f"{cloud.address}/p", SETTINGS, quick=True)}
    expected = {"gs": "allow the role Storage Object User ", "az": "check the key of the account, and what it allows"}
    assert findings["write"].advice.startswith(expected[cloud.scheme])
    assert "delete" not in findings


def test_doctor_accepts_one_object_a_second_under_a_key(stand_in: StandIn) -> None:
    last: dict[str, float] = {}

    def refuse(method: str, path: str, _query: str) -> Refusal | None:
        now = monotonic()
        if method == "PUT" and now - last.get(path, 0.0) < 0.9:
            return stand_in.busy
        last[path] = now
        return None

    stand_in.refuse_with(refuse)
    findings = am.diagnose(f"{stand_in.address}/p", SETTINGS, origins=(), quick=True)
    levels = {finding.check: finding.level for finding in findings}
    checks = {"write", "read back", "overwrite", "create only", "latency", "delete"}
    assert {check: levels.get(check) for check in checks} == dict.fromkeys(checks, "ok")


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_without_credentials_a_command_ends_with_one_sentence(
    scheme: str, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = {"gs": "google.auth", "az": "azure.identity"}[scheme]
    pytest.importorskip(package, reason=f"the package {package.replace('.', '-')} is not installed")
    for name in list(os.environ):
        if name.startswith(("AZURE_", "GOOGLE_", "STORAGE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "account1")
    # No request to the service of a machine in the cloud.
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    monkeypatch.setenv("HOME", str(source))
    vendor = {"gs": "Google", "az": "Azure"}[scheme]
    for arguments in ((source, f"{scheme}://bucket/p"), (f"{scheme}://bucket/p/", source.parent / "out")):
        assert invoke("run", *arguments, "--workers", 0, "--progress", "none") == 2
        assert f"no {vendor} credentials found: " in only_error(capsys.readouterr())


def test_a_wrong_key_ends_with_one_sentence(
    azure: Azure, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    connection = os.environ["AZURE_STORAGE_CONNECTION_STRING"]
    key = connection.partition("AccountKey=")[2].partition(";")[0]
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection.replace(key, "d3Jvbmc="))
    assert invoke("run", source, f"{azure.address}/p", "--workers", 0, "--progress", "none") == 2
    assert "refused with Auth" in only_error(capsys.readouterr())


def test_an_unknown_account_ends_with_one_sentence(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The names of hosts that end in .invalid do not exist (RFC 2606).
    connection = "AccountName=noaccount1;AccountKey=a2V5;EndpointSuffix=core.invalid"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
    for arguments in ((source, "az://maps/p"), ("az://maps/p/", source.parent / "out")):
        assert invoke("run", *arguments, "--workers", 0, "--progress", "none") == 2
        error = only_error(capsys.readouterr())
        assert "there is no server noaccount1.blob.core.invalid: check AZURE_STORAGE_ACCOUNT, and the network" in error


def test_a_plan_lies_and_runs_in_a_bucket(cloud: Cloud, source: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="the package pyarrow is not installed")
    plan = f"{cloud.address}/plan"
    assert invoke("plan", source, f"{cloud.address}/out", "--to", plan) == 0
    assert invoke("run", "--plan", plan, "--part", "1/1", "--workers", 0, "--progress", "none") == 0
    assert invoke("commit", plan) == 0
    assert invoke("status", plan) == 0
    assert invoke("verify", plan, "--progress", "none") == 0
    assert invoke("verify", plan, "--deep", "--progress", "none") == 0


# Processes ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_lanes_upload(cloud: Cloud, source: Path, place: str, manifest: Path) -> None:
    for number in range(40):
        np.save(source / f"more-{number}.npy", random_map(number, (8, 8)))
    running = start("run", source, place, "--manifest", manifest, "--processes", 2, "--progress", "none")
    out, err = running.communicate(timeout=120)
    assert (running.returncode, err) == (0, "")
    assert "47 uploaded" in out
    assert am.verify_locators(manifest, settings=SETTINGS, deep=True).right == 47


@pytest.mark.slow
def test_a_killed_run_is_completed_and_loses_nothing(cloud: Cloud, maps: Path, place: str, manifest: Path) -> None:
    np.save(maps / "stack.npy", np.stack([random_map(number, (8, 8)) for number in range(_MAPS)]))
    options = ("--manifest", manifest, "--workers", 0, "--progress", "none")
    running = start("run", maps, place, "--rate", 100, *options)
    try:
        while done_rows(str(manifest)) < _AT_LEAST:
            assert running.poll() is None
    finally:
        running.kill()
        running.communicate()
    before = done_rows(str(manifest))
    assert _AT_LEAST <= before < _MAPS
    running = start("run", maps, place, *options)
    out, err = running.communicate(timeout=200)
    assert (running.returncode, err) == (0, "")
    # What has a row is not uploaded again.
    assert f"{_MAPS - before:,} uploaded, {before:,} skipped, 0 failed" in out
    found = am.verify_locators(manifest, settings=SETTINGS, deep=True)
    assert (found.right, found.locators, found.exit_code) == (_MAPS, _MAPS, 0)


@pytest.mark.slow
def test_no_secret_is_written(azure: Azure, source: Path, tmp_path: Path) -> None:
    program = """
import logging, sys
logging.basicConfig(level=logging.DEBUG, filename="log.txt")
from async_maps.cli.app import main
main(sys.argv[1:])
"""
    (source / "bad.npy").write_bytes(b"no array")
    arguments = ["run", source, f"{azure.address}/p", "--manifest", "m.sqlite", "--report", "r.json", "--workers", 0]
    done = subprocess.run(
        [COMMAND[0], "-c", program, *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert json.loads((tmp_path / "r.json").read_text())["exit_code"] == 1
    connection = os.environ["AZURE_STORAGE_CONNECTION_STRING"]
    key = connection.partition("AccountKey=")[2].partition(";")[0]
    for path in tmp_path.iterdir():
        if path.is_file():
            text = path.read_bytes().decode(errors="replace")
            assert key not in text, path
            assert "SharedKey " not in text, path
    assert key not in done.stdout + done.stderr
