"""Answers of servers that leave out what S3 always says are read, or are one error of the file."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Event
from typing import TYPE_CHECKING

import pytest
from botocore.retries.standard import ExponentialBackoff

from async_maps.filesystems.addresses import Address
from async_maps.filesystems.filesystem import InaccessibleError
from async_maps.filesystems.objects import Objects
from async_maps.filesystems.s3 import S3Filesystem
from async_maps.settings import S3Settings
from tests.support.terse_server import Terse, terse

if TYPE_CHECKING:
    from collections.abc import Iterator

ADDRESS = Address("s3", "bucket", "key.npy")
DATA = b"0123456789"
CHUNKS = b"4\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n"
OK, PART = (b"HTTP/1.1 " + status + b"\r\nConnection: close\r\n" for status in (b"200 OK", b"206 Partial Content"))
LENGTH, CHUNKED, TAG = b"Content-Length: 10\r\n", b"Transfer-Encoding: chunked\r\n", b'ETag: "tag"\r\n'
RANGE, RANGE_ALONE = b"Content-Range: bytes 0-9/10\r\n", b"Content-Range: bytes 0-9/*\r\n"
HEAD = OK + LENGTH + TAG + b"\r\n"

READABLE = {
    "all of it": PART + LENGTH + RANGE + TAG + b"\r\n" + DATA,
    "chunks": PART + CHUNKED + RANGE + TAG + b"\r\n" + CHUNKS,
    "chunks without a range": OK + CHUNKED + TAG + b"\r\n" + CHUNKS,
    "chunks without a total": PART + CHUNKED + RANGE_ALONE + TAG + b"\r\n" + CHUNKS,
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n" + TAG + b"\r\n" + DATA,
    "no total": PART + LENGTH + RANGE_ALONE + TAG + b"\r\n" + DATA,
    "no range": PART + LENGTH + TAG + b"\r\n" + DATA,
    "no length": PART + RANGE + TAG + b"\r\n" + DATA,
    "no ETag": PART + LENGTH + RANGE + b"\r\n" + DATA,
}
REFUSED = {
    "truncated": (PART + LENGTH + RANGE + TAG + b"\r\n" + DATA[:5], "the connection broke while it was read"),
    "truncated chunks": (PART + CHUNKED + TAG + b"\r\n4\r\n0123\r\n6\r\n45", "the connection broke while it was read"),
    "truncated HTTP/1.0": (b"HTTP/1.0 200 OK\r\n" + TAG + b"\r\n" + DATA[:5], "truncated while it was read"),
    "a contradiction": (PART + LENGTH + b"Content-Range: bytes 0-4/5\r\n\r\n" + DATA, "contradicts itself"),
    "a date in words": (PART + LENGTH + RANGE + b"Last-Modified: yesterday\r\n\r\n" + DATA, "cannot be understood"),
    "a length in words": (PART + b"Content-Length: ten\r\n\r\n" + DATA, "cannot be understood"),
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, service_descriptions_read_once: None) -> Iterator[Terse]:
    with terse(monkeypatch) as running:
        running.answers["HEAD"] = [HEAD]
        yield running


@pytest.fixture
def filesystem() -> Iterator[S3Filesystem]:
    opened = S3Filesystem(S3Settings(max_attempts=1))
    yield opened
    opened.close()


@pytest.mark.parametrize("form", READABLE)
def test_an_object_is_read_whatever_the_answer_leaves_out(form: str, server: Terse, filesystem: S3Filesystem) -> None:
    server.answers["GET"] = [READABLE[form]]
    found = filesystem.get(ADDRESS, 0, 100)
    assert (bytes(found.data), found.size) == (DATA, 10)
    with filesystem.open(str(ADDRESS)) as file:
        assert file.read() == DATA


@pytest.mark.parametrize("form", READABLE)
def test_a_part_as_long_as_asked_for_has_the_size_of_the_object(
    form: str, server: Terse, filesystem: S3Filesystem
) -> None:
    server.answers["GET"] = [READABLE[form]]
    found = filesystem.get(ADDRESS, 0, 10)
    assert (bytes(found.data), found.size) == (DATA, 10)


@pytest.mark.parametrize("form", REFUSED)
def test_an_answer_that_cannot_be_right_is_an_error_of_the_file(
    form: str, server: Terse, filesystem: S3Filesystem
) -> None:
    server.answers["GET"], words = [REFUSED[form][0]], REFUSED[form][1]
    with pytest.raises(InaccessibleError, match=words):
        filesystem.get(ADDRESS, 0, 100)


@pytest.mark.parametrize("size", [5, 15, 20])
def test_an_object_that_shrinks_is_an_error_without_etags(size: int, server: Terse, filesystem: S3Filesystem) -> None:
    server.answers = {
        "HEAD": [OK + b"Content-Length: %d\r\n\r\n" % size],
        "GET": [
            PART + LENGTH + b"Content-Range: bytes 0-9/20\r\n\r\n" + DATA,
            b"HTTP/1.1 416 Range Not Satisfiable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        ],
    }
    with filesystem.open_object(str(ADDRESS), 10) as file, pytest.raises(InaccessibleError, match="was replaced"):
        file.read()
    # The SDK repeats the GET that has no plain answer.
    assert len(server.heads) == 4


def test_a_server_that_ignores_ranges_is_named(server: Terse, filesystem: S3Filesystem) -> None:
    server.answers["GET"] = [OK + LENGTH + TAG + b"\r\n" + DATA]
    with pytest.raises(InaccessibleError, match="the server ignores ranges: expected the bytes from 5, found 0"):
        filesystem.get(ADDRESS, 5, 5)


def test_without_content_length_the_size_is_that_of_a_range(server: Terse, filesystem: S3Filesystem) -> None:
    server.answers = {
        "HEAD": [OK + TAG + b"\r\n"],
        "GET": [PART + b"Content-Length: 1\r\nContent-Range: bytes 0-0/10\r\n" + TAG + b"\r\n0"],
    }
    found = filesystem.find(str(ADDRESS))
    assert found is not None
    assert (found.size, found.etag) == (10, "tag")


def test_an_object_without_a_size_is_an_error(server: Terse, filesystem: S3Filesystem) -> None:
    server.answers = {"HEAD": [OK + b"\r\n"], "GET": [OK + CHUNKED + b"\r\n" + CHUNKS]}
    with pytest.raises(InaccessibleError, match="does not tell the object's size"):
        filesystem.find(str(ADDRESS))


def test_without_an_etag_the_last_change_is_the_fingerprint(server: Terse, filesystem: S3Filesystem) -> None:
    seen = set()
    for second in (b"00", b"01"):
        dated = OK + LENGTH + b"Last-Modified: Wed, 25 Nov 2026 12:00:" + second + b" GMT\r\n\r\n"
        server.answers["HEAD"] = [dated]
        found = filesystem.find(str(ADDRESS))
        assert found is not None
        seen.add(found.fingerprint)
    assert len(seen) == 2


def test_a_listing_in_chunks_is_read(server: Terse, filesystem: S3Filesystem) -> None:
    listing = b"<ListBucketResult><Contents><Key>a.npy</Key><Size>3</Size></Contents></ListBucketResult>"
    server.answers["GET"] = [OK + CHUNKED + b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(listing), listing)]
    assert [(found.key, found.size, found.etag) for found in filesystem.objects("bucket", "")] == [("a.npy", 3, "")]


@pytest.mark.parametrize(
    ("listing", "words"),
    [
        (b"<ListBucketResult><Contents><Key>a.npy</Key></Contents></ListBucketResult>", "has no Size"),
        (b"<ListBucketResult><Contents><Size>3</Size></Contents></ListBucketResult>", "has no Key"),
        (b"<ListBucketResult><Contents><Key>a</Key><Size>x</Size></Contents></ListBucketResult>", "be understood"),
    ],
)
def test_a_listing_without_its_parts_is_an_error(
    listing: bytes, words: str, server: Terse, filesystem: S3Filesystem
) -> None:
    server.answers["GET"] = [OK + b"Content-Length: %d\r\n\r\n%b" % (len(listing), listing)]
    with pytest.raises(InaccessibleError, match=words):
        list(filesystem.objects("bucket", ""))


def test_a_refused_delete_without_a_key_keeps_all_objects(server: Terse, filesystem: S3Filesystem) -> None:
    refused = b"<DeleteResult><Error><Message>no</Message></Error></DeleteResult>"
    server.answers["POST"] = [OK + b"Content-Length: %d\r\n\r\n%b" % (len(refused), refused)]
    assert filesystem.delete("bucket", ["a", "b"]) == dict.fromkeys("ab", "refused with no code")


def test_verify_reads_an_object_in_chunks(server: Terse) -> None:
    server.answers["GET"] = [READABLE["chunks without a range"]]
    with Objects(S3Settings(max_attempts=1)) as objects:
        assert objects.read(str(ADDRESS)).data == DATA


# Attempts -----------------------------------------------------------------------------------------------------------

BUSY = b"HTTP/1.1 503 Slow Down\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def test_no_attempt_follows_after_the_time_for_all_of_them(server: Terse) -> None:
    server.answers["GET"] = [BUSY]
    filesystem = S3Filesystem(S3Settings(give_up_s=1e-9))
    with closing(filesystem), pytest.raises(InaccessibleError, match="503"):
        filesystem.get(ADDRESS, 0, 10)
    assert len(server.heads) == 1


def test_closing_ends_the_wait_between_two_attempts(server: Terse, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Event()

    def long(*_: object) -> float:
        asked.set()
        return 1000.0

    monkeypatch.setattr(ExponentialBackoff, "delay_amount", long)
    server.answers["GET"] = [BUSY]
    filesystem = S3Filesystem(S3Settings(give_up_s=2000))
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(filesystem.get, ADDRESS, 0, 10)
        assert asked.wait(60)
        filesystem.close()
        with pytest.raises(InaccessibleError, match="the source is closed"):
            reading.result(60)
