"""A real S3 server for the whole session, and a fresh bucket for each test that asks for one."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

import pytest

from async_maps import seaweed
from tests.leftovers import leaves_nothing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["leaves_nothing"]

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[seaweed.S3Server]:
    """SeaweedFS on loopback."""
    with seaweed.serve(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture
def s3(s3_server: seaweed.S3Server) -> Iterator[seaweed.S3Server]:
    """The server, with the AWS environment of this process pointing at it."""
    with seaweed.in_environment(s3_server):
        yield s3_server


@pytest.fixture
def bucket(s3: seaweed.S3Server) -> str:
    """A fresh bucket on the server."""
    name = f"bucket-{next(_numbers)}"
    asyncio.run(seaweed.create_bucket(s3, name))
    return name


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    """A folder for the maps of a test."""
    folder = tmp_path / "maps"
    folder.mkdir()
    return folder
