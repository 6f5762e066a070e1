"""Sampling: choosing the next token from logits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyllm.errors import UserError

LARGEST = 1e30
"""Bound of a logit after the repetition penalty: far beyond a model's logits, finite after division by ``COLD``."""
COLD = 1e-3
"""Below this temperature, logits are shifted so that the largest is 0 before the division, which could overflow."""
COLDEST = 1e-37
"""The lowest temperature used; lower ones are 0 in float32."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling settings, applied in this order: repetition penalty, temperature, top_k, top_p, min_p, draw.

    Args:
        temperature: divides the logits; 0: always the most likely token (the lowest id of a tie).
        top_k: keep the k most likely tokens, and those tied with the k-th.
        top_p: keep the smallest set of most likely tokens whose probabilities sum to at least this (nucleus
            sampling, Holtzman et al. 2019, arXiv 1904.09751).
        min_p: drop tokens less likely than this fraction of the most likely one (Nguyen et al. 2024,
            arXiv 2407.01082).
        repetition_penalty: θ of CTRL (Keskar et al. 2019, arXiv 1909.05858, §4.1), applied to every token of the prompt
            and the text so far: positive logits are divided by θ, negative ones multiplied, so that θ > 1 makes a token
            less likely whatever the sign of its logit (the paper always divides). 1: off.

    Raises:
        UserError: a value is out of range, or greedy decoding would ignore it.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        rules = (
            ("temperature", 0 <= self.temperature < math.inf, "a number ≥ 0; 0 is greedy"),
            ("top_k", self.top_k is None or self.top_k >= 1, "a whole number ≥ 1, or null"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "a number in (0, 1], or null"),
            ("min_p", self.min_p is None or 0 <= self.min_p <= 1, "a number in [0, 1], or null"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a number > 0; 1 is off"),
        )
        for key, legal, allowed in rules:
            if not legal:
                raise UserError("out of range", key=key, value=getattr(self, key), hint=f"give {allowed}")
        if self.temperature == 0:
            for key in ("top_k", "top_p", "min_p"):
                if getattr(self, key) is not None:
                    raise UserError(
                        "no effect with temperature=0, which always takes the most likely token",
                        key=key,
                        value=getattr(self, key),
                        hint="leave it out or give a temperature above 0",
                    )

    def penalize(self, logits_BV: Tensor, seen_BV: Tensor) -> Tensor:
        """Apply the repetition penalty to the tokens marked in ``seen_BV`` (bool)."""
        if self.repetition_penalty == 1:
            return logits_BV
        theta = self.repetition_penalty
        penalized_BV = torch.where(logits_BV > 0, logits_BV / theta, logits_BV * theta)
        return torch.where(seen_BV, penalized_BV.clamp(-LARGEST, LARGEST), logits_BV)

    def filter(self, logits_BV: Tensor) -> Tensor:
        """Logits divided by the temperature, which must not be 0, with −inf for tokens that must not be drawn."""
        if self.temperature < COLD:  # only differences of logits matter
            logits_BV = logits_BV - logits_BV.max(dim=-1, keepdim=True).values
        logits_BV = logits_BV / max(self.temperature, COLDEST)
        if self.top_k is not None and self.top_k < logits_BV.shape[-1]:
            kth_B1 = logits_BV.topk(self.top_k, dim=-1).values[:, -1:]
            logits_BV = logits_BV.masked_fill(logits_BV < kth_B1, -math.inf)
        if self.top_p is not None and self.top_p < 1:
            sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
            probabilities_BV = sorted_BV.softmax(dim=-1)
            before_BV = probabilities_BV.cumsum(dim=-1) - probabilities_BV
            drop_BV = before_BV >= self.top_p  # the more likely tokens reach top_p already
            drop_BV[:, 0] = False  # even if rounding says so, never drop the most likely token
            logits_BV = logits_BV.masked_fill(drop_BV.scatter(-1, order_BV, drop_BV), -math.inf)
        if self.min_p is not None and self.min_p > 0:
            floor_B1 = logits_BV.max(dim=-1, keepdim=True).values + math.log(self.min_p)
            logits_BV = logits_BV.masked_fill(logits_BV < floor_B1, -math.inf)
        return logits_BV


class TokenChooser:
    """Chooses the next token of each of B samples, each with its own random stream.

    Sample i of a prompt draws from the i-th stream of ``seed``, so it does not depend on the number of samples or on
    other prompts. Random numbers are drawn on the CPU, so a seed gives the same numbers on every device. The global
    random state is not touched.

    Args:
        n_samples: samples of each prompt.
        n_prompts: number of prompts; rows are the samples of the first prompt, then of the second, and so on.
        vocab_size: number of tokenizer ids; a model may have more rows, which are never chosen.
        unk_id: id of the unknown token, which is never chosen either; None: the tokenizer has no unknown token.
    """

    def __init__(
        self,
        sampling: Sampling,
        *,
        seed: int,
        n_samples: int,
        n_prompts: int = 1,
        vocab_size: int,
        unk_id: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.sampling = sampling
        self.vocab_size, self.unk_id = vocab_size, unk_id
        seeds = stream_seeds(seed, n_samples) * n_prompts
        self.generators = [torch.Generator().manual_seed(s) for s in seeds]
        self.seen_BV = torch.zeros(len(seeds), vocab_size, dtype=torch.bool, device=device)

    def observe(self, ids_BT: Tensor) -> None:
        """Mark tokens as seen, for the repetition penalty."""
        if self.sampling.repetition_penalty != 1:
            self.seen_BV.scatter_(1, ids_BT.to(self.seen_BV.device), True)

    def observe_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        """Mark the tokens of each prompt as seen by its samples."""
        n_samples = len(self.seen_BV) // len(prompts)
        if self.sampling.repetition_penalty != 1:
            for i, ids in enumerate(prompts):
                self.seen_BV[i * n_samples : (i + 1) * n_samples, list(ids)] = True

    def keep(self, rows: list[int]) -> None:
        """Continue with these samples only."""
        self.generators = [self.generators[row] for row in rows]
        self.seen_BV = self.seen_BV[rows]

    def choose(self, logits_BV: Tensor) -> Tensor:
        """Choose token ids (B,), on the CPU, for logits (B, ≥ vocab_size), and mark them as seen.

        Raises:
            UserError: a logit is NaN.
        """
        ids_B = choose_tokens(
            self.sampling,
            logits_BV[:, : self.vocab_size],
            generators=self.generators,
            seen_BV=self.seen_BV,
            unk_id=self.unk_id,
        )
        self.observe(ids_B[:, None])
        return ids_B


def choose_tokens(
    sampling: Sampling,
    logits_BV: Tensor,
    *,
    generators: Sequence[torch.Generator],
    seen_BV: Tensor | None,
    unk_id: int | None,
) -> Tensor:
    """Choose token ids (B,), on the CPU; each row draws from its own generator, so no row depends on the others.

    Args:
        generators: one per row, on the CPU.
        seen_BV: (B, V) bool, the tokens in each row so far; None only without a repetition penalty.
        unk_id: never chosen; None: all tokens may be.

    Raises:
        UserError: a logit is NaN.
    """
    logits_BV = logits_BV.float()
    if forbids_scans(logits_BV.device):
        logits_BV, seen_BV = logits_BV.cpu(), None if seen_BV is None else seen_BV.cpu()
    if seen_BV is not None:
        logits_BV = sampling.penalize(logits_BV, seen_BV)
    if unk_id is not None:
        logits_BV = logits_BV.clone()
        logits_BV[:, unk_id] = -math.inf
    if sampling.temperature == 0:
        best_B, ids_B = logits_BV.max(dim=-1)
        return _on_the_host(ids_B, is_nan_B=best_B.isnan())
    return _draw(sampling.filter(logits_BV).softmax(dim=-1), generators)


def _draw(probabilities_BV: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw one token per row by inverting the cumulative distribution, in float64."""
    cumulative_BV = probabilities_BV.double().cumsum(dim=-1)
    total_B1 = cumulative_BV[:, -1:]
    uniform_B1 = torch.stack([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
    uniform_B1 = uniform_B1.to(cumulative_BV.device, non_blocking=True)
    # 1 − u lies in (0, 1]: the first token whose cumulative sum reaches (1 − u)·total has a probability above zero.
    ids_B = torch.searchsorted(cumulative_BV, (1 - uniform_B1) * total_B1)[:, 0]
    return _on_the_host(ids_B, is_nan_B=total_B1[:, 0].isnan())


def forbids_scans(device: torch.device) -> bool:
    """Whether torch refuses cumulative sums on a device, so that samples are drawn on the host.

    On a GPU, one long sum is made by blocks in an order that varies, which ``trainer.deterministic=true`` excludes.
    """
    return device.type == "cuda" and torch.are_deterministic_algorithms_enabled()


def _on_the_host(ids_B: Tensor, *, is_nan_B: Tensor) -> Tensor:
    """The ids on the CPU, in a single transfer.

    Raises:
        UserError: a row is NaN.
    """
    if ids_B.device.type != "cpu":
        ids_B, is_nan_B = torch.stack([ids_B, is_nan_B.to(ids_B.dtype)]).cpu()
    if is_nan_B.any():
        raise UserError(
            "the model's output is not a number (NaN)",
            hint="its weights are damaged; use an earlier checkpoint",
        )
    return ids_B


def stream_seeds(seed: int, count: int) -> list[int]:
    """Seeds of ``count`` independent random streams; seed i does not depend on ``count``."""
    source = torch.Generator().manual_seed(seed)
    return [int(torch.randint(2**62, (), generator=source)) for _ in range(count)]
