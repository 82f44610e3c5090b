"""Requests over sockets go to the host and path that an address and the AWS environment mean."""

from __future__ import annotations

import socket
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import pytest

import async_maps as am
from async_maps.filesystems.objects import Objects
from async_maps.filesystems.presign import presigning
from async_maps.settings import Settings
from async_maps.stores import open_store
from tests.support.certificates import make_certificate
from tests.support.maps import random_map
from tests.support.odd_server import OddServer, odd_server, serving

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["odd_server"]

REGION = "us-west-2"
ACCESS_POINT = f"arn:aws:s3:{REGION}:123456789012:accesspoint/my-ap"
DIRECTORY = "maps--usw2-az1--x-s3"
VIRTUAL = "[default]\ns3 =\n    addressing_style = virtual\n"


class Place(NamedTuple):
    """A bucket, the environment, and the host and the start of the path of its requests."""

    bucket: str
    host: str
    path: str = ""
    endpoint: str = ""
    variables: Mapping[str, str] = MappingProxyType({})
    config: str = ""


AWS = {
    "virtual host": Place("maps", f"maps.s3.{REGION}.amazonaws.com"),
    "dots": Place("maps.example", f"s3.{REGION}.amazonaws.com", "/maps.example"),
    "dual-stack": Place(
        "maps", f"maps.s3.dualstack.{REGION}.amazonaws.com", variables={"AWS_USE_DUALSTACK_ENDPOINT": "true"}
    ),
    "FIPS": Place("maps", f"maps.s3-fips.{REGION}.amazonaws.com", variables={"AWS_USE_FIPS_ENDPOINT": "true"}),
    "access point": Place(ACCESS_POINT, f"my-ap-123456789012.s3-accesspoint.{REGION}.amazonaws.com"),
}
OTHERS = {
    "path": Place("maps", "127.0.0.1", "/maps", endpoint="http://127.0.0.1:{port}"),
    "endpoint with a path": Place("maps", "127.0.0.1", "/gate/way/maps", endpoint="http://127.0.0.1:{port}/gate/way"),
    "virtual host": Place("maps", "maps.store.test", endpoint="http://store.test:{port}", config=VIRTUAL),
    "access point": Place(ACCESS_POINT, "my-ap-123456789012.store.test", endpoint="http://store.test:{port}"),
    "tenant": Place("acme:maps", "127.0.0.1", "/acme%3Amaps", endpoint="http://127.0.0.1:{port}"),
}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for hosts of AWS, with its key."""
    return make_certificate(tmp_path_factory.mktemp("tls"), {place.host for place in AWS.values()})


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch, odd_server: OddServer) -> dict[str, int]:
    """Resolve all names of hosts to loopback; the items are other ports for ports."""
    original, ports = socket.getaddrinfo, dict[str, int]()

    def resolve(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        return original("127.0.0.1", ports.get(str(port), port), *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("AWS_REGION", REGION)
    return ports


async def _use(place: Place) -> str:
    """Put two objects, then find, list, read and delete one; return a presigned URL."""
    url = f"s3://{place.bucket}/p"
    async with open_store(url, Settings()) as store:
        assert store.destination == url
        for name in ("first", "a b"):
            await store.put(f"p/{name}.png", name.encode())
        locator = store.locator("p/a b.png")
    with Objects() as objects:
        found = objects.find(locator)
        assert found is not None
        assert {listed.locator for listed in objects.below(f"{url}/")} == {f"{url}/first.png", locator}
        assert objects.read(locator).data == b"a b"
        assert objects.delete([locator], f"{url}/") == {}
        assert objects.find(locator) is None
    with presigning(1) as presigned:
        return presigned(f"{url}/first.png")


def _check(place: Place, server: OddServer, url: str) -> None:
    directs = [asked for asked in server.asked if asked.method == "PUT" and "amz-sdk-request" not in asked.headers]
    assert [asked.path for asked in directs] == [f"{place.path}/p/a%20b.png"]
    assert {asked.method for asked in server.asked} == {"PUT", "HEAD", "GET", "POST"}
    assert {asked.host.partition(":")[0] for asked in server.asked} == {place.host}
    assert all(asked.path.startswith(place.path) for asked in server.asked)
    shown = urlsplit(url)
    assert (shown.hostname, shown.path) == (place.host, f"{place.path}/p/first.png")


@pytest.mark.parametrize("place", OTHERS.values(), ids=OTHERS)
async def test_requests_to_an_endpoint_go_to_the_right_place(
    place: Place, odd_server: OddServer, names: dict[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", place.endpoint.format(port=odd_server.port))
    (tmp_path / "config").write_text(place.config)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    _check(place, odd_server, await _use(place))


@pytest.mark.parametrize("place", AWS.values(), ids=AWS)
async def test_requests_to_aws_go_to_the_right_host(
    place: Place, names: dict[str, int], certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    for name, value in place.variables.items():
        monkeypatch.setenv(name, value)
    with serving(certificate) as server:
        names["443"] = server.port
        _check(place, server, await _use(place))


async def test_a_directory_bucket_is_used_with_sessions_and_without_direct_requests(odd_server: OddServer) -> None:
    async with open_store(f"s3://{DIRECTORY}/p", Settings()) as store:
        for name in ("b", "a"):
            await store.put(f"p/{name}.png", b"x")
    with Objects() as objects:
        assert [found.locator[-5:] for found in objects.below(f"s3://{DIRECTORY}/p/")] == ["a.png", "b.png"]
    first, *others = odd_server.asked
    assert "session" in first.query
    assert all("session" in asked.query or "x-amz-s3session-token" in asked.headers for asked in others)
    puts = [asked.headers for asked in odd_server.asked if asked.method == "PUT"]
    assert all("amz-sdk-request" in headers for headers in puts)
    assert len(puts) == 2


@pytest.mark.parametrize("bucket", ["acme:maps", ACCESS_POINT])
async def test_a_whole_job_names_its_objects_by_their_address(
    bucket: str, odd_server: OddServer, names: dict[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://store.test:{odd_server.port}")
    manifest, settings = tmp_path / "m.sqlite", am.Settings(workers=0)
    maps = [(f"m{n}", random_map(n, (4, 5))) for n in range(2)]
    report = await am.arun(maps, f"s3://{bucket}/p", settings=settings, manifest=manifest)
    assert (report.uploaded, report.destination) == (2, f"s3://{bucket}/p")
    assert (await am.averify_locators(manifest, deep=True)).exit_code == 0
    am.export_manifest(manifest, tmp_path / "m.csv")
    assert f"s3://{bucket}/p/m0.png" in (tmp_path / "m.csv").read_text()
    # The same manifest, at the same place.
    assert (await am.arun(maps, f"s3://{bucket}/p/", settings=settings, manifest=manifest)).uploaded == 2
