"""``python -m tinyllm.serve``: what it refuses, and how it ends."""

import json
import re
import signal
import socket
import threading
from pathlib import Path
from unittest import mock

import pytest
import torch

from tests.support.fixtures import Call
from tests.support.served import PATIENCE_S, served_model, started, wait_until
from tinyllm.programs.serve.program import SMALL_BYTES, in_own_thread, limit_threads


@pytest.mark.parametrize(
    ("arguments", "where", "hint"),
    [
        ((), "run=null", "python -m tinyllm.serve run="),
        (("run=a", "runs={b:c}"), "run=a", "leave one out"),
        (("runs=[a,b]",), "runs=", "runs={small:"),
        (("runs={a:1}",), "runs=", "runs={small:"),
        (("run=a", "serve.host=0.0.0.0"), "serve.host=0.0.0.0", "TINYLLM_API_KEY"),
        (("run=a", "serve.host=203.0.113.7", "serve.api_key=k"), "serve.host=203.0.113.7", "127.0.0.1"),
        (("run=a", "serve.api_key='a b\nc'"), "serve.api_key=…", "ASCII"),
        (("run=a", "serve.max_batch=0"), "serve.max_batch=0", "at least 1"),
        (("run=none", "serve.port=0"), "none", ""),
        (("runs={a:none}", "serve.port=0"), "none", ""),
    ],
)
@pytest.mark.every(4)
def test_what_cannot_be_served_is_refused_in_one_line(
    call: Call, arguments: tuple[str, ...], where: str, hint: str
) -> None:
    answer = call("serve", *arguments)
    assert answer.code == 2 and answer.out == "" and answer.made == []
    assert re.fullmatch(r"error: [^\n]+\n", answer.err) and where in answer.err and hint in answer.err


def test_a_port_in_use_is_told_before_a_model_is_loaded(call: Call) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        answer = call("serve", "run=none", f"serve.port={port}")
    assert answer.code == 2 and answer.err.startswith(f"error: the port is in use (serve.port={port}): ")


def test_without_the_extra_one_line_says_what_to_install(call: Call) -> None:
    with mock.patch("tinyllm.programs.serve.check.is_installed", return_value=False):
        answer = call("serve", "run=a")
    assert answer.code == 2
    assert answer.err == "error: fastapi and uvicorn not installed (serve): pip install 'tinyllm[serve]'\n"


def test_what_is_done_in_a_thread_of_its_own_returns_or_fails_as_usual() -> None:
    assert in_own_thread(threading.current_thread) not in threading.enumerate()
    with pytest.raises(ZeroDivisionError):
        in_own_thread(lambda: 1 // 0)


def test_small_models_are_computed_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    small, large = served_model(weight_bytes=SMALL_BYTES), served_model(weight_bytes=SMALL_BYTES + 1)
    cpu = torch.device("cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    limit_threads([small], cpu)
    monkeypatch.delenv("OMP_NUM_THREADS")
    limit_threads([small, large], cpu)
    limit_threads([small], torch.device("cuda"))
    assert chosen == []
    limit_threads([small, small], cpu)
    assert chosen == [1]


@pytest.mark.slow
def test_sigterm_under_load_loses_no_accepted_request(run_dir: Path) -> None:
    models = f"runs={{a:{run_dir},b:{run_dir}}}"
    with started(models, "serve.max_batch=2", "serve.max_tokens_total=1024") as (process, client):
        answers: list[tuple[int, int]] = []

        def ask(number: int) -> None:
            body = {"model": "ab"[number % 2], "prompt": "a", "max_tokens": 300, "seed": number}
            status, answer, _ = client.ask("/v1/completions", body)
            answers.append((status, answer["usage"]["completion_tokens"]))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(10)]
        for thread in threads:
            thread.start()

        def accepted() -> int:
            lines = client.ask("/metrics")[1].splitlines()
            values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
            return int(values["tinyllm_running"]) + int(values["tinyllm_waiting"]) + len(answers)

        wait_until(lambda: accepted() >= 10)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(PATIENCE_S)
        assert process.wait(PATIENCE_S) == 0
        assert [status for status, _ in answers] == [200] * 10 and all(tokens for _, tokens in answers)
        with pytest.raises(ConnectionRefusedError):
            client.ask("/health")


@pytest.mark.slow
def test_a_second_signal_cuts_requests_off(run_dir: Path) -> None:
    with started(f"run={run_dir}", "serve.api_key=k") as (process, client):
        body = {"model": "mine", "prompt": "a", "max_tokens": 500, "stream": True, "n": 16}
        headers = {"Content-Type": "application/json", "Authorization": "Bearer k"}
        connections = [client.connect() for _ in range(8)]
        for connection in connections:
            connection.request("POST", "/v1/completions", body=json.dumps(body).encode(), headers=headers)
        assert connections[0].getresponse().readline()
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        rest = process.stderr.read()
        assert process.wait(PATIENCE_S) == 1 and re.search(r"\d requests? had to be cut off", rest)
        for connection in connections:
            connection.close()
