"""Nobody uses the studio without its token or password, from another site, or under another name."""

import asyncio
import socket
from typing import Any
from unittest import mock

import pytest

from tests.support.studio import requests

access = pytest.importorskip("tinyllm.studio.access", reason="needs the extra studio")


async def pages(scope: Any, receive: Any, send: Any) -> None:
    """Stands for the pages: says how many bytes it got."""
    size, more = 0, scope["type"] == "http"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


@pytest.fixture(autouse=True)
def no_pause() -> Any:
    with mock.patch.object(access, "PAUSE_S", 0.0):
        yield


def guarded(**more: Any) -> Any:
    return access.Access(pages, port=8080, **more)


def test_a_token_is_exchanged_once_for_a_cookie() -> None:
    told: list[str] = []
    guard = guarded(tell=told.append)
    first = guard.token
    refused, wrong, taken, page, again = requests(
        guard,
        ("GET", "/"),
        ("GET", "/?token=wrong"),
        ("GET", f"/runs?run=a%20b&token={first}"),
        ("GET", "/runs"),
        ("GET", f"/?token={first}"),
    )
    assert refused.status_code == wrong.status_code == 401 and "set-cookie" not in refused.headers
    assert taken.status_code == 303 and taken.headers["location"] == "/runs?run=a+b"
    cookie = taken.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and first.lower() not in cookie
    assert page.status_code == 200 and page.headers["x-frame-options"] == "SAMEORIGIN"
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert again.status_code == 303 and again.headers["location"] == "/"  # this browser has a cookie already
    # Another browser needs another token, which was told.
    assert told == [guard.token] != [first]
    assert requests(guard, ("GET", f"/?token={first}"))[0].status_code == 401
    assert requests(guard, ("GET", f"/?token={told[0]}"))[0].status_code == 303


def test_the_way_back_from_the_token_stays_on_this_host() -> None:
    guard = guarded()
    [taken] = requests(guard, ("GET", f"http://localhost:8080//evil.example/%5cx?token={guard.token}"))
    assert taken.headers["location"].startswith("/evil.example/")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "127.0.0.1:8080"}, 200),
        ({"host": "[::1]:8080"}, 200),
        ({"origin": "http://localhost:8080"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example:8080"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "192.0.2.1:8080"}, 403),
        ({"host": ""}, 403),
        ({"host": "[::1"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://localhost:9999"}, 403),
        ({"origin": "http://127.0.0.1:8080"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_other_hosts_and_sites_are_refused(headers: dict[str, str], status: int) -> None:
    guard = guarded()
    _, answer = requests(guard, ("GET", f"/?token={guard.token}"), ("GET", "/", {"headers": headers}))
    assert answer.status_code == status


def test_beyond_this_machine_an_address_is_a_host_and_a_foreign_name_is_not() -> None:
    guard = guarded(local=False, password="long enough")
    for host, status in (("192.0.2.1:8080", 401), (socket.gethostname(), 401), ("evil.example:8080", 403)):
        assert requests(guard, ("GET", "/", {"headers": {"host": host}}))[0].status_code == status


def test_the_password_opens_the_studio_and_a_wrong_one_does_not() -> None:
    guard = guarded(password="päßword 1")
    ask, wrong, right, page = requests(
        guard,
        ("GET", "/runs"),
        ("POST", "/login", {"data": {"password": "password 1"}}),
        ("POST", "/login", {"data": {"password": "päßword 1"}}),
        ("GET", "/runs"),
    )
    assert ask.status_code == wrong.status_code == 401 and '<label for="password">' in ask.text
    assert right.status_code == 303 and page.status_code == 200
    # Without a password there is no way in by /login.
    assert requests(guarded(), ("POST", "/login", {"data": {"password": ""}}))[0].status_code == 401


def test_guesses_wait_for_each_other() -> None:
    guard, pauses = guarded(), []

    async def pause(seconds: float) -> None:
        pauses.append(guard._guessing.locked())

    with mock.patch.object(access.asyncio, "sleep", pause):
        requests(guard, ("GET", "/?token=a"), ("GET", "/?token=b"))
    assert pauses == [True, True]


def test_large_requests_are_cut_off() -> None:
    guard = guarded()

    async def endless() -> Any:
        for _ in range(5):
            yield bytes(access.LARGEST_BODY // 2)

    _, announced, small, streamed = requests(
        guard,
        ("GET", f"/?token={guard.token}"),
        ("POST", "/", {"headers": {"content-length": str(10**9)}, "content": b""}),
        ("POST", "/", {"content": bytes(1000)}),
        ("POST", "/", {"content": endless()}),
    )
    assert announced.status_code == 413
    assert small.text == "1000" and int(streamed.text) <= access.LARGEST_BODY


def handshake(guard: Any, headers: dict[str, str]) -> str:
    """What a websocket's handshake is answered with."""
    sent = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "websocket", "path": "/_nicegui_ws/socket.io/", "query_string": b"", "headers": raw}
    asyncio.run(guard(scope, receive, send))
    [answer] = sent
    return str(answer)


def test_the_websocket_is_guarded_as_the_pages_are() -> None:
    guard = guarded()
    [taken] = requests(guard, ("GET", f"/?token={guard.token}"))
    own = {"host": "localhost:8080", "origin": "http://localhost:8080"}
    known = {"cookie": taken.headers["set-cookie"].partition(";")[0]}
    assert handshake(guard, own | known) == "websocket.accept"
    assert handshake(guard, own) == "websocket.close"
    assert handshake(guard, own | {"cookie": "tinyllm_studio_8080=guess"}) == "websocket.close"
    assert handshake(guard, own | known | {"origin": "http://evil.example"}) == "websocket.close"
    assert handshake(guard, own | known | {"host": "evil.example:8080"}) == "websocket.close"
