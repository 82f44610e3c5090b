"""Whether the server takes two keys as one object is found out also while its answers fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from async_maps.errors import ObjectError, TransientError
from async_maps.settings import Settings
from async_maps.stores import open_store
from tests.support.odd_server import OddServer, odd_server

if TYPE_CHECKING:
    from tests.support.odd_server import Asked

__all__ = ["odd_server"]


@pytest.mark.parametrize("failed", [1, 2], ids=["before the PUT", "after the PUT"])
async def test_a_question_that_got_no_answer_is_asked_again(
    failed: int, odd_server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, asked_for = odd_server.answer, 0

    def as_slash(asked: Asked, body: bytes) -> tuple[int, dict[str, str], bytes]:
        nonlocal asked_for
        is_question = asked.method == "HEAD" and asked.path.count("/") > 1
        asked_for += is_question
        if is_question and asked_for == failed:
            return 503, {}, b""
        return answer(asked._replace(path=asked.path.replace("%5C", "/")), body)

    monkeypatch.setattr(odd_server, "answer", as_slash)
    async with open_store("s3://bucket/p", Settings()) as store:
        with pytest.raises(TransientError, match="status 503"):
            await store.put("p/a\\b.png", b"a")
        with pytest.raises(ObjectError, match="as one object: rename the map"):
            await store.put("p/a\\b.png", b"a")


async def test_a_store_that_refuses_to_tell_gets_the_object(odd_server: OddServer) -> None:
    odd_server.answers = {"HEAD": (403, "AccessDenied")}
    async with open_store("s3://bucket/p", Settings()) as store:
        await store.put("p/a\\b.png", b"a")
    assert odd_server.objects["/bucket/p/a\\b.png"][0] == b"a"
