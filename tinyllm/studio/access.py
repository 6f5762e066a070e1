"""Who may use the studio: every request passes here before the pages see it.

A page in another tab of the same browser can send requests to this machine, and a name server can make a foreign name
point to it (DNS rebinding). So a request needs a cookie, which a browser gets in exchange for the one-time token of the
printed address or for the password; its ``Host`` must name this machine, and its ``Origin``, if it has one, must be the
studio itself. The same holds for the websocket.

Plain ASGI, because the framework's middleware classes do not see websockets.
"""

import asyncio
import hashlib
import hmac
import html
import ipaddress
import secrets
import socket
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN = "token"
"""Parameter of the printed address."""
LOGIN = "/login"
LARGEST_BODY = 1 << 20
"""Bytes of a request. Pages send theirs over the websocket, and no file is ever uploaded."""
LARGEST_LOGIN = 4096
PAUSE_S = 1.0
"""Seconds between two attempts to guess the password or the token."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; "
        "form-action 'self'; frame-ancestors 'self'"
    ),
    "X-Frame-Options": "SAMEORIGIN",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of every response that does not set them itself. The pages' framework needs inline scripts and ``eval``;
nothing is loaded from elsewhere."""


class Access:
    """The outermost application.

    Args:
        app: the pages.
        port: names the cookie: browsers send the cookies of a host to all of its ports.
        password: accepted on the login page; None: there is no login page.
        local: only names of this machine's loopback are valid hosts.
        tell: called with the next one-time token once one is used.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        port: int = 0,
        password: str | None = None,
        local: bool = True,
        tell: Callable[[str], None] = lambda token: None,
    ) -> None:
        self.app, self.tell, self.local = app, tell, local
        self._names = {"localhost"} | (set() if local else {socket.gethostname().lower()})
        self.cookie = f"tinyllm_studio_{port}"
        self.token = secrets.token_urlsafe(32)
        self._password = None if password is None else _digest(password)
        self._sessions: set[bytes] = set()
        self._guessing = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._foreign(headers) or await self._enter(scope, headers, receive)
        if refusal is None:
            await self.app(scope, _bounded(receive), _with_headers(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 4403})
        else:
            await refusal(scope, receive, _with_headers(send))

    def _foreign(self, headers: dict[str, str]) -> Response | None:
        """The refusal of a request that was made for another host or by another site."""
        host = headers.get("host", "")
        if not self._is_own(host):
            return _page(403, "Unknown host", f"This studio does not answer to the name {host[:100]}.")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return _page(403, "Another site", "Requests of other sites are refused.")
        return None

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        # An address cannot be rebound: only a name can be made to point elsewhere.
        return address.is_loopback or not self.local

    async def _enter(self, scope: Scope, headers: dict[str, str], receive: Receive) -> Response | None:
        """None for a browser with a cookie; else the cookie in exchange for a token or the password, or a refusal."""
        query = parse_qs(scope["query_string"].decode("latin-1"))
        known = self._is_known(headers.get("cookie", ""))
        if scope["type"] == "websocket":
            return None if known else _page(401, "", "")
        length = headers.get("content-length", "0")
        if not length.isdigit() or len(length) > 18 or int(length) > LARGEST_BODY:
            return _page(413, "Too large", f"A request has at most {LARGEST_BODY:,} bytes.")
        if TOKEN in query and scope["method"] == "GET":
            rest = urlencode({name: values for name, values in query.items() if name != TOKEN}, doseq=True)
            target = quote(_local_path(scope["path"])) + (f"?{rest}" if rest else "")
            if known:
                return RedirectResponse(target, 303)
            if await self._guessed(query[TOKEN][-1]):
                return self._admit(target)
            return self._refused("The token in the address has been used or is not of this studio.")
        if known:
            return None
        if self._password is not None and scope["path"] == LOGIN and scope["method"] == "POST":
            given = parse_qs(await _body(receive, LARGEST_LOGIN)).get("password", [""])[0]
            if await self._matches(given, self._password):
                return self._admit("/")
            return self._refused("The password is wrong.")
        return self._refused("")

    def _is_known(self, header: str) -> bool:
        try:
            morsel = SimpleCookie(header).get(self.cookie)
        except CookieError:
            return False
        given = _digest("" if morsel is None else morsel.value)
        # All are compared, each in constant time.
        return any([hmac.compare_digest(given, known) for known in self._sessions])

    async def _guessed(self, token: str) -> bool:
        if not await self._matches(token, _digest(self.token)):
            return False
        self.token = secrets.token_urlsafe(32)
        self.tell(self.token)
        return True

    async def _matches(self, given: str, expected: bytes) -> bool:
        """Compare a secret in constant time; one guess at a time, with a pause after a wrong one."""
        async with self._guessing:
            if hmac.compare_digest(_digest(given), expected):
                return True
            await asyncio.sleep(PAUSE_S)
            return False

    def _admit(self, target: str) -> Response:
        session = secrets.token_urlsafe(32)
        self._sessions.add(_digest(session))
        response = RedirectResponse(target, 303, headers={"Cache-Control": "no-store"})
        response.set_cookie(self.cookie, session, httponly=True, samesite="strict", path="/")
        return response

    def _refused(self, why: str) -> Response:
        if self._password is None:
            text = "Open the address that the studio printed in its terminal; it prints a new one for every browser."
            return _page(401, "Not signed in", f"{why} {text}".strip())
        return _page(401, "Sign in", why, form=True)


def _digest(text: str) -> bytes:
    """Of equal length for all texts, so that comparing them takes the same time."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _local_path(path: str) -> str:
    """The path below this host: two slashes would begin another host."""
    return "/" + path.lstrip("/\\")


def _page(status: int, title: str, text: str, *, form: bool = False) -> Response:
    """A page that loads nothing else."""
    if not title:
        return PlainTextResponse("", status)
    field = (
        f'<form method="post" action="{LOGIN}"><label for="password">Password</label>'
        '<input id="password" name="password" type="password" autocomplete="current-password" autofocus required>'
        '<button type="submit">Sign in</button></form>'
    )
    return HTMLResponse(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title} · tinyllm studio</title><style>{STYLE}</style></head><body><main><h1>{title}</h1>"
        f"<p>{html.escape(text)}</p>{field if form else ''}</main></body></html>",
        status,
        headers={"Cache-Control": "no-store", "Connection": "close"},
    )


STYLE = (
    ":root{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}"
    "body{margin:0;display:grid;place-items:center;min-height:100vh}main{max-width:26rem;padding:2rem}"
    "h1{font-size:1.4rem;font-weight:600}form{display:grid;gap:.5rem}"
    "input,button{font:inherit;padding:.5rem .75rem;border-radius:.4rem;border:1px solid #888}"
)


async def _body(receive: Receive, most: int) -> str:
    parts, size = [], 0
    while size <= most:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return b"".join(parts).decode("utf-8", "replace")
    return ""


def _bounded(receive: Receive) -> Receive:
    """Cut a request off that is longer than it may be, whatever length it announced."""
    size = 0

    async def bounded() -> Message:
        nonlocal size
        message = await receive()
        if message["type"] == "http.request":
            size += len(message.get("body", b""))
            if size > LARGEST_BODY:
                return {"type": "http.disconnect"}
        return message

    return bounded


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message["headers"]}
            added = [
                (name.lower().encode(), value.encode())
                for name, value in HEADERS.items()
                if name.lower().encode() not in given
            ]
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return sending
