"""Presigned URLs, which open without credentials."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

import async_maps as am
from async_maps.demo import seaweed
from async_maps.errors import SettingsError, StoreError
from async_maps.export.tables import export_manifest
from async_maps.filesystems.credentials import shared_credentials
from async_maps.manifest.manifest import Manifest
from tests.support.exports import SUFFIXES, read_any
from tests.support.leftovers import leaves_nothing
from tests.support.manifests import make_map, receipt_for

if TYPE_CHECKING:
    from pathlib import Path

    from async_maps.demo.seaweed import S3Server


# For Kolena


@pytest.mark.usefixtures("s3")
def test_a_broken_overlay_has_no_url_in_any_format(manifest: Path, tmp_path: Path) -> None:
    with Manifest(manifest) as opened:
        opened.mark_broken([("s3://bucket/plain.png", "plain", "truncated")])
    for form, made in (("plain", None), ("kolena", "activation_map"), ("fiftyone", "map_path")):
        options: dict[str, Any] = {"export_format": form, "rows": "all", "presign_hours": 1}
        export_manifest(manifest, tmp_path / "a.jsonl", **options)
        rows = {row["name"]: row for row in read_any(tmp_path / "a.jsonl")}
        assert rows["plain"]["url"] is None
        assert rows["=1+1"]["url"]
        assert rows["plain"]["locator"] == "s3://bucket/plain.png" if made is None else rows["plain"][made] is None


# URLs


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310  # a loopback server's
        body: bytes = answer.read()
    return body


def _refused(url: str) -> int:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        _get(url)
    refusal.value.close()
    return refusal.value.code


_KEYS = ("plain", "a b", "é/日本", "plus+and&=", "100%41", "why?#", "~tilde'(1)")


@pytest.fixture(scope="module")
def uploaded(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of a run to a real server with one failed map. The same overlays are in the folder ``local``."""
    folder = tmp_path_factory.mktemp("uploaded")
    maps = [*((name, np.full((3, 3), n / 10)) for n, name in enumerate(_KEYS)), ("bad", np.full((3, 3), np.nan))]
    settings = am.Settings(workers=0, png="gray")
    with seaweed.in_environment(s3_server):
        asyncio.run(seaweed.create_bucket(s3_server, "uploaded"))
        am.run(maps, "s3://uploaded/p", settings=settings, manifest=folder / "m.sqlite")
    am.run(maps, folder / "local", settings=settings, manifest=folder / "local.sqlite")
    return folder / "m.sqlite"


@pytest.mark.usefixtures(leaves_nothing.__name__)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_presigned_url_returns_the_object_without_credentials(
    uploaded: Path, s3: S3Server, tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"a{suffix}"
    columns = ["name", "locator"]
    assert export_manifest(uploaded, file, columns=columns, presign_hours=168, rows="all") == len(_KEYS) + 1
    rows = {row["name"]: row for row in read_any(file)}
    assert not rows.pop("bad")["url"]
    assert set(rows) == set(_KEYS)
    for name, row in rows.items():
        assert tuple(row) == ("name", "locator", "url")
        assert _get(row["url"]) == (uploaded.parent / "local" / f"{name}.png").read_bytes()
        assert parse_qs(urlsplit(row["url"]).query)["X-Amz-Expires"] == [str(7 * 24 * 3600)]
    assert s3.secret_key.encode() not in file.read_bytes()


@pytest.mark.seaweedfs
@pytest.mark.usefixtures("s3")
def test_a_presigned_url_is_limited_to_one_object_and_time(
    uploaded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.jsonl"
    export_manifest(uploaded, file, presign_hours=1)
    urls = {row["name"]: urlsplit(row["url"]) for row in read_any(file)}
    assert _refused(urls["plain"]._replace(query="").geturl()) == 403
    assert _refused(urls["plain"]._replace(path=urls["a b"].path).geturl()) == 403
    shared = shared_credentials()
    # Other tests may get the same clock.
    monkeypatch.setattr(shared.clock, "offset_s", 0.0)
    # The server may not correct it.
    monkeypatch.setattr(shared.clock, "correct", lambda *_: False)
    for hours, is_over in ((2, False), (1, True)):
        shared.clock.offset_s = -65 * 60.0
        export_manifest(uploaded, file, presign_hours=hours)
        (url,) = (row["url"] for row in read_any(file) if row["name"] == "plain")
        assert (_refused(url) == 403) if is_over else _get(url).startswith(b"\x89PNG")


@pytest.mark.usefixtures("s3")
def test_the_url_is_the_last_column_in_every_format(uploaded: Path, tmp_path: Path, kolena: Any) -> None:
    for form, expected in (("kolena", ["activation_map"]), ("fiftyone", ["map_path", "range"])):
        export_manifest(uploaded, tmp_path / "a.parquet", columns=["locator"], export_format=form, presign_hours=1)  # type: ignore[arg-type]
        frame = kolena.dataframe_from_parquet(tmp_path / "a.parquet")
        assert list(frame.columns) == [*expected, "url"]
        assert all(_get(url).startswith(b"\x89PNG") for url in frame["url"][:2])


@pytest.mark.usefixtures("s3", leaves_nothing.__name__)
def test_missing_credentials_are_reported(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(StoreError, match=r"^cannot presign: no AWS credentials found: set AWS_PROFILE, or "):
        export_manifest(manifest, tmp_path / "a.csv", presign_hours=1)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(SettingsError, match=r"the AWS configuration cannot be used: .*nobody"):
        export_manifest(manifest, tmp_path / "a.csv", presign_hours=1)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ("", "bucket.s3.eu-south-1.amazonaws.com/plain.png"),
        ("s3 =\n  addressing_style = path\n", "s3.eu-south-1.amazonaws.com/bucket/plain.png"),
        ("s3 =\n  use_dualstack_endpoint = true\n", "bucket.s3.dualstack.eu-south-1.amazonaws.com/plain.png"),
    ],
)
@pytest.mark.usefixtures("s3")
def test_a_url_on_aws_names_the_region(
    config: str, place: str, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text(f"[default]\n{config}")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-south-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    export_manifest(manifest, tmp_path / "a.jsonl", presign_hours=1)
    (url,) = (row["url"] for row in read_any(tmp_path / "a.jsonl") if row["name"] == "plain")
    assert url.startswith(f"https://{place}?X-Amz-Algorithm=AWS4-HMAC-SHA256&")
    assert "%2Feu-south-1%2Fs3%2Faws4_request" in url


@pytest.mark.usefixtures("s3")
def test_expired_credentials_are_reported(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "t")
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "2020-01-02T03:04:05Z")
    with pytest.raises(StoreError, match=r"^cannot presign: the AWS credentials have expired: sign in again"):
        export_manifest(manifest, tmp_path / "a.csv", presign_hours=1)


def test_an_invalid_bucket_is_named(s3: S3Server, tmp_path: Path) -> None:
    with Manifest(tmp_path / "m.sqlite") as opened:
        opened.begin("s3://b")
        opened.write([replace(receipt_for(make_map("a")), locator="s3://no bucket/a.png")], "s")
    with pytest.raises(StoreError, match=r"^cannot presign s3://no bucket/a.png: 'no bucket' is not") as refusal:
        export_manifest(tmp_path / "m.sqlite", tmp_path / "a.csv", presign_hours=1)
    assert s3.secret_key not in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["m.sqlite"]
