"""A real S3 server for the whole session, and a fresh bucket for each test that asks for one."""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import botocore.session
import pytest

from async_maps.concurrency.loop import run_blocking
from async_maps.demo import seaweed
from tests.support.leftovers import leaves_nothing

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["leaves_nothing"]

_numbers = itertools.count(1)


@pytest.fixture(scope="session", autouse=True)
def own_temporary_folder() -> Iterator[None]:
    """Temporary files of this session, apart from those of whatever else runs on the machine."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="tests-") as folder, pytest.MonkeyPatch.context() as patch:
        # For tests that go on as another user, too.
        os.chmod(folder, 0o755)  # noqa: S103
        patch.setenv("TMPDIR", folder)
        tempfile.tempdir = folder
        yield
    tempfile.tempdir = before


@pytest.fixture(scope="session", autouse=True)
def service_descriptions_read_once() -> Iterator[None]:
    """botocore reads the description of S3 anew for each session: a tenth of a second, hundreds of times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", cache(botocore.session.create_loader))
        yield


@pytest.fixture(scope="session", autouse=True)
def pipe_of_libuv() -> None:
    """Make the first uvloop: libuv opens a pipe for signals then, and keeps it until the process ends."""
    run_blocking(partial(asyncio.sleep, 0))


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


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder of a user whom permissions bind, and this process as that user: root is told no nowhere."""
    nobody = 65534
    # Not tmp_path, which lies in a folder that only root may enter.
    with tempfile.TemporaryDirectory(prefix="unprivileged-") as folder:
        if os.geteuid() != 0:
            yield Path(folder)
            return
        os.chown(folder, nobody, nobody)
        os.setresuid(nobody, nobody, 0)
        try:
            yield Path(folder)
        finally:
            os.setresuid(0, 0, 0)
