"""Secrets in addresses and in the environment are masked in errors, failures, logs and all that the commands write."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest

import async_maps as am
from async_maps.masking import mask, masked_json
from async_maps.outcomes import Failure
from tests.support.commands import invoke

MARK = "MARKED-SECRET"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("no answer from http://me:pass@host:9000/x", "no answer from http://***@host:9000/x"),
        ("http://me:p@ss@host", "http://***@host"),
        ("http://token@host, https://a:b@c", "http://***@host, https://***@c"),
        ("https://b/k?X-Amz-Date=1&X-Amz-Signature=ab12&x=1", "https://b/k?X-Amz-Date=1&X-Amz-Signature=***&x=1"),
        ("?X-Amz-Security-Token=a%2Fb&X-Amz-Credential=AK/1", "?X-Amz-Security-Token=***&X-Amz-Credential=***"),
        ("AWS4-HMAC-SHA256 Credential=A/b, Signature=ab12", "AWS4-HMAC-SHA256 Credential=A/b, Signature=***"),
        (
            "https://a.blob.core.windows.net/c/k?sv=1&sig=ab%3D&sp=r",
            "https://a.blob.core.windows.net/c/k?sv=1&sig=***&sp=r",
        ),
        (
            "https://a.blob.core.windows.net/c/p%3Fsv%3D1%26sig%3Dab/x.png",
            "https://a.blob.core.windows.net/c/p%3Fsv%3D1%26sig%3D***",
        ),
        ("AccountName=a;AccountKey=ab+/==;BlobEndpoint=x", "AccountName=a;AccountKey=***;BlobEndpoint=x"),
        (
            "https://storage.googleapis.com/b/k?X-Goog-Signature=ab",
            "https://storage.googleapis.com/b/k?X-Goog-Signature=***",
        ),
        ("s3://bucket/a@b.png and file:///a/b@c", "s3://bucket/a@b.png and file:///a/b@c"),
        ("a map named x=1: 3 of 4", "a map named x=1: 3 of 4"),
    ],
)
def test_secrets_have_places_in_a_text(text: str, masked: str) -> None:
    assert mask(text) == masked


@pytest.mark.parametrize("end", ['"', '\\"', "\\", "\\\\", "\n", "\\n", "'", " x", "\u00e9"])
def test_a_masked_json_text_is_json(end: str) -> None:
    text = f'GET "https://b/k?X-Amz-Signature=ab12{end}'
    found = json.loads(mask(json.dumps({"message": text, "other": "x"})))
    assert found["other"] == "x"
    assert "ab12" not in found["message"]


@pytest.mark.parametrize("secret", ['se"cret', "se\\cret", "s\u00e9cret", "failed", "line\nbreak"])
def test_json_has_no_secret_that_it_escapes_and_keeps_its_keys(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    said = {"failed": 1, "error": {"message": f"the key {secret}"}, "warnings": [secret], "path": Path(f"/{secret}")}
    found = json.loads(masked_json(said))
    assert found == {"failed": 1, "error": {"message": "the key ***"}, "warnings": ["***"], "path": "/***"}


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{MARK}-key")
    monkeypatch.setenv("AWS_SESSION_TOKEN", f"{MARK}-token/+=")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://me:{MARK}%2Fpass@127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{MARK}-proxy@127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKID")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.mark.usefixtures("secrets")
def test_errors_failures_and_logs_have_no_secret_of_the_environment(caplog: pytest.LogCaptureFixture) -> None:
    said = f"the key {MARK}-key, the token {MARK}-token/+= and {MARK}/pass"
    masked = "the key ***, the token *** and ***"
    for kind in (am.StoreError, am.SettingsError, am.TransientError):
        error = kind(said)
        assert str(error) == str(pickle.loads(pickle.dumps(error))) == masked  # noqa: S301  # our own bytes
    assert Failure("a", "a.npy", None, "upload", said).reason == masked
    logging.getLogger("async_maps").warning("the key %s", f"{MARK}-key")
    assert caplog.messages == ["the key ***"]


@pytest.mark.slow
@pytest.mark.usefixtures("secrets")
def test_no_command_writes_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("maps").mkdir()
    np.save("maps/a.npy", np.eye(8))
    Path("aws").write_text(f"[default]\naws_secret_access_key = {MARK}-profile\naws_access_key_id = AK\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "aws")
    give_up = ["--s3.max-attempts", "1", "--s3.give-up-s", "1", "--s3.connect-timeout-s", "1"]
    url = f"https://me:{MARK}@host/b?X-Amz-Signature={MARK}"
    commands = [
        ["run", "maps", "s3://bucket/x", "--report", "r.json", "--progress", "json", "--verbose", *give_up],
        ["run", "s3://bucket/maps/", "out", "--report", "r2.json", "--progress", "log", *give_up],
        ["run", "maps", "out", "--manifest", "m.sqlite", "--workers", "0"],
        ["run", url, "out"],
        ["run", "maps", url],
        ["verify", "m.sqlite", "--report", "v.json"],
        ["verify", url],
        ["export", "m.sqlite", "table.csv"],
        ["status", "m.sqlite"],
        ["doctor", "s3://bucket/x", "--quick", *give_up],
        ["doctor", url],
    ]
    for command in commands:
        invoke(*command)
    text = "".join(capfd.readouterr())
    Path("out.txt").write_text(text)
    assert text.count("***@") >= 4
    assert "Traceback" not in text
    written = [path for path in Path().rglob("*") if path.is_file() and path.name != "aws"]
    assert {"r.json", "r2.json", "v.json", "table.csv", "m.sqlite"} <= {path.name for path in written}
    leaks = [line for path in written for line in path.read_bytes().splitlines() if MARK.encode() in line]
    assert not leaks


def test_presigned_urls_are_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other exports have the mode that the umask gives."""
    from async_maps.filesystems.atomic import replacing

    with replacing(tmp_path / "a", private=True) as path:
        path.write_text("x")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    with replacing(tmp_path / "a") as path:
        path.write_text("x")
    assert (tmp_path / "a").stat().st_mode & 0o077
