"""The interface over real sockets: answers, streams, refusals, limits."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.served import BYTES, CONTEXT, LETTERS, Client, served_model, serving, wait_until
from tinyllm.inference.generator import generate_batch
from tinyllm.inference.sampling import Sampling


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with serving([served_model(), served_model("letters", tokenizer=LETTERS)]) as running:
        yield running


def test_an_answer_is_the_text_of_generate(client: Client) -> None:
    settings = {"max_tokens": 12, "temperature": 0.9, "top_p": 0.9, "seed": 7, "n": 2, "stop": ["e", "\x00"]}
    answer = client.complete(prompt=["one", "three"], **settings)
    expected = generate_batch(
        client.models[0].engine.batch.model,
        BYTES,
        ["one", "three"],
        n_samples=2,
        max_new_tokens=12,
        sampling=Sampling(temperature=0.9, top_p=0.9),
        seed=7,
        stop=["e", "\x00"],
    )
    assert [choice["text"] for choice in answer["choices"]] == [text for texts in expected for text in texts]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["object"] == "text_completion" and answer["model"] == "tiny"
    used = answer["usage"]
    assert used["prompt_tokens"] == 8 and used["total_tokens"] == 8 + used["completion_tokens"]
    assert client.complete(prompt=[list(b"one"), list(b"three")], **settings)["choices"] == answer["choices"]


def test_a_stream_adds_up_to_the_answer(client: Client) -> None:
    body: dict[str, Any] = {"prompt": "one", "max_tokens": 20, "seed": 3, "n": 3, "logprobs": 1, "echo": True}
    whole = client.complete(**body)
    *events, last = client.events(**body, stream_options={"include_usage": True})
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert all(event["usage"] is None and len(event["choices"]) == 1 for event in events)
    for choice in whole["choices"]:
        deltas = [event["choices"][0] for event in events if event["choices"][0]["index"] == choice["index"]]
        assert "".join(delta["text"] for delta in deltas) == choice["text"]
        assert [delta["finish_reason"] for delta in deltas] == [None] * (len(deltas) - 1) + ["length"]
        for name, values in choice["logprobs"].items():
            assert [value for delta in deltas for value in delta["logprobs"][name]] == values
    assert all("usage" not in event for event in client.events(prompt="a", max_tokens=3))


def test_log_probabilities_stand_beside_their_tokens(client: Client) -> None:
    answer = client.complete(prompt="abc", max_tokens=9, temperature=0, logprobs=2, echo=True)
    choice = answer["choices"][0]
    logprobs = choice["logprobs"]
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    assert logprobs["tokens"][:3] == ["a", "b", "c"] and logprobs["text_offset"][:3] == [0, 1, 2]
    lengths = {len(values) for values in logprobs.values()}
    assert len(lengths) == 1
    columns = [logprobs[name][3:] for name in ("tokens", "token_logprobs", "top_logprobs")]
    for token, value, top in zip(*columns, strict=True):
        assert value == max(top.values()) == top[token] and len(top) == 2  # greedy: the most likely token
    scored = client.complete(prompt="abc", max_tokens=0, logprobs=0, echo=True)["choices"][0]
    assert scored["text"] == "abc" and scored["finish_reason"] == "length"
    assert scored["logprobs"]["token_logprobs"] == logprobs["token_logprobs"][:3]


def test_tokens_of_a_stop_string_are_not_reported(client: Client) -> None:
    body = {"model": "letters", "prompt": "one", "max_tokens": 30, "seed": 5, "temperature": 5, "logprobs": 0}
    whole = client.complete(**body)["choices"][0]
    text, tokens = whole["text"], whole["logprobs"]["tokens"]
    place = next(i for i in range(3, 20) if text.index(text[i : i + 3]) == i)
    choice = client.complete(**body, stop=text[place : place + 3])["choices"][0]
    assert choice["text"] == text[:place] and choice["finish_reason"] == "stop"
    offsets = whole["logprobs"]["text_offset"]
    assert choice["logprobs"]["tokens"] == [token for token, at in zip(tokens, offsets, strict=True) if at < place]


REFUSED = {
    "no model": ({"model": None}, 400, "model"),
    "an unknown model": ({"model": "tinny"}, 404, "model"),
    "an unknown field": ({"response_format": {"type": "json_object"}}, 400, "response_format"),
    "a penalty that is not there": ({"presence_penalty": 0.5}, 400, "presence_penalty"),
    "a number as text": ({"temperature": "hot"}, 400, "temperature"),
    "a negative temperature": ({"temperature": -1}, 400, "temperature"),
    "top_p of 0": ({"top_p": 0}, 400, "top_p"),
    "no choices": ({"n": 0}, 400, "n"),
    "more choices than places": ({"n": 5}, 400, "n"),
    "an empty stop string": ({"stop": ["a", ""]}, 400, "stop"),
    "no prompts": ({"prompt": []}, 400, "prompt"),
    "no ids": ({"prompt": [[1], []]}, 400, "prompt"),
    "an id beyond the vocabulary": ({"prompt": [1, 257]}, 400, "prompt"),
    "a negative id": ({"prompt": [-1]}, 400, "prompt"),
    "half a surrogate pair": ({"prompt": "\ud800"}, 400, "prompt"),
    "a prompt beyond the context": ({"prompt": "x" * CONTEXT}, 400, "max_tokens"),
    "a continuation beyond the context": ({"max_tokens": CONTEXT}, 400, "max_tokens"),
    "nothing to do": ({"max_tokens": 0}, 400, "max_tokens"),
    "stream options without a stream": ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
    "a seed beyond 64 bits": ({"seed": 2**63}, 400, "seed"),
    "too many prompts": ({"prompt": ["a"] * 129}, 400, "prompt"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_request_is_refused_by_the_name_of_its_field(client: Client, name: str) -> None:
    changes, status, param = REFUSED[name]
    body = {"model": "tiny", "prompt": "a"} | changes
    found, answer, _ = client.ask("/v1/completions", {key: value for key, value in body.items() if value is not None})
    assert found == status and set(answer["error"]) == {"message", "type", "param", "code"}
    assert (answer["error"]["param"] or "").split(".")[0] == param and answer["error"]["message"]


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"\xff\xfe", b'{"model": NaN}', b"[" * 50_000, b"1" * 10_000], ids=len
)
def test_a_body_that_is_no_request_is_refused(client: Client, raw: bytes) -> None:
    status, answer, _ = client.ask("/v1/completions", raw=raw)
    assert status == 400 and answer["error"]["message"]


def test_values_that_turn_a_setting_off_are_accepted(client: Client) -> None:
    off = {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "best_of": 1, "suffix": None, "user": "u"}
    neutral = {"temperature": 0, "top_p": 1, "stop": None, "seed": None, "stream_options": None, "n": None}
    assert client.complete(prompt="a", **off, **neutral)["usage"]["completion_tokens"] <= 16
    assert client.complete(prompt=None, max_tokens=2)["usage"]["prompt_tokens"] == 1


def test_models_chat_and_unknown_paths(client: Client) -> None:
    status, listed, _ = client.ask("/v1/models")
    assert status == 200 and [one["id"] for one in listed["data"]] == ["tiny", "letters"]
    assert client.ask("/v1/models/letters")[1]["max_model_len"] == CONTEXT
    assert client.ask("/v1/models/none")[0] == 404
    status, answer, _ = client.ask(
        "/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}
    )
    assert status == 400 and answer["error"]["code"] == "no_chat_template"
    for path, body, expected in (("/v1/nothing", None, 404), ("/v1/completions", None, 405), ("/docs", None, 404)):
        status, answer, _ = client.ask(path, body)
        assert status == expected and answer["error"]["type"]
    assert client.ask("/health")[0] == client.ask("/ready")[0] == 200


def test_metrics_count_requests_and_tokens() -> None:
    with serving([served_model()]) as client:
        client.complete(prompt="abcd", max_tokens=5, n=2, temperature=0)
        client.ask("/v1/completions", {"model": "none", "prompt": "a"})
        _, text, headers = client.ask("/metrics")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values['tinyllm_requests_total{path="/v1/completions",status="200"}'] == "1"
    assert values['tinyllm_requests_total{path="/v1/completions",status="404"}'] == "1"
    assert values["tinyllm_prompt_tokens_total"] == "4" and values["tinyllm_generated_tokens_total"] == "10"
    assert values["tinyllm_time_to_first_token_seconds_count"] == "2"
    assert values["tinyllm_time_per_token_seconds_count"] == "8" and values["tinyllm_batch_size_sum"] == "8.0"
    assert values['tinyllm_batch_size_bucket{le="+Inf"}'] == "4"


def test_the_api_key_guards_the_interface_and_bodies_are_limited() -> None:
    with serving([served_model()], api_key="secret", max_body_bytes=1000) as client:
        for key in (None, "Secret", "secretsecret"):
            status, answer, headers = client.ask("/v1/models", key=key)
            assert status == 401 and answer["error"]["type"] == "authentication_error"
            assert headers["www-authenticate"] == "Bearer"
        assert client.ask("/v1/models", key="secret")[0] == 200 == client.ask("/health")[0]
        assert client.ask("/v1/completions", raw=b" " * 1001, key="secret")[0] == 413
        connection = client.connect()  # in pieces, without a length
        connection.request(
            "POST",
            "/v1/completions",
            body=iter([b" " * 600] * 2),
            headers={"Authorization": "Bearer secret"},
            encode_chunked=True,
        )
        assert connection.getresponse().status == 413
        connection.close()


def test_web_pages_are_allowed_only_if_asked_for() -> None:
    def allowed(client: Client) -> str | None:
        connection = client.connect()
        connection.request("GET", "/health", headers={"Origin": "https://a.example"})
        found = connection.getresponse().headers.get("access-control-allow-origin")
        connection.close()
        return found

    with serving([served_model()]) as client:
        assert allowed(client) is None
    with serving([served_model()], cors=("https://a.example",)) as client:
        assert allowed(client) == "https://a.example"


def test_a_full_queue_is_503_and_a_client_that_goes_away_frees_its_place() -> None:
    with serving([served_model(max_batch=1)], max_waiting=1) as client:
        engine = client.models[0].engine
        read, held = engine.read, True
        engine.read = lambda: [] if held else read()  # type: ignore[method-assign]
        body = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 50, "stream": True}).encode()
        waiting = []
        for _ in range(2):
            connection = client.connect()
            connection.request("POST", "/v1/completions", body=body, headers={"Content-Type": "application/json"})
            waiting.append(connection)
        wait_until(lambda: client.worker.load[engine] == 2)
        status, answer, headers = client.ask("/v1/completions", {"model": "tiny", "prompt": "a"})
        assert status == 503 and answer["error"]["code"] == "queue_full" and int(headers["retry-after"]) >= 1
        assert client.ask("/v1/completions", {"model": "tiny", "prompt": ["a"] * 3})[0] == 400
        waiting[0].sock.close()
        wait_until(lambda: client.worker.load[engine] == 1)
        held = False
        assert client.complete(prompt="a", max_tokens=2)["usage"]["completion_tokens"] == 2
        assert waiting[1].getresponse().read().endswith(b"data: [DONE]\n\n")
        waiting[1].close()
        wait_until(lambda: not engine.has_work and client.worker.load[engine] == 0)


def test_a_failure_of_the_model_is_an_answer_and_not_the_end(capfd: pytest.CaptureFixture[str]) -> None:
    with serving([served_model()]) as client:
        batch = client.models[0].engine.batch
        read = batch.read
        batch.read = lambda row, ids: 1 / 0  # type: ignore[method-assign,assignment,return-value]
        status, answer, _ = client.ask("/v1/completions", {"model": "tiny", "prompt": "a"})
        assert status == 500 and answer["error"]["type"] == "server_error"
        status, text, _ = client.ask("/v1/completions", {"model": "tiny", "prompt": "a", "stream": True})
        assert status == 200 and "generation failed" in text and "[DONE]" not in text
        batch.read = read  # type: ignore[method-assign]
        assert client.complete(prompt="a")["choices"]
    assert capfd.readouterr().err.count("ZeroDivisionError: division by zero") == 2
