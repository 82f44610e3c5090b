"""Who is let in: requests over a raw socket."""

from __future__ import annotations

from http.cookiejar import CookieJar
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import TYPE_CHECKING
from urllib.request import HTTPCookieProcessor, build_opener

import pytest

import async_maps as am
from async_maps.viewer.guard import Guard
from async_maps.viewer.server import Viewer
from tests.support.leftovers import leaves_nothing
from tests.support.viewing import Client, make_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.runs

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("guard")
    with Viewer(make_run(folder, 1), hosts=["proxy.example"]) as viewer:
        yield Client(viewer)


def request(client: Client, target: str, *lines: str, method: str = "GET", cookie: bool = True) -> tuple[int, str]:
    """Ask for a target below the folder of all addresses."""
    head = [
        f"{method} {client.root}{target.removeprefix('/')} HTTP/1.1",
        *lines,
        *([f"Cookie: {client.cookie}"] if cookie else []),
        "Connection: close",
    ]
    answer = client.raw("\r\n".join([*head, "", ""]).encode()).decode("latin-1")
    return int(answer.split(" ", 2)[1]), answer


def host(client: Client) -> str:
    return f"Host: 127.0.0.1:{client.port}"


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", "proxy.example"])
@pytest.mark.parametrize("port", ["", ":9000"])
def test_names_of_this_machine_are_allowed_with_any_port(client: Client, name: str, port: str) -> None:
    assert request(client, "/api/manifest", f"Host: {name}{port}")[0] == 200


@pytest.mark.parametrize(
    "lines",
    [
        ["Host: evil.example"],
        ["Host: 127.0.0.1.evil.example"],
        ["Host: localhost@evil.example"],
        ["Host: evil.example:80"],
        ["Host: 127.0.0.1:x"],
        ["Host: "],
        [],
        ["Host: 127.0.0.1", "Host: evil.example"],
        ["Host: 0.0.0.0"],
    ],
)
def test_other_hosts_are_refused_with_the_token_too(client: Client, lines: list[str]) -> None:
    for target in ("/", f"/?token={client.token}", "/api/manifest", "/map/1"):
        status, answer = request(client, target, *lines)
        assert status in {400, 403}
        assert "Set-Cookie" not in answer


@pytest.mark.parametrize(
    "target", ["/", "/main.js", "/api/manifest", "/map/1", "/map/1/indices", "/image/1", "/nothing"]
)
def test_nothing_is_answered_without_the_token(client: Client, target: str) -> None:
    status, answer = request(client, target, host(client), cookie=False)
    assert status == 401
    assert "async-maps view has printed" in answer
    for cookie in (f"async-maps-{client.port}=", f"async-maps-{client.port}=wrong", f"async-maps-1={client.token}"):
        assert request(client, target, host(client), f"Cookie: {cookie}", cookie=False)[0] == 401


@pytest.mark.parametrize(("line", "status"), [("Host: 127.0.0.1", 204), ("Host: other.example", 403)])
def test_the_icon_that_browsers_ask_for_is_no_error(client: Client, line: str, status: int) -> None:
    answer = client.raw(f"GET /favicon.ico HTTP/1.1\r\n{line}\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"Set-Cookie" not in answer


def test_the_token_becomes_a_cookie_and_leaves_the_address(client: Client) -> None:
    status, answer = request(client, f"/?token={client.token}", host(client), cookie=False)
    assert status == 303
    assert "\r\nLocation: ./\r\n" in answer
    assert f"\r\nSet-Cookie: {client.cookie}; HttpOnly; SameSite=Strict\r\n" in answer
    for wrong in ("", "wrong", client.token[:-1], f"{client.token}x", "%00", "%ff"):
        status, answer = request(client, f"/?token={wrong}", host(client), cookie=False)
        assert status == 401
        assert "Set-Cookie" not in answer


def test_a_link_on_another_site_leads_to_the_page(client: Client) -> None:
    fetched = ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"]
    status, answer = request(client, "/", host(client), *fetched, cookie=False)
    assert status == 200
    assert "\r\nRefresh: 0; url=./\r\n" in answer
    assert answer.endswith("\r\n\r\n")
    assert request(client, "/", host(client), "Sec-Fetch-Site: same-origin", fetched[1], cookie=False)[0] == 401
    assert request(client, "/map/1", host(client), *fetched, cookie=False)[0] == 401


@pytest.mark.parametrize("target", ["/", "/main.js", "/api/manifest", "/map/1", "/{root}", "/x/api/manifest"])
def test_nothing_is_answered_outside_the_folder_with_a_random_name(client: Client, target: str) -> None:
    target = target.format(root=client.root.strip("/"))
    cookie = f"Cookie: {client.cookie}\r\n"
    for query, more in (("", cookie), (f"?token={client.token}", "")):
        answer = client.raw(
            f"GET {target}{query} HTTP/1.1\r\n{host(client)}\r\n{more}Connection: close\r\n\r\n".encode()
        )
        assert answer.split(b" ", 2)[1] == (b"404" if more else b"401")
        assert b"Set-Cookie" not in answer


def test_browsers_send_the_cookie_to_no_other_port(client: Client) -> None:
    heard: list[str | None] = []

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # theirs
            heard.append(self.headers.get("Cookie"))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    address = f"http://127.0.0.1:{client.port}{client.root}"
    with HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        browser = build_opener(HTTPCookieProcessor(CookieJar()))
        assert browser.open(f"{address}?token={client.token}").status == 200
        assert browser.open(f"{address}api/manifest").status == 200
        browser.open(f"http://127.0.0.1:{server.server_port}/").read()
        server.shutdown()
        thread.join()
    assert heard == [None]


@pytest.mark.parametrize("name", ["https://proxy.example", "proxy.example:443", "proxy.example/path", "", "a b"])
def test_allowed_hosts_are_names(name: str) -> None:
    with pytest.raises(am.SettingsError, match="allowed host"):
        Guard([name])


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
def test_only_reading_is_allowed(client: Client, method: str) -> None:
    assert request(client, "/api/manifest", host(client), method=method)[0] in {400, 405}


@pytest.mark.parametrize(
    "target",
    [
        "/../../etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/%2e%2e/app.py",
        "/page/main.js",
        "/main.js/",
        "/__init__.py",
        "//main.js",
        "/map/..",
        "/map/1/../../x",
        "/map/-1",
        "/map/1;DROP",
        "/map/" + "9" * 30,
        "/image/1%00",
        "/thumb/image/%2e%2e",
    ],
)
def test_nothing_but_the_routes_is_found(client: Client, target: str) -> None:
    status, answer = request(client, target, host(client))
    assert status in {400, 404}
    assert "root:" not in answer


@pytest.mark.parametrize("target", ["/", "/main.js", "/api/manifest", "/api/order/x/rows", "/map/1", "/nothing"])
def test_all_answers_have_the_headers(client: Client, target: str) -> None:
    for cookie in (True, False):
        _, answer = request(client, target, host(client), cookie=cookie)
        for header in (
            f"Content-Security-Policy: {POLICY}",
            "X-Content-Type-Options: nosniff",
            "Cross-Origin-Resource-Policy: same-origin",
            "Referrer-Policy: no-referrer",
            "Server: async-maps",
        ):
            assert f"\r\n{header}\r\n" in answer
        assert "Access-Control" not in answer


LONG = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nA: " + b"a" * 70_000 + b"\r\n\r\n"


@pytest.mark.parametrize("data", [b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01" + b"x" * 100, LONG])
def test_garbage_gets_no_content_and_no_traceback(
    client: Client, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert b"main.js" not in client.raw(data)
    assert client.get("/api/manifest").status == 200
    assert not caplog.records


@pytest.mark.usefixtures(leaves_nothing.__name__)
def test_the_server_ends_and_leaves_nothing(tmp_path: Path) -> None:
    with Viewer(make_run(tmp_path, 1)) as viewer:
        own = Client(viewer)
        assert own.get("/api/manifest").status == 200
        assert own.token not in str(vars(viewer).keys())
    with pytest.raises(OSError, match="refused"):
        own.get("/")
