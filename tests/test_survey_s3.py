"""An outage of a source in S3 in the first pass of a dataset range: no map is left out of the range."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

import async_maps as am
from async_maps.filesystems.filesystem import UnavailableError
from async_maps.report import Report
from async_maps.sources.batches import list_maps
from async_maps.survey import survey
from tests.support.maps import npy, random_map
from tests.support.s3 import upload
from tests.support.s3_proxy import Proxy, Refusal, counting

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from async_maps.demo import seaweed
    from async_maps.render.sketch import QuantileSketch
    from async_maps.sources.batches import Entry

MAPS = 4


@pytest.fixture
def proxy(s3: seaweed.S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    upload(bucket, {f"{i}.npy": npy(random_map(i)) for i in range(MAPS)})
    monkeypatch.setattr("async_maps.sources.hearing._PAUSE_S", 0.01)
    with counting(s3, monkeypatch) as proxy:
        yield proxy


async def surveyed(bucket: str, proxy: Proxy, report: Report, refused: range, give_up_s: float) -> QuantileSketch:
    """List the maps, and survey them while the GETs of objects with these numbers are refused."""
    settings = am.Settings(workers=0, prefetch=1, s3=am.S3Settings(max_attempts=1, give_up_s=give_up_s))
    async with aclosing(list_maps(f"s3://{bucket}/", settings=settings)) as listing:
        batches = [batch async for batch in listing]
    gets = iter(range(10**9))

    def refuse(method: str, path: str, query: str) -> Refusal | None:
        return Refusal(503, "SlowDown") if method == "GET" and next(gets) in refused else None

    proxy.refuse = refuse

    async def listed() -> AsyncGenerator[list[Entry], None]:
        for batch in batches:
            yield batch

    return (await survey(listed(), settings, report)).sketch


@pytest.mark.parametrize("first", [0, 2])
async def test_a_survey_waits_for_the_store_of_its_source(bucket: str, proxy: Proxy, first: int) -> None:
    report = Report()
    sketch = await surveyed(bucket, proxy, report, range(first, first + 6), 300)
    assert (report.surveyed, report.unsurveyed) == (MAPS, 0)
    assert sketch.count == MAPS * random_map(0).size


async def test_a_survey_of_a_store_that_stays_down_ends_and_blames_no_map(bucket: str, proxy: Proxy) -> None:
    report = Report()
    with pytest.raises(UnavailableError, match="run the same command again when the store is back") as found:
        await surveyed(bucket, proxy, report, range(2, 10**9), 0.2)
    assert (found.value.may_pass, report.unsurveyed) == (True, 0)
