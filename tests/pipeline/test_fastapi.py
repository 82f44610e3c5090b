"""The service that the README shows, in FastAPI, with a real store: requests come as ASGI events."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

import async_maps as am
from tests.support.leftovers import leaves_nothing
from tests.support.maps import decode, random_map
from tests.support.s3 import fetch, keys

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytest.importorskip("fastapi")

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

README = Path(__file__).parent.parent.parent / "README.md"
DESTINATION = "s3://my-bucket/service"


class Answer(NamedTuple):
    status: int
    headers: dict[bytes, bytes]
    body: bytes


@pytest.fixture
def app(bucket: str) -> Any:
    """The README's app, with a bucket of this test."""
    (code,) = re.findall(r"^```python\n([^`]*fastapi[^`]*)^```", README.read_text(), re.MULTILINE)
    assert DESTINATION in code
    names: dict[str, Any] = {"__name__": "readme"}
    code = code.replace(DESTINATION, f"s3://{bucket}/service")
    exec(compile(code, str(README), "exec", dont_inherit=True), names)  # noqa: S102  # our own README
    return names["app"]


async def post(app: Any, name: str, body: bytes) -> Answer:
    """One request, as a server hands it to the app."""
    scope = {
        "type": "http", "method": "POST", "path": f"/maps/{name}", "raw_path": b"", "query_string": b"", "headers": [],
        "http_version": "1.1", "scheme": "http", "asgi": {"version": "3.0"}, "app": app,
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    await app(scope, receive, send)
    start, *parts = sent
    return Answer(start["status"], dict(start["headers"]), b"".join(part["body"] for part in parts))


def npy(array: NDArray[np.generic]) -> bytes:
    body = io.BytesIO()
    np.save(body, array)
    return body.getvalue()


async def test_a_map_is_answered_with_its_locator(app: Any, bucket: str) -> None:
    cam = random_map(1)
    async with app.router.lifespan_context(app):
        answer = await post(app, "val/0001", npy(cam))
    assert answer.status == 200
    locator = json.loads(answer.body)["locator"]
    assert locator == f"s3://{bucket}/service/val/0001.png"
    (png,) = await fetch([locator])
    assert np.array_equal(decode(png), am.colorize_activation_map(cam))


@pytest.mark.parametrize(
    ("body", "reason"),
    [(b"", b"magic string"), (npy(np.full((8, 8), np.nan)), b"found NaN"), (npy(np.zeros((3, 4, 5))), b"shape")],
)
async def test_a_body_that_is_no_map_is_answered_422(app: Any, body: bytes, reason: bytes) -> None:
    async with app.router.lifespan_context(app):
        answer = await post(app, "val/0001", body)
    assert answer.status == 422
    assert reason in answer.body


async def test_a_burst_is_shed_with_503_and_what_is_answered_200_is_stored(app: Any, bucket: str) -> None:
    body = npy(np.zeros((8, 8), np.uint8))
    async with app.router.lifespan_context(app):
        answers = await asyncio.gather(*(post(app, f"burst/{i:04}", body) for i in range(1000)))
    statuses = Counter(answer.status for answer in answers)
    assert statuses.keys() == {200, 503}
    assert await keys(bucket) == {
        f"service/burst/{i:04}.png" for i, answer in enumerate(answers) if answer.status == 200
    }
    shed = [answer for answer in answers if answer.status == 503]
    assert all(1 <= int(answer.headers[b"retry-after"]) <= 61 and b"full" in answer.body for answer in shed)
