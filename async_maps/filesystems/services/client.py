"""The client of an object service: sends its requests, each within limits, and with a valid token.

Runs on the event loop. The callers decide about other attempts.
"""

from __future__ import annotations

import io
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector
from yarl import URL

from async_maps.filesystems.blame import judge, judge_answer
from async_maps.filesystems.credentials import CredentialsError
from async_maps.filesystems.http_session import WatchedRequest, Watches
from async_maps.filesystems.services.proxies import proxy_for
from async_maps.filesystems.services.service import Answer
from async_maps.filesystems.time_limits import TimeLimits, TooSlowError
from async_maps.filesystems.traffic import Traffic
from async_maps.filesystems.verdict import Scope, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from aiohttp import ClientResponse

    from async_maps.filesystems.services.service import Request, Service
    from async_maps.settings import S3Settings

NO_ANSWER = (CredentialsError, TooSlowError, ClientError, OSError)
"""The errors of a request that got no answer."""
_IDLE_S = 4.0
"""The longest time that a connection waits for a request: emulators close them after 5 s."""
_WHOLE_BYTES = 2**20
"""aiohttp sends longer bodies in pieces, if they are files."""


class Client:
    """Sends the requests of a service.

    Args:
        service: the service.
        settings: the time limits.
        connections: the maximum number of concurrent requests.
        bytes_per_s: the most that a connection sends a second; None for no limit.

    Attributes:
        traffic: counts the bytes that its connections have sent.
    """

    def __init__(
        self, service: Service, settings: S3Settings, *, connections: int, bytes_per_s: int | None = None
    ) -> None:
        self.service = service
        self.traffic = Traffic()
        self.traffic.bytes_per_s = bytes_per_s
        self._watches = Watches(TimeLimits.of(settings))
        self._connect_timeout_s = settings.connect_timeout_s
        self._connections = connections
        # aiohttp asks for it in a thread at each request.
        self._proxy = proxy_for(service.endpoint)
        self._has_answered = False

    async def __aenter__(self) -> Client:
        self._session = ClientSession(
            connector=TCPConnector(
                limit=self._connections, keepalive_timeout=_IDLE_S, socket_factory=self.traffic.open_socket
            ),
            # The watch of a request has the other limits.
            timeout=ClientTimeout(sock_connect=self._connect_timeout_s),
            request_class=WatchedRequest,
            auto_decompress=False,
            skip_auto_headers=("Accept-Encoding", "Content-Type"),
            headers={"User-Agent": "async-maps"},
        )
        # aiohttp would repeat a create-only PUT, which the service may have stored, and cannot repeat a file.
        self._session._retry_connection = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.traffic.shut_down()
        self._watches.close()
        await self._session.close()

    async def send(self, request: Request, limit: Callable[[Answer], int | None] | None = None) -> Answer:
        """Send a request, and return the answer, also of a refusal.

        Args:
            request: the request.
            limit: returns how many bytes of the body to read, of an answer without its body; None for all.

        Raises:
            CredentialsError, TooSlowError, aiohttp.ClientError, OSError: there is no answer.
        """
        token = await self._token()
        sent = self.service.authorize(request, token)
        answer = await self._send(sent, limit)
        if self.service.renews(answer, sent, token):
            answer = await self._send(self.service.authorize(request, await self._token()), limit)
        return answer

    def judge(self, answer: Answer) -> Verdict:
        """Judge a refusal."""
        return judge_answer(answer.status, *self.service.refusal(answer))

    def judge_error(self, error: BaseException) -> Verdict:
        """Judge the error of a request without an answer."""
        cause = getattr(error, "os_error", error)
        is_unknown = isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME
        if self._has_answered or self._proxy or not is_unknown:
            return judge(error)
        # In Azure, the name of the account is that of the server. Later, it is the network; with a proxy, the proxy.
        host = urlsplit(self.service.endpoint).hostname
        reason = f"there is no server {host}: {self.service.advice}"
        return Verdict(Scope.LINK, may_pass=False, certain=True, slow_down=False, reason=reason)

    async def _token(self) -> str:
        tokens = self.service.tokens
        return "" if tokens is None else await tokens.get()

    async def _send(self, request: Request, limit: Callable[[Answer], int | None] | None) -> Answer:
        body = request.body
        with self._watches.watch(len(body)) as watch:
            async with self._session.request(
                request.method,
                URL(request.url, encoded=True),
                headers=request.headers,
                data=(body if len(body) < _WHOLE_BYTES else io.BytesIO(body)) if body else None,
                allow_redirects=False,
                proxy=self._proxy,
            ) as response:
                self._has_answered = True
                answer = Answer(response.status, response.headers)
                count = limit(answer) if limit is not None else None
                watch.expect(response.content_length or 0 if count is None else count)
                return answer._replace(body=await _read(response, count))


async def _read(response: ClientResponse, count: int | None) -> bytes:
    if count is None or count >= (response.content_length or 0):
        return await response.read()
    data = await response.content.readexactly(count)
    # The connection has the rest of the body.
    response.close()
    return data
