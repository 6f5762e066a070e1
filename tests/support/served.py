"""A server in this process: real sockets, a small model, and the plainest of clients."""

import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.models import tiny_model
from tinyllm.inference.batching import Engine
from tinyllm.programs.serve.app import create_app
from tinyllm.programs.serve.metrics import Metrics
from tinyllm.programs.serve.program import server_config
from tinyllm.programs.serve.served import ServedModel
from tinyllm.programs.serve.server import Server
from tinyllm.programs.serve.worker import Worker
from tinyllm.tokenizers.base import Tokenizer
from tinyllm.tokenizers.byte import ByteTokenizer
from tinyllm.tokenizers.char import CharTokenizer
from tinyllm.utils.listening import listen

BYTES, LETTERS = ByteTokenizer(), CharTokenizer("\n abcdefghijklmno")
CONTEXT = 64
PATIENCE_S = 180.0
"""Seconds after which a test gives up; a machine may be busy."""


class Client:
    """HTTP requests to a server on this machine."""

    def __init__(self, port: int, models: list[ServedModel], worker: Worker) -> None:
        self.port, self.models, self.worker = port, models, worker
        self.timeout = PATIENCE_S

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout)

    def ask(
        self, path: str, body: Any = None, *, key: str | None = None, raw: bytes | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, content (JSON where it is that) and headers of a response; POST if there is a body."""
        connection = self.connect()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        content = raw if raw is not None else None if body is None else json.dumps(body).encode()
        try:
            connection.request("GET" if content is None else "POST", path, body=content, headers=headers)
            response = connection.getresponse()
            text = response.read().decode()
            is_json = response.headers.get("content-type", "").startswith("application/json")
            return response.status, json.loads(text) if is_json else text, dict(response.headers)
        finally:
            connection.close()

    def complete(self, **body: Any) -> dict[str, Any]:
        """The answer to a completion request, which must succeed."""
        status, answer, _ = self.ask("/v1/completions", {"model": "tiny", **body})
        assert status == 200, answer
        assert isinstance(answer, dict)
        return answer

    def events(self, path: str = "/v1/completions", **body: Any) -> list[dict[str, Any]]:
        """The events of a stream, without the last one, which ends it."""
        status, text, headers = self.ask(path, {"model": "tiny", "stream": True, **body})
        assert status == 200 and headers["content-type"].startswith("text/event-stream"), text
        *events, end, rest = text.split("\n\n")
        assert end == "data: [DONE]" and not rest
        return [json.loads(event.removeprefix("data: ")) for event in events]


def served_model(
    name: str = "tiny", *, max_batch: int = 4, context: int = CONTEXT, tokenizer: Tokenizer = BYTES, **more: Any
) -> ServedModel:
    """A model with random weights."""
    model = tiny_model("attn=gqa", vocab_size=tokenizer.vocab_size, max_seq_len=context).eval()
    return ServedModel(name=name, engine=Engine(model, tokenizer, max_batch=max_batch, max_len=context), **more)


@contextmanager
def serving(
    models: list[ServedModel],
    *,
    api_key: str | None = None,
    max_waiting: int = 200,
    max_body_bytes: int = 100_000,
    cors: tuple[str, ...] = (),
) -> Iterator[Client]:
    """A server on a free port, in a thread."""
    metrics = Metrics()
    worker = Worker([served.engine for served in models], metrics, max_waiting=max_waiting)
    app = create_app(models, worker, metrics, api_key=api_key, max_body_bytes=max_body_bytes, cors=cors)
    bound = listen("127.0.0.1", 0)
    port = bound.getsockname()[1]
    server = Server(server_config(app, grace_s=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield Client(port, models, worker)
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        worker.stop()
        bound.close()


def wait_until(is_true: Any) -> None:
    """Wait for something that must come."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@contextmanager
def started(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    """``python -m tinyllm.serve`` in a process of its own, once it is ready."""
    command = [sys.executable, "-m", "tinyllm.serve", *arguments, "serve.port=0", "decode_kernels=false"]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ) as process:
        try:
            assert process.stderr is not None
            found = (re.search(r"listening on http://127.0.0.1:(\d+)/v1", line) for line in process.stderr)
            port = next(match for match in found if match)[1]
            client = Client(int(port), [], None)  # type: ignore[arg-type]
            wait_until(lambda: is_ready(client))
            yield process, client
        finally:
            process.kill()


def is_ready(client: Client) -> bool:
    try:
        return client.ask("/ready")[0] == 200
    except ConnectionRefusedError:
        return False
