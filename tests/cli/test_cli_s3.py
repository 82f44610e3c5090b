"""The command against a real S3 server."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import async_maps as am
from async_maps.demo import seaweed
from async_maps.manifest.manifest import Manifest
from async_maps.stores.s3 import S3Store
from tests.support.commands import done_rows, invoke, only_error, start
from tests.support.leftovers import leaves_nothing
from tests.support.maps import decode, random_map
from tests.support.processes import alive, worker_pids_of
from tests.support.s3 import keys, objects

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

AWKWARD = ["a b", "#1", "100%", "1+1", "what?", "é", "日本", "😀", "a&b=c", "it's (1)!", "~x", "semi;colon"]
DTYPES = [np.float16, np.float32, np.float64, np.uint8]


def mixed_maps(folder: Path, count: int, *, seed: int = 0) -> dict[str, Path]:
    """Save maps of many sizes and dtypes in nested folders with special names. Returns the files by name."""
    rng = np.random.default_rng(seed)
    made = {}
    for i in range(count):
        name = f"{AWKWARD[i % 3]}/{AWKWARD[i % 7]}/{AWKWARD[i % len(AWKWARD)]} {i}"
        side = int(7 * (1024 / 7) ** rng.random() ** 3)
        values = rng.random((side, max(7, side // 2)))
        dtype = DTYPES[i % 4]
        path = folder / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, (values * 255).astype(dtype) if dtype is np.uint8 else values.astype(dtype))
        made[name] = path
    return made


@pytest.mark.parametrize("count", [150, pytest.param(2000, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def test_a_folder_becomes_its_overlays_and_a_second_run_skips_all(
    count: int, bucket: str, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    puts = 0
    original = S3Store.put

    async def counted(self: S3Store, key: str, data: bytes) -> str | None:
        nonlocal puts
        puts += 1
        return await original(self, key, data)

    monkeypatch.setattr(S3Store, "put", counted)
    made = mixed_maps(maps, count)
    command = ("run", maps, f"s3://{bucket}/pre fix", "--progress", "none")

    assert invoke(*command) == 0
    assert puts == count
    stored = asyncio.run(objects(bucket))
    assert set(stored) == {f"pre fix/{name}.png" for name in made}
    for name, path in made.items():
        expected = am.colorize_activation_map(np.load(path))
        assert np.array_equal(decode(stored[f"pre fix/{name}.png"][0]), expected), name
    with Manifest("async-maps.sqlite", read_only=True) as manifest:
        assert {row[1] for row in manifest.rows()} == {f"s3://{bucket}/pre fix/{name}.png" for name in made}

    assert invoke(*command) == 0
    assert puts == count
    assert asyncio.run(objects(bucket)) == stored

    touched = list(made.values())[:10]
    for path in touched:
        os.utime(path)
    assert invoke(*command) == 0
    assert puts == count + 10


@pytest.mark.parametrize(
    ("arguments", "said", "environment"),
    [
        pytest.param("run maps s3://no-such-bucket/x", "the bucket does not exist", {}, id="no bucket"),
        pytest.param(
            "run maps s3://{bucket}/x",
            "secret key is wrong",
            {"AWS_SECRET_ACCESS_KEY": "my-hidden-word"},
            id="wrong secret",
            marks=pytest.mark.seaweedfs,
        ),
        pytest.param(
            "run maps s3://{bucket}/x",
            "access key does not exist",
            {"AWS_ACCESS_KEY_ID": "nobody"},
            id="unknown key",
            marks=pytest.mark.seaweedfs,
        ),
        pytest.param(
            "run maps s3://bucket/x --s3.max-attempts 2",
            "127.0.0.1:9",
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            id="nobody listens",
        ),
        pytest.param("run s3://{bucket}/nothing/ out", "contains no activation maps", {}, id="no such object"),
        pytest.param("run s3://no-such-bucket/maps/ out", "the bucket does not exist", {}, id="no bucket to read"),
    ],
)
def test_an_unusable_store_ends_with_one_message(
    arguments: str, said: str, environment: dict[str, str], bucket: str, maps: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    np.save(maps / "a.npy", random_map(1))
    for name, value in ({"ASYNC_MAPS_WORKERS": "0"} | environment).items():
        monkeypatch.setenv(name, value)
    # Only a server that is down may be back later.
    assert invoke(*arguments.format(bucket=bucket).split()) == (3 if "AWS_ENDPOINT_URL" in environment else 2)
    output = capsys.readouterr()
    assert said in only_error(output)
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in output.out + output.err
    # The hint to the doctor is only for destinations.
    assert ("run: async-maps doctor s3://no-such-bucket/x" in output.err) == ("s3://no-such-bucket/x" in arguments)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [("run maps s3://{bucket}/x", 2), ("run s3://{bucket}/x/ out", 2), ("doctor s3://{bucket}/x --quick", 1)],
    ids=["destination", "source", "doctor"],
)
@pytest.mark.parametrize(
    ("scheme", "path", "said"),
    [
        ("https", "", "write http:// instead of https:// in its address (AWS_ENDPOINT_URL, "),
        ("http", "/wrong", "/wrong: check also the path in AWS_ENDPOINT_URL"),
    ],
    ids=["plain HTTP", "path"],
)
@pytest.mark.seaweedfs
def test_an_endpoint_with_a_wrong_scheme_or_path_is_named(
    arguments: str, code: int, scheme: str, path: str, said: str, bucket: str, maps: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    np.save(maps / "a.npy", random_map(1))
    monkeypatch.setenv("ASYNC_MAPS_WORKERS", "0")
    monkeypatch.setenv("ASYNC_MAPS_S3_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL"].replace("http", scheme) + path)
    assert invoke(*arguments.format(bucket=bucket).split()) == code
    output = capsys.readouterr()
    assert said in (output.out if code == 1 else only_error(output))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.slow
def test_a_signal_finishes_maps_in_flight_and_the_run_can_resume(
    number: signal.Signals, code: int, bucket: str, maps: Path
) -> None:
    for i in range(1200):
        np.save(maps / f"{i:04}.npy", random_map(i, (64, 64)))
    command = ("run", maps, f"s3://{bucket}/x", "--progress", "none", "--manifest", "m.sqlite", "--concurrency", 4,
               "--chunk-maps", 16, "--queue-bytes", 65_536)  # fmt: skip  # so that little is in flight
    running = start(*command, "--rate", 200)
    while not done_rows("m.sqlite"):
        assert running.poll() is None
        time.sleep(0.02)
    workers = worker_pids_of(running.pid)
    # To every process of the group, as a terminal does.
    os.killpg(running.pid, number)
    out, err = running.communicate(timeout=60)
    assert running.returncode == code, err
    assert f"{number.name}: finishing the maps in flight" in err
    assert "run the same command again" in err
    with Manifest("m.sqlite", read_only=True) as manifest:
        locators = {str(row[1]) for row in manifest.rows()}
        assert manifest.counts() == {"done": len(locators)}
    assert 0 < len(locators) < 1200
    assert {f"s3://{bucket}/{key}" for key in asyncio.run(keys(bucket))} == locators
    assert f"{len(locators):,} uploaded" in out
    assert not Path("m.sqlite-wal").exists()
    assert workers
    assert not any(alive(pid) for pid in workers)

    assert invoke(*command) == 0
    assert len(asyncio.run(keys(bucket))) == 1200


def test_export_writes_columns_and_urls_in_every_format(bucket: str, maps: Path) -> None:
    np.save(maps / "a.npy", random_map(1))
    assert invoke("run", maps, f"s3://{bucket}/x", "--progress", "none", "--workers", 0, "--png", "gray") == 0
    for form, heading, row in (
        ("plain", "name,locator,url", f"a,s3://{bucket}/x/a.png,"),
        ("kolena", "name,activation_map,url", f'a,"{{""locator"": ""s3://{bucket}/x/a.png"", '),
        ("fiftyone", "name,map_path,range,url", f'a,s3://{bucket}/x/a.png,"[0, 255]",'),
    ):
        flags = ("--columns", "name, locator", "--as", form, "--presign", 1.5)
        assert invoke("export", "async-maps.sqlite", "a.csv", *flags) == 0
        first, second = Path("a.csv").read_text().splitlines()
        assert first == heading
        assert second.startswith(row)
        assert f"{os.environ['AWS_ENDPOINT_URL']}/{bucket}/x/a.png?X-Amz-Algorithm=AWS4-HMAC-SHA256" in second
        assert "&X-Amz-Expires=5400&" in second
        assert os.environ["AWS_SECRET_ACCESS_KEY"] not in second


def test_a_manifest_of_one_server_is_refused_for_another(
    bucket: str, maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(maps / "a.npy", random_map(1))
    command = ("run", maps, f"s3://{bucket}/x", "--progress", "none", "--workers", 0)
    assert invoke(*command) == 0
    with seaweed.serve(tmp_path / "other") as other, seaweed.in_environment(other):
        asyncio.run(seaweed.create_bucket(other, bucket))
        assert invoke(*command) == 2
        assert f"but this run writes to s3://{bucket}/x at {other.endpoint_url}" in capsys.readouterr().err
