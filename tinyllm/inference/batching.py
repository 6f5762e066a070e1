"""Continuous batching: requests join and leave the running batch at every step, each with settings of its own.

The engine knows no threads and no network: whoever owns it calls :meth:`Engine.read` and :meth:`Engine.decode`, or both
in one :meth:`Engine.step`, and passes their pieces on.

Shapes: N rows of a step, V vocabulary.
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from tinyllm.inference.decoding import Autocast, LanguageModel
from tinyllm.inference.generator import SampleWriter, end_tokens
from tinyllm.inference.rows import RowBatch
from tinyllm.inference.sampling import Sampling, choose_tokens, stream_seeds

PREFILL_TOKENS = 256
"""Prompt tokens read per step, and the length of the pieces of a long prompt: the longest that others wait for it. The
pieces of a prompt do not depend on the other requests."""

Finish = Literal["stop", "length"]


class TokenLogprob(NamedTuple):
    """Log-probability of a token under the model itself: before temperature, filters and penalty."""

    token: int
    logprob: float
    top: list[tuple[int, float]]
    """The most likely tokens and their log-probabilities, the best first."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to generate.

    Args:
        ids: tokens of the prompt, at least one.
        context: the tokens whose text comes before the new text; empty: the text begins here.
        max_new_tokens: 0: only read the prompt.
        seed: sample i draws from the i-th stream of the seed, as in ``generate``.
        stop: stop strings; they are left out of the text.
        stop_ids: tokens that end the text, besides those of the tokenizer.
        n_samples: samples of the prompt, which is read once for all of them.
        logprobs: how many of the most likely tokens to report beside each token; None: no log-probabilities.
        prompt_logprobs: report them for the tokens of the prompt too.
    """

    ids: Sequence[int]
    max_new_tokens: int
    sampling: Sampling
    seed: int
    context: Sequence[int] = ()
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    n_samples: int = 1
    logprobs: int | None = None
    prompt_logprobs: bool = False


class Job:
    """A request in the engine.

    Attributes:
        prompt_logprobs: one per token of the prompt, None for the first; complete before the first piece.
        error: why it failed, once it has.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.prompt_logprobs: list[TokenLogprob | None] = []
        self.error: Exception | None = None
        self.is_cancelled = False

    def cancel(self) -> None:
        """Stop generating; its rows are free at the beginning of the next step. Any thread may call it."""
        self.is_cancelled = True


class Piece(NamedTuple):
    """What a step added to one sample of a job."""

    job: Job
    sample: int
    text: str
    """Complete characters that come before any stop string; empty while that is undecided."""
    token: TokenLogprob | int | None
    """The token, with its log-probability if the request asked for it; None: no token was generated."""
    offset: int
    """Characters that the sample's tokens before this one decode to."""
    finish: Finish | None
    """Why the sample ended, in its last piece; a failed job has one piece, without it."""


class _Sample:
    """One row: a sample of a job, and what its next token depends on."""

    def __init__(self, job: Job, index: int, *, tokenizer: Any, device: torch.device) -> None:
        request = job.request
        self.job, self.index = job, index
        self.generator = torch.Generator().manual_seed(stream_seeds(request.seed, index + 1)[index])
        ends = end_tokens(tokenizer, request.stop) | request.stop_ids
        self.writer = SampleWriter(tokenizer, request.context, request.stop, ends)
        self.seen_V: Tensor | None = None
        if request.sampling.repetition_penalty != 1:
            self.seen_V = torch.zeros(tokenizer.vocab_size, dtype=torch.bool, device=device)
            self.seen_V[list(request.ids)] = True
        self.settings = astuple(request.sampling)
        """The sampling settings, as what can be compared and hashed fast."""
        self.token = 0
        self.n_tokens = 0

    def add(self, token: int, logprob: TokenLogprob | None) -> Piece:
        """Take the next token; the piece that it adds."""
        self.token = token
        self.n_tokens += 1
        if self.seen_V is not None:
            self.seen_V[token] = True
        offset = self.writer.decoded
        text = self.writer.write(token, last=self.n_tokens == self.job.request.max_new_tokens)
        finish: Finish | None = "stop" if self.writer.stopped else "length" if self.writer.ended else None
        return Piece(self.job, self.index, text, token if logprob is None else logprob, offset, finish)


class Engine:
    """Decodes any number of requests on one model, up to ``max_batch`` samples at a time; the others wait their turn.

    The text of a request depends on its own settings only: each sample has its own row, positions and random numbers.
    Greedy decoding in fp32 gives the tokens that ``generate`` gives; with our kernels, a row's bits do not depend on
    the other rows.

    The model must be in evaluation mode, and nobody else may use it meanwhile.

    Args:
        max_batch: most samples at a time; the memory of the caches is allocated at once.
        max_len: most tokens of a prompt and its continuation, at most the model's ``max_seq_len``.
        autocast: returns the context manager in which the model runs.

    Attributes:
        waiting: jobs that wait for a place, in order of arrival.
        n_decoded: samples decoded together in the newest step.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Any,
        *,
        max_batch: int,
        max_len: int,
        autocast: Autocast = nullcontext,
    ) -> None:
        self.tokenizer, self.max_batch, self.max_len = tokenizer, max_batch, max_len
        self.device = model.device
        self.batch: RowBatch[_Sample] = RowBatch(model, n_slots=max_batch, max_len=max_len, autocast=autocast)
        self.waiting: deque[Job] = deque()
        self.n_decoded = 0
        self._reading: _Sample | None = None
        """The sample whose prompt is being read, in the last row; the rows before it are decoded."""
        self._n_read = 0

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self.batch.members or self.waiting)

    def submit(self, request: Request) -> Job:
        """Put a request into the queue.

        Raises:
            ValueError: it can never be served: too many samples, or too many tokens.
        """
        job = self.job(request)
        self.add(job)
        return job

    def job(self, request: Request) -> Job:
        """A job for :meth:`add`; any thread may ask for one.

        Raises:
            ValueError: see :meth:`submit`.
        """
        length = len(request.ids) + request.max_new_tokens
        if not 1 <= request.n_samples <= self.max_batch:
            raise ValueError(f"n_samples={request.n_samples} must be from 1 to max_batch={self.max_batch}")
        if not request.ids or request.max_new_tokens < 0 or length > self.max_len:
            raise ValueError(f"{len(request.ids)} + {request.max_new_tokens} tokens, and the context is {self.max_len}")
        return Job(request)

    def add(self, job: Job) -> None:
        """Put a job into the queue."""
        self.waiting.append(job)

    def step(self) -> list[Piece]:
        """:meth:`read`, then :meth:`decode`: what both added."""
        return self.read() + self.decode()

    def read(self) -> list[Piece]:
        """Read a piece of the prompts, and choose the first tokens after those that are complete; what that added.

        A job that fails has :attr:`Job.error`, and its last piece no finish.
        """
        return self._added_by(self._read_prompts)

    def decode(self) -> list[Piece]:
        """Choose the next token of every running sample; see :meth:`read`."""
        return self._added_by(self._decode)

    def _added_by(self, work: Callable[[list[Piece]], None]) -> list[Piece]:
        pieces: list[Piece] = []
        try:
            self._drop_cancelled()
            work(pieces)
        except Exception as error:  # out of memory, damaged weights: those under way fail, the engine lives on
            failed = {id(sample.job): sample.job for sample in self.batch.members}
            self.batch.members.clear()
            self._reading = None
            for job in failed.values():
                job.error = error
                pieces.append(Piece(job, 0, "", None, 0, None))
        return pieces

    def _drop_cancelled(self) -> None:
        if self.waiting:
            self.waiting = deque(job for job in self.waiting if not job.is_cancelled)
        self._remove([row for row, sample in enumerate(self.batch.members) if sample.job.is_cancelled])

    def _remove(self, rows: list[int]) -> None:
        """Remove rows, given in ascending order."""
        for row in reversed(rows):
            if self.batch.members[row] is self._reading:
                self._reading = None
            self.batch.leave(row, keep_last=self._reading is not None)

    def _read_prompts(self, pieces: list[Piece]) -> None:
        budget = PREFILL_TOKENS
        while budget > 0:
            if self._reading is None:
                jobs = self._next_jobs()
                if not jobs:
                    return
                if len(jobs) > 1:
                    budget -= self._read_together(jobs, pieces)
                    continue
                self._reading = self._sample(jobs[0], 0)
                self._n_read = 0
                self.batch.join(self._reading)
            budget -= self._read_piece(self._reading, pieces)

    def _next_jobs(self) -> list[Job]:
        """Take the next job from the queue, if it has room, with those behind it whose prompts are read together."""
        # In order of arrival: a request for many samples is not overtaken for ever by smaller ones.
        jobs: list[Job] = []
        n_free = self.max_batch - len(self.batch)
        while self.waiting and self.waiting[0].request.n_samples <= n_free and self._fits(self.waiting[0], jobs):
            jobs.append(self.waiting.popleft())
            n_free -= jobs[-1].request.n_samples
        return jobs

    def _fits(self, job: Job, jobs: list[Job]) -> bool:
        """Whether a prompt can be read together with those of ``jobs``: it is short, and about as long as they are.

        Where the model's steps are not one call of C++, one pass over several prompts takes about half the time of one
        for each (experiments/LOG.md).
        """
        if not jobs:
            return True
        requests = [one.request for one in (*jobs, job)]
        if any(request.n_samples > 1 or not request.max_new_tokens for request in requests):
            return False
        lengths = [len(request.ids) for request in requests]
        shortest, longest = min(lengths), max(lengths)
        return (
            4 * shortest >= 3 * longest
            and longest * len(lengths) <= PREFILL_TOKENS
            and self.batch.can_read_together(shortest, longest)
        )

    def _read_together(self, jobs: list[Job], pieces: list[Piece]) -> int:
        """Read whole prompts in one pass, and choose their first tokens; the number of tokens read."""
        first = len(self.batch)
        samples = [self._sample(job, 0) for job in jobs]
        for sample in samples:
            self.batch.join(sample)
        hidden = self.batch.read_together(first, [job.request.ids for job in jobs])
        for job, hidden_TD in zip(jobs, hidden, strict=True):
            self._report_prompt(job, hidden_TD, n_read=len(job.request.ids))
        last_ND = torch.stack([hidden_TD[-1] for hidden_TD in hidden])
        self._choose(samples, self.batch.logits(last_ND), pieces, first_row=first)
        return sum(len(job.request.ids) for job in jobs)

    def _report_prompt(self, job: Job, hidden_TD: Tensor, *, n_read: int) -> None:
        """Note the log-probabilities of a prompt, of which ``n_read`` tokens have been read, if they were asked for."""
        request = job.request
        if request.prompt_logprobs:
            job.prompt_logprobs = job.prompt_logprobs or [None]
            following = request.ids[len(job.prompt_logprobs) : n_read + 1]
            job.prompt_logprobs += self._logprobs(self.batch.logits(hidden_TD)[: len(following)], following, request)

    def _read_piece(self, sample: _Sample, pieces: list[Piece]) -> int:
        """Read a piece of a prompt, and choose the first tokens after its last piece; the number of tokens read."""
        job, row = sample.job, len(self.batch) - 1
        request = job.request
        ids = request.ids[self._n_read : self._n_read + PREFILL_TOKENS]
        hidden = self.batch.read(row, ids)
        self._n_read += len(ids)
        is_whole = self._n_read == len(request.ids)
        self._report_prompt(job, hidden, n_read=self._n_read)
        if not is_whole:
            return len(ids)
        self._reading = None
        if request.max_new_tokens == 0:
            pieces += [Piece(job, index, "", None, 0, "length") for index in range(request.n_samples)]
            self._remove([row])
            return len(ids)
        samples = [sample, *(self._sample(job, index) for index in range(1, request.n_samples))]
        for other in samples[1:]:
            self.batch.join(other, copy_of=row)
        self._choose(samples, self.batch.logits(hidden[-1:]).expand(len(samples), -1), pieces, first_row=row)
        return len(ids)

    def _decode(self, pieces: list[Piece]) -> None:
        samples = self.batch.members[: len(self.batch) - (self._reading is not None)]
        self.n_decoded = len(samples)
        if samples:
            self._choose(samples, self.batch.step([sample.token for sample in samples]), pieces, first_row=0)

    def _choose(self, samples: list[_Sample], logits_NV: Tensor, pieces: list[Piece], *, first_row: int) -> None:
        """Choose the next token of each sample, and remove those that end with it."""
        logits_NV = logits_NV[:, : self.tokenizer.vocab_size]
        alike: dict[tuple[Any, ...], list[int]] = {}
        for index, sample in enumerate(samples):
            alike.setdefault(sample.settings, []).append(index)
        tokens = [0] * len(samples)
        for indices in alike.values():
            sampling = samples[indices[0]].job.request.sampling
            seen = [seen_V for index in indices if (seen_V := samples[index].seen_V) is not None]
            chosen = choose_tokens(
                sampling,
                logits_NV if len(alike) == 1 else logits_NV[indices],
                generators=[samples[index].generator for index in indices],
                seen_BV=torch.stack(seen) if seen else None,
                unk_id=self.tokenizer.unk_id,
            )
            for index, token in zip(indices, chosen.tolist(), strict=True):
                tokens[index] = token
        ended = []
        for index, (sample, token) in enumerate(zip(samples, tokens, strict=True)):
            request = sample.job.request
            logprob = None
            if request.logprobs is not None:
                (logprob,) = self._logprobs(logits_NV[index : index + 1], [token], request)
            pieces.append(sample.add(token, logprob))
            if sample.writer.ended:
                ended.append(first_row + index)
        self._remove(ended)

    def _logprobs(self, logits_NV: Tensor, tokens: Sequence[int], request: Request) -> list[TokenLogprob]:
        logprobs_NV = logits_NV[:, : self.tokenizer.vocab_size].float().log_softmax(-1)
        chosen_N = logprobs_NV[range(len(tokens)), list(tokens)].tolist()
        best_NK, ids_NK = logprobs_NV.topk(min(request.logprobs or 0, logprobs_NV.shape[1]), dim=-1)
        return [
            TokenLogprob(token, logprob, list(zip(ids, best, strict=True)))
            for token, logprob, ids, best in zip(tokens, chosen_N, ids_NK.tolist(), best_NK.tolist(), strict=True)
        ]

    def _sample(self, job: Job, index: int) -> _Sample:
        return _Sample(job, index, tokenizer=self.tokenizer, device=self.device)
