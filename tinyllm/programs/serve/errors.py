"""Errors of the interface, in the JSON format of OpenAI's API."""

import json
from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

RETRY_AFTER = "1"
"""Seconds after which a client that met a full queue should try again."""

TYPES = {401: "authentication_error", 404: "not_found_error", 500: "server_error", 503: "server_error"}
"""Type of an error by its status; ``invalid_request_error`` otherwise."""


class ErrorFacts(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorFacts


class APIError(Exception):
    """An error that a client gets.

    Args:
        param: the field of the request that is wrong.
        code: a word by which programs recognize the error.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """The error as plain JSON types."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self, headers: Mapping[str, str] | None = None) -> Response:
        """The error as a response."""
        added = {503: {"Retry-After": RETRY_AFTER}, 401: {"WWW-Authenticate": "Bearer"}}.get(self.status, {})
        # ASCII, because a message may quote half a surrogate pair, which UTF-8 cannot express.
        return Response(
            json.dumps(self.body(), ensure_ascii=True),
            status_code=self.status,
            media_type="application/json",
            headers={**added, **(headers or {})},
        )


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> APIError:
    """A request that can never be answered."""
    return APIError(400, message, param=param, code=code)


async def on_api_error(request: Request, error: Exception) -> Response:
    """Handler of :class:`APIError`."""
    assert isinstance(error, APIError)
    return error.response()


async def on_http_error(request: Request, error: Exception) -> Response:
    """Handler of errors of the web framework: an unknown path, a wrong method, a body that is no JSON."""
    assert isinstance(error, HTTPException)
    return APIError(error.status_code, str(error.detail)).response(error.headers)


async def on_invalid_request(request: Request, error: Exception) -> Response:
    """Handler of requests that do not have the form of the interface; the first problem is reported."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    field = ".".join(place)
    if first["type"] == "json_invalid":
        return invalid("the body is not valid JSON", code="invalid_json").response()
    if first["type"] == "extra_forbidden":
        return invalid(f"{field} is not supported by this server", param=field, code="unsupported_parameter").response()
    what = f"{field}: {first['msg']}" if field else str(first["msg"])
    return invalid(what, param=field or None, code=str(first["type"])).response()
