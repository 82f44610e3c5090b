"""Objects in Google Cloud Storage and Azure are listed, read as files, found and deleted."""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from async_maps.errors import SourceError, StoreError
from async_maps.filesystems.addresses import parse_address
from async_maps.filesystems.direct_gets import Wanted
from async_maps.filesystems.filesystem import InaccessibleError, UnavailableError
from async_maps.filesystems.objects import Objects
from async_maps.filesystems.remote import RefusedError
from async_maps.filesystems.services import open_filesystem
from async_maps.settings import S3Settings
from tests.support.clouds import azure, azurite_url, cloud, emulator, emulator_url, gcs_server, stand_in
from tests.support.names import AWKWARD
from tests.support.s3_proxy import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_maps.filesystems.remote import RemoteFilesystem
    from tests.support.clouds import Cloud, Gcs, StandIn

__all__ = ["azure", "azurite_url", "cloud", "emulator", "emulator_url", "gcs_server", "stand_in"]

QUICK = S3Settings(max_attempts=3, give_up_s=5.0, read_timeout_s=5.0)


@pytest.fixture
def files(cloud: Cloud) -> Iterator[RemoteFilesystem]:
    with closing(open_filesystem(parse_address(cloud.address), QUICK)) as opened:
        yield opened


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def test_awkward_keys_are_listed_found_read_and_deleted(cloud: Cloud, files: RemoteFilesystem) -> None:
    objects = {f"p/{name}.npy": name.encode() for name in AWKWARD}
    for key, data in objects.items():
        cloud.upload(key, data)
    listed = {found.key: found for found in files.objects(cloud.bucket, "p/")}
    assert {key: (found.size, found.etag) for key, found in listed.items()} == {
        key: (len(data), md5(data)) for key, data in objects.items()
    }
    for key, data in objects.items():
        found = files.find(f"{cloud.address}/{key}")
        assert found is not None
        assert (found, found.fingerprint) == (listed[key], listed[key].fingerprint)
        with files.open_object(f"{cloud.address}/{key}") as opened:
            assert (opened.read(), opened.fingerprint) == (data, found.fingerprint)
    assert files.delete(cloud.bucket, [*objects, "p/none"]) == {}
    assert list(files.objects(cloud.bucket, "")) == []


def test_a_listing_has_all_pages_and_folders(stand_in: StandIn) -> None:
    stand_in.server.page_objects = 3
    for number in range(8):
        stand_in.upload(f"p/{number}", b"x")
        stand_in.upload(f"p/f{number % 2}/{number}", b"x")
    with closing(open_filesystem(parse_address(stand_in.address), QUICK)) as files:
        keys = [found.key for found in files.objects(stand_in.bucket, "p/")]
        assert keys == sorted(keys)
        assert len(keys) == 16
        pages = list(files.pages(stand_in.bucket, "p/", by_folder=True))
    assert [name for page in pages for name in page.folders] == ["p/f0/", "p/f1/"]
    assert sum(len(page.objects) for page in pages) == 8


def test_a_large_object_is_read_in_ranges(cloud: Cloud, files: RemoteFilesystem) -> None:
    data = os.urandom(9 * 2**20)
    cloud.upload("large", data)
    path = f"{cloud.address}/large"
    with files.open(path) as file:
        assert file.read(10) == data[:10]
        file.seek(-5, os.SEEK_END)
        assert file.read() == data[-5:]
        file.seek(2**20)
        assert file.read(4 * 2**20) == data[2**20 : 5 * 2**20]
    found = files.read(parse_address(path), Wanted(5, 10))
    assert (bytes(found.data), found.size, found.etag) == (data[5:15], len(data), md5(data))
    assert files.begin(parse_address(path), Wanted(0, 10)).result() is not None


def test_an_empty_object_is_a_file(cloud: Cloud, files: RemoteFilesystem) -> None:
    cloud.upload("empty", b"")
    with files.open(f"{cloud.address}/empty") as file:
        assert file.read() == b""


def test_an_object_replaced_while_it_is_read_is_an_error(cloud: Cloud, files: RemoteFilesystem) -> None:
    cloud.upload("a", os.urandom(9 * 2**20))
    with files.open_object(f"{cloud.address}/a") as file:
        cloud.upload("a", os.urandom(9 * 2**20))
        file.seek(5 * 2**20)
        with pytest.raises(SourceError, match="the object was replaced while it was read"):
            file.read(10)


def test_what_does_not_exist_is_not_found(cloud: Cloud, files: RemoteFilesystem) -> None:
    assert files.find(f"{cloud.address}/none") is None
    with pytest.raises(FileNotFoundError):
        files.open(f"{cloud.address}/none")
    with pytest.raises(RefusedError, match=r"the (bucket|container) does not exist"):
        list(files.objects("no-such-bucket", ""))


def test_the_emulator_reads_like_the_service(emulator: Gcs) -> None:
    data = os.urandom(9 * 2**20)
    for key in ("a b/é%", "large"):
        emulator.upload(key, data if key == "large" else b"pixels")
    with closing(open_filesystem(parse_address(emulator.address), QUICK)) as files:
        listed = {found.key: found.fingerprint for found in files.objects(emulator.bucket, "")}
        for key, fingerprint in listed.items():
            with files.open_object(f"{emulator.address}/{key}") as opened:
                assert opened.fingerprint == fingerprint
                assert opened.read() == (data if key == "large" else b"pixels")
        assert len(listed) == 2


# Errors -------------------------------------------------------------------------------------------------------------


def test_a_request_is_repeated_until_it_is_accepted(cloud: Cloud, files: RemoteFilesystem) -> None:
    cloud.upload("a", b"pixels")
    for refusal in (cloud.busy, Refusal(500), Refusal(0)):
        left = 2

        def refuse(*_: str, refusal: Refusal = refusal) -> Refusal | None:
            nonlocal left
            left -= 1
            return refusal if left >= 0 else None

        cloud.refuse_with(refuse)
        with files.open(f"{cloud.address}/a") as file:
            assert file.read() == b"pixels"
        assert left == -1


def test_a_permanent_refusal_is_raised_once(cloud: Cloud, files: RemoteFilesystem) -> None:
    asked = 0

    def refuse(*_: str) -> Refusal:
        nonlocal asked
        asked += 1
        return cloud.denied

    cloud.refuse_with(refuse)
    for work in (lambda: files.find(f"{cloud.address}/a"), lambda: list(files.objects(cloud.bucket, ""))):
        asked = 0
        with pytest.raises(RefusedError, match=f"refused with {cloud.denied.code}"):
            work()
        assert asked == 1
    assert set(files.delete(cloud.bucket, ["a", "b"])) == {"a", "b"}


def test_an_outage_is_no_refusal(cloud: Cloud, files: RemoteFilesystem) -> None:
    cloud.refuse_with(lambda *_: Refusal(0))
    with pytest.raises(InaccessibleError) as raised:
        files.find(f"{cloud.address}/a")
    assert raised.value.may_pass
    assert not isinstance(raised.value, RefusedError)


def test_a_listing_that_is_none_is_an_error(cloud: Cloud, files: RemoteFilesystem) -> None:
    cloud.refuse_with(lambda *_: Refusal(200, "sign", "in"))
    with pytest.raises(SourceError, match="the server's answer cannot be understood"):
        list(files.objects(cloud.bucket, ""))


def test_a_wrong_token_makes_everything_unavailable(stand_in: StandIn) -> None:
    stand_in.server.token = "right"
    files = open_filesystem(parse_address(stand_in.address), QUICK)
    sentence = "refused with authError: the token is missing, or not valid there"
    with closing(files), pytest.raises(UnavailableError, match=sentence):
        files.find(f"{stand_in.address}/a")


def test_closing_ends_a_request_that_waits(cloud: Cloud) -> None:
    waiting, go = threading.Event(), threading.Event()

    def refuse(*_: str) -> Refusal:
        waiting.set()
        go.wait(30)
        return cloud.busy

    files = open_filesystem(parse_address(cloud.address), S3Settings())
    cloud.refuse_with(refuse)
    errors: list[Exception] = []

    def read() -> None:
        try:
            files.find(f"{cloud.address}/a")
        except InaccessibleError as error:
            errors.append(error)

    reading = threading.Thread(target=read)
    reading.start()
    try:
        assert waiting.wait(30)
        files.close()
        reading.join(30)
        assert not reading.is_alive()
    finally:
        go.set()
    assert [str(error) for error in errors] == ["the source is closed"]
    with pytest.raises(InaccessibleError, match="the source is closed"):
        files.find(f"{cloud.address}/a")


# Locators -----------------------------------------------------------------------------------------------------------


def test_objects_are_found_by_their_locators(cloud: Cloud) -> None:
    cloud.upload("p/a b%é.png", b"pixels", "image/png")
    with closing(open_filesystem(parse_address(cloud.address), QUICK)) as files:
        folder = files.locator(cloud.bucket, "p")
    with Objects(QUICK) as objects:
        (found,) = objects.below(f"{folder}/")
        assert found.locator == f"{folder}/{'a b%é.png' if cloud.scheme == 'gs' else 'a%20b%25%C3%A9.png'}"
        assert objects.find(found.locator) == found
        content = objects.read(found.locator)
        assert (bytes(content.data), content.content_type, content.etag_is_md5) == (b"pixels", "image/png", True)
        assert objects.delete([found.locator], f"{folder}/") == {}
        assert objects.find(found.locator) is None
        with pytest.raises(FileNotFoundError):
            objects.read(found.locator)


def test_a_refused_listing_names_the_folder(cloud: Cloud) -> None:
    cloud.refuse_with(lambda *_: cloud.denied)
    with Objects(QUICK) as objects, pytest.raises(StoreError, match=f"{cloud.address}/p/: refused with"):
        list(objects.below(f"{cloud.address}/p/"))
