"""The interface as OpenAI's own client and a generator of requests see it."""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.programs.serve.test_chat import ASKED, CALLS, TOOL, chatting
from tests.support.served import LETTERS, PATIENCE_S, Client, served_model, serving
from tinyllm.data.chat.template import ChatML
from tinyllm.tokenizers.byte import ByteTokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[Client]:
    with serving([served_model(), served_model("letters", tokenizer=LETTERS)], api_key="secret") as running:
        yield running


@pytest.fixture(scope="module")
def openai() -> Any:
    return importlib.import_module("openai")


@pytest.fixture(scope="module")
def client(server: Client, openai: Any) -> Iterator[Any]:
    address = f"http://127.0.0.1:{server.port}/v1"
    with openai.OpenAI(base_url=address, api_key="secret", max_retries=0, timeout=PATIENCE_S) as made:
        yield made


def test_completions_whole_and_streamed(client: Any) -> None:
    settings = {"model": "letters", "prompt": "abc", "max_tokens": 20, "temperature": 8, "seed": 4, "n": 2}
    whole = client.completions.create(**settings, logprobs=2)
    again = client.completions.create(**settings)
    assert [one.text for one in whole.choices] == [one.text for one in again.choices]
    assert whole.choices[0].text != whole.choices[1].text and whole.choices[0].finish_reason == "length"
    assert "".join(whole.choices[0].logprobs.tokens) == whole.choices[0].text
    texts = ["", ""]
    *chunks, last = client.completions.create(**settings, stream=True, stream_options={"include_usage": True})
    for chunk in chunks:
        assert chunk.usage is None
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [one.text for one in whole.choices]
    assert last.choices == [] and last.usage == whole.usage and last.usage.completion_tokens == 40
    stop = texts[0][5:8]
    stopped = client.completions.create(**settings | {"n": 1}, stop=[stop]).choices[0]
    assert stopped.text == texts[0][: texts[0].index(stop)] and stopped.finish_reason == "stop"


@pytest.mark.parametrize("name", CALLS)
def test_chat_with_tools_whole_and_streamed(openai: Any, name: str) -> None:
    template, said, arguments = CALLS[name]
    served, model = chatting(template, said)
    asked = {"model": "tiny", "messages": ASKED, "tools": [TOOL], "temperature": 0}
    with (
        serving([served]) as server,
        openai.OpenAI(
            base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
        ) as client,
    ):
        whole = client.chat.completions.create(**asked)
        choice = whole.choices[0]
        (call,) = choice.message.tool_calls
        assert choice.finish_reason == "tool_calls" and choice.message.content == "Well"
        assert (call.type, call.function.name, call.function.arguments) == ("function", "calculator", arguments)
        model.step = 0
        *chunks, last = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        assert last.choices == [] and last.usage == whole.usage and all(chunk.usage is None for chunk in chunks)
        deltas = [chunk.choices[0].delta for chunk in chunks]
        assert deltas[0].role == "assistant" and "".join(delta.content or "" for delta in deltas).strip() == "Well"
        (streamed,) = [one for delta in deltas for one in delta.tool_calls or []]
        assert streamed.index == 0
        assert (streamed.function.name, streamed.function.arguments) == ("calculator", arguments)
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["tool_calls"]


def test_chat_with_several_choices_and_log_probabilities(openai: Any) -> None:
    template = ChatML()
    served = served_model(template=template, tokenizer=ByteTokenizer(template.special_tokens))
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "seed": 3, "n": 2, "max_tokens": 8}
    with (
        serving([served]) as server,
        openai.OpenAI(
            base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
        ) as client,
    ):
        whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
        assert [choice.index for choice in whole.choices] == [0, 1]
        texts = [choice.message.content for choice in whole.choices]
        for choice in whole.choices:
            assert all(len(one.top_logprobs) == 2 and one.logprob <= 0 for one in choice.logprobs.content)
        chunks = list(client.chat.completions.create(**asked, stream=True))
        grown = ["", ""]
        for chunk in chunks:
            grown[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert grown == texts and all(chunk.usage is None for chunk in chunks)


def test_errors_are_the_clients_exception_classes(server: Client, client: Any, openai: Any) -> None:
    asked = {"model": "tiny", "prompt": "a"}
    with pytest.raises(openai.NotFoundError, match="tiny, letters"):
        client.completions.create(**asked | {"model": "none"})
    with pytest.raises(openai.BadRequestError, match="context length is 64"):
        client.completions.create(**asked, max_tokens=64)
    with pytest.raises(openai.BadRequestError, match="chat template"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a"}])
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    assert [one.id for one in client.models.list()] == ["tiny", "letters"]


def generated_requests(server: Client, count: int, place: Path) -> None:
    """Requests made from the server's own description, valid and not: none may be answered with 500, none may hang."""
    command = [os.path.join(os.path.dirname(sys.executable), "schemathesis"), "run"]
    command += [f"http://127.0.0.1:{server.port}/openapi.json", "--header", "Authorization: Bearer secret"]
    command += ["--checks", "not_a_server_error,status_code_conformance,content_type_conformance", "--seed", "1"]
    command += ["--max-examples", str(count), "--request-timeout", f"{PATIENCE_S:.0f}", "--exclude-path", "/metrics"]
    done = subprocess.run(
        [*command, "--phases", "fuzzing", "--no-color"],
        capture_output=True,
        text=True,
        check=False,
        cwd=place,  # it keeps what it finds
        timeout=60 + 3 * count,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert server.ask("/health")[0] == 200


def test_generated_requests_get_no_500(server: Client, tmp_path: Path) -> None:
    generated_requests(server, 15, tmp_path)


@pytest.mark.exhaustive
def test_2000_generated_requests_get_no_500(server: Client, tmp_path: Path) -> None:
    generated_requests(server, 1_000, tmp_path)
