"""What doctor says of the server's features is what the table in configs/README.md says."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from tests.support.commands import invoke
from tests.support.leftovers import leaves_nothing
from tests.support.s3 import keys
from tests.support.server_table import features_of

if TYPE_CHECKING:
    import pytest

__all__ = ["leaves_nothing"]


def test_the_table_of_servers_says_what_doctor_finds(
    bucket: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    invoke("doctor", f"s3://{bucket}/p", "--quick", "--json")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {frozenset(line) for line in lines if line["check"] != "features"} == {
        frozenset({"check", "level", "text", "advice"})
    }
    (found,) = (line for line in lines if line["check"] == "features")
    assert found["features"] == features_of(request.config.option.s3_server)
    assert asyncio.run(keys(bucket)) == set()
