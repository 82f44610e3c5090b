"""The proxies that the environment names: ``HTTPS_PROXY``, ``HTTP_PROXY`` and ``NO_PROXY``."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from urllib3 import PoolManager, ProxyManager
from urllib3.util import make_headers

from async_maps.errors import SettingsError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    from urllib3 import BaseHTTPResponse


def is_server(url: str) -> bool:
    """Whether a URL has a host and, if any, a port that a request can be sent to."""
    try:
        server = urlsplit(url)
        return server.scheme in {"http", "https"} and bool(server.hostname) and server.port != 0
    except ValueError:
        return False


def proxy_for(url: str) -> str | None:
    """Return the URL of the proxy for requests to a server; None if there is none.

    Raises:
        SettingsError: the proxy's URL is not valid.
    """
    server = urlsplit(url)
    proxy = None if proxy_bypass(server.netloc) else getproxies().get(server.scheme)
    if not proxy:
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if not is_server(proxy):
        # Not shown: it may have a password.
        raise SettingsError(f"{server.scheme.upper()}_PROXY: expected http://host:port")
    return proxy


class Http:
    """Requests of urllib3, through the proxies of their servers. Blocks.

    Args:
        options: those of :class:`urllib3.PoolManager`.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._pools: dict[str | None, PoolManager] = {}

    def __enter__(self) -> Http:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for pool in self._pools.values():
            pool.clear()

    def request(self, method: str, url: str, **arguments: Any) -> BaseHTTPResponse:
        """Send a request, as :meth:`urllib3.PoolManager.request`."""
        proxy = proxy_for(url)
        if proxy not in self._pools:
            self._pools[proxy] = PoolManager(**self._options) if proxy is None else _manager(proxy, self._options)
        return self._pools[proxy].request(method, url, **arguments)


def _manager(proxy: str, options: dict[str, Any]) -> ProxyManager:
    user, at, _ = urlsplit(proxy).netloc.rpartition("@")
    headers = make_headers(proxy_basic_auth=unquote(user)) if at else None
    return ProxyManager(proxy, proxy_headers=headers, **options)
