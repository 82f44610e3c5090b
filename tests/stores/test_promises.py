"""What a store does not keep is found with the first object of a run, and nothing is overwritten."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Any

import pytest

import async_maps as am
from async_maps.manifest.manifest import Manifest
from async_maps.report.ending import exit_code
from async_maps.settings import Settings
from async_maps.stores import open_store
from async_maps.stores.headers import asked_headers, is_kept
from async_maps.stores.promises import Promises
from async_maps.stores.s3 import S3Store
from tests.support.maps import random_map
from tests.support.odd_server import OddServer, odd_server

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["odd_server"]

KEYS = [f"p/m{n}.png" for n in range(6)]
MAPS = [(f"m{n}", random_map(n, (6, 7))) for n in range(6)]


def settings(**s3: Any) -> Settings:
    return Settings(workers=0, concurrency=4, s3=s3)


def create_only(how: str = "error") -> Settings:
    return settings().model_copy(update={"if_exists": how})


async def put_all(given: Settings, known: Promises | None = None) -> Promises:
    """Put six objects concurrently, and return what was found."""
    async with open_store("s3://bucket/p", given) as store:
        assert isinstance(store, S3Store)
        if known is not None:
            store.promises.load(known.dump())
        done = await asyncio.gather(*(store.put(key, key.encode()) for key in KEYS), return_exceptions=True)
    for result in done:
        if isinstance(result, BaseException):
            raise result
    return store.promises


def run(given: Settings, manifest: Path | None = None, **options: Any) -> am.Report:
    return am.run(MAPS, "s3://bucket/p", settings=given, manifest=manifest, **options)


def puts(server: OddServer) -> list[dict[str, str]]:
    return [asked.headers for asked in server.asked if asked.method == "PUT"]


# Create-only --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["error", "skip"])
def test_a_store_that_ignores_if_none_match_ends_the_run_before_it_overwrites(how: str, odd_server: OddServer) -> None:
    odd_server.ignores = {"if-none-match"}
    theirs = {f"/bucket/p/m{n}.png": (b"theirs", {"ETag": '"e"'}) for n in (0, 2, 3)}
    odd_server.objects.update(theirs)
    with pytest.raises(
        am.StoreError, match=r"^s3://bucket/p: the store ignores If-None-Match, .*: only s3://\S+ w"
    ) as end:
        run(create_only(how))
    assert exit_code(end.value) == 2
    assert {path: odd_server.objects.pop(path) for path in theirs} == theirs
    assert len(odd_server.objects) == 1


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (501, "NotImplemented", "A header you provided implies functionality that is not implemented."),
        (400, "NotImplemented", "no"),
        (400, "InvalidArgument", "If-None-Match is not supported"),
    ],
)
async def test_a_store_that_refuses_if_none_match_ends_the_run(
    status: int, code: str, message: str, odd_server: OddServer
) -> None:
    odd_server.refuses = {"if-none-match": (status, code, message)}
    with pytest.raises(
        am.StoreError, match=rf"a PUT with If-None-Match is refused with {code}: .*use --if-exists over"
    ):
        await put_all(create_only())
    assert not odd_server.objects
    # With and without the checksum.
    assert odd_server.count("PUT") == 2


def test_create_only_is_proved_once_for_a_manifest_and_destination(odd_server: OddServer, tmp_path: Path) -> None:
    manifest = tmp_path / "m.sqlite"
    for maps, gets, sent in ((MAPS[:2], 1, 3), (MAPS[2:4], 1, 5)):
        assert am.run(maps, "s3://bucket/p", settings=create_only(), manifest=manifest).uploaded == 2
        assert (odd_server.count("GET"), odd_server.count("PUT")) == (gets, sent)
    am.run(MAPS[4:], "s3://bucket/q", settings=create_only(), manifest=tmp_path / "other.sqlite")
    assert (odd_server.count("GET"), odd_server.count("PUT")) == (2, 8)


def test_a_run_that_finds_its_own_objects_first_ends_with_2_too(odd_server: OddServer) -> None:
    odd_server.ignores = {"if-none-match"}
    run(settings())
    del odd_server.objects["/bucket/p/m5.png"]
    with pytest.raises(am.StoreError, match="ignores If-None-Match") as end:
        am.run(MAPS, "s3://bucket/p", settings=Settings(workers=0, concurrency=1, if_exists="skip"))
    assert end.value.report is not None
    assert end.value.report.uploaded == 5
    assert exit_code(end.value) == 2


def test_existing_objects_are_found_before_create_only_is_proved(odd_server: OddServer, tmp_path: Path) -> None:
    run(settings())
    sent = odd_server.count("PUT")
    assert run(create_only("skip")).uploaded == len(MAPS)
    assert run(create_only("error")).failed == len(MAPS)
    assert odd_server.count("PUT") == sent
    odd_server.objects["/bucket/p/m0.png"] = b"other", {"ETag": '"e"'}
    report = run(create_only("skip"))
    assert (report.uploaded, [failure.name for failure in report.failures]) == (len(MAPS) - 1, ["m0"])
    assert odd_server.count("PUT") == sent


async def test_an_object_of_another_writer_proves_create_only(
    odd_server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = odd_server._put

    def late(path: str, headers: dict[str, str], body: bytes) -> Any:
        odd_server.objects.setdefault(path, (b"theirs", {"ETag": '"e"'}))
        monkeypatch.setattr(odd_server, "_put", original)
        return original(path, headers, body)

    monkeypatch.setattr(odd_server, "_put", late)
    async with open_store("s3://bucket/p", create_only()) as store:
        with pytest.raises(am.ExistsError, match="another object already exists"):
            await store.put(KEYS[0], b"ours")
        await store.put(KEYS[1], b"ours")
    assert odd_server.objects[f"/bucket/{KEYS[0]}"][0] == b"theirs"
    assert odd_server.count("PUT") == 2


async def test_create_only_that_cannot_be_proved_ends_the_run(odd_server: OddServer) -> None:
    odd_server.answers = {"GET": (403, "AccessDenied")}
    with pytest.raises(am.StoreError, match=r"cannot be proved without overwriting, because GetObject .*AccessDenied"):
        await put_all(create_only())
    assert (odd_server.count("GET"), odd_server.count("PUT")) == (1, 0)


# Checksums and ETags ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 501])
@pytest.mark.parametrize(("how", "extra"), [("overwrite", 1), ("skip", 2)])
async def test_a_store_that_refuses_the_checksum_gets_content_md5(
    status: int, how: str, extra: int, odd_server: OddServer, caplog: pytest.LogCaptureFixture
) -> None:
    odd_server.refuses = {"x-amz-checksum-crc32": (status, "InvalidRequest", "unknown header")}
    given = settings().model_copy(update={"if_exists": how})
    found = await put_all(given)
    assert len(puts(odd_server)) == len(KEYS) + extra
    assert sum("content-md5" in headers for headers in puts(odd_server)) == len(puts(odd_server)) - 1
    # Direct PUTs send it too.
    assert sum("amz-sdk-invocation-id" not in headers for headers in puts(odd_server)) == len(KEYS) - 1
    assert sum("Content-MD5" in record.getMessage() for record in caplog.records) == 1
    odd_server.asked.clear()
    odd_server.objects.clear()
    await put_all(given, found)
    assert all("content-md5" in headers for headers in puts(odd_server))
    assert len(puts(odd_server)) == len(KEYS)
    assert sum("Content-MD5" in record.getMessage() for record in caplog.records) == 1


async def test_existing_objects_show_that_etags_are_no_md5(
    odd_server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(odd_server, "etag", lambda _: "0" * 32)
    odd_server.ignores = {"x-amz-checksum-crc32"}
    await put_all(settings())
    async with open_store("s3://bucket/p", create_only("skip")) as store:
        with pytest.raises(am.ExistsError) as exists:
            await store.put(KEYS[0], KEYS[0].encode())
    assert (exists.value.same, exists.value.etag) == (True, None)


async def test_a_refusal_with_another_cause_is_not_blamed_on_the_checksum(odd_server: OddServer) -> None:
    odd_server.answers = {"PUT": (400, "InvalidRequest")}
    async with open_store("s3://bucket/p", settings()) as store:
        with pytest.raises(am.StoreError, match="refused with InvalidRequest"):
            await store.put("p/a.png", b"a")
        assert isinstance(store, S3Store)
        assert store.promises == Promises()


@pytest.mark.parametrize("tag", ["0" * 32, "W/opaque-1", ""])
def test_etags_that_are_no_md5_are_found_by_reading_one_object(
    tag: str, odd_server: OddServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd_server.ignores = {"x-amz-checksum-crc32"}
    monkeypatch.setattr(odd_server, "etag", lambda _: tag)
    manifest = tmp_path / "m.sqlite"
    assert run(settings(), manifest).uploaded == len(MAPS)
    assert (odd_server.count("PUT"), odd_server.count("GET")) == (len(MAPS), 1)
    with Manifest(manifest, read_only=True) as opened:
        assert {located.etag for located in opened.sample(3)} == {None}
    assert am.verify_locators(manifest).exit_code == 0
    assert am.verify_locators(manifest, deep=True).exit_code == 0
    odd_server.asked.clear()
    assert run(settings(), manifest, select="all").uploaded == len(MAPS)
    assert odd_server.count("GET") == 0
    # At another address of the bucket, sizes tell that it is the same.
    monkeypatch.setenv("AWS_ENDPOINT_URL", odd_server.endpoint.replace("127.0.0.1", "localhost"))
    assert run(settings(), manifest, select="all").uploaded == len(MAPS)
    # Of an object with the same size, only its bytes tell.
    data, headers = odd_server.objects["/bucket/p/m0.png"]
    odd_server.objects["/bucket/p/m0.png"] = data[:-20] + b"x" * 20, headers
    assert am.verify_locators(manifest).exit_code == 0
    assert am.verify_locators(manifest, deep=True).exit_code == 1


async def test_a_store_that_changes_the_bytes_is_not_believed(
    odd_server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd_server.ignores = {"x-amz-checksum-crc32"}
    monkeypatch.setattr(odd_server, "stores", lambda data: data[:-1])
    monkeypatch.setattr(odd_server, "etag", lambda _: "0" * 32)
    with pytest.raises(am.TransientError, match="the answer does not prove that the store has these bytes"):
        await put_all(settings())


async def test_etags_that_are_no_md5_and_objects_that_cannot_be_read_end_the_run(
    odd_server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd_server.ignores = {"x-amz-checksum-crc32"}
    odd_server.answers = {"GET": (403, "AccessDenied")}
    monkeypatch.setattr(odd_server, "etag", lambda _: "0" * 32)
    async with open_store("s3://bucket/p", settings()) as store:
        for _ in range(2):
            with pytest.raises(am.TransientError, match="does not prove"):
                await store.put("p/a.png", b"a")
        with pytest.raises(am.StoreError, match=r"read back: GetObject is refused with AccessDenied.*allow s3:GetObj"):
            await store.put("p/a.png", b"a")


async def test_one_wrong_answer_does_not_make_etags_opaque(
    odd_server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd_server.ignores = {"x-amz-checksum-crc32"}
    original = odd_server._put

    def lies(path: str, headers: dict[str, str], body: bytes) -> Any:
        status, _, data = original(path, headers, body)
        monkeypatch.setattr(odd_server, "_put", original)
        return status, {"ETag": '"d41d8cd98f00b204e9800998ecf8427e"'}, data

    monkeypatch.setattr(odd_server, "_put", lies)
    async with open_store("s3://bucket/p", settings()) as store:
        assert await store.put("p/a.png", b"first") == odd_server.etag(b"first")
        assert await store.put("p/b.png", b"second") == odd_server.etag(b"second")
    assert odd_server.count("GET") == 1


async def test_answers_without_an_etag_are_proved_by_reading_each_object(
    odd_server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd_server.ignores = {"x-amz-checksum-crc32"}
    original = odd_server._put

    def terse(path: str, headers: dict[str, str], body: bytes) -> Any:
        return original(path, headers, body)[0], {}, b""

    monkeypatch.setattr(odd_server, "_put", terse)
    async with open_store("s3://bucket/p", settings()) as store:
        for key in KEYS:
            assert await store.put(key, key.encode()) == odd_server.etag(key.encode())
    assert (odd_server.count("PUT"), odd_server.count("GET")) == (len(KEYS), len(KEYS))


@pytest.mark.parametrize("ignores", [set(), {"x-amz-checksum-crc32"}], ids=["checksums", "MD5s"])
async def test_an_answer_that_proves_less_than_others_is_not_believed(
    ignores: set[str], odd_server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd_server.ignores = ignores
    async with open_store("s3://bucket/p", settings()) as store:
        await store.put("p/a.png", b"first")
        with monkeypatch.context() as patch:
            patch.setattr(odd_server, "_put", lambda *_: (200, {"ETag": '"portal"'}, b"sign in"))
            with pytest.raises(am.TransientError, match="the answer does not prove that the store has these bytes"):
                await store.put("p/b.png", b"second")
        assert await store.put("p/b.png", b"second") == odd_server.etag(b"second")


@pytest.mark.parametrize("known", [Promises(), Promises(takes_crc32=False)], ids=["checksum", "Content-MD5"])
async def test_a_portal_that_answers_each_request_with_its_page_is_not_believed(
    known: Promises, odd_server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = 200, {"ETag": '"portal-7"', "Content-Type": "text/html"}, b"<html>Sign in</html>"
    monkeypatch.setattr(odd_server, "answer", lambda *_: page)
    with pytest.raises(am.TransientError, match="the answer does not prove that the store has these bytes"):
        await put_all(settings(), known)


# Encryption and storage class ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("s3", "header", "setting"),
    [
        ({"server_side_encryption": "AES256"}, "x-amz-server-side-encryption", "s3.server_side_encryption AES256"),
        ({"server_side_encryption": "aws:kms"}, "x-amz-server-side-encryption", "s3.server_side_encryption aws:kms"),
        (
            {"server_side_encryption": "aws:kms", "bucket_key": True},
            "x-amz-server-side-encryption-bucket-key-enabled",
            "s3.bucket_key true",
        ),
        ({"storage_class": "STANDARD_IA"}, "x-amz-storage-class", "s3.storage_class STANDARD_IA"),
    ],
)
async def test_a_header_that_is_ignored_ends_the_run(
    s3: dict[str, Any], header: str, setting: str, odd_server: OddServer
) -> None:
    given = settings(**s3)
    found = await put_all(given)
    assert odd_server.count("HEAD") == ("storage_class" in s3)
    await put_all(given, found)
    assert odd_server.count("HEAD") == ("storage_class" in s3)
    odd_server.ignores = {header}
    odd_server.objects.clear()
    with pytest.raises(am.StoreError, match=rf"does not keep {re.escape(setting)}: found none in its answer") as end:
        await put_all(given)
    assert exit_code(end.value) == 2
    assert len(odd_server.objects) == 1


async def test_a_storage_class_that_cannot_be_looked_up_is_a_warning(
    odd_server: OddServer, caplog: pytest.LogCaptureFixture
) -> None:
    odd_server.answers = {"HEAD": (403, "AccessDenied")}
    with caplog.at_level(logging.WARNING):
        await put_all(settings(storage_class="GLACIER_IR"))
    assert odd_server.count("HEAD") == 1
    assert sum("s3.storage_class GLACIER_IR is not known" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("asked", "found", "kept"),
    [
        ("arn:aws:kms:eu-west-1:1:key/ab", "arn:aws:kms:eu-west-1:1:key/ab", True),
        ("ab", "arn:aws:kms:eu-west-1:1:key/ab", True),
        ("ab", None, True),
        ("ab", "arn:aws:kms:eu-west-1:1:key/other", False),
    ],
)
def test_a_kms_key_is_compared_by_its_id(asked: str, found: str | None, kept: bool) -> None:
    assert is_kept("x-amz-server-side-encryption-aws-kms-key-id", asked, found) is kept


def test_what_is_asked_has_no_aliases_of_keys() -> None:
    arguments = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "alias/maps", "BucketKeyEnabled": False, "ACL": "x"}
    assert asked_headers(arguments) == {
        "x-amz-server-side-encryption": "aws:kms",
        "x-amz-server-side-encryption-bucket-key-enabled": "false",
    }
    assert is_kept("x-amz-server-side-encryption-bucket-key-enabled", "false", None)
    assert is_kept("x-amz-storage-class", "STANDARD", None)


def test_promises_are_equal_after_a_round_trip() -> None:
    found = Promises(create_only=True, takes_crc32=False, etags_are_md5=False, kept={"a": "b"}, is_news=True)
    again = Promises()
    again.load(found.dump())
    assert again == found
    assert not found.is_news


def test_another_endpoint_is_asked_anew(odd_server: OddServer, tmp_path: Path) -> None:
    with Manifest(tmp_path / "m.sqlite") as manifest:
        manifest.keep_promises("s3://bucket/p at http://other", Promises(create_only=True).dump())
        assert manifest.promises(f"s3://bucket/p at {odd_server.endpoint}") is None
    assert run(create_only(), tmp_path / "m.sqlite", limit=1).uploaded == 1
    assert odd_server.count("PUT") == 2
