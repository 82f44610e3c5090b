"""Over TLS, PUTs leave out the SHA-256 of the body when answers prove that the store has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from botocore.auth import UNSIGNED_PAYLOAD

from async_maps.errors import TransientError
from async_maps.settings import Settings
from async_maps.stores import open_store
from async_maps.stores.s3 import S3Store
from tests.support.certificates import make_certificate
from tests.support.leftovers import leaves_nothing
from tests.support.odd_server import Asked, OddServer, odd_server, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["odd_server"]

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

CRC32 = "x-amz-checksum-crc32"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"), ["localhost"])


@pytest.fixture
def tls_server(certificate: Path, odd_server: OddServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[OddServer]:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    with serving(certificate) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://localhost:{server.port}")
        yield server


async def put(count: int) -> None:
    async with open_store("s3://bucket/p", Settings()) as store:
        for number in range(count):
            await store.put(f"p/{number}.png", b"%d" % number)


def unsigned(server: OddServer) -> list[bool]:
    """Return of each PUT whether its body is not signed."""
    hashes = [asked.headers["x-amz-content-sha256"] for asked in server.asked if asked.method == "PUT"]
    return [found == UNSIGNED_PAYLOAD for found in hashes]


@pytest.mark.parametrize("ignored", [set(), {CRC32}], ids=["checksum", "MD5"])
async def test_payloads_are_unsigned_after_an_answer_with_a_proof(ignored: set[str], tls_server: OddServer) -> None:
    tls_server.ignores = ignored
    await put(4)
    assert unsigned(tls_server) == [False, True, True, True]
    assert [data for data, _ in tls_server.objects.values()] == [b"0", b"1", b"2", b"3"]
    assert all(CRC32 in asked.headers for asked in tls_server.asked if asked.method == "PUT")


async def test_payloads_are_signed_if_answers_prove_nothing(
    tls_server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls_server.ignores = {CRC32}
    monkeypatch.setattr(tls_server, "etag", lambda _: "opaque")
    await put(3)
    assert unsigned(tls_server) == [False] * 3


async def test_payloads_are_signed_without_tls(odd_server: OddServer) -> None:
    await put(3)
    assert unsigned(odd_server) == [False] * 3


async def test_payloads_are_signed_if_the_configuration_says_so(
    tls_server: OddServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("[default]\ns3 =\n  payload_signing_enabled = true\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    await put(3)
    assert unsigned(tls_server) == [False] * 3


async def test_payloads_are_signed_after_a_store_refused_unsigned_ones(
    tls_server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = tls_server.answer

    def refuse(asked: Asked, body: bytes) -> tuple[int, dict[str, str], bytes]:
        is_unsigned = asked.headers.get("x-amz-content-sha256") == UNSIGNED_PAYLOAD
        return (403, {}, b"<Error><Code>AccessDenied</Code></Error>") if is_unsigned else accept(asked, body)

    monkeypatch.setattr(tls_server, "answer", refuse)
    await put(10)
    assert len(tls_server.objects) == 10
    # The first PUT, four refused ones with their repetitions by the SDK, and the rest.
    assert unsigned(tls_server) == [False, *[True, False] * 4, *[False] * 5]
    by_sdk = ["amz-sdk-invocation-id" in asked.headers for asked in tls_server.asked]
    assert by_sdk[-4:] == [False] * 4


async def test_an_unsigned_payload_without_a_proof_is_sent_again_signed(
    tls_server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store("s3://bucket/p", Settings()) as store:
        assert isinstance(store, S3Store)
        store.promises.etags_are_md5 = False
        await store.put("p/0.png", b"0")
        tls_server.ignores = {CRC32}
        with pytest.raises(TransientError, match="does not prove"):
            await store.put("p/1.png", b"1")
        await store.put("p/1.png", b"1")
        tls_server.ignores = set()
        await store.put("p/2.png", b"2")
    assert unsigned(tls_server) == [False, True, False, False]
