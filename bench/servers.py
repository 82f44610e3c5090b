"""The real S3 server of the benches: SeaweedFS on loopback, with a bucket."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from async_maps.demo import seaweed
from bench.measure import BUCKET

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def real_server() -> Iterator[dict[str, str]]:
    """A server for the length of the ``with`` block: the environment variables that lead any AWS client to it."""
    with (
        tempfile.TemporaryDirectory(prefix="async-maps-bench-") as folder,
        seaweed.serve(Path(folder)) as server,
        seaweed.in_environment(server),
    ):
        asyncio.run(seaweed.create_bucket(server, BUCKET))
        yield server.environment()
