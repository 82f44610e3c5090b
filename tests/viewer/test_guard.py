"""Who is let in: requests over a raw socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

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
    head = [
        f"{method} {target} HTTP/1.1",
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
def test_garbage_gets_no_content(client: Client, data: bytes) -> None:
    assert b"main.js" not in client.raw(data)
    assert client.get("/api/manifest").status == 200


@pytest.mark.usefixtures(leaves_nothing.__name__)
def test_the_server_ends_and_leaves_nothing(tmp_path: Path) -> None:
    with Viewer(make_run(tmp_path, 1)) as viewer:
        own = Client(viewer)
        assert own.get("/api/manifest").status == 200
        assert own.token not in str(vars(viewer).keys())
    with pytest.raises(OSError, match="refused"):
        own.get("/")
