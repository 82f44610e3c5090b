"""The sink of the benches answers like S3: over TLS, to bodies in chunks, and with files as objects."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

import botocore.session
import pytest
from botocore.exceptions import ClientError

import async_maps as am
from bench import sink
from bench.data import link_maps, write_maps
from bench.measure import BUCKET
from tests.support.leftovers import leaves_nothing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

COUNT = 1_005


@pytest.fixture(params=[False, True], ids=["http", "tls"])
def server(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sink.Sink]:
    write_maps(tmp_path / "files", 2, 8)
    link_maps(tmp_path / "files", tmp_path / "many", COUNT)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with sink.serve(tls=request.param, objects=tmp_path) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def client(server: sink.Sink) -> Iterator[Any]:
    client = botocore.session.get_session().create_client("s3")
    yield client
    client.close()


def test_a_listing_has_all_keys_in_pages(client: Any, server: sink.Sink, tmp_path: Path) -> None:
    pages = list(client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="many/"))
    entries = [entry for page in pages for entry in page["Contents"]]
    assert [entry["Key"] for entry in entries] == [f"many/{index:06}.npy" for index in range(COUNT)]
    assert {entry["Size"] for entry in entries} == {(tmp_path / "files/000000.npy").stat().st_size}
    assert server.counts()["lists"] == len(pages) == 2


def test_objects_are_read_whole_in_ranges_and_not_at_all(client: Any, server: sink.Sink, tmp_path: Path) -> None:
    key, data = "files/000001.npy", (tmp_path / "files/000001.npy").read_bytes()
    whole = client.get_object(Bucket=BUCKET, Key=key)
    assert whole["Body"].read() == data
    part = client.get_object(Bucket=BUCKET, Key=key, Range="bytes=10-19")
    assert (part["Body"].read(), part["ContentRange"]) == (data[10:20], f"bytes 10-19/{len(data)}")
    head = client.head_object(Bucket=BUCKET, Key=key)
    assert (head["ContentLength"], head["ETag"]) == (len(data), whole["ETag"])
    with pytest.raises(ClientError, match="NoSuchKey"):
        client.get_object(Bucket=BUCKET, Key="files/none.npy")
    assert server.counts()["gets"] == 4


def test_puts_are_counted_by_the_size_of_their_content(client: Any, server: sink.Sink) -> None:
    # Over TLS, the SDK sends files in chunks with a trailer.
    client.put_object(Bucket=BUCKET, Key="a", Body=io.BytesIO(b"x" * 100_000))
    client.put_object(Bucket=BUCKET, Key="b", Body=b"")
    found = server.counts()
    assert (found["puts"], found["put_bytes"], found["requests"]) == (2, 100_000, 2)


def test_a_run_reads_maps_from_the_sink_and_stores_them_in_it(server: sink.Sink) -> None:
    report = am.run(f"s3://{BUCKET}/many", f"s3://{BUCKET}/run", limit=20, settings=am.Settings(workers=0))
    found = server.counts()
    assert (report.uploaded, found["puts"]) == (20, 20)
    assert found["gets"] >= 20


def test_a_sink_without_a_folder_has_no_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    with sink.serve() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        client: Any = botocore.session.get_session().create_client("s3")
        client.put_object(Bucket=BUCKET, Key="a", Body=b"x")
        with pytest.raises(ClientError, match="404"):
            client.head_object(Bucket=BUCKET, Key="a")
        assert client.list_objects_v2(Bucket=BUCKET)["KeyCount"] == 0
        client.close()
