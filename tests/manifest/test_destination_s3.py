"""One bucket is one bucket at every address of its server."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

import async_maps as am
from async_maps.manifest.destination import ANOTHER
from async_maps.manifest.manifest import Manifest
from tests.support.commands import invoke, only_error
from tests.support.leftovers import leaves_nothing
from tests.support.manifests import rows
from tests.support.overlays import NAMES, upload_overlays
from tests.support.s3 import s3_client, upload
from tests.support.s3_proxy import counting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from async_maps.demo.seaweed import S3Server
    from tests.support.s3_proxy import Proxy

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

SETTINGS = am.Settings(workers=0)


@pytest.fixture
def manifest(tmp_path: Path, bucket: str, maps: Path) -> Path:
    """The manifest of a run to the bucket."""
    upload_overlays(maps, f"s3://{bucket}/p", tmp_path / "m.sqlite")
    return tmp_path / "m.sqlite"


@pytest.fixture
def elsewhere(manifest: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The same server at another port."""
    with counting(s3, monkeypatch) as proxy:
        yield proxy


def run(maps: Path, bucket: str, manifest: Path, **settings: Any) -> am.Report:
    return am.run(maps, f"s3://{bucket}/p", settings=am.Settings(workers=0, **settings), manifest=manifest)


def destination(manifest: Path) -> str | None:
    with Manifest(manifest, read_only=True) as opened:
        return opened.destination()


@pytest.mark.parametrize("spelling", ["http://{place}/", "HTTP://{place}", "{name}"])
def test_spellings_of_an_endpoint_are_one(
    spelling: str, bucket: str, maps: Path, manifest: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    place = urlsplit(s3.endpoint_url)
    known = destination(manifest)
    monkeypatch.setenv("AWS_ENDPOINT_URL", spelling.format(place=place.netloc, name=f"http://localhost:{place.port}"))
    report = run(maps, f"{bucket}", manifest)
    assert (report.uploaded, report.skipped) == (0, 8)
    assert am.verify_locators(manifest, settings=SETTINGS).right == 8
    noticed = [record for record in caplog.records if record.levelno == logging.WARNING]
    # localhost is another text than 127.0.0.1, so the overlays were looked up.
    assert len(noticed) == (spelling == "{name}")
    assert (destination(manifest) == known) == (spelling != "{name}")


def test_another_address_is_recognized_by_its_overlays(
    bucket: str, maps: Path, manifest: Path, elsewhere: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    known = destination(manifest)
    assert am.dry_run(maps, f"s3://{bucket}/p", settings=SETTINGS, manifest=manifest).skipped == 8
    assert am.verify_locators(manifest, settings=SETTINGS).right == 8
    # They write nothing.
    assert destination(manifest) == known
    elsewhere.asked.clear()
    assert run(maps, bucket, manifest).skipped == 8
    # The bucket, and a few of the overlays.
    assert [asked.method for asked in elsewhere.asked] == ["HEAD"] * 6
    assert destination(manifest) != known
    assert "the same overlays are at s3://" in caplog.text
    assert set(rows(manifest, "locator")) == {f"s3://{bucket}/p/{name}.png" for name in NAMES}
    elsewhere.asked.clear()
    assert run(maps, bucket, manifest).skipped == 8
    assert [asked.method for asked in elsewhere.asked] == ["HEAD"]


@pytest.mark.parametrize("damage", ["missing", "replaced", "denied"])
def test_other_overlays_at_another_address_are_a_question(
    damage: str, bucket: str, maps: Path, manifest: Path, elsewhere: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    # The oldest row is always one of those that are looked up.
    (name,) = rows(manifest, "name", "rowid = 1")
    key = f"p/{name}.png"
    with s3_client() as client:
        size = client.head_object(Bucket=bucket, Key=key)["ContentLength"]
        client.delete_object(Bucket=bucket, Key=key)
    if damage == "replaced":
        upload(bucket, {key: b"x" * size})
    if damage == "denied":
        elsewhere.statuses[404] = 403
    found = {
        "missing": "is missing",
        "replaced": "has other bytes or another ETag",
        "denied": "refused with status 403",
    }
    command = ("run", maps, f"s3://{bucket}/p", "--manifest", manifest, "--workers", 0, "--progress", "none")
    for arguments in (command, (*command, "--dry-run"), ("verify", manifest), ("verify", manifest, "--repair")):
        assert invoke(*arguments) == 2
        message = only_error(capsys.readouterr())
        assert f"{manifest} is the manifest of s3://{bucket}/p at http://" in message
        assert found[damage] in message
        assert ": if it is the same bucket, add --same-destination yes (in Python same_destination=" in message
        other = ANOTHER if "run" in arguments else "set AWS_ENDPOINT_URL as it was in the run"
        assert message.endswith(f"; if not, {other}")
    # The answers.
    assert invoke(*command, "--same-destination", "no") == 2
    assert only_error(capsys.readouterr()).endswith(f": {ANOTHER}")
    assert invoke("verify", manifest, "--same-destination", "yes", "--progress", "none") == 1
    assert invoke(*command, "--same-destination", "yes") == 0
    assert "8 skipped" in capsys.readouterr().out
    # From now on it is not asked.
    assert invoke(*command) == 0


def test_a_repair_keeps_the_new_address(bucket: str, maps: Path, manifest: Path, elsewhere: Proxy) -> None:
    known = destination(manifest)
    (name,) = rows(manifest, "name", "rowid = 1")
    with s3_client() as client:
        client.delete_object(Bucket=bucket, Key=f"p/{name}.png")
    with pytest.raises(am.ManifestError, match=r"where s3://bucket-\d+/p/.*.png is missing: if it is the same bucket"):
        am.repair_overlays(manifest, settings=SETTINGS)
    settings = am.Settings(workers=0, same_destination="yes")
    repaired = am.repair_overlays(manifest, settings=settings)
    assert (repaired.repaired, repaired.right, repaired.differences) == (1, 8, {})
    assert destination(manifest) != known


def test_failed_maps_alone_may_move_to_another_address(
    bucket: str, maps: Path, manifest: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    (manifest).unlink()
    (maps / "bad.npy").write_bytes(b"no map")
    assert run(maps, bucket, manifest, include="bad").failed == 1
    with counting(s3, monkeypatch) as proxy:
        assert run(maps, bucket, manifest, include="bad").failed == 1
        # Of the bucket, and of the key: the manifest lists no overlay.
        assert [asked.method for asked in proxy.asked] == ["HEAD", "HEAD"]


def test_another_prefix_is_another_destination(
    bucket: str, maps: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("run", maps, f"s3://{bucket}/q", "--manifest", manifest, "--workers", 0, "--progress", "none")
    assert invoke(*command) == 2
    assert f"{ANOTHER}, or add --same-destination yes" in capsys.readouterr().err
    assert invoke(*command, "--same-destination", "yes") == 2
    assert f"is missing: move the overlays there, or {ANOTHER}" in capsys.readouterr().err
    with s3_client() as client:
        for name in NAMES:
            source = {"Bucket": bucket, "Key": f"p/{name}.png"}
            client.copy_object(Bucket=bucket, Key=f"q/{name}.png", CopySource=source)
    assert invoke(*command, "--same-destination", "yes") == 0
    assert set(rows(manifest, "locator")) == {f"s3://{bucket}/q/{name}.png" for name in NAMES}


def test_presigned_urls_of_another_address_are_noticed(
    manifest: Path, elsewhere: Proxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert am.export_manifest(manifest, tmp_path / "a.csv", presign_hours=1) == 8
    (record,) = caplog.records
    assert "the URLs lead to s3://" in record.getMessage()
    # For the time of the store.
    assert [asked.method for asked in elsewhere.asked] == ["HEAD"]
