from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from async_maps.errors import StoreError
from async_maps.filesystems.blame import judge_answer
from async_maps.filesystems.verdict import store_error
from async_maps.stages.control import Control
from async_maps.stages.judge import FEW, Case, Judge

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.fast

DENIED = judge_answer(403, "AccessDenied")


class Store:
    """Refuses the keys with that start, and records all keys."""

    def __init__(self, refused: str, earlier: list[str]) -> None:
        self.refused = refused
        self.asked: list[str] = []
        self.earlier = earlier

    async def put(self, key: str, _data: bytes) -> None:
        self.asked.append(key)
        if key.startswith(self.refused):
            raise store_error("s3://bucket", DENIED)

    def done(self) -> None:
        """Nothing waits for this."""

    async def keys(self) -> list[str]:
        return self.earlier

    async def read(self, _key: str) -> bytes:
        return b"png"

    async def check(self) -> None:
        pass


def court(refused: str, earlier: list[str] | None = None) -> tuple[Store, Control, Callable[[], Case]]:
    store = Store(refused, earlier or [])
    judge = Judge(max_attempts=10, give_up_s=300.0)
    control = Control(judge, store.put, store.check)
    control.earlier = store

    def refused_case() -> Case:
        case = Case()
        judge.begin(case)
        judge.refused(case, DENIED)
        return case

    return store, control, refused_case


@pytest.mark.parametrize("newest_first", [True, False])
def test_an_object_that_is_refused_itself_is_followed_by_another_one(newest_first: bool) -> None:
    keys = ["sub/1", "good/1"] if newest_first else ["good/1", "sub/1"]
    store, control, refused_case = court("sub/")
    for key in keys:
        control.keep(key, b"png")

    async def main() -> None:
        assert await control.ask(refused_case())

    asyncio.run(main())
    assert store.asked[-1] == "good/1"


def test_earlier_objects_are_asked_for_after_those_of_this_run() -> None:
    store, control, refused_case = court("sub/", ["sub/2", "good/1"])
    control.keep("sub/1", b"png")

    async def main() -> None:
        assert await control.ask(refused_case())

    asyncio.run(main())
    assert store.asked == ["sub/1", "sub/2", "good/1"]


def test_all_are_refused_if_a_few_kept_objects_are() -> None:
    store, control, refused_case = court("", [f"old/{number}" for number in range(9)])
    for number in range(3):
        control.keep(f"new/{number}", b"png")

    async def main() -> None:
        first, second = refused_case(), refused_case()
        for case in first, second:
            with pytest.raises(StoreError, match="refused with AccessDenied"):
                await control.ask(case)

    asyncio.run(main())
    assert len(store.asked) == len(set(store.asked)) == FEW  # the second case needs no request


def test_bytes_are_not_put_again_while_others_with_their_key_are_on_their_way() -> None:
    store, control, refused_case = court("none")

    async def main() -> None:
        async with control.making_way("a"):
            async with control.making_way("a"):
                pass
            control.keep("a", b"of the first")
            assert not await control.ask(refused_case())
        control.keep("a", b"of the second")
        assert await control.ask(refused_case())

    asyncio.run(main())
    assert store.asked == ["a"]


def test_only_a_few_small_objects_or_one_large_one_are_kept() -> None:
    _, control, _ = court("none")
    large, larger = bytes(100_000), bytes(200_000)
    control.keep("larger", larger)
    control.keep("large", large)
    control.keep("larger", larger)
    assert list(control._kept) == ["large"]
    for number in range(2 * FEW):
        control.keep(f"{number}", b"png")
        control.keep("large", large)
    assert list(control._kept) == ["5", "6", "7", "8", "9"]
