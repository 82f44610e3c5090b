"""What a store does not keep is found by ``doctor``, in the words of the run that would meet it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import async_maps as am
from async_maps.settings import Settings
from async_maps.stores import open_store
from tests.support.odd_server import OddServer, odd_server

if TYPE_CHECKING:
    from async_maps.doctor import Finding

__all__ = ["odd_server"]


class Fault(NamedTuple):
    """What the server does, the settings, and the check that fails with its level."""

    server: dict[str, Any]
    settings: dict[str, Any]
    check: str
    level: str


FAULTS = {
    "If-None-Match ignored": Fault(
        {"ignores": {"if-none-match"}}, {"if_exists": "error"}, "create only", "failure"
    ),
    "If-None-Match refused": Fault(
        {"refuses": {"if-none-match": (501, "NotImplemented", "no")}}, {"if_exists": "skip"}, "create only", "failure"
    ),
    "If-None-Match without proof": Fault(
        {"answers": {"GET": (403, "AccessDenied")}}, {"if_exists": "error"}, "create only", "failure"
    ),
    "no proof": Fault(
        {"ignores": {"x-amz-checksum-crc32"}, "etag": lambda _: "0" * 32, "answers": {"GET": (403, "AccessDenied")}},
        {}, "read back", "failure",
    ),
    "encryption not answered": Fault(
        {"ignores": {"x-amz-server-side-encryption"}, "answers": {"HEAD": (403, "AccessDenied")}},
        {"s3": {"server_side_encryption": "AES256"}}, "kept headers", "failure",
    ),
    "storage class not answered": Fault(
        {"answers": {"HEAD": (403, "AccessDenied")}}, {"s3": {"storage_class": "GLACIER_IR"}},
        "kept headers", "unknown",
    ),
    "checksum refused": Fault(
        {"refuses": {"x-amz-checksum-crc32": (400, "InvalidArgument", "no")}}, {}, "checksum", "warning"
    ),
    "ETags": Fault(
        {"ignores": {"x-amz-checksum-crc32"}, "etag": lambda _: "0" * 32}, {}, "ETags", "warning"
    ),
    "encryption ignored": Fault(
        {"ignores": {"x-amz-server-side-encryption"}}, {"s3": {"server_side_encryption": "AES256"}},
        "kept headers", "failure",
    ),
    "storage class ignored": Fault(
        {"ignores": {"x-amz-storage-class"}}, {"s3": {"storage_class": "GLACIER_IR"}}, "kept headers", "failure"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_doctor_says_what_a_run_would_say(
    fault: Fault, odd_server: OddServer, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in fault.server.items():
        setattr(odd_server, name, value)
    settings = Settings(**fault.settings)
    found: dict[str, Finding] = {
        finding.check: finding for finding in await am.adiagnose("s3://bucket/p", settings, quick=True)
    }
    finding = found[fault.check]
    assert finding.level == fault.level
    odd_server.objects.clear()
    said = ""
    async with open_store("s3://bucket/p", settings) as store:
        for _ in range(3):
            try:
                await store.put("p/a.png", b"a")
            except am.StoreError as error:
                said = str(error)
    assert finding.text in f"{said} {caplog.text}"
    assert bool(said) == (fault.level == "failure")


async def test_a_store_that_is_busy_is_not_blamed_for_its_headers(odd_server: OddServer) -> None:
    odd_server.ignores, odd_server.answers = {"x-amz-server-side-encryption"}, {"HEAD": (503, "SlowDown")}
    settings = Settings(s3={"server_side_encryption": "AES256"})
    found = {finding.check: finding for finding in await am.adiagnose("s3://bucket/p", settings, quick=True)}
    assert (found["kept headers"].level, "does not keep" in found["kept headers"].text) == ("unknown", False)


async def test_doctor_is_content_with_a_store_that_keeps_all(odd_server: OddServer) -> None:
    s3 = {"server_side_encryption": "AES256", "storage_class": "GLACIER_IR"}
    found = {
        finding.check: finding.level for finding in await am.adiagnose("s3://bucket/p", Settings(s3=s3), quick=True)
    }
    assert (found["kept headers"], found["create only"]) == ("ok", "ok"), found
    assert not {"checksum", "ETags"} & set(found)
