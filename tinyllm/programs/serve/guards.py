"""What every request passes before the application sees it: the API key, the size of its body, the counters.

Plain ASGI, because the framework's own middleware classes buffer streams and hide that a client has gone.
"""

import asyncio
import hmac

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinyllm.programs.serve.errors import APIError
from tinyllm.programs.serve.metrics import Metrics

BODY_SECONDS = 60.0
"""A body that has not arrived after this long is refused: slow senders must not hold connections for ever."""
PROTECTED = "/v1/"


class Guards:
    """The outermost application.

    Args:
        api_key: required for everything below ``/v1/``; None: no key is.
        max_body_bytes: largest body.
    """

    def __init__(self, app: ASGIApp, *, api_key: str | None, max_body_bytes: int, metrics: Metrics) -> None:
        self.app, self.max_body_bytes, self.metrics = app, max_body_bytes, metrics
        self.expected = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")  # set by the framework, so that unknown paths make no new counters
                self.metrics.requests[route.path if route else "other", message["status"]] += 1
            await send(message)

        try:
            self._authenticate(scope)
            body = await self._body(scope, receive)
        except APIError as error:
            await error.response({"Connection": "close"})(scope, receive, counting)
            return
        except asyncio.IncompleteReadError:
            return  # the client went away before its request was complete
        replayed = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return replayed.pop() if replayed else await receive()

        await self.app(scope, receive_again, counting)

    def _authenticate(self, scope: Scope) -> None:
        if self.expected is None or not scope["path"].startswith(PROTECTED) or scope["method"] == "OPTIONS":
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(given, self.expected):  # in constant time
            raise APIError(401, "the API key is missing or wrong: send it as 'Authorization: Bearer KEY'")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        too_large = APIError(413, f"the body is larger than {self.max_body_bytes:,} bytes (serve.max_body_bytes)")
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and (len(length) > 18 or int(length) > self.max_body_bytes):
            raise too_large
        parts, size, more = [], 0, True
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise asyncio.IncompleteReadError(b"", None)
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    more = message.get("more_body", False)
                    if size > self.max_body_bytes:
                        raise too_large
        except TimeoutError:
            raise APIError(400, f"the body did not arrive within {BODY_SECONDS:.0f} seconds") from None
        return b"".join(parts)
