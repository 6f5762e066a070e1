"""``POST /v1/completions``: the continuation of prompts."""

from typing import Any

from tinyllm.inference.batching import Job
from tinyllm.programs.serve.answering import Answering, Form
from tinyllm.programs.serve.choices import Growth, completion_logprobs, prompt_entries
from tinyllm.programs.serve.errors import invalid
from tinyllm.programs.serve.schema import MOST_CHOICES, CompletionRequest, Prompt
from tinyllm.programs.serve.served import EncodedPrompt, ServedModel, seed_of
from tinyllm.programs.serve.worker import Worker


class CompletionForm(Form):
    """Choices as text.

    Args:
        prompts: those that ``echo`` puts before the text, by choice; empty: none.
        logprobs: whether the tokens are reported.
    """

    object = chunk_object = "text_completion"
    prefix = "cmpl"

    def __init__(self, served: ServedModel, *, prompts: list[EncodedPrompt], logprobs: bool) -> None:
        super().__init__(served.name)
        self.tokenizer, self.prompts, self.logprobs = served.tokenizer, prompts, logprobs
        self._begun: dict[int, int] = {}
        """Characters of each choice so far."""

    def choice(self, index: int, growth: Growth, job: Job) -> dict[str, Any]:
        begins = index not in self._begun
        prompt = self.prompts[index] if self.prompts and begins else None
        before = self._begun.setdefault(index, len(self.prompts[index].text) if self.prompts else 0)
        logprobs = None
        if self.logprobs:
            entries = [] if prompt is None else prompt_entries(self.tokenizer, prompt.ids, job.prompt_logprobs)
            offset = len(self.prompts[index].text) if self.prompts else 0
            logprobs = completion_logprobs(self.tokenizer, entries, growth.tokens, offset=offset)
        self._begun[index] = before + len(growth.text)
        text = growth.text if prompt is None else prompt.text + growth.text
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": growth.finish}

    def delta(self, index: int, growth: Growth, job: Job) -> list[dict[str, Any]]:
        begins = bool(self.prompts) and index not in self._begun
        if not (growth.text or growth.tokens or growth.finish or begins):
            return []
        return [self.choice(index, growth, job)]


async def start_completion(served: ServedModel, worker: Worker, body: CompletionRequest) -> Answering:
    """Check a request and hand it to the engine.

    Raises:
        APIError: it cannot be answered.
    """
    prompts = [await served.encode(prompt, echo=bool(body.echo)) for prompt in _prompts(body.prompt)]
    n = body.n or 1
    if len(prompts) * n > MOST_CHOICES:
        raise invalid(f"{len(prompts)} prompts times n={n} are more than {MOST_CHOICES} choices", param="prompt")
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options is only for stream=true", param="stream_options")
    max_tokens = 16 if body.max_tokens is None else body.max_tokens
    if max_tokens == 0 and not body.echo:
        raise invalid("max_tokens=0 needs echo=true: without it there is nothing to return", param="max_tokens")
    seed = seed_of(body)
    requests = [
        served.request(
            body,
            prompt,
            max_tokens=max_tokens,
            seed=seed,
            logprobs=body.logprobs,
            prompt_logprobs=bool(body.echo) and body.logprobs is not None,
        )
        for prompt in prompts
    ]
    echoed = [prompt for prompt in prompts for _ in range(n)] if body.echo else []
    form = CompletionForm(served, prompts=echoed, logprobs=body.logprobs is not None)
    return Answering(worker, served, requests, body, form)


def _prompts(prompt: Prompt | None) -> list[str] | list[list[int]]:
    """The prompts of a request as a list.

    Raises:
        APIError: the list is empty.
    """
    if prompt is None:
        return [""]
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise invalid("prompt: the list is empty", param="prompt")
    if isinstance(prompt[0], int):
        return [prompt]
    return prompt
