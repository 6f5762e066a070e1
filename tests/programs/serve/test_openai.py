"""The interface as OpenAI's own client and a generator of requests see it."""

import importlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import one_of

from tests.programs.serve.test_chat import ASKED, CALLS, TOOL, chatting
from tests.support.served import LETTERS, PATIENCE_S, Client, served_model, serving, wait_until
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


def test_too_large_a_body_and_a_full_queue_are_the_clients_exception_classes(openai: Any) -> None:
    with (
        serving([served_model(max_batch=1)], max_waiting=0, max_body_bytes=1000) as server,
        openai.OpenAI(
            base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
        ) as client,
    ):
        with pytest.raises(openai.APIStatusError, match=r"larger than 1,000 bytes") as caught:
            client.completions.create(model="tiny", prompt="a" * 1001)
        assert caught.value.status_code == 413 and caught.value.type == "invalid_request_error"
        engine = server.models[0].engine
        read, held = engine.read, True
        engine.read = lambda: [] if held else read()  # type: ignore[method-assign]
        with client.completions.create(model="tiny", prompt="a", stream=True) as stream:
            wait_until(lambda: server.worker.load[engine] == 1)
            with pytest.raises(openai.InternalServerError, match="queue is full") as full:
                client.completions.create(model="tiny", prompt="a")
            assert full.value.status_code == 503 and full.value.code == "queue_full"
            assert full.value.response.headers["retry-after"] == "1"
            held = False
            assert list(stream)
        # With its retries, the client waits as long as the answer says, and gets through.
        assert client.with_options(max_retries=5).completions.create(model="tiny", prompt="a").choices


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


@pytest.fixture(scope="module")
def described() -> Iterator[Client]:
    """A server of a model that can chat and of one that cannot, whose contexts bound what a request may ask for."""
    template = ChatML()
    chatting = served_model(template=template, tokenizer=ByteTokenizer(template.special_tokens), context=160)
    with serving([chatting, served_model("letters", tokenizer=LETTERS)], api_key="secret") as running:
        yield running


def with_a_conversation(case: Any) -> Any:
    """A request with messages that make sense: the description does not say which roles may follow each other."""
    case.body["messages"] = [{"role": "user", "content": "hi"}]
    case.body["model"] = "tiny"  # the one that can chat
    return case


def generated_requests(server: Client, counts: dict[str, int]) -> dict[str, Counter[int]]:
    """The statuses of requests that schemathesis makes from the server's own description, valid and not.

    No status may be 500 or one that the description does not have, and no answer may take longer than our patience.

    Args:
        counts: most requests by path, valid and invalid ones each; most paths know only a few.
    """
    schemathesis = importlib.import_module("schemathesis")
    checks = importlib.import_module("schemathesis.checks")
    headers = {"Authorization": "Bearer secret"}
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
    seen = {path: Counter[int]() for path in counts}
    for operation in (found.ok() for found in schema.get_all_operations()):
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            if operation.path not in counts:
                continue
            cases = operation.as_strategy(generation_mode=mode)
            if "chat" in operation.path and mode == schemathesis.GenerationMode.POSITIVE:
                cases = one_of(cases.map(with_a_conversation), cases)

            @seed(1)
            @settings(
                max_examples=counts[operation.path],
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],
            )
            @given(case=cases)
            def ask(case: Any) -> None:
                response = case.call(headers=headers, timeout=PATIENCE_S)
                seen[case.operation.path][response.status_code] += 1
                case.validate_response(
                    response,
                    checks=[
                        checks.not_a_server_error,
                        checks.status_code_conformance,
                        checks.content_type_conformance,
                    ],
                )

            with suppress(Unsatisfiable):  # a path without parameters cannot be asked wrongly
                ask()
    assert server.ask("/health")[0] == 200
    wait_until(lambda: not any(server.worker.load.values()))
    return seen


def test_generated_requests_get_no_500(described: Client) -> None:
    seen = generated_requests(described, {"/v1/completions": 20, "/v1/chat/completions": 20, "/v1/models/{name}": 3})
    assert min(seen["/v1/completions"][200], seen["/v1/chat/completions"][200]) > 0


@pytest.mark.exhaustive
def test_2000_generated_requests_get_no_500(described: Client) -> None:
    paths = {"/v1/completions": 600, "/v1/chat/completions": 600, "/v1/models/{name}": 100}
    seen = generated_requests(described, paths | dict.fromkeys(["/v1/models", "/health", "/ready", "/metrics"], 1))
    print({path: dict(statuses) for path, statuses in seen.items()})
    assert sum(statuses.total() for statuses in seen.values()) >= 2_000
