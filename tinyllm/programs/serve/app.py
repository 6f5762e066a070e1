"""The web application: paths, documentation, and what surrounds them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp

import tinyllm
from tinyllm.programs.serve.answering import Answering, EventStream
from tinyllm.programs.serve.chat import start_chat
from tinyllm.programs.serve.completions import start_completion
from tinyllm.programs.serve.errors import (
    APIError,
    ErrorBody,
    on_api_error,
    on_http_error,
    on_invalid_request,
)
from tinyllm.programs.serve.guards import Guards
from tinyllm.programs.serve.metrics import MEDIA_TYPE, Metrics
from tinyllm.programs.serve.schema import ChatRequest, CompletionRequest
from tinyllm.programs.serve.served import ServedModel, model_named
from tinyllm.programs.serve.worker import Worker

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "The request cannot be answered; param names the field."},
    401: {"model": ErrorBody, "description": "The API key is missing or wrong."},
    404: {"model": ErrorBody, "description": "There is no such model."},
    413: {"model": ErrorBody, "description": "The body is too large."},
    503: {"model": ErrorBody, "description": "The queue is full; Retry-After says when to try again."},
}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with stream=true, events.",
        "content": {"application/json": {}, "text/event-stream": {}},
    }
}


def create_app(
    models: Sequence[ServedModel],
    worker: Worker,
    metrics: Metrics,
    *,
    api_key: str | None,
    max_body_bytes: int,
    cors: Sequence[str] = (),
) -> ASGIApp:
    """The application that serves some models.

    Args:
        cors: origins of web pages that may use it from a browser.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        worker.stop()

    # Without the framework's documentation pages, which load scripts from the network.
    app = FastAPI(title="tinyllm", version=tinyllm.__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_exception_handler(APIError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid_request)
    _add_paths(app, {served.name: served for served in models}, worker, metrics)
    _describe(app, [served.name for served in models])
    guarded: ASGIApp = Guards(app, api_key=api_key, max_body_bytes=max_body_bytes, metrics=metrics)
    if cors:
        guarded = CORSMiddleware(guarded, allow_origins=list(cors), allow_methods=["*"], allow_headers=["*"])
    return guarded


def _add_paths(app: FastAPI, models: dict[str, ServedModel], worker: Worker, metrics: Metrics) -> None:
    @app.get("/v1/models", responses={401: ERRORS[401]})
    async def list_models() -> dict[str, Any]:
        """The models served here."""
        return {"object": "list", "data": [served.facts() for served in models.values()]}

    @app.get("/v1/models/{name}", responses={401: ERRORS[401], 404: ERRORS[404]})
    async def show_model(name: str) -> dict[str, Any]:
        """One model."""
        return model_named(models, name).facts()

    @app.post("/v1/completions", responses=ERRORS | ANSWERS)
    async def completions(body: CompletionRequest, http: Request) -> Response:
        """Continue prompts."""
        served = model_named(models, body.model)
        return await _response(await start_completion(served, worker, body), http)

    @app.post("/v1/chat/completions", responses=ERRORS | ANSWERS)
    async def chat(body: ChatRequest, http: Request) -> Response:
        """Answer a conversation."""
        served = model_named(models, body.model)
        return await _response(await start_chat(served, worker, body), http)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/ready", responses={503: ERRORS[503]})
    async def ready() -> dict[str, str]:
        """Whether requests can be answered: the models are loaded, and the decoding thread runs."""
        if not worker.is_alive:
            raise APIError(503, "the decoding thread has ended")
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        """Counters in the text format of Prometheus."""
        running = sum(len(served.engine.batch) for served in models.values())
        waiting = sum(len(served.engine.waiting) for served in models.values())
        return Response(metrics.text(running=running, waiting=waiting), media_type=MEDIA_TYPE)


async def _response(answering: Answering, http: Request) -> Response:
    return EventStream(answering) if answering.body.stream else await answering.whole(http)


def _describe(app: FastAPI, names: list[str]) -> None:
    """Describe the models by name, and leave out the framework's own validation error, which is not used here."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            described = get_openapi(title=app.title, version=app.version, routes=app.routes)
            for operations in described["paths"].values():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                described["components"]["schemas"].pop(name, None)
            for name in ("CompletionRequest", "ChatRequest"):
                described["components"]["schemas"][name]["properties"]["model"]["enum"] = names
            app.openapi_schema = described
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]
