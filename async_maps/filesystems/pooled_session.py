"""An HTTP session whose own requests, beside the SDK's, use connections of :mod:`~async_maps.filesystems.http_pool`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from async_maps.filesystems.http_pool import Pool
from async_maps.filesystems.http_session import LimitedSession

if TYPE_CHECKING:
    from typing import Any


class PooledSession(LimitedSession):
    """A session with connections of its own, which have its time limits, certificates and number of connections."""

    if TYPE_CHECKING:  # what the stubs leave out
        _max_pool_connections: int

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._pools: dict[str, Pool] = {}

    async def __aexit__(self, *arguments: Any) -> None:
        try:
            for pool in self._pools.values():
                await pool.close()
        finally:
            await super().__aexit__(*arguments)

    async def pool(self, url: str) -> Pool:
        """Return the connections to the server of a URL."""
        scheme, _, host, _ = url.split("/", 3)
        origin = f"{scheme}//{host}"
        if (pool := self._pools.get(origin)) is not None:
            return pool
        # The SDK's context of TLS has the certificates of the AWS configuration.
        connector: Any = (await self._get_session(None)).connector
        made = Pool(
            origin,
            limit=self._max_pool_connections,
            connect_timeout_s=self._timeout.sock_connect,
            tls=None if scheme == "http:" else connector._ssl or True,
            traffic=self.traffic,
        )
        return self._pools.setdefault(origin, made)
