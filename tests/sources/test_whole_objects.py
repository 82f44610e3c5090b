"""Small ``.npy`` objects are read while they are listed: one GET each, within bounds, and with the same entries."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

import async_maps as am
from async_maps.sources import open_source
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.whole_objects import ReadAhead
from tests.support.leftovers import leaves_nothing
from tests.support.maps import npy, random_map
from tests.support.s3 import upload
from tests.support.s3_proxy import Proxy, Refusal, counting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from async_maps.demo import seaweed
    from async_maps.outcomes import Failure

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

AHEAD = ReadAhead(first=16, most=16, max_bytes=2**20, max_pixels=10_000)


@pytest.fixture
def proxy(s3: seaweed.S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with counting(s3, monkeypatch) as proxy:
        yield proxy


def listed(place: str, ahead: ReadAhead | None = AHEAD, **options: Any) -> list[ActivationMap | Failure]:
    return list(open_source(place, ahead=ahead, **options))


def array_of(entry: ActivationMap | Failure) -> Any:
    return entry.array if isinstance(entry, ActivationMap) else None


def test_maps_have_their_values_after_one_get(bucket: str, proxy: Proxy) -> None:
    maps = {f"{i:02}.npy": random_map(i, (20 + i, 30)) for i in range(30)}
    maps |= {"f.npy": np.asfortranarray(random_map(0)), "one.npy": random_map(1)[..., None]}
    maps["big.npy"] = random_map(2).astype(">f8")
    upload(bucket, {name: npy(array) for name, array in maps.items()})
    entries = listed(f"s3://{bucket}/")
    assert len(entries) == len(maps)
    for entry in entries:
        np.testing.assert_array_equal(array_of(entry), maps[f"{entry.name}.npy"])
    assert len(proxy.gets()) == len(maps)
    assert "HEAD" not in {asked.method for asked in proxy.asked}


def test_the_entries_are_those_of_a_listing_without_values(bucket: str) -> None:
    objects = {"a.npy": npy(), "stack.npy": npy(np.zeros((3, 8, 8), np.float32)), "labels.npy": npy(np.zeros(9))}
    bad = {"bad.npy": b"no array", "short.npy": npy()[:-1], "._x.npy": bytes.fromhex("00051607"), "empty.npy": b""}
    others = {"ints.npy": npy(np.zeros((3, 3, 3), np.int64)), "large.npy": npy(np.zeros((101, 100), np.float32))}
    upload(bucket, {**objects, **bad, **others})
    plain_counts: list[str] = []
    counts: list[str] = []
    plain = listed(f"s3://{bucket}/", None, pass_over=plain_counts.append)
    entries = listed(f"s3://{bucket}/", pass_over=counts.append)
    assert [entry.name for entry in entries if array_of(entry) is not None] == ["a"]
    without = [replace(entry, array=None) if isinstance(entry, ActivationMap) else entry for entry in entries]
    assert without == plain
    assert counts == plain_counts


def test_the_bytes_that_are_read_ahead_are_bounded(bucket: str, proxy: Proxy) -> None:
    data = npy(random_map(0, (50, 50)))
    upload(bucket, {f"{i:02}.npy": data for i in range(40)})
    proxy.delay_s = 0.02
    bounded = AHEAD._replace(max_bytes=2 * len(data))
    assert len(listed(f"s3://{bucket}/", bounded)) == 40
    # The one that exceeds the bound is read, too.
    assert proxy.most_concurrent <= 3


def test_objects_whose_answer_breaks_are_read_again(bucket: str, proxy: Proxy) -> None:
    upload(bucket, {f"{i:02}.npy": npy(random_map(i)) for i in range(40)})
    entries = iter(open_source(f"s3://{bucket}/", ahead=AHEAD))
    next(entries)
    proxy.break_off = 10
    assert not [entry.name for entry in entries if array_of(entry) is None]
    assert len(proxy.gets()) == 50


@pytest.mark.slow
def test_requests_soon_reach_their_bound_if_the_store_answers_late(bucket: str, proxy: Proxy) -> None:
    upload(bucket, {f"{i:03}.npy": npy() for i in range(150)})
    proxy.delay_s = 0.3
    assert len(listed(f"s3://{bucket}/", AHEAD._replace(first=4))) == 150
    assert proxy.most_concurrent == 16


def test_an_object_that_has_grown_is_read_as_it_is_now(bucket: str, proxy: Proxy) -> None:
    upload(bucket, {"a.npy": npy(random_map(0)), "b.npy": npy(random_map(1))})
    larger = random_map(2, (80, 90))

    def grow(_: object) -> set[str]:
        upload(bucket, {"b.npy": npy(larger)})
        return set()

    # It is called between the listing and the reads.
    first, second = listed(f"s3://{bucket}/", known=grow)
    np.testing.assert_array_equal(array_of(first), random_map(0))
    np.testing.assert_array_equal(array_of(second), larger)
    assert str(second.fingerprint).startswith(f"{len(npy(larger))}-")


def test_of_objects_that_are_no_maps_only_one_in_some_is_read_whole(bucket: str, proxy: Proxy) -> None:
    stack = npy(np.zeros((5, 128, 128), np.float32))
    upload(bucket, {f"{i:02}.npy": stack for i in range(34)})
    assert len(listed(f"s3://{bucket}/")) == 34 * 5
    whole = [asked for asked in proxy.gets() if asked.size == len(stack)]
    assert len(whole) == 3


def test_a_map_does_not_keep_the_bytes_behind_its_array(bucket: str) -> None:
    upload(bucket, {"a.npy": npy(random_map(0)) + bytes(2**20)})
    (entry,) = listed(f"s3://{bucket}/")
    np.testing.assert_array_equal(array_of(entry), random_map(0))
    assert array_of(entry).base is None


def test_without_a_thread_for_the_sdk_the_listing_reads(
    bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(bucket, {f"{i:02}.npy": npy(random_map(i)) for i in range(20)})

    def submit(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit)
    entries = iter(open_source(f"s3://{bucket}/", ahead=AHEAD))
    next(entries)
    proxy.break_off = 10
    assert not [entry.name for entry in entries if array_of(entry) is None]


def test_objects_that_the_listing_has_read_are_evidence_for_others(bucket: str, proxy: Proxy, tmp_path: Path) -> None:
    upload(bucket, {f"{i:02}.npy": npy(random_map(i)) for i in range(20)})
    upload(bucket, {"big.npy": npy(np.zeros((1500, 1600), np.float32))})
    asked: list[str] = []

    def refuse(method: str, path: str, _: str) -> Refusal | None:
        if method == "GET" and path.endswith("big.npy"):
            asked.append(path)
            return Refusal(403, "AccessDenied", "not for you") if len(asked) > 1 else None
        return None

    proxy.refuse = refuse
    report = am.run(f"s3://{bucket}/", tmp_path / "out", settings=am.Settings(workers=0))
    assert (report.uploaded, [failure.name for failure in report.failures]) == (20, ["big"])
