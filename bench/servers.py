"""The real S3 server of the benchmarks: SeaweedFS on loopback, with a bucket."""

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
    """Run a server during the ``with`` block. Yields the environment variables for AWS clients."""
    with (
        tempfile.TemporaryDirectory(prefix="async-maps-bench-") as folder,
        seaweed.serve(Path(folder)) as server,
        seaweed.in_environment(server),
    ):
        asyncio.run(seaweed.create_bucket(server, BUCKET))
        yield server.environment()
