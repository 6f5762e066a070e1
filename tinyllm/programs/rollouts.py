"""Rollouts in training: answers of the model to the prompts of a step, rewarded and compared within their groups."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from tinyllm.data.batch import Batch, row_length
from tinyllm.data.prompt_data import PROMPT, SAMPLE, PromptData
from tinyllm.data.prompts import Prompt
from tinyllm.errors import UserError
from tinyllm.inference.answering import MOST_ROWS, Answering
from tinyllm.inference.rewards.base import Completion, Rewards
from tinyllm.inference.rollout import Answer
from tinyllm.inference.together import TogetherModel
from tinyllm.nn.decode_kernels import DecodeKernels
from tinyllm.nn.loss import IGNORE
from tinyllm.programs.decoding_kernels import kernels_for
from tinyllm.programs.prompt_checks import build_rewards, build_tool
from tinyllm.programs.reference_model import ReferenceModel, make_reference
from tinyllm.programs.run_plan import RunPlan
from tinyllm.training.compilation import Eager
from tinyllm.training.distributed.strategy import Strategy
from tinyllm.training.experience import Experience
from tinyllm.training.objectives.base import Objective
from tinyllm.training.objectives.grpo import ADVANTAGE, GRPO, OLD, PER_TOKEN, REFERENCE
from tinyllm.training.objectives.policy_gradient import advantages, divisor
from tinyllm.training.state import TrainState
from tinyllm.utils.device import autocast
from tinyllm.utils.seeds import derive_seed
from tinyllm.utils.stop_signal import Interrupted, Stopping

PATIENCE = 20
"""Steps at the start without any difference of rewards, after which training is ended: there is nothing to learn."""


@dataclass(frozen=True, kw_only=True)
class Rewarded:
    """Answers to some prompts, with their rewards.

    Attributes:
        prompts: token ids of the prompts.
        answers: ``group`` answers to each prompt in turn.
        completions: the answers as text.
        scores: of every reward, by its name, and their weighted sum, by "".
    """

    prompts: Sequence[Sequence[int]]
    answers: Sequence[Answer]
    completions: Sequence[Completion]
    scores: dict[str, list[float]]


@dataclass(kw_only=True)
class Rollouts:
    """Gives each step of GRPO its answers, and each evaluation its rewards.

    Answer k to the prompt of sample n at step s is drawn from a stream of its own, of (seed, s, n, k): it depends
    neither on the ranks and micro-batches nor on where a run was resumed.
    """

    plan: RunPlan
    state: TrainState
    objective: GRPO
    compiler: Eager
    answering: Answering
    rewards: Rewards
    reference: ReferenceModel | None
    kernels: DecodeKernels | None
    began_flat: int = field(default=0, init=False)
    """Steps since the start in which all groups had equal rewards; −1 once one had not."""
    last_start: float = field(default=0.0, init=False)
    last_seconds: float = field(default=0.0, init=False)
    """When the rollouts of the step before began, and how long they took."""

    def __post_init__(self) -> None:
        strategy, model = self.plan.strategy, self.state.model
        any_rank = partial(_on_any_rank, strategy)
        self.model: Any = TogetherModel(model, any_rank) if strategy.is_sharded else model

    def _finish(self) -> None:
        """Take part in the passes of ranks whose answers are longer, if they need this one for them."""
        if isinstance(self.model, TogetherModel):
            with autocast(self.plan.device, self.plan.precision):
                self.model.finish()

    @property
    def data(self) -> PromptData:
        """The prompts of the run."""
        data: Any = self.plan.data
        assert isinstance(data, PromptData)
        return data

    def collect(self, step: int, batches: Sequence[Batch]) -> Experience:
        """The answers to the prompts of a step as micro-batches of as many prompts as were given.

        Raises:
            UserError: the rewards of the first steps never differed, or a reward is not a number.
        """
        objective, strategy, started = self.objective, self.plan.strategy, time.perf_counter()
        model: Any = self.state.model
        rewarded = []
        with strategy.inference_context(), self.compiler.inference_context():
            model.train(False)
            for batch in batches:
                prompts = [self.data.train.prompts[number] for number in batch.extra[PROMPT].tolist()]
                seeds = [
                    [derive_seed(self.plan.cfg.seed, "rollout", step, sample, k) for k in range(objective.group_size)]
                    for sample in batch.extra[SAMPLE].tolist()
                ]
                rewarded.append(self._answered(self.answering, prompts, seeds))
            self._finish()
            model.train(True)
        seconds = time.perf_counter() - started
        step_seconds = started - self.last_start if self.last_start else 0.0
        share = {"speed/rollout_share": self.last_seconds / step_seconds} if step_seconds else {}
        self.last_start, self.last_seconds = started, seconds
        totals = self._reduced([self._sums(each) for each in rewarded])
        n_answers, n_tokens = round(totals.pop("answers")), round(totals.pop("tokens"))
        groups = totals.pop("groups")
        metrics = {f"rl/{name}": total / n_answers for name, total in totals.items() if not name.startswith("group/")}
        metrics["rl/reward_std"] = totals["group/std"] / groups
        metrics["rl/live_groups"] = totals["group/live"] / groups
        metrics |= {"speed/rollout_tokens_per_s": n_tokens / max(seconds, 1e-9), **share}
        self._require_differences(metrics)
        weight = divisor(
            objective.normaliser, answers=n_answers, tokens=n_tokens, max_new_tokens=objective.max_new_tokens
        )
        per_token = weight / max(n_tokens, 1)
        made = [self._batch(each, per_token) for each in rewarded]
        if self.reference is not None:
            with self.compiler.inference_context():
                for batch in made:
                    batch.extra[REFERENCE] = self.reference.logprobs(batch)
        return Experience(batches=made, metrics=metrics, generated=n_tokens)

    def evaluate(self, stopping: Stopping) -> dict[str, float]:
        """Mean rewards of the most likely answers to the prompts of validation.

        Raises:
            Interrupted: ``stopping`` returned true.
        """
        strategy, prompts = self.plan.strategy, self.data.val.prompts
        greedy = Answering(**vars(self.answering) | {"temperature": 0.0})
        model: Any = self.state.model
        was_training = model.training
        model.train(False)
        sums = []
        try:
            for first in range(0, len(prompts), MOST_ROWS * strategy.world_size):
                if stopping():
                    raise Interrupted
                chunk = prompts[first : first + MOST_ROWS * strategy.world_size][strategy.rank :: strategy.world_size]
                if chunk:
                    sums.append(self._sums(self._answered(greedy, chunk, [[0]] * len(chunk))))
                self._finish()
        finally:
            model.train(was_training)
        totals = self._reduced(sums)
        n_answers = totals.pop("answers")
        return {
            f"val/{name}": total / n_answers
            for name, total in totals.items()
            if name not in ("tokens", "groups") and not name.startswith("group/")
        }

    def _answered(self, answering: Answering, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]]) -> Rewarded:
        """Answers to prompts, at most ``MOST_ROWS`` at a time, and their rewards."""
        group, answers = len(seeds[0]), []
        at_a_time = max(1, MOST_ROWS // group)
        in_half = partial(autocast, self.plan.device, self.plan.precision)
        for first in range(0, len(prompts), at_a_time):
            part = slice(first, first + at_a_time)
            answers += answering.answers(
                self.model, prompts[part], seeds=seeds[part], autocast=in_half, kernels=self.kernels
            )
        completions = [answering.completion(answer) for answer in answers]
        repeated = [prompt for prompt in prompts for _ in range(group)]
        return Rewarded(
            prompts=[answering.prompt_ids(prompt) for prompt in prompts],
            answers=answers,
            completions=completions,
            scores=self.rewards.scores(repeated, completions),
        )

    def _sums(self, rewarded: Rewarded) -> dict[str, float]:
        """Figures summed over the answers, and those of groups over the groups."""
        rewards_PG = _grouped(rewarded)
        found = {"reward" + (f"_{name}" if name else ""): math.fsum(each) for name, each in rewarded.scores.items()}
        every = rewarded.completions
        found |= {
            "length": float(sum(each.tokens for each in every)),
            "ended": float(sum(each.ended for each in every)),
            "truncated": float(sum(not each.ended for each in every)),
            "tool_rate": float(sum(each.calls > 0 for each in every)),
            "tool_errors": float(sum(each.errors for each in every)),
            "answers": float(len(every)),
            "tokens": float(sum(each.tokens for each in every)),
            "groups": float(len(rewards_PG)),
            "group/std": float(rewards_PG.std(1, correction=0).sum()),
            "group/live": float((rewards_PG != rewards_PG[:, :1]).any(1).sum()),
        }
        return found

    def _reduced(self, sums: Sequence[dict[str, float]]) -> dict[str, float]:
        """The sums over all batches and ranks; a rank without any has the names of the others."""
        every = [each for of_rank in self.plan.strategy.gather_objects(list(sums)) for each in of_rank]
        return {name: math.fsum(each[name] for each in every) for name in every[0]}

    def _require_differences(self, metrics: dict[str, float]) -> None:
        """End a run that has nothing to learn from its first steps.

        Raises:
            UserError: the rewards of no group differed in any of the first ``PATIENCE`` steps of this start.
        """
        if self.began_flat < 0 or metrics["rl/live_groups"]:
            self.began_flat = -1
            return
        self.began_flat += 1
        if self.began_flat >= PATIENCE:
            mean = f"their mean is {metrics['rl/reward']:g} and {metrics['rl/ended']:.0%} of the answers end"
            hint = f"{mean}; start from weights that sometimes succeed, or reward something that differs"
            what = f"equal rewards in every group of the first {PATIENCE} steps"
            raise UserError(what, key="reward", value=",".join(self.rewards.rewards), hint=hint)

    def _batch(self, rewarded: Rewarded, per_token: float) -> Batch:
        """The answers as rows: prompt and answer, of which the tokens that the model chose are targets."""
        group = len(rewarded.answers) // len(rewarded.prompts)
        rows = [(rewarded.prompts[place // group], answer) for place, answer in enumerate(rewarded.answers)]
        longest = max(len(prompt) + len(answer.ids) for prompt, answer in rows) - 1
        shape = len(rows), row_length(longest, self.model.max_seq_len)
        inputs, targets = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORE, dtype=np.int64)
        old = np.zeros(shape, dtype=np.float32)
        for place, (prompt, answer) in enumerate(rows):
            ids = np.concatenate([prompt, answer.ids])
            inputs[place, : len(ids) - 1] = ids[:-1]
            span = slice(len(prompt) - 1, len(ids) - 1)
            targets[place, span] = np.where(answer.generated, answer.ids, IGNORE)
            old[place, span] = answer.logprobs
        better = advantages(_grouped(rewarded), self.objective.advantage).flatten().float()
        extra = {ADVANTAGE: better, OLD: torch.from_numpy(old), PER_TOKEN: torch.tensor(per_token)}
        return Batch(inputs=torch.from_numpy(inputs), targets=torch.from_numpy(targets), extra=extra)


def _on_any_rank(strategy: Strategy, fact: bool) -> bool:
    """Whether something holds on at least one rank; every rank has to call it."""
    return any(row[0] for row in strategy.gather([float(fact)]))


def _grouped(rewarded: Rewarded) -> torch.Tensor:
    """The rewards (P, G) in fp64."""
    return torch.tensor(rewarded.scores[""], dtype=torch.float64).view(len(rewarded.prompts), -1)


def make_rollouts(plan: RunPlan, state: TrainState, objective: Objective, compiler: Eager) -> Rollouts | None:
    """The rollouts of a run whose objective trains on answers to prompts; None for others."""
    if not isinstance(objective, GRPO):
        return None
    data: Any = plan.data
    assert isinstance(data, PromptData)
    answering = Answering(
        tokenizer=data.tokenizer,
        template=data.chat_template,
        tool=build_tool(plan.cfg, allow=plan.invocation.allow),
        max_new_tokens=objective.max_new_tokens,
        temperature=objective.temperature,
    )
    return Rollouts(
        plan=plan,
        state=state,
        objective=objective,
        compiler=compiler,
        answering=answering,
        rewards=build_rewards(plan.cfg, allow=plan.invocation.allow, device=plan.device),
        reference=make_reference(plan, objective),
        kernels=kernels_for(plan.device),
    )
