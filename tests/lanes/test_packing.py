"""What a lane and its parent tell each other, and how several lanes add up."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import pytest

import async_maps as am
from async_maps.concurrency.messages import frame, read_message
from async_maps.lanes.packing import pack_error, pack_map, pack_outcome, unpack_error, unpack_map, unpack_outcome
from async_maps.lanes.totals import State, add_paces, add_stages
from async_maps.render.ranges import ValueRange
from async_maps.settings import part_of
from async_maps.sources.activation_map import ActivationMap, ArrayHeader
from async_maps.stages.meters import StageStatistics
from async_maps.stages.rate_limiter import Pace
from async_maps.stores.promises import BrokenPromiseError
from tests.support.manifests import make_map, receipt_for

if TYPE_CHECKING:
    from typing import Any

pytestmark = pytest.mark.fast


def sent(value: tuple[Any, ...]) -> Any:
    """Return a value after its way through a socket."""
    return read_message(io.BytesIO(frame(value)))


MAP = ActivationMap(
    "val/ü\udcff", "maps/ü\udcff.npz/a", "120-7", 99, "maps/ü\udcff.npz", ["a", 3], index=4, maybe_at="s3://b/x.png",
    header=ArrayHeader((7, 9), np.dtype(np.float32)), key="x/val.png",
)  # fmt: skip


@pytest.mark.parametrize("value_range", [ValueRange("unit"), ValueRange("percentile", 1.0, 99.5)])
@pytest.mark.parametrize("map_", [MAP, replace(MAP, part=None, maybe_at=None, header=None)], ids=["part", "file"])
def test_a_lane_gets_what_the_stages_use(map_: ActivationMap, value_range: ValueRange) -> None:
    number, got, spans = unpack_map(sent(pack_map(5, map_, value_range)))
    assert (number, spans) == (5, value_range)
    for field in ("name", "path", "part", "max_bytes", "index", "maybe_at", "key"):
        assert getattr(got, field) == getattr(map_, field)
    assert (got.header and got.header.shape) == (map_.header and map_.header.shape)


def test_the_parent_gets_the_same_receipt() -> None:
    map_ = make_map("a")
    receipt = replace(receipt_for(map_), stored_at=datetime(2026, 11, 29, 1, 2, 3, 456789, UTC), file=map_.file)
    got = unpack_outcome(sent(pack_outcome(7, receipt)), map_)
    assert got == receipt
    assert isinstance(got, am.Receipt)
    assert (got.file, type(got.statistics)) == (receipt.file, type(receipt.statistics))


def test_the_parent_gets_the_same_failure() -> None:
    failure = MAP.failure("upload", "refused with ü", maybe_stored=True)
    got = unpack_outcome(sent(pack_outcome(7, failure)), MAP)
    assert isinstance(got, am.Failure)
    assert (got, got.maybe_stored, got.file) == (failure, True, failure.file)


@pytest.mark.parametrize(
    "error",
    [
        am.StoreError("down", may_pass=True),
        am.StoreError("no bucket"),
        am.ShortageError("no files"),
        am.WorkerError("died"),
        BrokenPromiseError("ignored"),
    ],
)
def test_the_parent_gets_an_error_of_the_same_kind(error: am.AsyncMapsError) -> None:
    got = unpack_error(sent(pack_error(error)))
    assert (type(got), str(got), got.may_pass) == (type(error), str(error), error.may_pass)


def test_lanes_share_what_a_pipeline_may_take() -> None:
    whole = am.Settings(
        workers=7, encode_threads=8, concurrency=32, prefetch=3, queue_bytes=4000, rate=100, bandwidth=1001
    )
    part = part_of(whole, 4)
    assert (part.worker_count, part.encode_thread_count, part.first_concurrency, part.most_concurrency) == (1, 2, 8, 8)
    assert (part.first_prefetch, part.queue_size, part.rate, part.bandwidth) == (1, 1000, 25.0, 250)
    assert part_of(whole.model_copy(update={"workers": 0}), 4).worker_count == 0
    assert part_of(am.Settings(), 4).most_concurrency * 4 == am.Settings().most_concurrency
    assert whole.worker_count == 7


def told(maps: int, workers: int = 2, queue: float = 0.5, retries: int = 0) -> tuple[Any, ...]:
    stage = (workers, maps * 0.25, maps, queue)
    stages = {"fetch": (workers, 0.0, 0, 0.0), "colorize": stage, "encode": stage, "upload": stage}
    return stages, (16, None, retries, "slow" if retries else ""), "", (maps,), False


def test_statistics_of_lanes_add_up() -> None:
    first, second = State().now(told(10)), State().now(told(30, queue=0.1))
    stages = add_stages([first.stages, second.stages, State().stages])
    assert stages["upload"] == StageStatistics(4, 10.0, 40, 0.3)
    assert stages["fetch"].maps == 0


def test_what_a_dead_lane_has_done_still_counts() -> None:
    state = State().now(told(10, retries=3)).ended()
    assert (state.stages["upload"].workers, state.stages["upload"].maps, state.pace.limit) == (2, 10, 16)
    state = state.now(told(5, retries=1))
    assert (state.stages["upload"].workers, state.stages["upload"].maps) == (2, 15)
    assert (state.pace.limit, state.pace.retries, state.pace.retry_reason) == (16, 4, "slow")
    assert state.ended().now(told(1)).stages["upload"].maps == 16
    stages = state.ended(stored=20).stages
    assert (stages["fetch"].maps, stages["colorize"].maps, stages["upload"].maps) == (0, 20, 20)


def test_an_ended_lane_without_a_successor_has_no_workers() -> None:
    state = State().now(told(10, retries=3)).ended().without_workers()
    assert (state.stages["upload"].workers, state.stages["upload"].maps) == (0, 10)
    assert (state.pace.limit, state.pace.retries) == (0, 3)


@pytest.mark.parametrize(
    ("queue", "rate", "since", "stuck", "waits_for"),
    [
        (0.5, None, "", False, ""),
        (0.95, None, "", False, "upload"),
        (0.95, 100.0, "", False, "rate"),
        (0.95, 100.0, "2026-11-29T12:34:56+01:00", False, "store"),
        (0.0, None, "", True, "store"),
    ],
)
def test_a_lane_tells_what_its_maps_wait_for(
    queue: float, rate: float | None, since: str, stuck: bool, waits_for: str
) -> None:
    stages, pace, _, life, _ = told(10, queue=queue)
    state = State().now((stages, (pace[0], rate, *pace[2:]), since, life, stuck))
    assert state.waits_for == waits_for
    assert State().waits_for == ""


def test_the_rate_of_lanes_is_known_if_all_are_limited() -> None:
    limited, free, ended = Pace(8, 100.0, 1, "busy"), Pace(8, None, 0, ""), Pace(0, None, 2, "")
    assert add_paces([limited, limited, ended], [100.0, 100.0]) == Pace(16, 200.0, 4, "busy")
    assert add_paces([limited, free], [100.0, None]) == Pace(16, None, 1, "busy")
    assert add_paces([limited, free], []) == Pace(16, None, 1, "busy")
