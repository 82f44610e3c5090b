"""Fixtures for every test, and the choice of tests for ``pytest -m fast`` and ``pytest -m long``.

Imports that fast tests do not need are inside functions.
"""

from __future__ import annotations

import asyncio
import gc
import io
import itertools
import os
import random
import signal
import tempfile
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import properties
from tests.support.leftovers import leaves_nothing, pipe_of_libuv
from tests.support.skipped import SkippedTests, choose

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_maps.demo.seaweed import S3Server

__all__ = ["leaves_nothing", "pipe_of_libuv"]

_numbers = itertools.count(1)
_QUICK = {
    "fast": "fast and not runs and not slow and not long",
    "runs": "runs and not slow and not long",
    "fast or runs": "(fast or runs) and not slow and not long",
}
"""The choices of tests without a server. The others are not even imported."""
_CORES = 4
_LONG = "long or hypothesis"
"""Hypothesis marks the tests that it decorates."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the choice of the S3 server, and of the tests that were skipped before."""
    parser.addoption(
        "--s3-server", choices=["seaweedfs", "moto", "s3rver"], default="seaweedfs", help="the S3 server of the tests"
    )
    parser.addoption("--write-skipped", type=Path, metavar="FILE", help="write the ids of skipped tests to FILE")
    parser.addoption("--screenshots", type=Path, metavar="FOLDER", help="write the pictures of the viewer to FOLDER")
    parser.addoption("--only", type=Path, metavar="FILE", help="run only tests whose ids are in FILE")


def pytest_configure(config: pytest.Config) -> None:
    """In a fast run, leave out other tests of fast files; in a long run, add all tests with generated examples."""
    # A shell starts background commands with SIGINT ignored, and the commands of tests would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # With more than four cores, maps in files would go to lanes, where a test cannot replace a method.
    if hasattr(os, "sched_setaffinity") and len(cores := os.sched_getaffinity(0)) > _CORES:
        os.sched_setaffinity(0, random.sample(sorted(cores), _CORES))
    config.option.markexpr = _QUICK.get(config.option.markexpr, config.option.markexpr)
    if config.option.markexpr in _QUICK.values():
        properties.share = 0.1
        # A full collection takes 0.2 s, because the heap has the modules of all tests.
        gc.set_threshold(700, 10, 100)
    elif config.option.markexpr in {"long", _LONG}:
        config.option.markexpr = _LONG
        properties.share = 20
    elif "long" not in config.option.markexpr:
        config.option.markexpr = f"({config.option.markexpr or 'slow or not slow'}) and not long"
    if config.option.write_skipped and not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkippedTests(config.option.write_skipped))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``-m fast``, do not import files without fast tests."""
    if config.option.markexpr not in _QUICK.values() or not collection_path.name.startswith("test_"):
        return None
    words = config.option.markexpr.replace("not runs", "")
    marks = [f"pytest.mark.{name}" for name in ("fast", "runs") if name in words]
    text = collection_path.read_text(encoding="utf-8")
    return not any(mark in text for mark in marks) or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose the tests of ``--only``, and limit slow tests later. Skip the tests of what the server lacks."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))
    if config.option.only:
        choose(config, items, config.option.only)
    if config.option.s3_server != "seaweedfs":
        lacking = pytest.mark.skip(reason="only SeaweedFS checks signatures, checksums and policies")
        for item in items:
            if item.get_closest_marker("seaweedfs"):
                item.add_marker(lacking)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """Collect the garbage of the tests: pytest then does it five times, each in 0.2 s if the heap is not frozen."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_temporary_folder() -> Iterator[None]:
    """Keep the temporary files of this session apart from those of other programs."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="tests-") as folder, pytest.MonkeyPatch.context() as patch:
        # Some tests continue as another user.
        os.chmod(folder, 0o755)  # noqa: S103
        patch.setenv("TMPDIR", folder)
        tempfile.tempdir = folder
        yield
    tempfile.tempdir = before


@pytest.fixture(scope="session")
def service_descriptions_read_once() -> Iterator[None]:
    """Cache botocore's description of S3, which it reads for each session in 0.1 s."""
    import botocore.session

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", cache(botocore.session.create_loader))
        yield


@pytest.fixture(scope="session")
def s3_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, service_descriptions_read_once: None
) -> Iterator[S3Server]:
    """An S3 server on loopback: SeaweedFS, or that of ``--s3-server``."""
    from async_maps.demo import seaweed
    from tests.support import other_s3_servers

    assert request.config.option.markexpr not in _QUICK.values(), "a test without a server asks for one: unmark it"
    servers = {"seaweedfs": seaweed.serve, "moto": other_s3_servers.moto, "s3rver": other_s3_servers.s3rver}
    with servers[request.config.option.s3_server](tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server) -> Iterator[S3Server]:
    """The server, with this process's AWS environment variables set to it."""
    from async_maps.demo import seaweed

    with seaweed.in_environment(s3_server):
        yield s3_server


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """A new bucket on the server."""
    from async_maps.demo import seaweed

    name = f"bucket-{next(_numbers)}"
    asyncio.run(seaweed.create_bucket(s3, name))
    return name


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    """A folder for the maps of a test."""
    folder = tmp_path / "maps"
    folder.mkdir()
    return folder


@cache
def _import_commands() -> None:
    """Import what a run imports late, from folders that an unprivileged user may not read."""
    from async_maps.cli.app import main
    from async_maps.render import deflate_kernels  # noqa: F401

    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), suppress(SystemExit):
        main(["run", "/no such folder", "out", "--dry-run"])


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder of a user without root's permissions; the process runs as this user during the test."""
    _import_commands()
    nobody = 65534
    # Not tmp_path, which is in a folder that only root may enter.
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
