"""Killed lanes, runs, shares, planners and stores lose no map and double none, as an independent check finds."""

from __future__ import annotations

import os
import shutil
import signal
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from async_maps.demo.seaweed import S3Server
from bench import sink
from bench.check import Stored, listed, logged
from bench.kills import QUICK_COUNT, QUICK_RATE, compare
from tests.support.leftovers import leaves_nothing
from tests.support.s3 import upload

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the lanes of a run in /proc"),
    pytest.mark.usefixtures(leaves_nothing.__name__),
]

CRC32 = {b"one": "7a6c86f1", b"two": "11ca8a66", b"three": "46c5d8f5"}


def put(server: sink.Sink, key: str, body: bytes) -> None:
    request = urllib.request.Request(f"{server.url}/bench/x/{key}", body, method="PUT")  # noqa: S310  # loopback
    urllib.request.urlopen(request).close()  # noqa: S310


@pytest.mark.parametrize(
    ("store", "count", "rate"),
    [
        pytest.param("sink", QUICK_COUNT, QUICK_RATE, marks=pytest.mark.slow),
        pytest.param("sink", 1_000_000, None, marks=[pytest.mark.long, pytest.mark.timeout(10_800)]),
        pytest.param("seaweedfs", 100_000, None, marks=[pytest.mark.long, pytest.mark.timeout(3_600)]),
    ],
)
@pytest.mark.parametrize("plan", [False, True], ids=["lanes", "plan"])
def test_kills_lose_no_map(
    plan: bool, store: str, count: int, rate: float | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = compare(tmp_path, store, count, 1, rate, plan=plan)
    finally:
        # pytest keeps the folders of its last runs.
        shutil.rmtree(tmp_path)
    printed = capsys.readouterr().out
    with capsys.disabled():
        print(printed)  # noqa: T201  # README's
    assert code == 0, printed
    assert f"{count:,} maps, {count:,} rows, {count:,} objects" in printed
    kills = {"planner": 1, "share": 3, "store": 1} if plan else {"lane": 3, "run": 3, "store": 1}
    for killed, times in kills.items():
        assert printed.count(f"the {killed} is killed") == times


def test_a_killed_sink_has_logged_each_put_that_it_answered(tmp_path: Path) -> None:
    log = tmp_path / "puts.log"
    with sink.serve(log=log) as first:
        put(first, "1.png", b"one")
        put(first, "2.png", b"two")
        os.kill(first.pid, signal.SIGKILL)
    with sink.serve(log=log, port=urlsplit(first.url).port or 0) as second:
        assert second.url == first.url
        put(second, "1.png", b"three")
    bodies = [b"one", b"two", b"three"]
    keys = ("1.png", "2.png", "1.png")
    expected = [(f"s3://bench/x/{key}", Stored(len(body), CRC32[body])) for key, body in zip(keys, bodies, strict=True)]
    assert [*logged(log, "s3://bench/x")] == expected


def test_objects_are_read_from_s3(s3: S3Server, bucket: str) -> None:
    upload(bucket, {"x/a b.png": b"one", "x/c.png": b"three", "y/d.png": b"two"})
    assert dict(listed(f"s3://{bucket}/x")) == {
        f"s3://{bucket}/x/a b.png": Stored(3, CRC32[b"one"]),
        f"s3://{bucket}/x/c.png": Stored(5, CRC32[b"three"]),
    }
