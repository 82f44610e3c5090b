"""Connections are used again only if that is safe, and end when they must."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from async_maps.filesystems import http_pool
from async_maps.filesystems.blame import judge
from async_maps.filesystems.http_messages import AnswerError, AnswerParser, request_head
from async_maps.filesystems.http_pool import Pool
from async_maps.filesystems.http_session import Watches
from async_maps.filesystems.time_limits import TimeLimits
from async_maps.filesystems.traffic import Traffic
from tests.support.certificates import make_certificate
from tests.support.leftovers import leaves_nothing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from async_maps.filesystems.http_connection import Connection

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
LARGE = bytes(8 * 2**20)
"""More than the buffers of both sides hold."""
_BUFFER = 16 * 2**10


class Server:
    """A server with a list of what it does, one for each connection; the last one goes on.

    Attributes:
        scripts: called with the reader and the writer of a connection.
        heads: the heads of the requests that were read.
        connections: the number of connections so far.
        open: the number of open connections.
    """

    def __init__(self) -> None:
        self.scripts: list[Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]] = [self.accept]
        self.heads: list[bytes] = []
        self.connections = self.open = 0
        self.port = 0
        self.answer = OK
        self._changed = asyncio.Condition()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        try:
            await script(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()
            async with self._changed:
                self.open -= 1
                self._changed.notify_all()

    async def read(self, reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await self.read(reader)
            writer.write(self.answer)

    async def leave(self, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await self.read(reader)

    async def left(self, expected: int = 0) -> None:
        """Wait until only that many connections are open."""
        async with asyncio.timeout(60), self._changed:
            await self._changed.wait_for(lambda: self.open == expected)


@asynccontextmanager
async def running(certificate: Path | None = None) -> AsyncIterator[Server]:
    server, tls = Server(), None
    if certificate is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate)
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    listening.bind(("127.0.0.1", 0))
    serving = await asyncio.start_server(server.serve, sock=listening, limit=_BUFFER, ssl=tls)
    server.port = listening.getsockname()[1]
    try:
        yield server
    finally:
        serving.close()
        await server.left()
        await serving.wait_closed()


@asynccontextmanager
async def opened(server: Server, *, limit: int = 4, tls: ssl.SSLContext | bool | None = None) -> AsyncIterator[Client]:
    client = Client(f"https://localhost:{server.port}" if tls else f"http://127.0.0.1:{server.port}", limit, tls)
    try:
        yield client
    finally:
        await client.pool.close()
        client.watches.close()


class Client:
    def __init__(self, origin: str, limit: int, tls: ssl.SSLContext | bool | None) -> None:
        self.pool = Pool(origin, limit=limit, connect_timeout_s=60.0, tls=tls, traffic=Traffic())
        self.watches = Watches(TimeLimits(60.0, 60.0))
        self.heads = 0

    async def put(self, body: bytes = b"pixels", *, may_repeat: bool = True) -> AnswerParser:
        def head() -> bytes:
            self.heads += 1
            return request_head("PUT", "/", {"Content-Length": str(len(body))})

        async with asyncio.timeout(60):
            with self.watches.watch(len(body)) as watch:
                return await self.pool.request(watch, head, body, may_repeat=may_repeat)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"), ["localhost"])


async def test_a_certificate_that_is_not_trusted_is_refused(certificate: Path) -> None:
    async with running(certificate) as server, opened(server, tls=True) as client:
        with pytest.raises(ssl.SSLCertVerificationError):
            await client.put()
        assert server.heads == []


async def test_requests_in_turn_share_a_connection() -> None:
    async with running() as server, opened(server) as client:
        for _ in range(5):
            assert (await client.put()).status == 200
        assert (server.connections, len(server.heads)) == (1, 5)


async def test_no_more_connections_than_the_limit() -> None:
    async with running() as server, opened(server, limit=2) as client:
        await asyncio.gather(*(client.put() for _ in range(20)))
        assert (server.connections, len(server.heads)) == (2, 20)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\nContent-Length: 0\r\n\r\n",
        OK + b"HTTP/1.1 408 Request Timeout\r\n",
    ],
    ids=["close", "1.0", "soon closed", "leftover"],
)
async def test_a_connection_that_may_end_is_not_used_again(answer: bytes) -> None:
    async with running() as server, opened(server) as client:
        server.answer = answer
        for _ in range(3):
            assert (await client.put(may_repeat=False)).status == 200
        assert (server.connections, len(server.heads)) == (3, 3)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + OK,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ],
    ids=["1xx", "chunks"],
)
async def test_a_connection_is_used_again_after_every_whole_answer(answer: bytes) -> None:
    async with running() as server, opened(server) as client:
        server.answer = answer
        for _ in range(3):
            assert (await client.put()).status == 200
        assert (server.connections, len(server.heads)) == (1, 3)


async def test_bytes_on_an_idle_connection_close_it() -> None:
    async with running() as server, opened(server) as client:
        speak = asyncio.Event()

        async def answer_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.read(reader)
            writer.write(OK)
            await speak.wait()
            writer.write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
            await reader.read()

        server.scripts = [answer_late, server.accept]
        await client.put()
        speak.set()
        await server.left()
        assert (await client.put(may_repeat=False)).status == 200
        assert client.heads == 2


async def test_an_idle_connection_that_the_server_closed_is_not_used() -> None:
    async with running() as server, opened(server) as client:

        async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.read(reader)
            writer.write(OK)
            await writer.drain()
            writer.write_eof()
            await reader.read()

        server.scripts = [once, server.accept]
        await client.put()
        await server.left()
        assert (await client.put(may_repeat=False)).status == 200
        assert client.heads == 2


@pytest.mark.parametrize("may_repeat", [True, False])
async def test_a_request_on_a_kept_connection_that_broke_is_repeated_if_it_may_be(may_repeat: bool) -> None:
    async with running() as server, opened(server) as client:

        async def break_second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.read(reader)
            writer.write(OK)
            await server.read(reader)

        server.scripts = [break_second, server.accept]
        await client.put()
        if may_repeat:
            assert (await client.put()).status == 200
        else:
            with pytest.raises(OSError, match="without an answer"):
                await client.put(may_repeat=False)
        # It is signed again.
        assert client.heads == len(server.heads) == (3 if may_repeat else 2)


async def test_a_request_on_a_new_connection_is_not_repeated() -> None:
    async with running() as server, opened(server) as client:
        server.scripts = [server.leave]
        with pytest.raises(AnswerError, match="without an answer"):
            await client.put()
        assert client.heads == 1


async def test_a_server_that_closes_new_connections_ends_the_request() -> None:
    async with running() as server, opened(server) as client:

        async def leave(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
            pass

        server.scripts = [leave]
        for _ in range(20):
            with pytest.raises(OSError, match=r"closed|reset"):
                await client.put()
        assert client.pool._open == set()


async def test_a_connection_that_ends_before_its_first_request_ends_the_request() -> None:
    async with running() as server, opened(server) as client:
        connect = client.pool._connect

        async def connect_and_lose() -> Connection:
            connection = await connect()
            connection.transport.abort()
            await asyncio.sleep(0.01)
            return connection

        client.pool._connect = connect_and_lose  # type: ignore[method-assign]
        with pytest.raises(ConnectionResetError, match="before the request"):
            await client.put()
        assert server.heads == []


async def test_a_request_with_a_part_of_an_answer_is_not_repeated() -> None:
    async with running() as server, opened(server) as client:

        async def break_second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.read(reader)
            writer.write(OK)
            await server.read(reader)
            writer.write(OK[:9])
            await writer.drain()
            writer.write_eof()
            await reader.read()

        server.scripts = [break_second, server.accept]
        await client.put()
        with pytest.raises(AnswerError, match="amid its answer"):
            await client.put()
        assert client.heads == 2


async def test_an_answer_before_a_reset_is_the_answer() -> None:
    async with running() as server, opened(server) as client:

        async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.read(reader)
            writer.write(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

        server.scripts = [reset]
        assert (await client.put()).status == 503


async def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    async with running() as server, opened(server) as client:

        async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.read(reader)
            writer.write(b"HTTP/1.1 400 Bad\r\n\r\n<Error/>")
            await writer.drain()
            writer.write_eof()
            await reader.read()

        server.scripts = [end]
        answer = await client.put()
        assert (answer.status, answer.body) == (400, b"<Error/>")


async def test_an_answer_before_the_body_was_sent_ends_the_connection() -> None:
    async with running() as server, opened(server) as client:

        async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n")
            await asked.wait()

        asked = asyncio.Event()
        server.scripts = [refuse, server.accept]
        assert (await client.put(LARGE)).status == 400
        assert (await client.put(may_repeat=False)).status == 200
        asked.set()
        assert server.connections == 2


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("with_tls", [False, True], ids=["plain", "TLS"])
def test_a_large_body_is_sent_in_pieces(with_tls: bool, loop: str, certificate: Path) -> None:
    tls = ssl.create_default_context(cafile=certificate) if with_tls else None

    async def put() -> None:
        async with running(certificate if with_tls else None) as server, opened(server, tls=tls) as client:
            read = asyncio.Event()

            async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await read.wait()
                await server.accept(reader, writer)

            server.scripts = [wait]
            putting = asyncio.create_task(client.put(LARGE))
            while not any(connection._is_paused for connection in client.pool._open):
                assert not putting.done()
                await asyncio.sleep(0.001)
            (connection,) = client.pool._open
            assert 0 < connection.transport.get_write_buffer_size() < 2**20
            read.set()
            assert (await putting).status == 200
            assert (await client.put()).status == 200
            assert server.connections == 1

    (asyncio if loop == "asyncio" else pytest.importorskip("uvloop")).run(put())


async def test_a_cancelled_request_ends_its_connection() -> None:
    async with running() as server, opened(server) as client:
        asked = asyncio.Event()

        async def wait(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
            await server.read(reader)
            asked.set()
            await reader.read()

        server.scripts = [wait]
        putting = asyncio.create_task(client.put())
        await asked.wait()
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        await server.left()


async def test_closing_ends_all_requests_and_connections() -> None:
    async with running() as server, opened(server) as client:
        await client.put()
        asked = asyncio.Event()

        async def wait(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
            await server.read(reader)
            asked.set()
            await reader.read()

        idle, client.pool._idle = client.pool._idle, []
        server.scripts = [wait]
        putting = asyncio.create_task(client.put())
        await asked.wait()
        client.pool._idle = idle
        await client.pool.close()
        with pytest.raises(OSError, match="closed"):
            await putting
        await server.left()
        with pytest.raises(ConnectionError, match="the client is closed"):
            await client.put()


async def test_idle_connections_are_closed_before_the_server_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_pool, "_IDLE_S", 0.05)
    async with running() as server, opened(server) as client:
        await asyncio.gather(client.put(), client.put())
        await server.left()
        assert client.pool._idle == []
        assert client.pool._timer is None


async def test_addresses_are_tried_in_turn_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as server, opened(server) as client:
        loop = asyncio.get_running_loop()
        asked: list[str] = []
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            dead = closed.getsockname()[1]

            async def resolve(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
                asked.append(host)
                kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
                return [(*kind, ("127.0.0.1", number)) for number in (dead, port, dead)]

            monkeypatch.setattr(loop, "getaddrinfo", resolve)
            await asyncio.gather(client.put(), client.put())
            assert [address[4][1] for address in client.pool._addresses] == [server.port]
            assert len(asked) == 1
            client.pool._resolved_until = loop.time()
            await asyncio.gather(*(client.put() for _ in range(3)))
            assert len(asked) == 2


async def test_a_name_is_resolved_again_after_no_address_answered() -> None:
    async with running() as server, opened(server) as client:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            port, client.pool._port = client.pool._port, closed.getsockname()[1]
            with pytest.raises(ConnectionRefusedError):
                await client.put()
        client.pool._port = port
        assert (await client.put()).status == 200


async def test_a_server_that_does_not_accept_connections_ends_the_request() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(listening.getsockname())
        server = Server()
        server.port = listening.getsockname()[1]
        async with opened(server) as client:
            client.pool._connect_timeout_s = 0.1
            with pytest.raises(TimeoutError, match=r"did not accept a connection within 0\.1 s"):
                await client.put()
        for each in waiting:
            each.close()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("with_tls", [False, True], ids=["plain", "TLS"])
def test_a_request_cancelled_when_its_connection_is_made_leaves_none(
    with_tls: bool, loop: str, certificate: Path
) -> None:
    class Open(set["Connection"]):
        """Cancels the request whose connection is made."""

        def add(self, connection: Connection) -> None:
            super().add(connection)
            if not victim[0].done():
                victim[0].cancel()

    victim: list[asyncio.Task[AnswerParser]] = []

    async def cancel() -> None:
        trusting = ssl.create_default_context(cafile=str(certificate)) if with_tls else None
        async with running(certificate if with_tls else None) as server, opened(server, tls=trusting) as client:
            client.pool._open = Open()
            victim.append(asyncio.create_task(client.put()))
            with pytest.raises(asyncio.CancelledError):
                await victim[0]
            assert not client.pool._open
            # Its file's number is that of the next connection.
            for _ in range(4):
                assert (await client.put()).status == 200
            assert len(client.pool._open) == 1

    (asyncio if loop == "asyncio" else pytest.importorskip("uvloop")).run(cancel())


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.EINVAL, errno.EAFNOSUPPORT])
async def test_a_connection_that_the_system_refuses_blames_no_object(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    async with running() as server, opened(server) as client:
        monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", refuse)
        with pytest.raises(ConnectionError, match=os.strerror(number)) as raised:
            await client.put()
    assert judge(raised.value).retry
