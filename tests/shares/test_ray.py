"""What a task of Ray gets and returns, without a cluster."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING

import pytest

import async_maps as am
from async_maps.shares.engine import Work
from async_maps.shares.part import PartDone, PartFailed
from async_maps.shares.ray import _check_answers, _described, _outcome, _run_part

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fast


async def ended(result: dict[str, object]) -> asyncio.Future[str]:
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    future.set_result(json.dumps(result))
    return future


def test_a_task_has_the_settings_of_one_cpu_and_its_share_of_the_limits() -> None:
    settings = am.Settings(rate=100.0, bandwidth="80MB", colormap="viridis", s3={"metadata": {"model": "a"}})
    found = json.loads(_described(Work("plan", settings, "retry"), places=4))
    assert (found["plan"], found["task"]) == ("plan", "retry")
    limits = {"rate": 25.0, "bandwidth": 20_000_000}
    expected = settings.model_copy(update={"processes": 1, "workers": 0, "encode_threads": 2, **limits})
    assert am.Settings(**found["settings"]) == expected


def test_a_task_keeps_the_numbers_of_processes_that_were_given() -> None:
    settings = am.Settings(processes=2, workers=3, encode_threads=4)
    found = json.loads(_described(Work("plan", settings), places=4))
    assert am.Settings(**found["settings"]) == settings


def test_a_task_returns_an_error_as_text(tmp_path: Path) -> None:
    found = json.loads(_run_part(_described(Work(str(tmp_path), am.Settings()), places=1), 1))
    assert (found["error"], found["may_pass"]) == ("PlanError", False)
    assert "has no plan.json" in found["message"]


async def test_an_error_that_all_parts_would_meet_ends_the_share() -> None:
    result = await ended({"error": "StoreError", "message": "the bucket does not exist", "may_pass": True})
    with pytest.raises(am.StoreError, match="the bucket does not exist") as refusal:
        _outcome(None, 3, result)
    assert refusal.value.may_pass


async def test_an_error_of_one_node_fails_its_part() -> None:
    result = await ended({"error": "ShortageError", "message": "no space left", "may_pass": True})
    assert _outcome(None, 3, result) == PartFailed(3, "no space left")


async def test_the_outcome_of_a_part_passes_as_json() -> None:
    done = PartDone(3, is_ours=True, uploaded=10, failed=2)
    assert _outcome(None, 3, await ended({"PartDone": done._asdict()})) == done


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}"])
async def test_an_address_where_nothing_listens_is_refused(form: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = form.format(server.getsockname()[1])
        await _check_answers(address)
    with pytest.raises(am.WorkerError, match=r"no Ray cluster answers at .*; start it, or correct the address"):
        await _check_answers(address)


async def test_other_addresses_are_left_to_ray() -> None:
    await _check_answers("auto")
    await _check_answers("")
