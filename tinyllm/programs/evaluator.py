"""Evaluations and samples of a run while it trains."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from tinyllm.data.batch import PAIRS
from tinyllm.inference.evaluation import evaluate_sources
from tinyllm.inference.generator import generate_text
from tinyllm.programs.builders import plain
from tinyllm.programs.conversations import sample_prompt
from tinyllm.programs.rollouts import Rollouts
from tinyllm.programs.run_plan import RunPlan
from tinyllm.training.compilation import Eager
from tinyllm.training.objectives.base import Objective
from tinyllm.training.objectives.evaluation import evaluate_objective
from tinyllm.training.state import TrainState
from tinyllm.utils.device import autocast
from tinyllm.utils.fault_injection import fault
from tinyllm.utils.seeds import derive_seed
from tinyllm.utils.stop_signal import Stopping


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Evaluations and samples during training, with the averaged weights if the run keeps an average."""

    plan: RunPlan
    state: TrainState
    objective: Objective
    compiler: Eager
    rollouts: Rollouts | None = None
    """Answers prompts, if that is what the objective trains on."""

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Averaged weights, the strategy's and the compiler's context for inference."""
        with self.state.average.applied(), self.plan.strategy.inference_context(), self.compiler.inference_context():
            yield

    def evaluate(self, stopping: Stopping) -> dict[str, float]:
        """Metrics of the validation split and, with ``trainer.eval_train_tokens``, the loss of fixed training data."""
        trainer = self.plan.cfg.trainer
        with self.inference():
            fault("evaluate")
            if self.rollouts is not None:
                return self.rollouts.evaluate(stopping)
            metrics = self.metrics_of("val", trainer.eval_tokens, stopping)
            if trainer.eval_train_tokens:
                fixed = self.metrics_of("train", trainer.eval_train_tokens, stopping)
                metrics["train/eval_loss"] = fixed["train/loss"]
        return metrics

    def metrics_of(self, name: str, max_tokens: int | None, stopping: Stopping) -> dict[str, float]:
        """Metrics of at most ``max_tokens`` tokens of a split of each source, divided among the ranks."""
        plan, strategy = self.plan, self.plan.strategy
        model: Any = self.state.model
        settings: dict[str, Any] = {
            "device": plan.device,
            "autocast": partial(autocast, plan.device, plan.precision),
            "rank": strategy.rank,
            "world_size": strategy.world_size,
            "gather": strategy.gather,
            "stopping": stopping,
            "name": name,
        }
        read: dict[str, Any] = {"seq_len": plan.batch.seq_len, "batch_size": plan.batch.batch_size}
        splits: Any = plan.data.splits(name)
        if self.objective.reads == PAIRS:
            batches = splits[""].eval_batches(**read, max_tokens=max_tokens)
            return evaluate_objective(self.objective, batches, **settings)
        return evaluate_sources(model, splits, plan.data.shares(), **read, max_tokens=max_tokens, **settings)

    def sample(self, step: int, stopping: Stopping) -> str:
        """A sample generated after a step."""
        plan, cfg = self.plan, self.plan.cfg
        model: Any = self.state.model
        with self.inference():
            return generate_text(
                model,
                plan.data.tokenizer,
                **sample_prompt(plan.data, cfg.trainer.sample_prompt),
                max_new_tokens=cfg.trainer.sample_tokens,
                seed=derive_seed(cfg.seed, "sample", step),
                **plain(cfg.trainer.sample),
                autocast=partial(autocast, plan.device, plan.precision),
                stopping=stopping,
            )
